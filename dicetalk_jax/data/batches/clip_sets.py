"""Sets of clips, as building leaves them, read together: pictures and truth, before anything is encoded."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from dicetalk_jax.data.batches.clips import Folders
from dicetalk_jax.data.index import Index, read_index
from dicetalk_jax.data.records import Clip, clip_of, decode_frames
from dicetalk_jax.data.sets import Records
from dicetalk_jax.errors import InputError


class ClipSets:
  """A split of several sets as one; `index` has a row a record. It can be pickled, and threads may read it at once.

  Raises InputError for a folder that is missing, no finished set, or encoded, for a split that one does not have, and
  where no clip is in any.
  """

  def __init__(self, folders: Folders, split: str):
    folders = [folders] if isinstance(folders, str | os.PathLike) else list(folders)
    if not folders:
      raise InputError("no data is given to train on; give sets that `dicetalk data build` has made")
    self._records = [_open(folder, split) for folder in folders]
    self._ends = np.cumsum([len(records) for records in self._records], dtype=np.int64)
    self.index = Index.join([read_index(records) for records in self._records])
    self.where = ", ".join(str(records.folder) for records in self._records)
    if not len(self.index):
      raise InputError(f"{self.where} has no clip in '{split}'")

  def clip(self, record: int) -> Clip:
    """Raises InputError, naming the file, where it is damaged."""
    records, number = self._place(record)
    return clip_of(records[number])

  def frames(self, record: int, indices=None) -> np.ndarray:
    """(n, h, w, 3) uint8: all frames of a clip, or those of `indices`. InputError, naming the file, where damaged."""
    records, number = self._place(record)
    clip = clip_of(records[number])
    try:
      return decode_frames(clip.frames, indices)
    except InputError as error:
      raise InputError(f"{records.file_of(number)}, clip {clip.clip}: {error}") from error

  def one_size(self, usable: np.ndarray) -> tuple[int, int]:
    """Height and width of the records `usable`; InputError where there are several."""
    sizes = np.unique(np.stack([self.index.height, self.index.width], axis=1)[usable], axis=0)
    if len(sizes) > 1:
      shown = " and ".join(f"{width}x{height}" for height, width in sizes[:2])
      raise InputError(f"{self.where} has pictures of {shown} pixels, which make no batch; build all at one size")
    return tuple(map(int, sizes[0]))

  def _place(self, record: int) -> tuple[Records, int]:
    folder = int(np.searchsorted(self._ends, record, side="right"))
    return self._records[folder], int(record - (self._ends[folder - 1] if folder else 0))


class Kept:
  """function(record) of records, each read once as far as there is room; `size` says how many bytes one takes.

  What finds no room is read anew each time. Pickled, it is empty: each process keeps its own.
  """

  def __init__(self, function: Callable[[int], Any], size: Callable[[int], int], gigabytes: float):
    self._function, self._size = function, size
    self._limit = self._room = int(gigabytes * 1e9)
    self._found = {}

  def get(self, record: int) -> Any | None:
    """None where there is no room for it."""
    if (found := self._found.get(record)) is not None:
      return found
    if (size := self._size(record)) > self._room:
      return None
    self._room -= size
    self._found[record] = found = self._function(record)
    return found

  def __getitem__(self, record: int) -> Any:
    found = self.get(record)
    return self._function(record) if found is None else found

  def __getstate__(self):
    return self.__dict__ | {"_room": self._limit, "_found": {}}


def _open(folder, split) -> Records:
  records = Records(folder, split)
  if "frames" not in records.features:
    raise InputError(f"{records.folder} holds encoded clips; give the set that it was encoded from")
  return records
