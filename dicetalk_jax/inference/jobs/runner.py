"""Makes the videos of a job list (see `reader`), each once, also after interruptions.

Results are recorded (see `results`). A video also holds the digest of its job, so that it is recognised when the
process was killed before it wrote the record.
"""

import contextlib
import dataclasses
import errno
import functools
import gc
import hashlib
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
from jax._src.distributed import global_state

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import DiceTalkError, InputError, OutputError, WeightsError, out_of_memory
from dicetalk_jax.files import existing_file, remove_partial
from dicetalk_jax.inference.jobs.reader import BadLine, Job, read_jobs
from dicetalk_jax.inference.jobs.results import Result, records_of
from dicetalk_jax.inference.pipeline import DiceTalk
from dicetalk_jax.media.video import check_target, read_comment
from dicetalk_jax.weights.description import CONFIG, PRIORS
from dicetalk_jax.weights.folder import Weights

_COMMENT = "dicetalk job "
_THROUGH = "dicetalk_jax/jobs/through/{}"
# After so many equal failures in a row that are not the inputs' fault, the run ends: every job might fail so.
_ALIKE = 3
_NO_MORE_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Summary of a run. failed: line and error of each failed job; stopped: why `left` jobs were not tried."""

  done: int
  already: int
  failed: list[tuple[int, str]]
  left: int = 0
  stopped: str | None = None

  def __str__(self):
    left = f", {self.left} not tried" if self.left else ""
    return f"{self.done} done, {self.already} already done, {len(self.failed)} failed{left}"


def weights_identity(weights: Weights) -> str:
  """A digest of a weights folder, the same for copies of it. One row of each tensor is read: training changes all."""
  digest = hashlib.sha256()
  for path in (weights.folder / CONFIG, weights.folder / PRIORS):
    if path.is_file():
      digest.update(path.read_bytes())
  for network in sorted(weights.config["networks"]):
    for name, row in weights.tensors(network).rows():
      digest.update(f"{network}/{name}".encode())
      digest.update(row.tobytes())
  return digest.hexdigest()[:32]


def run_jobs(
  talker: DiceTalk,
  path: str | os.PathLike,
  defaults: GenerationConfig | None = None,
  keep_resolution: bool = False,
  host: tuple[int, int] = (0, 1),
  progress: Callable[[str, int, int | None], None] | None = None,
  report: Callable[[Result], None] | None = None,
) -> Outcome:
  """Makes the missing videos of a list, one after another; a failed job does not stop the others.

  host: (i, k) for the jobs i, i + k, i + 2k … of the list. progress(stage, done, total) is called often, report(result)
  after a job's record is on disk. A job is skipped when its video exists and was made with the same settings and
  weights. Jobs that failed before, or were running when a process died, come last. The run ends early when the disk is
  full, the weights are damaged, or three jobs in a row fail in the same way through no fault of their inputs. While a
  video is made, the current folder is the list's. Raises InputError for a list that cannot be read or that another
  process works on, OutputError where results cannot be written.
  """
  index, count = host
  if not 0 <= index < count:
    raise InputError(f"there is no host {index} of {count}; they are numbered from 0")
  path = existing_file(path, "list of jobs").absolute()
  mine = read_jobs(path, defaults, keep_resolution)[index::count]
  weights = weights_identity(talker.weights)
  ended, already, todo = [], 0, []

  def make(job, stage):
    digest = job.digest(weights)
    records.begin(digest)
    return _make(talker, job, digest, lambda name, *counts: progress and progress(f"{stage}: {name}", *counts))

  with records_of(path, index, count) as records:

    def end(result):
      ended.append(result)
      records.append(result)
      if report:
        report(result)

    for job in mine:
      if isinstance(job, BadLine):
        end(Result(job.line, job.out, "failed", job.error))
      elif not _is_made(job, job.digest(weights), records.done):
        todo.append(job)
      else:
        already += 1
        if job.digest(weights) not in records.done:
          records.append(Result(job.line, job.settings["out"], "done", digest=job.digest(weights)))
    # Jobs that failed, or even killed the process, do not delay others.
    todo.sort(key=lambda job: (job.digest(weights) in records.begun, job.digest(weights) in records.failed))
    left, stopped = _do(todo, weights, make, end)
  failed = sorted((result.job, result.error) for result in ended if result.status == "failed")
  return Outcome(len(ended) - len(failed), already, failed, left, stopped)


def part_from_hosts() -> None:
  """Waits until every host has called it: a host that exits earlier would end the others."""
  client = global_state.client
  if client is None:
    return
  client.key_value_set(_THROUGH.format(jax.process_index()), "")
  waiting = list(range(jax.process_count()))
  while waiting:
    # For a second at a time: a collective would keep a device busy for hours and ignore Ctrl-C.
    try:
      client.blocking_key_value_get(_THROUGH.format(waiting[-1]), 1000)
      waiting.pop()
    except Exception as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise
  jax.distributed.shutdown()


def _do(todo: list[Job], weights: str, make, end) -> tuple[int, str | None]:
  """Runs jobs in order; returns the number of jobs left and why."""
  last, alike = None, 0
  for place, job in enumerate(todo, start=1):
    stage = f"job {place} of {len(todo)}"
    result, kind, of_all = _attempt(job, job.digest(weights), functools.partial(make, job, stage))
    if result.status == "done":
      last, alike = None, 0
    elif kind:
      last, alike = kind, alike + 1 if kind == last else 1
    hopeless = of_all or (kind is not None and alike >= _ALIKE)
    # A full disk takes no record either; the outcome reports that.
    with contextlib.suppress(OutputError) if hopeless else contextlib.nullcontext():
      end(result)
    if hopeless and place < len(todo):
      why = "every other job would fail as well" if of_all else f"{alike} jobs in a row failed alike"
      return len(todo) - place, why
  return 0, None


def _attempt(job: Job, digest: str, make: Callable[[], tuple[str, ...]]) -> tuple[Result, object, bool]:
  """Runs a job; returns its result, what equal failures share, and whether every job would fail so.

  None is shared where the job's own inputs are at fault.
  """
  begun = time.monotonic()
  notes, error, kind, of_all, trace = (), None, None, False, None
  try:
    notes = make()
  except InputError as failure:
    error = str(failure)
  except DiceTalkError as failure:
    error, of_all = str(failure), isinstance(failure, WeightsError) or _is_full(failure)
    # Another folder may still be writable.
    kind = type(failure), job.out.parent if isinstance(failure, OutputError) else None
  except Exception as failure:
    if out_of_memory(failure):
      error, kind = "the device has too little memory for this; try a smaller size, window or decode_chunk", MemoryError
    else:
      kind, trace = type(failure), traceback.format_exc()
      error = f"{kind.__name__}: {(str(failure).strip().splitlines() or ['nothing'])[0]}"
  if kind:
    # A failure may keep device memory in a reference cycle of tracebacks.
    gc.collect()
  status, seconds = "done" if error is None else "failed", round(time.monotonic() - begun, 3)
  return Result(job.line, job.settings["out"], status, error, seconds, digest, notes, trace), kind, of_all


def _make(talker: DiceTalk, job: Job, digest: str, show) -> tuple[str, ...]:
  """Makes one video; returns its notes."""
  check_target(job.out)
  remove_partial(job.out)
  with contextlib.chdir(job.folder):
    video = talker.generate(job.image, job.audio, job.emotion, **vars(job.generation), progress=show)
  saving = functools.partial(show, "encoding the video")
  video.save(job.out, job.keep_resolution, saving, _COMMENT + digest)
  _to_disk(job.out)
  return video.notes


def _is_full(error: BaseException | None) -> bool:
  while error is not None and getattr(error, "errno", None) not in _NO_MORE_WRITING:
    error = error.__cause__
  return error is not None


def _is_made(job: Job, digest: str, done: set[str]) -> bool:
  comment = read_comment(job.out) or ""
  if comment.startswith(_COMMENT):
    return comment == _COMMENT + digest
  # Another program may have edited the video and dropped the comment.
  return digest in done and job.out.exists()


def _to_disk(path: Path) -> None:
  """Flushes a new file to disk; OutputError where that fails."""
  try:
    with path.open("rb") as file:
      os.fsync(file.fileno())
  except OSError as error:
    raise OutputError(f"video {path} cannot be written: {error.strerror}") from error
  # Not every file system can flush folders.
  with contextlib.suppress(OSError):
    folder = os.open(path.parent, os.O_RDONLY)
    try:
      os.fsync(folder)
    finally:
      os.close(folder)
