"""The queue of generations: the device makes one at a time; any number of pages watch and cancel them."""

import concurrent.futures
import dataclasses
import gc
import itertools
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable

import numpy as np

from dicetalk_jax.app.estimate import Estimator
from dicetalk_jax.app.inputs import thumbnail, with_own_name
from dicetalk_jax.app.requests import Request
from dicetalk_jax.app.results import Result, Results
from dicetalk_jax.app.uploads import Uploads
from dicetalk_jax.errors import DiceTalkError, InputError, out_of_memory
from dicetalk_jax.inference.pipeline import DiceTalk

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
_REMEMBERED = 200
_FRAME_SIDE = 320


class Cancelled(Exception):
  """The visitor has cancelled the generation."""


@dataclasses.dataclass(eq=False)
class Generation:
  """One video in the queue: its state, its stage with how much of it is done, its newest frame, its result."""

  visitor: str
  request: Request
  id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16))
  state: str = WAITING
  stage: str = ""
  done: int = 0
  total: int = 0
  begun: float | None = None
  stage_begun: float | None = None
  first_step_ended: float | None = None
  frame: str | None = None
  frames_done: int = 0
  error: str | None = None
  result: Result | None = None
  cancelling: bool = False
  ended: threading.Event = dataclasses.field(default_factory=threading.Event)
  future: concurrent.futures.Future | None = None

  @property
  def over(self) -> bool:
    return self.state in (DONE, FAILED, CANCELLED)

  def seconds_left(self, now: float) -> float | None:
    """Remaining seconds of this stage at its speed so far; None while that is not known."""
    if self.state != RUNNING or not self.done or not self.total:
      return None
    begun, done = self.stage_begun, self.done
    if self.stage == "denoising":
      # The first step includes compiling.
      if self.first_step_ended is None or done < 2:
        return None
      begun, done = self.first_step_ended, done - 1
    return (now - begun) / done * (self.total - self.done)


class Generations:
  """Makes videos one after another in a thread, in the order of their requests."""

  def __init__(
    self,
    talker: DiceTalk,
    results: Results,
    uploads: Uploads,
    estimator: Estimator,
    max_waiting: int = 20,
    command: Callable[[Request], str] = Request.command,
  ):
    self._talker, self._results, self._uploads, self._estimator = talker, results, uploads, estimator
    self._max_waiting, self._command = max_waiting, command
    self._lock = threading.Lock()
    # In the order of their requests.
    self._generations: dict[str, Generation] = {}
    self._device = concurrent.futures.ThreadPoolExecutor(1, "generations")

  def submit(self, visitor: str, request: Request) -> Generation:
    """Appends a request to the queue; InputError where the queue is full."""
    with self._lock:
      waiting = sum(other.state == WAITING for other in self._generations.values())
      if waiting >= self._max_waiting:
        raise InputError(f"{waiting} videos are waiting already (--max-waiting); try again in a while")
      generation = Generation(visitor, request)
      # Before the page releases them.
      self._uploads.hold(("generation", generation.id), *request.uploads)
      self._generations[generation.id] = generation
      for old in list(self._generations.values())[:-_REMEMBERED]:
        if old.over:
          del self._generations[old.id]
      generation.future = self._device.submit(self._work, generation)
    return generation

  def get(self, visitor: str, generation: str) -> Generation | None:
    """A visitor's generation by its id; None where there is none."""
    generation = self._generations.get(generation)
    return generation if generation and generation.visitor == visitor else None

  def place(self, generation: Generation) -> int:
    """Number of unfinished generations before this one."""
    with self._lock:
      before = itertools.takewhile(lambda other: other is not generation, self._generations.values())
      return sum(not other.over for other in before)

  def cancel(self, generation: Generation):
    """Ends a generation: a waiting one at once, a running one after its current denoising step."""
    generation.cancelling = True
    if generation.future.cancel():
      self._end(generation, CANCELLED)

  def close(self):
    """Cancels all generations."""
    for generation in list(self._generations.values()):
      self.cancel(generation)
    self._device.shutdown(wait=False)

  def _work(self, generation):
    generation.state, generation.begun = RUNNING, time.monotonic()
    state, error = FAILED, None
    try:
      self._make(generation)
      state = DONE
    except Cancelled:
      state = CANCELLED
    except DiceTalkError as failure:
      error = str(failure)
      for upload in generation.request.uploads:
        error = with_own_name(error, upload)
    except Exception as failure:
      if out_of_memory(failure):
        error = "The device has too little memory for this; try a smaller size."
      else:
        # For the operator: a visitor cannot act on it.
        traceback.print_exc(file=sys.stderr)
        error = "The server failed for a reason other than your inputs; its log has the details."
    # A failure may keep device memory in a reference cycle of tracebacks.
    gc.collect()
    self._end(generation, state, error)

  def _make(self, generation):
    request = generation.request

    def progress(stage, done, total):
      if generation.cancelling:
        raise Cancelled
      now = time.monotonic()
      if stage != generation.stage:
        generation.stage_begun = now
      elif stage == "denoising" and done == 1:
        generation.first_step_ended = now
      if stage == "denoising" and done == total > 1 and generation.first_step_ended is not None:
        self._estimator.learn(request, (now - generation.first_step_ended) / (total - 1))
      generation.stage, generation.done, generation.total = stage, done, total or 0

    def show(first, frames):
      generation.frame = thumbnail(np.rint(frames[-1] * 255).astype(np.uint8), _FRAME_SIDE)
      generation.frames_done = first + len(frames)

    progress("preparing", 0, 0)
    inputs = request.portrait.path, request.speech.path, request.emotion.spec
    video = self._talker.generate(*inputs, **vars(request.config), progress=progress, show=show)
    generation.result = self._results.add(
      generation.visitor,
      video,
      inputs=request.keepsakes,
      progress=lambda done, total: progress("encoding the video", done, total),
      file=request.file_name,
      command=self._command(request),
      emotion=request.emotion.text,
      seconds=len(video.audio) / video.sample_rate,
      size=(video.frames.shape[2], video.frames.shape[1]),
      seed=request.config.seed,
      took=time.monotonic() - generation.begun,
    )

  def _end(self, generation, state, error=None):
    self._uploads.release("generation", generation.id)
    generation.frame, generation.error, generation.state = None, error, state
    generation.ended.set()
