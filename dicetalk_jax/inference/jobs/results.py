"""What became of a list of videos: a record a line beside it, which outlives the process at any moment.

Hosts that share a list have a file each, and read those of all.
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
  """How a job ended: its record.

  job: line in the list. out: as it was written there. status: "done" or "failed". digest: of its settings and the
  weights, None for a line that is no job. trace: where in the program, for an error that nobody foresaw.
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
  """Of jobs.jsonl: jobs.results.jsonl beside it, or jobs.results.0-of-2.jsonl of the first of two hosts."""
  path = Path(path)
  return path.with_name(f"{path.stem}.results{f'.{index}-of-{count}' if count > 1 else ''}.jsonl")


class Records:
  """The digests that all hosts have recorded as `done` and `failed`, and this host's file, to add to.

  begun: those at which a process of this host died, and which have not ended since.
  """

  def __init__(self, path: Path, file: int, done: set[str], failed: set[str]):
    self.path, self._file, self.done, self.failed = path, file, done, failed
    self._notes, self._ended, self._now = path.with_name(f".{path.stem}.begun"), set(), set()
    try:
      self.begun = set(self._notes.read_text().split()) - done
    except OSError:
      self.begun = set()

  def begin(self, digest: str) -> None:
    """Notes which job is being done."""
    self._now = {digest}
    self._note()

  def append(self, result: Result) -> None:
    """Returns when the record is on the disk; OutputError where it cannot be."""
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
        f"results {self.path} cannot be written: {error.strerror}; what was made stays, and is known when the same "
        "command is run again"
      ) from error
    self._ended.add(result.digest)

  def end(self) -> None:
    """Notes that the process did not die."""
    self._now = set()
    self._note()

  def _note(self):
    # Only the order of jobs hangs on it.
    with contextlib.suppress(OSError):
      if notes := (self.begun - self._ended) | self._now:
        self._notes.write_text("".join(f"{digest}\n" for digest in sorted(notes)))
      else:
        self._notes.unlink(missing_ok=True)


@contextlib.contextmanager
def records_of(jobs: Path, index: int, count: int) -> Iterator[Records]:
  """Holds a host's file of results, mended where a process was killed while it wrote, and reads those of all hosts.

  Raises InputError where another process holds it, or one that was started as one of another number of hosts and would
  do the same jobs; OutputError where it cannot be written.
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
      for other in _all_results(jobs):
        text = other.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if other == path and whole != text:
          os.truncate(file, len(whole))
        if other != path and not other.name.endswith(f"-of-{count}.jsonl"):
          with lock(other, busy.format(other), shared=True):
            pass
        for record in map(_record, whole.splitlines()):
          if record.get("status") in digests and isinstance(record.get("digest"), str):
            digests[record["status"]].add(record["digest"])
      records = Records(path, file, **digests)
      try:
        yield records
      finally:
        records.end()
  finally:
    os.close(file)


def _all_results(jobs: Path) -> list[Path]:
  name = re.compile(re.escape(jobs.stem) + r"\.results(\.\d+-of-\d+)?\.jsonl")
  return sorted(path for path in jobs.parent.iterdir() if name.fullmatch(path.name))


def _record(line: bytes) -> dict:
  """A record; an empty one for a line that is none."""
  try:
    record = json.loads(line)
  except ValueError:
    return {}
  return record if isinstance(record, dict) else {}
