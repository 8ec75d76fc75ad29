"""Results of a job list: one JSON line per job, appended next to the list so that they survive a crash.

Each host that shares a list writes its own file and reads the files of all.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from dicetalk_jax.errors import OutputError
from dicetalk_jax.files import lock


@dataclasses.dataclass(frozen=True)
class Result:
  """The record of a finished job.

  job: line in the list. out: as written in the list. status: "done" or "failed". digest: hash of settings and weights,
  None for a line that is not a job. trace: traceback of an unexpected error.
  """

  job: int
  out: str | None
  status: str
  error: str | None = None
  seconds: float = 0.0
  digest: str | None = None
  notes: tuple[str, ...] = ()
  trace: str | None = None


def results_path(path: str | os.PathLike, index: int = 0, count: int = 1) -> Path:
  """jobs.jsonl -> jobs.results.jsonl, or jobs.results.0-of-2.jsonl for the first of two hosts."""
  path = Path(path)
  return path.with_name(f"{path.stem}.results{f'.{index}-of-{count}' if count > 1 else ''}.jsonl")


class Records:
  """Digests that all hosts have recorded as `done` and `failed`, and this host's file to append to.

  begun: digests of jobs that were running when a process of this host died, and that have not ended since.
  """

  def __init__(self, path: Path, file: int, done: set[str], failed: set[str]):
    self.path, self._file, self.done, self.failed = path, file, done, failed
    self._notes, self._ended, self._now = path.with_name(f".{path.stem}.begun"), set(), set()
    try:
      self.begun = set(self._notes.read_text().split()) - done
    except OSError:
      self.begun = set()

  def begin(self, digest: str) -> None:
    """Stores which job is running."""
    self._now = {digest}
    self._note()

  def append(self, result: Result) -> None:
    """Appends a record and waits until it is on disk; OutputError where it cannot be written."""
    record = dataclasses.asdict(result)
    for name in ("notes", "trace"):
      if not record[name]:
        del record[name]
    left = json.dumps(record).encode() + b"\n"
    try:
      while left:
        left = left[os.write(self._file, left) :]
      os.fsync(self._file)
    except OSError as error:
      raise OutputError(
        f"results {self.path} cannot be written: {error.strerror}; finished videos stay, and the same command "
        "finds them"
      ) from error
    self._ended.add(result.digest)

  def end(self) -> None:
    """Stores that no job is running."""
    self._now = set()
    self._note()

  def _note(self):
    # Only the order of jobs depends on it.
    with contextlib.suppress(OSError):
      if notes := (self.begun - self._ended) | self._now:
        self._notes.write_text("".join(f"{digest}\n" for digest in sorted(notes)))
      else:
        self._notes.unlink(missing_ok=True)


@contextlib.contextmanager
def records_of(jobs: Path, index: int, count: int) -> Iterator[Records]:
  """Locks a host's results file, removes a partial last line, and reads the files of all hosts.

  Raises InputError where another process holds it, or works on the list with another number of hosts; OutputError where
  it cannot be written.
  """
  path = results_path(jobs, index, count)
  try:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
  except OSError as error:
    raise OutputError(f"results {path} cannot be written: {error.strerror}") from error
  busy = "another process works on this list and writes {}; wait until it ends, or stop it"
  try:
    with lock(path, busy.format(path)):
      digests = {"done": set(), "failed": set()}
      name = re.compile(re.escape(jobs.stem) + r"\.results(\.\d+-of-\d+)?\.jsonl")
      for other in sorted(path for path in jobs.parent.iterdir() if name.fullmatch(path.name)):
        text = other.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if other == path and whole != text:
          os.truncate(file, len(whole))
        if other != path and not other.name.endswith(f"-of-{count}.jsonl"):
          with lock(other, busy.format(other), shared=True):
            pass
        for line in whole.splitlines():
          # A damaged line is no record.
          with contextlib.suppress(ValueError, TypeError, KeyError):
            record = json.loads(line)
            digests[record["status"]].add(record["digest"])
      records = Records(path, file, **digests)
      try:
        yield records
      finally:
        records.end()
  finally:
    os.close(file)
