"""Visitors' uploads: each is kept while a page shows it or a generation needs it, then removed."""

import collections
import contextlib
import dataclasses
import pathlib
import secrets
import shutil
import tempfile
import threading
import time

from dicetalk_jax.errors import InputError

# A file without holders is on its way to a page; after so many seconds it is removed.
_UNTAKEN_SECONDS = 900.0


@dataclasses.dataclass(frozen=True)
class Upload:
  """A visitor's file: its path on the server and its own name."""

  path: pathlib.Path
  name: str


class Uploads:
  """A folder of uploads, each with its holders: pages and generations. Thread-safe.

  Equal files of two visitors are one file here, so a file is removed only when nobody holds it.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder.resolve()
    self.folder.mkdir(parents=True, exist_ok=True)
    self._holders = collections.defaultdict(set)
    self._lock = threading.Lock()

  def checked(self, path, name: str | None) -> Upload:
    """An upload by its path; InputError for a path that is not in this folder, or no longer."""
    path = pathlib.Path(path).resolve()
    if not path.is_relative_to(self.folder) or not path.is_file():
      raise InputError("this file is no longer on the server; give it again")
    return Upload(path, pathlib.PurePath(name or path.name).name)

  def new_folder(self) -> pathlib.Path:
    """A new folder for a file that is made here."""
    return pathlib.Path(tempfile.mkdtemp(dir=self.folder))

  def hold(self, holder: tuple, *uploads: Upload):
    """Makes `holder`, such as (page, field), hold these uploads instead of its earlier ones."""
    with self._lock:
      wanted = {upload.path for upload in uploads}
      left = [path for path, holders in self._holders.items() if holder in holders and path not in wanted]
      for path in wanted:
        self._holders[path].add(holder)
      for path in left:
        self._leave(path, holder)

  @contextlib.contextmanager
  def borrowed(self):
    """A function like `checked` whose uploads are held until the context ends."""
    holder, taken = ("call", secrets.token_hex(8)), []

    def take(path, name):
      taken.append(self.checked(path, name))
      self.hold(holder, *taken)
      return taken[-1]

    try:
      yield take
    finally:
      self.release(*holder)

  def release(self, *start):
    """Releases the uploads of all holders that begin with `start`."""
    with self._lock:
      for path, holders in list(self._holders.items()):
        for holder in [holder for holder in holders if holder[: len(start)] == start]:
          self._leave(path, holder)

  def sweep(self, now: float | None = None):
    """Removes old files that nobody holds."""
    now = time.time() if now is None else now
    with self._lock:
      for path in list(self.folder.rglob("*")):
        if path.is_file() and path not in self._holders and now - path.stat().st_mtime > _UNTAKEN_SECONDS:
          _remove(path)

  def clear(self):
    """Removes the folder with all that is in it."""
    with self._lock:
      self._holders.clear()
      shutil.rmtree(self.folder, ignore_errors=True)

  def _leave(self, path, holder):
    holders = self._holders[path]
    holders.discard(holder)
    if not holders:
      del self._holders[path]
      _remove(path)


def _remove(path: pathlib.Path):
  path.unlink(missing_ok=True)
  # Each upload came in a folder of its own.
  if not any(path.parent.iterdir()):
    path.parent.rmdir()
