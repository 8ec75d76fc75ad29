"""Checkpoints on a real disk: what comes back, what is kept, and what happens to those that are broken."""

import logging
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dicetalk_jax.errors import OutputError, WeightsError
from dicetalk_jax.training.checkpoints import Checkpoints
from dicetalk_jax.training.state import TrainState

DATA = {"next": 2**40 - 1, "kind": "drawn", "seed": 2**33, "settings": {"jitter": 0.02, "names": []}}


def make(step=0, width=3, optimizer=None, frozen=0.0, trainable="^a/", ema=True):
  params = {
    "a": {"kernel": np.arange(4 * width, dtype=np.float32).reshape(4, width), "bias": np.zeros(width, np.float32)},
    "b": {"kernel": np.full((5, 2), frozen, np.float32)},
  }
  optimizer = optimizer or optax.adam(1e-3)
  state = TrainState.create(params, optimizer, jax.random.key(3), trainable, ema)
  state = state.replace(frozen=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.frozen))
  return at(state, step)


def at(state, step):
  """A state that is another at each step."""
  moved = jax.tree.map(lambda leaf: leaf + jnp.asarray(step, leaf.dtype), (state.params, state.opt_state, state.ema))
  params, opt_state, ema = moved
  return state.replace(step=jnp.int32(step), params=params, opt_state=opt_state, ema=ema)


def same(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  assert [leaf.dtype for leaf in jax.tree.leaves(ours)] == [leaf.dtype for leaf in jax.tree.leaves(theirs)]


def fill(folder, steps, **options):
  said = []
  with Checkpoints(folder, warn=said.append, **options) as checkpoints:
    for step in steps:
      checkpoints.save(make(step), DATA)
  return said


def restore(folder, state=None):
  said = []
  with Checkpoints(folder, warn=said.append) as checkpoints:
    return checkpoints.restore(make() if state is None else state), said


def folders(folder):
  return sorted(path.name for path in folder.iterdir())


def complete(folder):
  """Without what threads of a failed save may still have written to."""
  return [name for name in folders(folder) if "tmp" not in name]


@pytest.mark.parametrize("ema", [True, False])
def test_a_state_comes_back_bit_for_bit(ema, tmp_path):
  with Checkpoints(tmp_path / "run") as checkpoints:
    assert checkpoints.latest is None and checkpoints.restore(make()) is None
    checkpoints.save(make(7, ema=ema), DATA, wait=True)
    assert checkpoints.latest == 7
  (state, data), said = restore(tmp_path / "run", make(ema=ema))
  same(state, make(7, ema=ema))
  assert data == DATA and not said


def test_it_is_written_as_it_was_though_training_goes_on(tmp_path):
  optimizer = optax.adam(1e-3)
  state = TrainState.create({"a": np.zeros(2_000_000, np.float32)}, optimizer, jax.random.key(0))
  move = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state, {})
    for _ in range(5):
      state = move(state)
  assert (np.asarray(state.params["a"]) == 5).all()
  (found, _), _ = restore(tmp_path, state)
  assert (np.asarray(found.params["a"]) == 0).all() and found.step == 0


def test_the_newest_are_kept_and_some_for_good(tmp_path):
  fill(tmp_path, range(1, 12), keep=2, keep_every=4)
  assert folders(tmp_path) == ["10", "11", "4", "8"]
  (state, _), _ = restore(tmp_path)
  assert state.step == 11


def test_one_that_is_half_written_is_passed_over_and_removed(tmp_path):
  fill(tmp_path, [1, 2])
  half = tmp_path / "3.orbax-checkpoint-tmp"
  shutil.copytree(tmp_path / "2", half)
  (half / "commit_success.txt").unlink()
  (tmp_path / "notes.txt").write_text("of a person")
  (state, _), said = restore(tmp_path)
  same(state, make(2))
  assert not said and folders(tmp_path) == ["1", "2", "notes.txt"]
  fill(tmp_path, [3])
  assert restore(tmp_path)[0][0].step == 3


@pytest.mark.parametrize("how", ["data", "metadata", "all"])
def test_one_that_is_damaged_is_told_and_the_one_before_is_taken(how, tmp_path):
  fill(tmp_path, [1, 2])
  damaged = {"data": tmp_path / "2" / "state", "all": tmp_path / "2"}.get(how)
  files = [path for path in damaged.rglob("*") if path.is_file()] if damaged else [tmp_path / "2/_CHECKPOINT_METADATA"]
  for path in files:
    path.write_bytes(path.read_bytes()[:5])
  (state, data), said = restore(tmp_path)
  same(state, make(1))
  assert data == DATA
  assert f"{tmp_path / '2'} is damaged" in said[0] and "continues from" in said[1]
  fill(tmp_path, [2])
  same(restore(tmp_path)[0][0], make(2))


def test_where_all_are_damaged_nothing_begins_anew_unasked(tmp_path):
  fill(tmp_path, [1])
  for path in (tmp_path / "1").rglob("*"):
    if path.is_file():
      path.write_bytes(b"")
  with pytest.raises(WeightsError, match="no checkpoint that can be read"):
    restore(tmp_path)
  assert folders(tmp_path) == ["1"]


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(width=4), r"'params/a/bias' is \(3,\), wanted \(4,\)"),
    (dict(optimizer=optax.sgd(0.1, momentum=0.9)), r"'opt_state/0/trace/a/bias' is missing, wanted \(3,\)"),
    (dict(trainable=""), r"'params/b/kernel' is missing, wanted \(5, 2\)"),
    (dict(ema=False), r"'ema/a/bias' is \(3,\), wanted none of that name"),
    (dict(frozen=1.0), r"other weights: its frozen 'b/kernel'"),
  ],
)
def test_a_checkpoint_of_another_model_is_refused(options, words, tmp_path):
  fill(tmp_path, [1])
  with pytest.raises(WeightsError, match=words) as failure:
    restore(tmp_path, make(**options))
  assert str(tmp_path / "1") in str(failure.value) and "\n" not in str(failure.value)
  assert folders(tmp_path) == ["1"]


LARGE = 4 * 4 * 150_000


def large(step):
  values = np.random.default_rng([step]).standard_normal(150_000)
  state = TrainState.create({"a": values}, optax.adam(1e-3), jax.random.key(0))
  return state.replace(step=jnp.int32(step))


@pytest.mark.parametrize("room", [LARGE // 2, LARGE + 8_000], ids=["before it begins", "while it is written"])
def test_a_full_disk_is_told_and_the_last_good_checkpoint_stays(room, small_disk):
  folder, other, said = small_disk / "run", small_disk / "other", []
  with Checkpoints(folder, keep=1, warn=said.append) as checkpoints:
    checkpoints.save(large(1), DATA, wait=True)
    other.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
    for step in (2, 3):
      checkpoints.save(large(step), DATA)
      until = time.monotonic() + 20
      while len(said) < step - 1 and time.monotonic() < until:
        checkpoints.poll()
        time.sleep(0.01)
      assert f"step {step} could not be written" in said[-1] and "the last is that of step 1" in said[-1]
      assert complete(folder) == ["1"] and checkpoints.latest == 1
    with pytest.raises(OutputError, match="step 4 could not be written"):
      checkpoints.save(large(4), DATA, wait=True)
    other.unlink()
    checkpoints.save(large(5), DATA)
  assert len(said) == 2 and all("\n" not in message for message in said)
  assert folders(folder) == ["5"]
  (state, _), _ = restore(folder, large(0))
  same(state, large(5))


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(OutputError, match="cannot hold checkpoints"):
    Checkpoints(tmp_path / "file" / "run")


def test_the_log_of_others_is_as_it_was(tmp_path):
  before = logging.getLogger("absl").level
  fill(tmp_path, [1])
  assert logging.getLogger("absl").level == before
