"""The training loop: steps, logs, validations, and checkpoints from which a run continues exactly."""

import concurrent.futures
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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.data.batches.sampling import Batches
from dicetalk_jax.errors import DiceTalkError, InputError, OutputError
from dicetalk_jax.files import interrupts, lock
from dicetalk_jax.parallel.hosts import is_first
from dicetalk_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from dicetalk_jax.training.checkpoints import Checkpoints, show
from dicetalk_jax.training.config import LoopConfig, check_least
from dicetalk_jax.training.events import EventLog
from dicetalk_jax.training.state import TrainState
from dicetalk_jax.training.step import Step


class DivergedError(DiceTalkError):
  """Too many consecutive steps had a non-finite loss or gradient; the text names the file with the last batch."""


class Status(enum.Enum):
  FINISHED = "finished"
  INTERRUPTED = "interrupted"


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a run ended, after how many steps, and its state; the newest checkpoint holds the same."""

  status: Status
  step: int
  state: TrainState


@dataclasses.dataclass(frozen=True)
class Work:
  """Work of a step, for the logged rates: video frames, the model's FLOP, and the peak FLOP/s of all devices."""

  frames: int = 0
  flops: float = 0.0
  peak_flops: float = 0.0


def train(
  state: TrainState,
  step_fn: Step,
  data: Batches,
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
  """Trains up to `config.steps`, from the newest complete checkpoint in `folder`, or else from `state`.

  The buffers of `state` are donated. SIGTERM or Ctrl-C ends the run after the current step, with a checkpoint
  (INTERRUPTED); before the first step, while it compiles, and a second time they raise KeyboardInterrupt at once. All
  processes of a run call this with their parts of the batches, and a signal to one of them ends all.

  Args:
    state: initial state.
    step_fn: of `make_step`.
    data: endless batches, or another iterator with `get_state` and `set_state`, of a small JSON object.
    config: steps and intervals.
    folder: run folder; gets checkpoints/, log/ (TensorBoard) and, if the run diverges, diverged_<step>.npz.
    accumulate: batches of `data` for one step.
    place: puts this host's batch on the devices.
    validate: validate(state, log) returns scalars, and may log pictures.
    work: for the rates of the log.
    report: called as report(step, metrics) for every step in order, at most one step late and before the step is in a
      checkpoint.
    progress: called as progress("compile", 0 or 1, 1) around the first step, then as progress("train", done, total).
    warn: called with a message.

  Raises:
    DivergedError: after `config.max_skipped` consecutive skipped steps.
    WeightsError, InputError: for a checkpoint of another model or of other data.
    InputError: for a `config` that cannot be used, a folder in which another process trains, and data that ends or
      cannot be read, in which case the steps so far are saved.
    OutputError: if the last checkpoint cannot be written. Of an earlier one only `warn` is told.
  """
  check_loop(config)
  report, progress = (listener or (lambda *_: None) for listener in (report, progress))
  folder = pathlib.Path(folder).expanduser()
  with contextlib.ExitStack() as stack:
    stack.enter_context(_alone(folder))
    checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", config.keep, config.keep_every, warn))
    if checkpoints.latest is not None:
      # Free the initial state before restoring the checkpoint.
      state = state.emptied()
    if restored := checkpoints.restore(state):
      state, data_state = restored
      data.set_state(data_state)
    begin = step = int(state.step)
    log = stack.enter_context(EventLog(folder / "log", begin + 1, warn, silent=not is_first()))
    stop = _Stop(stack.enter_context(interrupts((signal.SIGTERM, signal.SIGINT))))
    clock = _Clock(begin)
    pending = None

    def settle():
      """Handles the metrics of the previous step while the device computes the next one."""
      nonlocal pending
      if pending is None:
        return
      (done, batch, metrics, request), pending = pending, None
      stop.settle(request)
      metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
      report(done, metrics)
      if done == begin + 1:
        clock.restart(done)  # the time so far was compilation
      if done % config.log_every == 0 or done == config.steps:
        log.scalars(done, {f"train/{name}": value for name, value in metrics.items()} | clock.rates(done, work))
      progress("train", done, config.steps)
      if metrics["skipped_in_row"] >= config.max_skipped:
        raise DivergedError(_diverged(folder, done, batch, metrics))

    def advance(state, batch):
      if step > begin:
        return step_fn(state, place(batch))
      progress("compile", 0, 1)
      state, metrics = _in_thread(step_fn, state, place(batch), stop=stop.signalled)
      progress("compile", 1, 1)
      return state, metrics

    while step < config.steps and not stop.requested:
      position = data.get_state()
      try:
        batch = _next(data, accumulate, step)
      except Exception:
        # Ctrl-C also reaches the processes that read data, and ends them.
        if stop.requested:
          data.set_state(position)
          break
        if jax.process_count() > 1:
          raise  # the others cannot save without this one, and end with it
        settle()
        if step > begin:
          checkpoints.save(state, position)
        raise
      request = stop.share()
      state, metrics = advance(state, batch)
      settle()
      step, pending = step + 1, (step + 1, batch, metrics, request)
      checkpoints.poll()
      last = step == config.steps
      if last or step % config.checkpoint_every == 0:
        settle()
        checkpoints.save(state, data.get_state(), wait=last)
      if validate and not stop.requested and (last or step % config.validate_every == 0):
        settle()
        with clock.paused():
          log.scalars(step, {f"validation/{name}": value for name, value in validate(state, log).items()})
    settle()
    checkpoints.save(state, data.get_state(), wait=True)
  return Outcome(Status.FINISHED if step >= config.steps else Status.INTERRUPTED, step, state)


def check_loop(config: LoopConfig) -> None:
  """Raises InputError for settings that cannot be used."""
  names = ("steps", "log_every", "validate_every", "checkpoint_every", "keep", "max_skipped", "keep_every")
  check_least(config, dict.fromkeys(names, 1), "loop.")
  # Beyond 32 bits jax.random.key would silently start again at 0.
  if not 0 <= config.seed < 2**32:
    raise InputError(f"loop.seed is {config.seed}; give a whole number from 0 to {2**32 - 1}")


def _in_thread(function, *inputs, stop: threading.Event):
  """Calls a function in a thread, as XLA cannot be interrupted; raises KeyboardInterrupt when `stop` is set."""
  future = concurrent.futures.Future()

  def call():
    try:
      future.set_result(function(*inputs))
    except BaseException as error:
      future.set_exception(error)

  threading.Thread(target=call, daemon=True).start()
  while not concurrent.futures.wait([future], 0.05).done:
    if stop.is_set():
      raise KeyboardInterrupt
  return future.result()


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
  """Locks the run folder for this process, if it is the first of its hosts."""
  busy = f"another process trains in {folder}; wait until it ends, stop it, or train in another folder"
  with contextlib.ExitStack() as stack:
    try:
      if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(lock(folder, busy))
    except OSError as error:
      raise OutputError(f"{folder} cannot be a run folder: {error.strerror}; choose another one.") from error
    yield


def _next(data: Batches, accumulate: int, step: int) -> dict[str, np.ndarray]:
  try:
    batches = [next(data) for _ in range(accumulate)]
  except StopIteration:
    raise InputError(f"the data ended after step {step}; training needs endless batches") from None
  return batches[0] if accumulate == 1 else {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def _diverged(folder, step, batch, metrics) -> str:
  """Saves the batch; returns the error message."""
  path, where = folder / f"diverged_{step}.npz", "is in"
  try:
    np.savez(path, **batch)
  except OSError as error:
    where = f"could not be saved ({error.strerror}) in"
  return (
    f"The loss or gradients were not finite for {metrics['skipped_in_row']:.0f} steps in a row, up to step {step}. "
    f"Lower the learning rate, or check the data: the batch of this step {where} {path}."
  )


class _Stop:
  """Whether the run is to stop, as `signalled` requests it on this process or another.

  One process stops after its current step. Several processes all have to stop after the same one, and a signal may
  reach one of them, or each at another step: so each shares its request with every step, and reads those of all one
  step later, together with the metrics, which costs nothing.
  """

  def __init__(self, signalled: threading.Event):
    self.signalled, self._anyone = signalled, False
    self._alone = jax.process_count() == 1
    if not self._alone:
      mesh = make_mesh()
      self._place = functools.partial(jax.make_array_from_callback, (mesh.size,), batch_sharding(mesh))
      self._max = jax.jit(jnp.max, out_shardings=replicated(mesh))

  @property
  def requested(self) -> bool:
    return self.signalled.is_set() if self._alone else self._anyone

  def share(self):
    """Sends this process's request to the others; pass the result to `settle` one step later."""
    if self._alone:
      return None
    request = np.full(1, self.signalled.is_set(), np.int32)
    return self._max(self._place(lambda index: request))

  def settle(self, request) -> None:
    if request is not None:
      self._anyone = self._anyone or bool(request)


class _Clock:
  """Steps per second since the last call of `rates`, without pauses."""

  def __init__(self, step):
    self.restart(step)

  def restart(self, step):
    self._step, self._since = step, time.perf_counter()

  def rates(self, step, work: Work) -> dict[str, float]:
    steps, seconds = step - self._step, time.perf_counter() - self._since
    self.restart(step)
    if not steps:
      return {}
    rates = {"steps_per_second": 1.0, "frames_per_second": work.frames}
    if work.peak_flops:
      rates["model_flop_utilisation"] = work.flops / work.peak_flops
    return {f"rate/{name}": of_step * steps / seconds for name, of_step in rates.items() if of_step}

  @contextlib.contextmanager
  def paused(self):
    before = time.perf_counter()
    yield
    self._since += time.perf_counter() - before
