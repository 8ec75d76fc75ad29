"""Batches of either kind: the same from any state, in any number of workers and processes, and what makes none."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data.random_clips import DIFFUSION, EMBEDDER, HDTF, MEAD, WIDTH, assert_same, clip, make, take, write

from dicetalk_jax.data.batches.diffusion import DiffusionBatchConfig, diffusion_batches
from dicetalk_jax.data.batches.embedder import embedder_batches
from dicetalk_jax.data.encode.record import CONFIG, open_encoded
from dicetalk_jax.data.sets import shard_name
from dicetalk_jax.errors import InputError

TESTS = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["embedder", "diffusion"])
def test_resumes_anywhere_in_threads(kind, mead, hdtf):
  whole = take(make(kind, mead, hdtf, seed=3), 9)
  for at in (0, 1, 4, 8):
    first = make(kind, mead, hdtf, seed=3)
    for _ in range(at):
      next(first)
    state = json.loads(json.dumps(first.get_state()))
    first.close()
    second = make(kind, mead, hdtf, seed=3)
    next(second)  # it has begun elsewhere
    second.set_state(state)
    assert second.get_state() == state
    for ours, theirs in zip(take(second, 9 - at), whole[at:], strict=True):
      assert_same(ours, theirs)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same_batches_from_any_state(workers, mead, hdtf):
  whole = take(make("diffusion", mead, hdtf), 6)
  state = make("diffusion", mead, hdtf).get_state() | {"next": 3}
  with make("diffusion", mead, hdtf, workers=workers) as batches:
    batches.set_state(state)
    for theirs in whole[3:]:
      assert_same(next(batches), theirs)
    assert batches.get_state()["next"] == 6


def test_a_state_made_by_workers_goes_on_in_threads(mead, hdtf):
  whole = take(make("embedder", mead, hdtf), 4)
  with make("embedder", mead, hdtf, workers=2) as batches:
    for theirs in whole[:2]:
      assert_same(next(batches), theirs)
    state = batches.get_state()
  rest = make("embedder", mead, hdtf)
  rest.set_state(state)
  for ours, theirs in zip(take(rest, 2), whole[2:], strict=True):
    assert_same(ours, theirs)


@pytest.mark.parametrize("kind", ["embedder", "diffusion"])
@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_every_global_batch(kind, count, mead, hdtf):
  whole = take(make(kind, mead, hdtf), 4)
  parts = [take(make(kind, mead, hdtf, process_index=i, process_count=count), 4) for i in range(count)]
  for theirs, shares in zip(whole, zip(*parts, strict=True), strict=True):
    assert_same({name: np.concatenate([share[name] for share in shares]) for name in theirs}, theirs)


@pytest.mark.parametrize("kind", ["embedder", "diffusion"])
def test_the_seed_decides(kind, mead, hdtf):
  for ours, theirs in zip(take(make(kind, mead, hdtf), 3), take(make(kind, mead, hdtf), 3), strict=True):
    assert_same(ours, theirs)
  assert not np.array_equal(
    take(make(kind, mead, hdtf), 1)[0]["speech"], take(make(kind, mead, hdtf, seed=1), 1)[0]["speech"]
  )


def test_what_is_kept_in_memory_changes_nothing(mead, hdtf):
  kept, read, some = (make("embedder", mead, hdtf, memory_gb=gigabytes) for gigabytes in (1, 0, 2e-5))
  for batches in zip(take(kept, 5), take(read, 5), take(some, 5), strict=True):
    assert_same(batches[1], batches[0])
    assert_same(batches[2], batches[0])


def test_validation_is_fixed_and_ends(mead, hdtf):
  batches = make("diffusion", mead, hdtf, training=False, seed=5)
  first = list(batches)
  assert len(first) == len(batches) == 7  # 25 clips by fours
  clips = np.concatenate([batch["clip"] for batch in first])
  valid = np.concatenate([batch["valid"] for batch in first])
  assert clips[valid].tolist() == [i for i, c in enumerate(MEAD + HDTF) if c.num_frames >= 49]
  assert valid.sum() == 25 and valid.shape == (28,)
  np.testing.assert_array_equal(first[0]["mask_box"], np.float32([[16, 8, 32, 40]] * 4))
  for ours, theirs in zip(list(batches), first, strict=True):
    assert_same(ours, theirs)
  groups = list(make("embedder", mead, hdtf, training=False))
  assert len(groups) == 3
  valid = np.concatenate([batch["valid"] for batch in groups])
  assert np.concatenate([batch["group"] for batch in groups])[valid].tolist() == np.repeat(np.arange(10), 2).tolist()


def test_a_state_from_before_a_setting_existed_was_saved_with_its_default(mead, hdtf):
  batches = make("diffusion", mead, hdtf)
  state = json.loads(json.dumps(batches.get_state())) | {"next": 2}
  assert state["settings"].pop("min_level") == 0
  batches.set_state(state)
  assert batches.get_state()["next"] == 2
  other = make("diffusion", mead, hdtf, config=dataclasses.replace(DIFFUSION, min_level=3))
  with pytest.raises(InputError, match="min_level 0, and this has 3"):
    other.set_state(state)


def test_a_state_of_something_else_is_refused(mead, hdtf):
  state = make("diffusion", mead, hdtf).get_state()
  others = [
    (dict(seed=1), "seed 0, and this has 1"),
    (dict(config=DiffusionBatchConfig(batch=8)), "batch 4, and this has 8"),
    (dict(training=False), "training True, and this has False"),
  ]
  for options, said in others:
    with pytest.raises(InputError, match=said):
      make("diffusion", mead, hdtf, **options).set_state(state)
  with pytest.raises(InputError, match="clips"):
    diffusion_batches(mead, config=DIFFUSION).set_state(state)
  with pytest.raises(InputError, match="kind diffusion"):
    make("embedder", mead, hdtf).set_state(state)
  for wrong in (-1, "3", None, True):
    with pytest.raises(InputError, match="next"):
      make("diffusion", mead, hdtf).set_state(state | {"next": wrong})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_named(workers, tmp_path):
  folder = write(tmp_path / "set", MEAD)
  open_encoded(folder, "train")  # which leaves the index
  path = folder / shard_name("drawn", "train", 1, 2)
  os.truncate(path, path.stat().st_size // 2)
  with diffusion_batches(folder, config=DIFFUSION, workers=workers) as batches, pytest.raises(InputError) as caught:
    for _ in range(20):
      next(batches)
  assert path.name in str(caught.value) and "damaged" in str(caught.value)


def test_what_cannot_be_batched(tmp_path, mead, hdtf):
  (tmp_path / "empty").mkdir()
  (tmp_path / "begun").mkdir()
  (tmp_path / "begun" / CONFIG).write_text("{}")
  audio = write(tmp_path / "audio", MEAD, what="audio")
  large = write(tmp_path / "large", [clip("large", 60, size=128)], shards=1)
  short = write(tmp_path / "few", [clip("few", 30)], shards=1)
  assert take(embedder_batches(audio, EMBEDDER), 1)[0]["speech"].shape == (8, 24, WIDTH)
  for call, said in [
    (lambda: diffusion_batches(tmp_path / "empty"), "dicetalk data"),
    (lambda: diffusion_batches(tmp_path / "begun"), "not finished: run the same `dicetalk data encode`"),
    (lambda: diffusion_batches(audio), "without its pictures"),
    (lambda: diffusion_batches(), "no data is given"),
    (lambda: diffusion_batches(mead, large), "64x64 and 128x128"),
    (lambda: diffusion_batches(short), "no clip of 49 frames"),
    (lambda: diffusion_batches(mead, split="test"), "no split 'test'; it has train"),
    (lambda: diffusion_batches(mead, config=DIFFUSION, process_count=3), "multiple of 3"),
    (lambda: diffusion_batches(mead, config=DIFFUSION, process_index=2, process_count=2), "process 2 of 2"),
    (lambda: diffusion_batches(mead, seed=-1), "seed -1"),
    (lambda: diffusion_batches(mead, workers=-1), "-1 workers"),
    (lambda: embedder_batches(mead), "6 groups"),
    (lambda: embedder_batches(short), "0 groups"),
    (lambda: embedder_batches(mead, EMBEDDER, process_count=8), "4 groups a batch"),
    (lambda: embedder_batches([]), "no data is given"),
  ]:
    with pytest.raises(InputError, match=said):
      call()


ABANDONED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from data.random_clips import make
if __name__ == "__main__":
  batches = make({kind!r}, Path({mead!r}), Path({hdtf!r}), workers=2)
  next(batches)
  other = make({kind!r}, Path({mead!r}), Path({hdtf!r}))
  next(other)
  del other
"""


@pytest.mark.parametrize("kind", ["embedder", "diffusion"])
def test_batches_that_nobody_closes_end_quietly(kind, tmp_path, mead, hdtf):
  script = tmp_path / "abandoned.py"
  script.write_text(ABANDONED.format(kind=kind, tests=str(TESTS), mead=str(mead), hdtf=str(hdtf)))
  ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
  assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
