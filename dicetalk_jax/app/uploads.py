"""Visitors' uploads: each is kept while a page shows it or a generation needs it, then removed."""

import contextlib
import dataclasses
import pathlib
import secrets
import tempfile
import threading
import time
from collections.abc import Mapping

from dicetalk_jax.errors import InputError

# A file without holders is on its way to a page; after so many seconds it is removed.
_UNTAKEN_SECONDS = 900.0


@dataclasses.dataclass(frozen=True)
class Upload:
  """A visitor's file: its path on the server and its own name."""

  path: pathlib.Path
  name: str

  @classmethod
  def of(cls, payload) -> "Upload | None":
    """The upload in an image, audio or file field, from the browser's payload; None for an empty field.

    Events have `preprocess=False`, so that this package's readers decode files and report errors. Gradio still checks
    that the path is one of its uploads.
    """
    if not isinstance(payload, Mapping) or not isinstance(payload.get("path"), str):
      return None
    path = pathlib.Path(payload["path"]).resolve()
    return cls(path, pathlib.PurePath(payload.get("orig_name") or path).name)


class Uploads:
  """A folder of uploads, each with its holders: pages and generations. Thread-safe.

  Equal files of two visitors are one file here, so a file is removed only when nobody holds it.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder.resolve()
    self.folder.mkdir(parents=True, exist_ok=True)
    self._held: dict[tuple, set[pathlib.Path]] = {}
    self._lock = threading.Lock()

  def check(self, upload: Upload) -> Upload:
    """The upload; InputError for a path that is not in this folder, or no longer."""
    if not upload.path.resolve().is_relative_to(self.folder) or not upload.path.is_file():
      raise InputError("this file is no longer on the server; give it again")
    return upload

  def new_folder(self) -> pathlib.Path:
    """A new folder for a file that is made here."""
    return pathlib.Path(tempfile.mkdtemp(dir=self.folder))

  def hold(self, holder: tuple, *uploads: Upload):
    """Makes `holder`, such as (page, field), hold these uploads instead of its earlier ones."""
    with self._lock:
      before = self._held.get(holder, set())
      self._held[holder] = {upload.path for upload in uploads}
      self._remove_unheld(before)

  @contextlib.contextmanager
  def held(self, *uploads: Upload):
    """Holds uploads until the block ends."""
    holder = ("call", secrets.token_hex(8))
    self.hold(holder, *map(self.check, uploads))
    try:
      yield
    finally:
      self.release(*holder)

  def release(self, *start):
    """Releases the uploads of all holders that begin with `start`."""
    with self._lock:
      holders = [holder for holder in self._held if holder[: len(start)] == start]
      self._remove_unheld(set().union(*map(self._held.pop, holders)))

  def sweep(self, now: float | None = None):
    """Removes old files that nobody holds."""
    oldest = (time.time() if now is None else now) - _UNTAKEN_SECONDS
    with self._lock:
      files = [path for path in self.folder.rglob("*") if path.is_file()]
      self._remove_unheld({path for path in files if path.stat().st_mtime < oldest})

  def _remove_unheld(self, paths):
    for path in paths.difference(*self._held.values()):
      path.unlink(missing_ok=True)
      # Each upload came in a folder of its own.
      with contextlib.suppress(OSError):
        path.parent.rmdir()
