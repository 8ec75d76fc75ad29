"""The queue of generations: the device makes one at a time; any number of pages watch and cancel them."""

import collections
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


class Generation:
  """One video in the queue: its state, its stage with how much of it is done, its newest frame, its result."""

  def __init__(self, visitor: str, request: Request):
    self.id = secrets.token_hex(16)
    self.visitor, self.request = visitor, request
    self.state, self.stage, self.done, self.total = WAITING, "", 0, 0
    self.begun = self.ended = self.stage_begun = None
    self.first_step_ended = None
    self.frame, self.frames_done = None, 0
    self.error: str | None = None
    self.result: Result | None = None
    self.cancelling = threading.Event()
    self.version = 0

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
    self._changed = threading.Condition()
    self._waiting: collections.deque[Generation] = collections.deque()
    self._known: collections.OrderedDict[str, Generation] = collections.OrderedDict()
    self._running: Generation | None = None
    self._closed = False
    self._thread = threading.Thread(target=self._work, name="generations", daemon=True)
    self._thread.start()

  def submit(self, visitor: str, request: Request) -> Generation:
    """Appends a request to the queue; InputError where the queue is full."""
    with self._changed:
      if len(self._waiting) >= self._max_waiting:
        raise InputError(f"{len(self._waiting)} videos are waiting already (--max-waiting); try again in a while")
      generation = Generation(visitor, request)
      # Before the page releases them.
      self._uploads.hold(("generation", generation.id), *request.uploads)
      self._waiting.append(generation)
      self._known[generation.id] = generation
      while len(self._known) > _REMEMBERED:
        oldest = next(iter(self._known.values()))
        if not oldest.over:
          break
        del self._known[oldest.id]
      self._changed.notify_all()
    return generation

  def get(self, visitor: str, generation: str) -> Generation | None:
    """A visitor's generation by its id; None where there is none."""
    with self._changed:
      known = self._known.get(generation)
      return known if known and known.visitor == visitor else None

  def place(self, generation: Generation) -> int:
    """Number of generations before one that waits."""
    with self._changed:
      before = next((i for i, waiting in enumerate(self._waiting) if waiting is generation), 0)
      return before + (self._running is not None)

  def cancel(self, generation: Generation):
    """Ends a generation: a waiting one at once, a running one after its current denoising step."""
    with self._changed:
      generation.cancelling.set()
      if generation in self._waiting:
        self._waiting.remove(generation)
        self._end(generation, CANCELLED)
      self._tell(generation)

  def wait(self, generation: Generation, version: int, seconds: float) -> int:
    """Waits until a generation differs from `version`, at most so many seconds; returns its current version."""
    with self._changed:
      self._changed.wait_for(lambda: generation.version != version, seconds)
      return generation.version

  def close(self):
    """Cancels all generations."""
    with self._changed:
      self._closed = True
      for generation in itertools.chain(list(self._waiting), [self._running] if self._running else []):
        self.cancel(generation)
      self._changed.notify_all()

  def _work(self):
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._waiting or self._closed)
        if self._closed:
          return
        self._running = generation = self._waiting.popleft()
        generation.state, generation.begun = RUNNING, time.monotonic()
        for known in (generation, *self._waiting):
          self._tell(known)
      state, error = self._attempt(generation)
      with self._changed:
        self._running = None
        self._end(generation, state, error)
        for known in self._waiting:
          self._tell(known)

  def _attempt(self, generation) -> tuple[str, str | None]:
    try:
      self._make(generation)
      return DONE, None
    except Cancelled:
      return CANCELLED, None
    except DiceTalkError as error:
      text = str(error)
      for upload in generation.request.uploads:
        text = with_own_name(DiceTalkError(text), upload)
      return FAILED, text
    except Exception as error:
      if out_of_memory(error):
        return FAILED, "The device has too little memory for this; try a smaller size."
      # For the operator: a visitor cannot act on it.
      traceback.print_exc(file=sys.stderr)
      return FAILED, "The server failed for a reason other than your inputs; its log has the details."
    finally:
      # A failure may keep device memory in a reference cycle of tracebacks.
      gc.collect()

  def _make(self, generation):
    request = generation.request

    def progress(stage, done, total):
      if generation.cancelling.is_set():
        raise Cancelled
      now = time.monotonic()
      with self._changed:
        if stage != generation.stage:
          generation.stage_begun = now
        elif stage == "denoising" and done == 1:
          generation.first_step_ended = now
        if stage == "denoising" and done == total and total > 1:
          self._learn(generation, now)
        generation.stage, generation.done, generation.total = stage, done, total or 0
        self._tell(generation)

    def show(first, frames):
      with self._changed:
        generation.frame = thumbnail(np.rint(frames[-1] * 255).astype(np.uint8), _FRAME_SIDE)
        generation.frames_done = first + len(frames)

    progress("preparing", 0, 0)
    config = request.config
    options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    video = self._talker.generate(
      request.portrait.path, request.speech.path, request.emotion.spec, **options, progress=progress, show=show
    )
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
      seed=config.seed,
      took=time.monotonic() - generation.begun,
    )

  def _learn(self, generation, now):
    if generation.first_step_ended is not None:
      steps = generation.total - 1
      self._estimator.learn(generation.request, (now - generation.first_step_ended) / steps, steps)

  def _end(self, generation, state, error=None):
    generation.state, generation.error, generation.ended = state, error, time.monotonic()
    generation.frame = None
    self._uploads.release("generation", generation.id)
    self._tell(generation)

  def _tell(self, generation):
    generation.version += 1
    self._changed.notify_all()
