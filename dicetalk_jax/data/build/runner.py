"""Builds a set: jobs spread over processes, each finished one kept at once, assembled into shards; resumable."""

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from dicetalk_jax.data.index import Index, index_path, row
from dicetalk_jax.data.records import Clip, Rejected, features
from dicetalk_jax.data.sets import INFO, Shard, locked, require_space, serialize, shard_name, write_info, write_shard
from dicetalk_jax.data.settings import Settings
from dicetalk_jax.errors import DiceTalkError, InputError, OutputError
from dicetalk_jax.vocabulary import FPS

PLAN = "build.json"
REPORT = "rejected.csv"
# A shard is what an encoding that is killed does again; a folder of many thousand files helps nobody.
LEAST_JOBS_PER_SHARD, MOST_SHARDS = 16, 4096
# A job's clips, kept from when they are made until their shard is whole.
_PARTS = "parts"
_SHARDS = "shards"
_DIED = "the process that read it died, twice: the file is damaged in a way that breaks the decoder"


@dataclasses.dataclass(frozen=True)
class Job:
  """What one call makes clips of: a file, or a person and a sentence.

  name: unique; work: what can be pickled; state: of the files that it reads, so that one which was left out is tried
  again when it has been mended; labels: what is known of it beforehand, which a folder is bound to.
  """

  name: str
  split: str
  work: Any
  state: str = ""
  labels: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
  """What a finished build holds: clips and seconds of each split, and what was left out, and why."""

  folder: Path
  clips: dict[str, int]
  seconds: dict[str, float]
  rejected: tuple[Rejected, ...]

  def __str__(self):
    lines = [f"{self.folder}: {sum(self.clips.values())} clips, {sum(self.seconds.values()) / 60:.1f} minutes"]
    for split, count in self.clips.items():
      lines.append(f"  {split}: {count} clips, {self.seconds[split] / 60:.1f} minutes")
      if not count:
        lines.append(f"  WARNING: nothing of the {split} split could be used; hold out others, or mend its files")
    if self.rejected:
      lines.append(f"  left out: {len(self.rejected)}, listed with the reason in {self.folder / REPORT}, such as")
      lines += [f"    {rejected.clip}: {rejected.reason}" for rejected in self.rejected[:5]]
    return "\n".join(lines)


def build(
  folder: Path,
  name: str,
  jobs: Sequence[Job],
  make: Callable[[Any], Iterable[Clip | Rejected]],
  settings: dict,
  rejected: Sequence[Rejected] = (),
  workers: int | None = None,
  progress: Callable[[str, int, int], None] | None = None,
  description: str = "",
) -> Report:
  """Makes the clips of all jobs and writes them as the TFDS dataset `name` into `folder`; finished work is kept.

  make(job.work) runs in other processes (so it must be importable there), `workers` of them (default: one a core).
  settings: all that decides what is made, as JSON; a folder begun with others, or with other jobs, is refused. One
  that lacks some of a `Settings` was begun with their defaults.
  rejected: what was left out before, for the report. Raises InputError for a folder that is in use or begun with
  something else, and OutputError where the disk is full: the same call goes on from there.
  """
  if workers is not None and workers < 1:
    raise InputError(f"{workers} workers cannot work; give at least 1")
  if folder.exists() and not folder.is_dir():
    raise InputError(f"{folder} is a file; give the name of a folder for the set")
  _check_empty(folder)
  jobs = sorted(jobs, key=lambda job: (job.split, job.name))
  if len({job.name for job in jobs}) != len(jobs):
    twice = next(a.name for a, b in itertools.pairwise(jobs) if a.name == b.name)
    raise InputError(f"two files of the set have the same name {twice}; rename one")
  try:
    with locked(folder):
      _check_plan(folder, name, jobs, settings)
      shards = _shards(folder, name, jobs)
      if not all(shard.finished for shard in shards):
        # A set that is being made again is not one until it is whole.
        (folder / INFO).unlink(missing_ok=True)
      todo = [job for shard in shards if not shard.finished for job in shard.jobs if not shard.made(job)]
      total, done = len(jobs), len(jobs) - len(todo)
      if progress:
        progress("making clips", done, total)
      for shard in shards:
        shard.assemble_if_complete()
      where = {job.name: shard for shard in shards for job in shard.jobs}
      with contextlib.closing(_run(todo, make, where, workers)) as made:
        for job in made:
          done += 1
          if progress:
            progress("making clips", done, total)
          where[job.name].assemble_if_complete()
      report = _report(folder, shards, rejected)
      if not any(report.clips.values()):
        first = f"; the first: {report.rejected[0].clip}: {report.rejected[0].reason}" if report.rejected else ""
        raise InputError(f"none of {total} files made a clip, see {folder / REPORT}{first}")
      splits = {shard.split: [other for other in shards if other.split == shard.split] for shard in shards}
      for split, inside in splits.items():
        Index.join([shard.contents() for shard in inside]).save(index_path(folder, split))
      summaries = {split: [shard.summary for shard in inside] for split, inside in splits.items()}
      write_info(folder, name, features(), summaries, description)
      shutil.rmtree(folder / _PARTS, ignore_errors=True)
      return report
  except OSError as error:
    raise OutputError(
      f"{folder} cannot be written ({error.strerror or error}); what was finished stays valid: make space or mend the "
      "folder, and run the same command again"
    ) from error


@dataclasses.dataclass(frozen=True)
class _Shard:
  folder: Path
  name: str
  split: str
  index: int
  count: int
  jobs: tuple[Job, ...]

  @property
  def path(self) -> Path:
    return self.folder / shard_name(self.name, self.split, self.index, self.count)

  @property
  def facts(self) -> Path:
    """What the shard holds; it exists only when the shard is whole."""
    return self.folder / _SHARDS / f"{self.split}-{self.index:05d}.json"

  @property
  def parts(self) -> Path:
    return self.folder / _PARTS / f"{self.split}-{self.index:05d}"

  def part(self, job: Job) -> Path:
    return self.parts / f"{hashlib.sha256(job.name.encode()).hexdigest()[:24]}.zip"

  @property
  def finished(self) -> bool:
    try:
      facts = json.loads(self.facts.read_text())
      same = self.path.stat().st_size == facts["file_bytes"]
    except (OSError, ValueError, KeyError):
      return False
    return same and all(job.state == facts["left_out"].get(job.name, job.state) for job in self.jobs)

  def made(self, job: Job) -> bool:
    """Whether a job's part is there, and, where clips were left out of it, of the files as they are now."""
    if not self.part(job).exists():
      return False
    try:
      with zipfile.ZipFile(self.part(job)) as part:
        facts = json.loads(part.read("facts.json"))
    except (zipfile.BadZipFile, KeyError, ValueError):
      facts = {"left_out": {job.name: None}}
    if facts["left_out"].get(job.name, job.state) == job.state:
      return True
    self.part(job).unlink()
    return False

  @property
  def summary(self) -> Shard:
    facts = json.loads(self.facts.read_text())
    return Shard(facts["records"], facts["bytes"])

  def contents(self) -> Index:
    return Index.of_rows(json.loads(self.facts.read_text())["rows"])

  def assemble_if_complete(self):
    if self.finished:
      return
    if not all(self.part(job).exists() for job in self.jobs):
      return
    self.path.unlink(missing_ok=True)
    facts = {"rows": [], "rejected": [], "left_out": {}}

    def examples() -> Iterator[bytes]:
      for job in self.jobs:
        with zipfile.ZipFile(self.part(job)) as part:
          found = json.loads(part.read("facts.json"))
          facts["rows"] += found["rows"]
          facts["rejected"] += found["rejected"]
          facts["left_out"] |= found["left_out"]
          for i in range(len(found["rows"])):
            yield part.read(str(i))

    shard = write_shard(self.path, examples())
    facts |= {"records": shard.records, "bytes": shard.bytes, "file_bytes": self.path.stat().st_size}
    _write_json(self.facts, facts)
    shutil.rmtree(self.parts, ignore_errors=True)


def _shards(folder, name, jobs) -> list[_Shard]:
  shards = []
  for split in sorted({job.split for job in jobs}, reverse=True):
    inside = [job for job in jobs if job.split == split]
    size = max(LEAST_JOBS_PER_SHARD, math.ceil(len(inside) / MOST_SHARDS))
    groups = [tuple(inside[i : i + size]) for i in range(0, len(inside), size)]
    shards += [_Shard(folder, name, split, i, len(groups), group) for i, group in enumerate(groups)]
  return shards


def _check_plan(folder, name, jobs, settings):
  """Binds a folder to what it is built of."""
  lines = [f"{job.split} {job.name} {job.labels}".rstrip() for job in jobs]
  listed = hashlib.sha256("\n".join(lines).encode()).hexdigest()
  plan = {"name": name, "settings": json.loads(json.dumps(settings)), "files": len(jobs), "listed": listed}
  path = folder / PLAN
  if not path.exists():
    _write_json(path, plan)
    return
  try:
    begun = json.loads(path.read_text())
  except ValueError:
    raise InputError(f"{path} is damaged; delete {folder} and build it again") from None
  if isinstance(settings, Settings) and isinstance(begun.get("settings"), dict):
    begun["settings"] = settings.completed(begun["settings"])
  if begun == plan:
    return
  if begun.get("name") != name:
    difference = f"the set {begun.get('name')}, this is {name}"
  elif begun.get("settings") != plan["settings"]:
    old, new = begun.get("settings", {}), plan["settings"]
    difference = _difference(old, new)
  else:
    difference = f"{begun.get('files')} files, this finds {len(jobs)}, or they have other names, splits or labels"
  raise InputError(f"{folder} was begun with {difference}; run it as before, or give a new folder")


def _check_empty(folder):
  """Refuses a folder of other things, before anything is written into it."""
  if not folder.exists() or (folder / PLAN).exists():
    return
  others = sorted(found.name for found in folder.iterdir() if found.name not in (".lock", _PARTS, _SHARDS))
  if INFO in others:
    raise InputError(f"{folder} holds another data set; give a new folder")
  if others:
    raise InputError(f"{folder} is not empty (it holds {', '.join(others[:3])}); give a new folder")


def _difference(old, new) -> str:
  key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
  if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
    return _difference(old[key], new[key])
  return f"{key} {_shown(old.get(key))}, this has {_shown(new.get(key))}"


def _shown(value) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else f"{text[:57]}..."


def _write_json(path: Path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.unfinished")
  partial.write_text(json.dumps(value))
  os.replace(partial, path)


def _report(folder, shards, rejected) -> Report:
  clips, seconds, left_out = {}, {}, list(rejected)
  for shard in shards:
    facts = json.loads(shard.facts.read_text())
    clips[shard.split] = clips.get(shard.split, 0) + facts["records"]
    seconds[shard.split] = seconds.get(shard.split, 0.0) + float(shard.contents().num_frames.sum()) / FPS
    left_out += [Rejected(*found) for found in facts["rejected"]]
  with (folder / REPORT).open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["clip", "reason"])
    writer.writerows([found.clip, found.reason] for found in left_out)
  return Report(folder, clips, seconds, tuple(left_out))


def _run(jobs, make, shards, workers) -> Iterator[Job]:
  """Runs jobs in processes and yields each when its part is on disk."""
  workers = min(workers or os.cpu_count() or 1, max(1, len(jobs)))
  waiting = list(reversed(jobs))
  suspects: list[Job] = []
  while waiting or suspects:
    # After a process died nobody knows whose fault it was: the jobs it may have been run one by one.
    alone = bool(suspects)
    queue = [suspects.pop()] if alone else waiting
    running: dict[concurrent.futures.Future, Job] = {}
    try:
      with _pool(1 if alone else workers) as pool:
        while queue or running:
          # So few ahead that a fault concerns few.
          while queue and len(running) < 2 * workers:
            job = queue.pop()
            part = shards[job.name].part(job)
            with _interrupts_held():
              running[pool.submit(_make_part, make, job, part)] = job
          done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
          for future in done:
            future.result()
            yield running.pop(future)
    except BrokenProcessPool:
      for job in running.values():
        part = shards[job.name].part(job)
        if part.exists():
          yield job
        elif alone:
          _write_part(part, [Rejected(job.name, _DIED)], job)
          yield job
        else:
          suspects.append(job)


@contextlib.contextmanager
def _interrupts_held():
  """Ctrl-C waits, and processes that start meanwhile never get it: it is the parent's to take.

  A process that is left when half started complains of it at length.
  """
  came = []
  # What is blocked is inherited; but Python hears of a signal that any of its threads got, in the main one.
  main = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not None
  handler = signal.signal(signal.SIGINT, lambda *_: came.append(True)) if main else None
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if main:
      signal.signal(signal.SIGINT, handler)
    if came:
      signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def _pool(workers):
  others = set(multiprocessing.active_children())
  # Spawned: a fork of a process with threads (JAX, FFmpeg) may never run.
  pool = concurrent.futures.ProcessPoolExecutor(
    workers, mp_context=multiprocessing.get_context("spawn"), initializer=begin_worker
  )
  try:
    yield pool
  except BaseException:
    # A part is whole or not there, so that nothing is lost; and nobody waits for what is not wanted any more.
    for worker in set(multiprocessing.active_children()) - others:
      worker.kill()
    pool.shutdown(wait=False, cancel_futures=True)
    raise
  pool.shutdown()


def begin_worker():
  """What a process does first that makes clips: it ends with its parent, and computes with one thread."""
  # A killed parent tells nobody: without this its workers would wait for it for ever.
  threading.Thread(target=_end_with_parent, daemon=True).start()
  # A process a core already: libraries that start a thread a core each would only get in each other's way.
  import cv2
  import threadpoolctl

  cv2.setNumThreads(1)
  threadpoolctl.threadpool_limits(1)


def _end_with_parent():
  multiprocessing.parent_process().join()
  os._exit(1)


def _make_part(make, job: Job, path: Path):
  try:
    _write_part(path, make(job.work), job)
  except (DiceTalkError, OSError):
    raise
  except Exception as error:
    error.add_note(f"while making clips of {job.name}")
    raise


def _write_part(path: Path, made: Iterable[Clip | Rejected], job: Job):
  record = features()
  facts = {"rows": [], "rejected": [], "left_out": {}}
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
  try:
    with zipfile.ZipFile(partial, "w") as part:
      for item in made:
        if isinstance(item, Rejected):
          facts["rejected"].append((item.clip, item.reason))
          facts["left_out"][job.name] = job.state
          continue
        example = dataclasses.replace(item, split=job.split).example()
        encoded = serialize(record, example)
        require_space(path.parent, len(encoded))
        part.writestr(str(len(facts["rows"])), encoded)
        facts["rows"].append(row(example))
      part.writestr("facts.json", json.dumps(facts))
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
