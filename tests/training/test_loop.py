"""The loop with a small model: how it ends, goes on, logs, validates, and what it does with numbers that are none."""

import contextlib
import functools
import os
import shutil
import signal
import struct
import threading
import time

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from training.test_step import PARAMS, loss_fn, same

from dicetalk_jax.errors import InputError, OutputError
from dicetalk_jax.training.config import LoopConfig, OptimizerConfig
from dicetalk_jax.training.loop import DivergedError, Status, Work, train
from dicetalk_jax.training.optimizer import make_optimizer, make_schedule
from dicetalk_jax.training.state import TrainState
from dicetalk_jax.training.step import make_step

CONFIG = LoopConfig(steps=12, log_every=3, validate_every=5, checkpoint_every=4, max_skipped=3)


class Stream:
  """Batches by number, in memory; poison: those that are not finite; end: how many there are."""

  def __init__(self, poison=(), end=1000, fingerprint=0):
    self.next, self.poison, self.end, self.fingerprint = 0, poison, end, fingerprint

  def __next__(self):
    if self.next >= self.end:
      raise StopIteration
    x = np.random.default_rng([self.next]).standard_normal((8, 4)).astype(np.float32)
    y = np.full((8, 1), np.nan if self.next in self.poison else 1, np.float32)
    self.next += 1
    return {"x": x, "y": y}

  def get_state(self):
    return {"next": self.next, "fingerprint": self.fingerprint}

  def set_state(self, state):
    if state["fingerprint"] != self.fingerprint:
      raise InputError("the state of the data is of another")
    self.next = state["next"]


@functools.cache
def compiled(accumulate):
  config = OptimizerConfig(learning_rate=0.05, accumulate=accumulate, ema_decay=0.9)
  optimizer = make_optimizer(config, 12)
  return optimizer, make_step(loss_fn, optimizer, make_schedule(config, 12), config.ema_decay, accumulate)


def run(folder, config=CONFIG, data=None, accumulate=1, **options):
  optimizer, step = compiled(accumulate)
  state = TrainState.create(PARAMS, optimizer, jax.random.key(0), "attn|head")
  losses, said = {}, []

  def report(step, metrics):
    losses.setdefault(step, []).append(metrics["loss"])
    if "at" in options and options["at"] == step:
      os.kill(os.getpid(), options["number"])

  known = {"warn": said.append} | {name: value for name, value in options.items() if name not in ("at", "number")}
  data = data or Stream()
  outcome = train(state, step, data, config, folder, accumulate=accumulate, report=report, **known)
  return outcome, losses, said


def scalars(folder):
  """[(step, name, value)] of all event files, and the steps from which each began."""
  points, begins = [], []
  for path in sorted((folder / "log").iterdir(), key=lambda path: path.stat().st_mtime_ns):
    data, place = path.read_bytes(), 0
    while place < len(data):
      (size,) = struct.unpack("Q", data[place : place + 8])
      event = Event.FromString(data[place + 12 : place + 12 + size])
      place += 16 + size
      begins += [event.step] if event.HasField("session_log") else []
      points += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
  return points, begins


def test_a_run_ends_with_its_log_and_its_checkpoints(tmp_path):
  told, validated = [], []

  def validate(state, log):
    validated.append((int(state.step), np.asarray(state.averaged()["head"]["kernel"])))
    return {"score": 0.5}

  outcome, losses, said = run(
    tmp_path, validate=validate, progress=lambda *of: told.append(of), work=Work(frames=200, flops=3.0, peak_flops=6e9)
  )
  assert (outcome.status, outcome.step, said) == (Status.FINISHED, 12, [])
  assert list(losses) == list(range(1, 13)) and all(len(of) == 1 for of in losses.values())
  assert losses[12][0] < 0.5 * losses[1][0]
  assert told == [("compile", 0, 1), ("compile", 1, 1), *(("train", i, 12) for i in range(1, 13))]
  assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["12", "4", "8"]
  assert [step for step, _ in validated] == [5, 10, 12]
  same(validated[-1][1], outcome.state.ema["head"]["kernel"])
  points, begins = scalars(tmp_path)
  found = {(step, name): value for step, name, value in points}
  assert begins == [1]
  assert {step for step, name in found if name == "train/loss"} == {3, 6, 9, 12}
  np.testing.assert_allclose([found[step, "train/loss"] for step in (3, 12)], [losses[3][0], losses[12][0]], rtol=1e-6)
  assert {step for step, name in found if name == "validation/score"} == {5, 10, 12}
  rate = found[6, "rate/steps_per_second"]
  np.testing.assert_allclose(found[6, "rate/frames_per_second"], 200 * rate, rtol=1e-5)
  np.testing.assert_allclose(found[6, "rate/model_flop_utilisation"], rate / 2e9, rtol=1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_asked_to_end_it_saves_and_goes_on_as_if_it_had_not(number, accumulate, tmp_path):
  whole, losses, _ = run(tmp_path / "whole", accumulate=accumulate)
  handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
  first, before, _ = run(tmp_path / "run", accumulate=accumulate, at=6, number=number)
  assert first.status == Status.INTERRUPTED and 6 <= first.step <= 7
  assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
  second, after, _ = run(tmp_path / "run", accumulate=accumulate)
  assert next(iter(after)) == first.step + 1 and second.status == Status.FINISHED
  assert before | after == losses
  same(second.state, whole.state)
  assert scalars(tmp_path / "run")[1] == [1, first.step + 1]


def test_a_second_ctrl_c_ends_it_at_once(tmp_path):
  def validate(state, log):
    for _ in range(2):
      os.kill(os.getpid(), signal.SIGINT)
    raise AssertionError

  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, validate=validate)
  assert run(tmp_path)[0].step == 12


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_first_step_compiles_ends_it_at_once(number, tmp_path):
  released, begun = threading.Event(), time.monotonic()

  def step(state, batch):
    # As XLA does, it does not return before it is done.
    threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
    released.wait(60)

  state = TrainState.create(PARAMS, compiled(1)[0], jax.random.key(0))
  with pytest.raises(KeyboardInterrupt):
    train(state, step, Stream(), CONFIG, tmp_path)
  released.set()
  assert time.monotonic() - begun < 30 and list((tmp_path / "checkpoints").iterdir()) == []
  assert run(tmp_path)[0].step == 12


def test_ctrl_c_that_ends_the_readers_too_is_no_error_and_loses_no_batch(tmp_path):
  class Readers(Stream):
    def __next__(self):
      if self.next == 5:
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("a worker has ended")
      return super().__next__()

  _, losses, _ = run(tmp_path / "whole", accumulate=2)
  outcome, before, _ = run(tmp_path / "run", data=Readers(), accumulate=2)
  assert (outcome.status, outcome.step) == (Status.INTERRUPTED, 2)
  assert before | run(tmp_path / "run", accumulate=2)[1] == losses


def test_what_has_finished_stays_so(tmp_path):
  outcome, _, _ = run(tmp_path)
  again, losses, _ = run(tmp_path)
  assert again.status == Status.FINISHED and not losses
  same(again.state, outcome.state)


def test_what_it_would_begin_with_takes_no_room_beside_what_it_goes_on_with(tmp_path):
  run(tmp_path, LoopConfig(steps=4))
  optimizer, step = compiled(1)
  begun = TrainState.create(PARAMS, optimizer, jax.random.key(0), "attn|head")
  train(begun, step, Stream(), CONFIG, tmp_path)
  moving = jax.tree.leaves(begun.replace(frozen=None))
  assert len(moving) > 8 and all(leaf.is_deleted() for leaf in moving)
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(begun.frozen))


def test_a_folder_has_one_run_at_a_time(tmp_path):
  refused = []

  def validate(state, log):
    with pytest.raises(InputError, match=f"another process trains in {tmp_path}; wait") as failure:
      run(tmp_path)
    refused.append(str(failure.value))
    return {}

  outcome, _, said = run(tmp_path, validate=validate)
  assert outcome.status == Status.FINISHED and len(refused) == 3 and said == []
  # It is free again, and nothing is left of that.
  assert run(tmp_path)[0].step == 12
  assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "log"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(OutputError, match="file/run cannot be a run folder"):
    run(tmp_path / "file" / "run")


def test_data_that_cannot_be_read_costs_no_step(tmp_path):
  class Damaged(Stream):
    def __next__(self):
      if self.next == 7:
        raise InputError("a file is damaged")
      return super().__next__()

  _, losses, _ = run(tmp_path / "whole")
  with pytest.raises(InputError, match="a file is damaged"):
    run(tmp_path / "run", data=Damaged())
  # Nor does the same again, which has done nothing.
  with pytest.raises(InputError, match="a file is damaged"):
    run(tmp_path / "run", data=Damaged())
  _, after, said = run(tmp_path / "run")
  assert after == {step: losses[step] for step in range(8, 13)} and said == []


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(log_every=0), "loop.log_every is 0"),
    (dict(validate_every=0), "loop.validate_every is 0"),
    (dict(checkpoint_every=-1), "loop.checkpoint_every is -1"),
    (dict(steps=0), "loop.steps is 0"),
    (dict(max_skipped=0), "loop.max_skipped is 0"),
    (dict(keep_every=0), "loop.keep_every is 0"),
    (dict(seed=-1), "loop.seed is -1"),
    (dict(seed=2**32), "loop.seed is 4294967296"),
  ],
)
def test_loops_that_make_no_sense(options, words, tmp_path):
  with pytest.raises(InputError, match=words):
    run(tmp_path / "run", LoopConfig(**options))
  assert not (tmp_path / "run").exists()


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path):
  run(tmp_path, LoopConfig(steps=5))
  outcome, losses, _ = run(tmp_path)
  assert outcome.step == 12 and list(losses) == list(range(6, 13))


def test_some_steps_that_are_not_finite_are_lived_through(tmp_path):
  outcome, losses, _ = run(tmp_path, data=Stream(poison=(2, 3, 7)))
  assert outcome.status == Status.FINISHED and int(outcome.state.skipped) == 3
  assert [step for step, (loss,) in losses.items() if not np.isfinite(loss)] == [3, 4, 8]
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outcome.state.params))


def test_too_many_in_a_row_end_it_with_the_batch_to_look_at(tmp_path):
  stream = Stream(poison=range(5, 100))
  with pytest.raises(DivergedError, match="3 steps in a row, up to step 8") as failure:
    run(tmp_path, data=stream)
  path = tmp_path / "diverged_8.npz"
  assert str(path) in str(failure.value)
  other = Stream(poison=range(5, 100))
  other.next = 7
  with np.load(path) as saved:
    same(dict(saved), next(other))
  # What was good is still there, and the counts go on.
  with pytest.raises(DivergedError, match="up to step 8"):
    run(tmp_path, data=Stream(poison=range(5, 100)))


def test_data_that_ends_is_named(tmp_path):
  with pytest.raises(InputError, match="ended after step 6"):
    run(tmp_path, data=Stream(end=6))


def test_other_data_is_refused(tmp_path):
  run(tmp_path, LoopConfig(steps=4))
  with pytest.raises(InputError, match="another"):
    run(tmp_path, data=Stream(fingerprint=1))


def test_a_disk_that_fills_up_does_not_end_it_before_its_end(small_disk):
  other = small_disk / "other"

  def fill(state, log):
    while not (small_disk / "checkpoints" / "4").exists():
      time.sleep(0.01)
    if not other.exists():
      with contextlib.suppress(OSError):
        other.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    return {}

  said = []
  with pytest.raises(OutputError, match=r"step 12 could not be written.*last is that of step 4"):
    run(small_disk, validate=fill, warn=said.append)
  assert "step 8 could not be written" in said[0]
  other.unlink()
  outcome, losses, _ = run(small_disk)
  assert list(losses) == list(range(5, 13)) and outcome.status == Status.FINISHED
