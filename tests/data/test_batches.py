"""Batches from encoded folders on disk: the same whoever reads them, resumable anywhere, and right in every row."""

import dataclasses
import itertools
import json
import os

import numpy as np
import pytest

from dicetalk_jax.data.batches import DiffusionBatchConfig, EmbedderBatchConfig, diffusion_batches, embedder_batches
from dicetalk_jax.data.encoded import CONFIG, EncodedClip, encoded_clip, features, open_encoded
from dicetalk_jax.data.records import TRUTH
from dicetalk_jax.data.sets import serialize, shard_name, write_info, write_shard
from dicetalk_jax.errors import InputError
from dicetalk_jax.inference.conditions import frame_windows

LAYERS, WIDTH = 3, 8


def clip(name, frames, identity="M003", video=None, emotion=-1, level=0, size=64, expression=True, source="mead"):
  rng = np.random.default_rng([frames, *name.encode()])

  def draw(*shape):
    return rng.standard_normal(shape, np.float32).astype(np.float16)

  reference = np.arange(0, frames, 10, dtype=np.int32)
  latents = (frames, size // 8, size // 8, 4)
  return EncodedClip(
    **dict(clip=name, source=source, split="train", identity=identity, video=video or name, sentence=""),
    **dict(emotion=emotion, level=level, num_frames=frames, height=size, width=size, face_box=(16, 8, 32, 40)),
    expression=rng.standard_normal((frames if expression else 0, 64)).astype(np.float32),
    truth=np.zeros((0, len(TRUTH)), np.float32),
    states=draw(2 * frames, LAYERS, WIDTH),
    latents_mean=draw(*latents),
    latents_logvar=draw(*latents),
    reference_index=reference,
    image_embedding=draw(len(reference), 16),
  )


def write(folder, clips, what="all", shards=2, name="drawn"):
  """An encoded folder as `encode` leaves it, but for the index, which reading makes."""
  folder.mkdir(parents=True)
  record, written = features(what), []
  if what == "audio":
    pictures = ("latents_mean", "latents_logvar", "reference_index", "image_embedding")
    clips = [dataclasses.replace(clip, **dict.fromkeys(pictures)) for clip in clips]
  for i in range(shards):
    part = clips[i * len(clips) // shards : (i + 1) * len(clips) // shards]
    examples = [serialize(record, clip.example()) for clip in part]
    written.append(write_shard(folder / shard_name(name, "train", i, shards), examples))
  write_info(folder, name, record, {"train": written})
  return folder


MEAD = [
  clip(f"{person}/{emotion}/{level}", 52 + 3 * level, person, emotion=emotion, level=level)
  for person in ("M003", "W009")
  for emotion in (0, 4, 5)
  for level in (1, 2, 3)
]
HDTF = [clip(f"talk{i}/{j}", 60 + i, f"WDA{i}", video=f"talk{i}", source="hdtf") for i in range(3) for j in range(2)]
HDTF.append(clip("short", 48, source="hdtf"))
HDTF.append(clip("long", 200, "WRA", source="hdtf", expression=False))


@pytest.fixture(scope="module")
def mead(tmp_path_factory):
  return write(tmp_path_factory.mktemp("sets") / "mead", MEAD)


@pytest.fixture(scope="module")
def hdtf(tmp_path_factory):
  return write(tmp_path_factory.mktemp("sets") / "hdtf", HDTF)


DIFFUSION = DiffusionBatchConfig(batch=4)
EMBEDDER = EmbedderBatchConfig(groups=4, clips=2, frames=24)


def take(batches, count):
  with batches:
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


def assert_same(ours, theirs):
  assert ours.keys() == theirs.keys()
  for name in ours:
    assert ours[name].dtype == theirs[name].dtype
    np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def make(kind, mead, hdtf, **options):
  if kind == "embedder":
    return embedder_batches([mead, hdtf], options.pop("config", EMBEDDER), **options)
  return diffusion_batches(mead, hdtf, options.pop("config", DIFFUSION), **options)


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


def test_emotional_and_regular_clips_come_one_to_one(mead, hdtf):
  batches = make("diffusion", mead, hdtf)
  names = batches.source.clips
  for batch in take(batches, 6):
    assert (batch["emotion"] >= 0).tolist() == [True, False, True, False]
    assert all(
      names[i].startswith(("M003", "W009")) == (e >= 0) for i, e in zip(batch["clip"], batch["emotion"], strict=True)
    )


def test_an_epoch_has_every_clip_once_and_short_ones_never(mead, hdtf):
  batches = make("diffusion", mead, hdtf)
  assert batches.source.left_out["shorter than 49 frames"] == 1
  seen = np.concatenate([batch["clip"] for batch in take(batches, 18)])
  emotional, regular = seen[0::2], seen[1::2]
  usable = [i for i, c in enumerate(MEAD + HDTF) if c.num_frames >= 49]
  assert sorted(emotional[:18]) == sorted(emotional[18:]) == usable[:18]
  for epoch in regular[:35].reshape(5, 7):
    assert sorted(epoch) == usable[18:]
  assert emotional[:18].tolist() != emotional[18:].tolist()


def test_one_set_alone_gives_all(mead, hdtf):
  assert all((batch["emotion"] >= 0).all() for batch in take(diffusion_batches(mead, config=DIFFUSION), 3))
  assert all((batch["emotion"] < 0).all() for batch in take(diffusion_batches((), [hdtf], DIFFUSION), 3))


def test_diffusion_rows_are_of_their_clip(mead, hdtf):
  clips, phases = MEAD + HDTF, set()
  for batch in take(make("diffusion", mead, hdtf), 6):
    assert batch["latents_mean"].shape == (4, 25, 8, 8, 4)
    assert batch["audio"].shape == (4, 25, 10, LAYERS, WIDTH)
    assert batch["valid"].all()
    for i in range(4):
      c, start = clips[batch["clip"][i]], batch["start"][i]
      phases.add(int(start) % 2)
      frames = start + 2 * np.arange(25)
      np.testing.assert_array_equal(batch["latents_mean"][i], c.latents_mean[frames])
      np.testing.assert_array_equal(batch["latents_logvar"][i], c.latents_logvar[frames])
      # With a frame of silence before, odd frames become even ones.
      odd = start % 2
      whole = frame_windows(np.pad(c.states, ((2 * odd, 4), (0, 0), (0, 0))), 10)
      np.testing.assert_array_equal(batch["audio"][i], whole[(start + odd) // 2 :][:25])
      reference = [
        k for k, r in enumerate(c.reference_index) if np.array_equal(c.latents_mean[r], batch["image_latents"][i])
      ]
      np.testing.assert_array_equal(batch["image_embedding"][i], c.image_embedding[reference[0]])
      x, y, w, h = batch["mask_box"][i]
      assert abs(w / 32 - 1) <= 0.1 + 1e-6 and abs(h / 40 - w / 32) < 1e-6
      assert abs(x + w / 2 - 32) <= 0.05 * 32 + 1e-4 and abs(y + h / 2 - 28) <= 0.05 * 40 + 1e-4
      assert (batch["emotion"][i], batch["level"][i]) == (c.emotion, c.level)
      assert batch["image_size"][i].tolist() == [64, 64]
  assert phases == {0, 1}


def test_the_portrait_may_be_of_another_clip_of_the_person(mead, hdtf):
  config = dataclasses.replace(DIFFUSION, reference="person")
  clips = {c.clip: c for c in MEAD + HDTF}

  def portraits(batch, source):
    """(the clip, the clips that its portrait is of), row by row."""
    for i in np.flatnonzero(batch["valid"]):
      portrait = batch["image_latents"][i]
      found = [c for c in clips.values() if any(np.array_equal(c.latents_mean[r], portrait) for r in c.reference_index)]
      yield clips[source.clips[batch["clip"][i]]], found

  with make("diffusion", mead, hdtf, config=config) as batches:
    seen = [pair for batch, _ in zip(batches, range(8), strict=False) for pair in portraits(batch, batches.source)]
  for clip, (portrait,) in seen:
    assert portrait.identity == clip.identity
    # "long" is the only clip of its person.
    assert (portrait.clip == clip.clip) == (clip.clip == "long")
  with make("diffusion", mead, hdtf, config=config, training=False) as batches:
    held = [pair for batch in batches for pair in portraits(batch, batches.source)]
  assert all(portrait.emotion == 5 for clip, (portrait,) in held if clip.source == "mead")


def test_the_prior_window_is_of_the_clip_and_masked_after_its_end(mead, hdtf):
  clips = MEAD + HDTF
  lengths = set()
  for batch in take(make("diffusion", mead, hdtf), 12):
    for i in range(4):
      c = clips[batch["clip"][i]]
      n = int(batch["speech_mask"][i].sum())
      assert n == min(64, c.num_frames)
      lengths.add(n)
      speech = c.states[:, -1].astype(np.float32).reshape(-1, 2, WIDTH).mean(axis=1)
      rows = [
        s for s in range(c.num_frames - n + 1) if np.allclose(speech[s : s + n], batch["speech"][i][:n], atol=1e-6)
      ]
      assert len(rows) == 1 and not batch["speech"][i][n:].any()
      if len(c.expression):
        np.testing.assert_allclose(batch["expression"][i][:n], c.expression[rows[0] : rows[0] + n], atol=1e-6)
        assert not batch["expression"][i][n:].any()
        assert (batch["expression_mask"][i] == batch["speech_mask"][i]).all()
      else:
        assert not batch["expression_mask"][i].any() and not batch["expression"][i].any()
  assert {55, 64} <= lengths


def test_the_prior_may_be_of_any_clip_of_the_emotion_and_level(mead, hdtf):
  config = dataclasses.replace(DIFFUSION, prior="emotion")
  clips = {c.clip: c for c in MEAD + HDTF}

  def told_by(batch, i):
    """The clip whose speech the prior's window is."""
    n = int(batch["speech_mask"][i].sum())
    for c in clips.values():
      speech = c.states[:, -1].astype(np.float32).reshape(-1, 2, WIDTH).mean(axis=1)
      if any(np.allclose(speech[s : s + n], batch["speech"][i][:n], atol=1e-6) for s in range(len(speech) - n + 1)):
        return c
    raise AssertionError("the window is of no clip")

  with make("diffusion", mead, hdtf, config=config) as batches:
    seen = [
      (clips[batches.source.clips[batch["clip"][i]]], told_by(batch, i)) for batch in take(batches, 8) for i in range(4)
    ]
  labelled = [pair for pair in seen if pair[0].emotion >= 0]
  assert all((own.emotion, own.level) == (other.emotion, other.level) for own, other in labelled)
  # Both of the two people who have each.
  assert {own.identity != other.identity for own, other in labelled} == {True, False}
  assert all(own.clip == other.clip for own, other in seen if own.emotion < 0)
  with make("diffusion", mead, hdtf, config=config, training=False) as batches:
    for batch in batches:
      for i in np.flatnonzero(batch["valid"]):
        assert told_by(batch, i).clip == batches.source.clips[batch["clip"][i]]


def test_embedder_groups(mead, hdtf):
  batches = make("embedder", mead, hdtf)
  source, clips = batches.source, MEAD + HDTF
  assert source.left_out == {"groups of one short clip": 1}  # "short" has 48 frames, two windows want 54
  assert len(source.groups) == 6 + 3 + 1
  seen = []
  for batch in take(batches, 4):
    assert batch["expression"].shape == (8, 24, 64)
    pairs = batch["group"].reshape(4, 2)
    assert (pairs[:, 0] == pairs[:, 1]).all() and len(set(pairs[:, 0])) == 4
    seen.append(pairs[:, 0])
    for a, b in batch["clip"].reshape(4, 2):
      one, other = clips[a], clips[b]
      assert (one.identity, one.emotion) == (other.identity, other.emotion)
      assert one.emotion >= 0 or one.video == other.video
      assert a != b or one.clip == "long"
    for i, c in enumerate(batch["clip"]):
      assert source.clips[c] == clips[c].clip and source.identities[batch["identity"][i]] == clips[c].identity
      assert batch["emotion"][i] == clips[c].emotion and batch["level"][i] == clips[c].level
      assert batch["expression_mask"][i].any() == bool(len(clips[c].expression))
  assert len(set(np.concatenate(seen[:2]))) == 8  # an epoch is of whole batches, without repeats


def test_embedder_groups_of_an_emotion_whoever_feels_it(mead, hdtf):
  clips = MEAD + HDTF
  config = dataclasses.replace(EMBEDDER, group="emotion")
  batches = make("embedder", mead, hdtf, config=config)
  known = {(clip.emotion, clip.level) for clip in clips if clip.emotion >= 0}
  assert sum(name.startswith("emotion") for name in batches.source.groups) == len(known)
  for batch in take(batches, 12):
    assert len(set(batch["group"])) == 4
    for a, b in batch["clip"].reshape(4, 2):
      one, other = clips[a], clips[b]
      assert (one.emotion, one.level) == (other.emotion, other.level)
      # Two people feel each, and a pair is of different clips.
      assert one.identity != other.identity if one.emotion >= 0 else one.video == other.video
  with pytest.raises(InputError, match="group 'voice' is not known; choose person or emotion"):
    make("embedder", mead, hdtf, config=dataclasses.replace(EMBEDDER, group="voice"))


def test_windows_of_one_clip_do_not_overlap(hdtf):
  ramp = np.arange(400, dtype=np.float16)[:, None, None] * np.ones((1, LAYERS, WIDTH), np.float16)
  ramped = dataclasses.replace(clip("ramp", 200, "WRA"), states=ramp)
  folder = write(
    hdtf.parent / "ramp", [ramped, clip("a/1", 70, "A", video="a"), clip("a/2", 70, "A", video="a")], shards=1
  )
  config = EmbedderBatchConfig(groups=2, clips=4, frames=30, speed=0.1, jitter=0)
  speeds = []
  for batch in take(embedder_batches(folder, config), 20):
    spans = sorted((row[0, 0], row[-1, 0]) for row in batch["speech"][batch["clip"] == 0])
    assert len(spans) == 4 and all(a[1] < b[0] for a, b in itertools.pairwise(spans))
    speeds += [(last - first) / 2 / 29 for first, last in spans]
    assert np.bincount(batch["clip"], minlength=3).tolist() == [4, 2, 2]
  assert 0.9 - 1e-3 <= min(speeds) < 0.95 and 1.05 < max(speeds) <= 1.1 + 1e-3


def test_both_modalities_are_resampled_together(tmp_path):
  time = np.arange(200, dtype=np.float32)
  states = np.repeat(time, 2)[:, None, None] * np.ones((1, 1, 4), np.float32)
  expression = np.repeat(time[:, None], 64, axis=1)
  made = [
    dataclasses.replace(clip(f"a/{i}", 200, "A", video="a"), states=states.astype(np.float16), expression=expression)
    for i in range(2)
  ]
  folder = write(tmp_path / "set", made)
  batch = take(embedder_batches(folder, EmbedderBatchConfig(1, 2, 50, speed=0.1, jitter=0)), 1)[0]
  np.testing.assert_allclose(batch["expression"][..., 0], batch["speech"][..., 0], atol=1e-3)
  steps = np.diff(batch["speech"][..., 0], axis=1)
  np.testing.assert_allclose(steps, np.broadcast_to(steps[:, :1], steps.shape), atol=1e-3)
  jittered = take(embedder_batches(folder, EmbedderBatchConfig(1, 2, 50, speed=0, jitter=0.05)), 1)[0]
  noise = jittered["expression"] - jittered["speech"][..., :1]
  assert np.isclose(noise.std(), 0.05 * np.arange(50).std(), rtol=0.05)


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


def test_the_index_spares_the_records(tmp_path):
  folder = write(tmp_path / "set", MEAD)
  _, index = open_encoded(folder, "train")
  assert index.clip.tolist() == [c.clip for c in MEAD] and index.num_frames.tolist() == [c.num_frames for c in MEAD]
  for path in folder.glob("*.array_record*"):
    path.write_bytes(b"")
  assert open_encoded(folder, "train")[1].clip.tolist() == index.clip.tolist()


def test_records_come_back_as_they_were(mead):
  records, _ = open_encoded(mead, "train")
  found = encoded_clip(records[0])
  for field in dataclasses.fields(EncodedClip):
    np.testing.assert_array_equal(getattr(found, field.name), getattr(MEAD[0], field.name), err_msg=field.name)
  assert found.latents_mean.dtype == found.states.dtype == np.float16


def test_a_portrait_of_something_else_is_refused(mead, hdtf):
  with pytest.raises(InputError, match="'somebody'"):
    make("diffusion", mead, hdtf, config=dataclasses.replace(DIFFUSION, reference="somebody"))
  with pytest.raises(InputError, match="prior 'somebody'"):
    make("diffusion", mead, hdtf, config=dataclasses.replace(DIFFUSION, prior="somebody"))


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
    (lambda: diffusion_batches(), "no folder"),
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
    (lambda: embedder_batches([]), "no data"),
  ]:
    with pytest.raises(InputError, match=said):
      call()
