"""The loop of both stages: steps, what is seen of them, and checkpoints, so that a run may end at any moment."""

import contextlib
import dataclasses
import enum
import functools
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.errors import DiceTalkError, InputError, OutputError
from dicetalk_jax.files import interrupts, lock
from dicetalk_jax.parallel.hosts import is_first
from dicetalk_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from dicetalk_jax.training.checkpoints import Checkpoints, show
from dicetalk_jax.training.config import LoopConfig
from dicetalk_jax.training.events import EventLog
from dicetalk_jax.training.state import TrainState
from dicetalk_jax.training.step import Step


class Data(Protocol):
  """Endless batches whose place can be kept as a small JSON object, such as `data.sampling.Batches`."""

  def __next__(self) -> dict[str, np.ndarray]: ...

  def get_state(self) -> Mapping: ...

  def set_state(self, state: Mapping) -> None: ...


class DivergedError(DiceTalkError):
  """Loss or gradients were not finite for too many steps in a row; the text says where the last batch is."""


class Status(enum.Enum):
  FINISHED = "finished"
  INTERRUPTED = "interrupted"


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a run ended, after how many steps, and with what: both are in its newest checkpoint."""

  status: Status
  step: int
  state: TrainState


@dataclasses.dataclass(frozen=True)
class Work:
  """What a step does, for the rates: frames seen, floating-point operations of the model, and the device's best."""

  frames: int = 0
  flops: float = 0.0
  peak_flops: float = 0.0

  def rates(self, steps_per_second: float) -> dict[str, float]:
    rates = {"rate/steps_per_second": steps_per_second}
    if self.frames:
      rates["rate/frames_per_second"] = self.frames * steps_per_second
    if self.flops and self.peak_flops:
      rates["rate/model_flop_utilisation"] = self.flops * steps_per_second / self.peak_flops
    return rates


def train(
  state: TrainState,
  step_fn: Step,
  data: Data,
  config: LoopConfig,
  folder: str | os.PathLike,
  *,
  accumulate: int = 1,
  place: Callable[[dict], Any] = lambda batch: batch,
  validate: Callable[[TrainState, EventLog], Mapping[str, float]] | None = None,
  work: Work = Work(),
  report: Callable[[int, dict[str, float]], None] | None = None,
  progress: Callable[[str, int, int], None] | None = None,
  warn: Callable[[str], None] = show,
) -> Outcome:
  """Trains up to `config.steps`, from the newest complete checkpoint in `folder` or from `state`, which is used up.

  accumulate: batches of `data` that make one of the step; place: a batch of this host -> as the step takes it.
  validate(state, log) -> scalars, and may log pictures. report(step, metrics) is called with every step's metrics in
  order, at most one step late and before the step is in any checkpoint; progress("train", done, total).

  SIGTERM and Ctrl-C end it after the step that runs, with a checkpoint: INTERRUPTED; a second Ctrl-C ends it at once.
  Of several processes, which all call this with their parts of the batches, any one that is asked ends all.
  `folder` gets checkpoints/, log/ (TensorBoard) and, where it diverges, diverged_<step>.npz. Raises DivergedError;
  WeightsError, InputError for a checkpoint of another model or other data; InputError for data that ends or cannot be
  read, where what was done before is saved, for a `config` that makes no sense, and where another process trains in
  `folder`; OutputError where the last checkpoint cannot be written, while one before that is only told to `warn`.
  """
  _check(config)
  folder = pathlib.Path(folder).expanduser()
  with contextlib.ExitStack() as stack:
    stack.enter_context(_alone(folder))
    checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", config.keep, config.keep_every, warn))
    if checkpoints.latest is not None:
      # What it would begin with makes room for what it goes on with.
      state = state.emptied()
    if found := checkpoints.restore(state):
      state, data_state = found
      data.set_state(data_state)
    begin = step = int(state.step)
    log = stack.enter_context(EventLog(folder / "log", begin + 1, warn, silent=not is_first()))
    stop = stack.enter_context(interrupts((signal.SIGTERM, signal.SIGINT)))
    clock = _Clock(begin)
    pending, asked = None, _Asked(stop)

    def settle():
      """Looks at the step before: the device computes the next one meanwhile."""
      nonlocal pending
      if pending is None:
        return
      (done, batch, metrics, anyone), pending = pending, None
      asked.settle(anyone)
      metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
      if report:
        report(done, metrics)
      if done == begin + 1:
        clock.restart(done)  # what came before was compiling
      if done % config.log_every == 0 or done == config.steps:
        log.scalars(done, {f"train/{name}": value for name, value in metrics.items()} | clock.rates(done, work))
      if progress:
        progress("train", done, config.steps)
      if metrics["skipped_in_row"] >= config.max_skipped:
        raise DivergedError(_diverged(folder, done, batch, metrics))

    while step < config.steps and not asked.to_stop:
      place_in_data = data.get_state()
      try:
        batch = _next(data, accumulate, step)
      except Exception:
        # Ctrl-C reaches processes that read data, too, and ends them.
        if asked.to_stop:
          data.set_state(place_in_data)
          break
        if jax.process_count() > 1:
          raise  # the others cannot save without this one, and end with it
        settle()
        if step > begin:
          checkpoints.save(state, place_in_data)
        raise
      anyone = asked.ask()
      state, metrics = step_fn(state, place(batch))
      settle()
      step, pending = step + 1, (step + 1, batch, metrics, anyone)
      checkpoints.poll()
      last = step == config.steps
      if last or step % config.checkpoint_every == 0:
        settle()
        checkpoints.save(state, data.get_state(), wait=last)
      if validate and not asked.to_stop and (last or step % config.validate_every == 0):
        settle()
        with clock.paused():
          log.scalars(step, {f"validation/{name}": value for name, value in validate(state, log).items()})
    settle()
    checkpoints.save(state, data.get_state(), wait=True)
  return Outcome(Status.FINISHED if step >= config.steps else Status.INTERRUPTED, step, state)


def _check(config: LoopConfig) -> None:
  for name in ("steps", "log_every", "validate_every", "checkpoint_every", "keep", "max_skipped"):
    if (value := getattr(config, name)) < 1:
      raise InputError(f"loop.{name} is {value}, wanted a whole number of at least 1")
  if config.keep_every is not None and config.keep_every < 1:
    raise InputError(f"loop.keep_every is {config.keep_every}, wanted a whole number of at least 1, or none")
  # Beyond 32 bits jax.random.key would silently begin again at 0.
  if not 0 <= config.seed < 2**32:
    raise InputError(f"loop.seed is {config.seed}, wanted a whole number from 0 to {2**32 - 1}")


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
  """Holds the folder of a run for this process.

  The hosts of one run share its folder: the first of them holds it.
  """
  if jax.process_index():
    yield
    return
  busy = f"another process trains in {folder}; wait until it ends, stop it, or train in another folder"
  with contextlib.ExitStack() as stack:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      stack.enter_context(lock(folder, busy))
    except OSError as error:
      raise OutputError(f"{folder} cannot hold a run: {error.strerror}; name another folder.") from error
    yield


def _next(data: Data, accumulate: int, step: int) -> dict[str, np.ndarray]:
  try:
    batches = [next(data) for _ in range(accumulate)]
  except StopIteration:
    raise InputError(f"the data ended after step {step}; training wants batches without end") from None
  return batches[0] if accumulate == 1 else {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def _diverged(folder, step, batch, metrics) -> str:
  """Saves the batch, and says what happened."""
  path = folder / f"diverged_{step}.npz"
  said = f"Loss or gradients were not finite for {metrics['skipped_in_row']:.0f} steps in a row, up to step {step}"
  advice = "lower the learning rate, or look into the data"
  try:
    np.savez(path, **batch)
  except OSError as error:
    return f"{said}; {advice} (its batch could not be saved: {error.strerror})."
  return f"{said}; {advice}: its batch is in {path}."


class _Asked:
  """Whether this run is to stop: alone, as soon as it is asked; of several processes, all after the same step.

  A signal may reach one of them, or each at another step. So each tells the others with every step, and hears them a
  step later, together with the metrics: that costs nothing.
  """

  def __init__(self, stop: threading.Event):
    self._stop, self._anyone = stop, False
    self._alone = jax.process_count() == 1
    if not self._alone:
      mesh = make_mesh()
      self._place = functools.partial(jax.make_array_from_callback, (mesh.size,), batch_sharding(mesh))
      self._max = jax.jit(jnp.max, out_shardings=replicated(mesh))

  @property
  def to_stop(self) -> bool:
    return self._stop.is_set() if self._alone else self._anyone

  def ask(self):
    """Tells the others; what it gives goes to `settle` a step later."""
    if self._alone:
      return None
    told = np.full(1, self._stop.is_set(), np.int32)
    return self._max(self._place(lambda index: told))

  def settle(self, anyone) -> None:
    if anyone is not None:
      self._anyone = self._anyone or bool(anyone)


class _Clock:
  """Steps a second since the last time it was asked, without pauses."""

  def __init__(self, step):
    self.restart(step)

  def restart(self, step):
    self._step, self._since = step, time.perf_counter()

  def rates(self, step, work: Work) -> dict[str, float]:
    steps, seconds = step - self._step, time.perf_counter() - self._since
    self.restart(step)
    return work.rates(steps / seconds) if steps else {}

  @contextlib.contextmanager
  def paused(self):
    before = time.perf_counter()
    yield
    self._since += time.perf_counter() - before
