"""Builds a set: jobs in several processes, each result kept as soon as it is complete; a stopped build continues."""

import concurrent.futures
import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from dicetalk_jax.data.index import Index, row
from dicetalk_jax.data.records import Clip, Rejected, features
from dicetalk_jax.data.sets import INFO, check_space, locked, serialize, shard_name, writing
from dicetalk_jax.data.settings import difference
from dicetalk_jax.data.shards import SetFile, finish_set
from dicetalk_jax.errors import DiceTalkError, InputError
from dicetalk_jax.files import check_folder, interrupts, new_file, write_json
from dicetalk_jax.vocabulary import FPS

PLAN = "build.json"
REPORT = "rejected.csv"
# Encoding restarts at the last finished shard, so shards are small; but thousands of files help nobody.
LEAST_JOBS_PER_SHARD, MOST_SHARDS = 16, 4096
# Clips of a job, until their shard is complete.
_PARTS = "parts"
_CRASHED = "the process that read it died twice: the file is damaged in a way that crashes the decoder"


@dataclasses.dataclass(frozen=True)
class Job:
  """Input of one call that makes clips: a file, or a person and a sentence.

  name: unique; work: picklable; state: of the files that it reads, so that a rejected file is read again once it has
  changed; labels: what is known of it beforehand, which must not change while a folder is built.
  """

  name: str
  split: str
  work: Any
  state: str = ""
  labels: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
  """Result of a build: clips and seconds of each split, and the rejected clips with reasons."""

  folder: Path
  clips: dict[str, int]
  seconds: dict[str, float]
  rejected: tuple[Rejected, ...]

  def __str__(self):
    lines = [f"{self.folder}: {sum(self.clips.values())} clips, {sum(self.seconds.values()) / 60:.1f} minutes"]
    for split, count in self.clips.items():
      lines.append(f"  {split}: {count} clips, {self.seconds[split] / 60:.1f} minutes")
      if not count:
        lines.append(f"  WARNING: nothing of the {split} split could be used; hold out others, or repair its files")
    if self.rejected:
      lines.append(f"  left out: {len(self.rejected)}, listed with the reason in {self.folder / REPORT}, such as")
      lines += [f"    {rejected.clip}: {rejected.reason}" for rejected in self.rejected[:5]]
    return "\n".join(lines)


def build(
  folder: Path,
  name: str,
  jobs: Sequence[Job],
  make: Callable[[Any], Iterable[Clip | Rejected]],
  settings: Mapping,
  rejected: Sequence[Rejected] = (),
  workers: int | None = None,
  progress: Callable[[str, int, int], None] | None = None,
  description: str = "",
  defaults: Mapping | None = None,
) -> Report:
  """Makes the clips of all jobs and writes them as the TFDS dataset `name` into `folder`; finished work is kept.

  make(job.work) runs in `workers` processes (default: one for each core), so it must be importable there. settings: all
  that determines the clips, as JSON; a folder with other settings or jobs is refused. defaults: values of settings that
  an older folder may lack. rejected: files left out before, for the report. Raises InputError for a folder that is in
  use or holds something else, and OutputError when the disk is full; the same call then continues.
  """
  if workers is not None and workers < 1:
    raise InputError(f"{workers} workers cannot build a set; give at least 1")
  check_folder(folder, "set that a build has begun", marker=PLAN)
  jobs = sorted(jobs, key=lambda job: (job.split, job.name))
  for one, other in itertools.pairwise(sorted(job.name for job in jobs)):
    if one == other:
      raise InputError(f"two files of the set have the same name {one}; rename one")
  with writing(folder), locked(folder):
    _check_plan(folder, name, jobs, settings, defaults)
    return _build(folder, name, jobs, make, rejected, workers, progress, description)


def _build(folder, name, jobs, make, rejected, workers, progress, description) -> Report:
  shards = _shards(folder, name, jobs)
  if not all(shard.finished for shard in shards):
    # Until it is complete again, the folder is not a set.
    (folder / INFO).unlink(missing_ok=True)
  todo = [job for shard in shards if not shard.finished for job in shard.jobs if not shard.has(job)]
  done, shard_of = len(jobs) - len(todo), {job.name: shard for shard in shards for job in shard.jobs}
  if progress:
    progress("making clips", done, len(jobs))
  for shard in shards:
    shard.assemble()
  with contextlib.closing(_run(todo, make, shard_of, workers)) as finished:
    for job in finished:
      done += 1
      if progress:
        progress("making clips", done, len(jobs))
      shard_of[job.name].assemble()
  report = _report(folder, shards, rejected)
  if not any(report.clips.values()):
    first = f"; the first: {report.rejected[0].clip}: {report.rejected[0].reason}" if report.rejected else ""
    raise InputError(f"none of {len(jobs)} files made a clip, see {folder / REPORT}{first}")
  finish_set(folder, name, features(), shards, description)
  shutil.rmtree(folder / _PARTS, ignore_errors=True)
  return report


@dataclasses.dataclass(frozen=True)
class _Shard(SetFile):
  """A file of the set. Each job leaves a zip file in `parts`; when all are there, they become the file."""

  jobs: tuple[Job, ...]

  @property
  def _parts(self) -> Path:
    return self.folder / _PARTS / f"{self.split}-{self.number:05d}"

  def part(self, job: Job) -> Path:
    return self._parts / f"{hashlib.sha256(job.name.encode()).hexdigest()[:24]}.zip"

  @property
  def finished(self) -> bool:
    return (facts := self.facts) is not None and _unchanged(facts, self.jobs)

  def has(self, job: Job) -> bool:
    """Whether a job's part is complete, and its files are unchanged if clips of them were rejected."""
    part = self.part(job)
    errors = FileNotFoundError, zipfile.BadZipFile, KeyError, ValueError
    with contextlib.suppress(*errors), zipfile.ZipFile(part) as stored:
      if _unchanged(json.loads(stored.read("facts.json")), [job]):
        return True
    part.unlink(missing_ok=True)
    return False

  def assemble(self) -> None:
    """Writes the file if all parts are there."""
    if self.finished or not all(self.part(job).exists() for job in self.jobs):
      return
    facts = {"rejected": [], "left_out": {}}

    def examples() -> Iterator[tuple[bytes, list]]:
      for job in self.jobs:
        with zipfile.ZipFile(self.part(job)) as part:
          inside = json.loads(part.read("facts.json"))
          facts["rejected"] += inside["rejected"]
          facts["left_out"] |= inside["left_out"]
          for i, values in enumerate(inside["rows"]):
            yield part.read(str(i)), values

    self.write(examples(), facts)
    shutil.rmtree(self._parts, ignore_errors=True)


def _unchanged(facts: dict, jobs: Iterable[Job]) -> bool:
  """Whether the files of rejected clips are as they were."""
  return all(job.state == facts["left_out"].get(job.name, job.state) for job in jobs)


def _shards(folder, name, jobs) -> list[_Shard]:
  shards = []
  for split in sorted({job.split for job in jobs}, reverse=True):
    inside = [job for job in jobs if job.split == split]
    size = max(LEAST_JOBS_PER_SHARD, math.ceil(len(inside) / MOST_SHARDS))
    groups = [tuple(inside[i : i + size]) for i in range(0, len(inside), size)]
    shards += [
      _Shard(folder, split, shard_name(name, split, i, len(groups)), i, group) for i, group in enumerate(groups)
    ]
  return shards


def _check_plan(folder, name, jobs, settings, defaults):
  """Refuses a folder that was started with another set, other settings or other jobs."""
  lines = [f"{job.split} {job.name} {job.labels}".rstrip() for job in jobs]
  listed = hashlib.sha256("\n".join(lines).encode()).hexdigest()
  plan = {"name": name, "settings": json.loads(json.dumps(settings)), "files": len(jobs), "listed": listed}
  path = folder / PLAN
  if not path.exists():
    write_json(plan, path, indent=None)
    return
  try:
    earlier = json.loads(path.read_text())
    earlier_settings = earlier["settings"]
  except (ValueError, KeyError):
    raise InputError(f"{path} is damaged; delete {folder} and build it again") from None
  if earlier.get("name") != name:
    text = f"the set {earlier.get('name')}, and this is {name}"
  elif not (text := difference(earlier_settings, plan["settings"], defaults)):
    if earlier.get("listed") == listed:
      return
    text = f"{earlier.get('files')} files, and there are {len(jobs)} now, or they have other names, splits or labels"
  raise InputError(f"{folder} was started with {text}; run the command as before, or give a new folder")


def _report(folder, shards, rejected) -> Report:
  clips, seconds, left_out = {}, {}, []
  for shard in shards:
    facts, split = shard.facts, shard.split
    index = Index.of_rows(facts["rows"])
    clips[split] = clips.get(split, 0) + len(index)
    seconds[split] = seconds.get(split, 0.0) + float(index.num_frames.sum()) / FPS
    left_out += [Rejected(*fields) for fields in facts["rejected"]]
  left_out += rejected
  with new_file(folder / REPORT) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["clip", "reason"])
    writer.writerows([rejected.clip, rejected.reason] for rejected in left_out)
  return Report(folder, clips, seconds, tuple(left_out))


def _run(jobs, make, shard_of, workers) -> Iterator[Job]:
  """Runs jobs in processes; yields each when its part is on disk."""
  workers = min(workers or os.cpu_count() or 1, max(1, len(jobs)))
  waiting = list(reversed(jobs))
  suspects: list[Job] = []
  while waiting or suspects:
    # When a process dies, it is not known which job crashed it: all that may have run are repeated one by one.
    alone = bool(suspects)
    queue = [suspects.pop()] if alone else waiting
    running: dict[concurrent.futures.Future, Job] = {}
    try:
      with _pool(1 if alone else workers) as pool:
        while queue or running:
          # Few jobs ahead, so that a crash concerns few.
          while queue and len(running) < 2 * workers:
            job = queue.pop()
            with _interrupts_held():
              running[pool.submit(_make_part, make, job, shard_of[job.name].part(job))] = job
          done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
          # Failures last, so that nothing that is complete is passed over.
          for future in sorted(done, key=lambda future: future.exception() is not None):
            future.result()
            yield running.pop(future)
    except BrokenProcessPool:
      for job in running.values():
        part = shard_of[job.name].part(job)
        if alone and not part.exists():
          _make_part(lambda work, job=job: [Rejected(job.name, _CRASHED)], job, part)
        if part.exists():
          yield job
        else:
          suspects.append(job)


@contextlib.contextmanager
def _interrupts_held():
  """Delays Ctrl-C, and hides it from processes that start meanwhile: the parent alone handles it.

  A process that is interrupted while it starts prints a traceback.
  """
  # A blocked signal stays blocked in child processes; but Python's main thread hears of one that any thread got.
  with interrupts() as interrupted:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
      yield
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, before)
  if interrupted.is_set():
    signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def _pool(workers):
  others = set(multiprocessing.active_children())
  # Spawned, because a fork of a process with threads (JAX, FFmpeg) may hang.
  pool = concurrent.futures.ProcessPoolExecutor(
    workers, mp_context=multiprocessing.get_context("spawn"), initializer=begin_worker
  )
  try:
    yield pool
  except BaseException:
    # Nothing is lost: a part is complete or does not exist.
    for worker in set(multiprocessing.active_children()) - others:
      worker.kill()
    pool.shutdown(wait=False, cancel_futures=True)
    raise
  pool.shutdown()


def begin_worker():
  """Initialises a process that makes clips: it ends with its parent, and computes in one thread."""
  # Without this the workers of a killed parent would wait for it forever.
  threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
  # There is a process for each core already.
  import cv2
  import threadpoolctl

  cv2.setNumThreads(1)
  threadpoolctl.threadpool_limits(1)


def _make_part(make, job: Job, path: Path):
  record = features()
  facts = {"rows": [], "rejected": [], "left_out": {}}
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    with new_file(path) as temporary, zipfile.ZipFile(temporary, "w") as part:
      for result in make(job.work):
        if isinstance(result, Rejected):
          facts["rejected"].append((result.clip, result.reason))
          facts["left_out"][job.name] = job.state
          continue
        example = dataclasses.replace(result, split=job.split).example()
        encoded = serialize(record, example)
        check_space(path.parent, len(encoded))
        part.writestr(str(len(facts["rows"])), encoded)
        facts["rows"].append(row(example))
      part.writestr("facts.json", json.dumps(facts))
  except Exception as error:
    if not isinstance(error, DiceTalkError | OSError):
      error.add_note(f"while making clips of {job.name}")
    raise
