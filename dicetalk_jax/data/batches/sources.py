"""What the sources of batches share: several sets read as one, the rows of each batch, and clips held in memory."""

import collections
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dicetalk_jax.data.batches.sampling import ENDLESS, Run, generator, shuffled
from dicetalk_jax.data.encode.record import EncodedClip, encoded_clip, open_encoded
from dicetalk_jax.data.index import Index, read_index
from dicetalk_jax.data.records import Clip, clip_of, decode_frames
from dicetalk_jax.data.sets import Records
from dicetalk_jax.data.settings import as_json
from dicetalk_jax.errors import InputError

Folders = str | os.PathLike | Sequence[str | os.PathLike]


def as_list(folders: Folders) -> list[str | os.PathLike]:
  return [folders] if isinstance(folders, str | os.PathLike) else list(folders)


class _Sets:
  """A split of several sets, read as one; `index` has a row for each record. Picklable and safe to read from threads.

  Raises InputError for a folder that is missing, unfinished or of the wrong kind, and for a split without clips.
  """

  def __init__(self, folders: Folders, split: str):
    folders = as_list(folders)
    if not folders:
      raise InputError(f"no data is given; give {self.kind}")
    self._records = [self._open(folder, split) for folder in folders]
    self.lengths = [len(records) for records in self._records]
    self._ends = np.cumsum(self.lengths, dtype=np.int64)
    self.index = Index.join([read_index(records) for records in self._records])
    self.where = ", ".join(str(records.folder) for records in self._records)
    if not len(self.index):
      raise InputError(f"{self.where} has no clip in '{split}'; give {self.kind} with clips in it")

  def one_size(self, usable: np.ndarray) -> tuple[int, int]:
    """Height and width of the records `usable`; InputError when they differ."""
    sizes = np.unique(np.stack([self.index.height, self.index.width], axis=1)[usable], axis=0)
    if len(sizes) > 1:
      shown = " and ".join(f"{width}x{height}" for height, width in sizes[:2])
      raise InputError(f"{self.where} has pictures of {shown} pixels; a batch needs one size, build all sets at one")
    return tuple(map(int, sizes[0]))

  def _place(self, record: int) -> tuple[Records, int]:
    folder = int(np.searchsorted(self._ends, record, side="right"))
    return self._records[folder], int(record - (self._ends[folder - 1] if folder else 0))

  def _example(self, record: int) -> dict:
    records, number = self._place(record)
    return records[number]


class ClipSets(_Sets):
  """Sets as `dicetalk data build` writes them."""

  kind = "sets that `dicetalk data build` has made"

  def _open(self, folder, split) -> Records:
    records = Records(folder, split)
    if "frames" not in records.features:
      raise InputError(f"{records.folder} holds encoded clips; give the set that it was encoded from")
    return records

  def clip(self, record: int) -> Clip:
    """Raises InputError with the file's name when the file is damaged."""
    return clip_of(self._example(record))

  def frames(self, record: int, indices=None) -> np.ndarray:
    """All frames of a clip, or those of `indices`: (n, h, w, 3) uint8. InputError names a damaged file."""
    clip = self.clip(record)
    try:
      return decode_frames(clip.frames, indices)
    except InputError as error:
      records, number = self._place(record)
      raise InputError(f"{records.file_of(number)}, clip {clip.clip}: {error}") from error


class EncodedSets(_Sets):
  """Sets as `dicetalk data encode` writes them; `pictures` requires latents and CLIP embeddings."""

  kind = "sets that `dicetalk data encode` has made"

  def __init__(self, folders: Folders, split: str, pictures: bool):
    self._pictures = pictures
    super().__init__(folders, split)

  def _open(self, folder, split) -> Records:
    return open_encoded(folder, split, self._pictures)[0]

  def clip(self, record: int) -> EncodedClip:
    """Raises InputError with the file's name when the file is damaged."""
    return encoded_clip(self._example(record))


class Cache:
  """read(record), held in memory up to a number of gigabytes; items have `nbytes`. A pickled cache is empty."""

  def __init__(self, read: Callable[[int], Any], gigabytes: float):
    self._read, self._limit = read, int(gigabytes * 1e9)
    self._room, self._items = self._limit, {}

  def __getitem__(self, record: int) -> Any:
    item = self._items.get(record)
    if item is None:
      item = self._read(record)
      if item.nbytes <= self._room:
        self._room -= item.nbytes
        self._items[record] = item
    return item

  def holds(self, record: int, nbytes: int) -> bool:
    """Whether a record is in memory, or an item of `nbytes` would be kept."""
    return record in self._items or nbytes <= self._room

  def __getstate__(self):
    return self.__dict__ | {"_room": self._limit, "_items": {}}


class RowSource:
  """Base of the sources. A batch has `count` slots, of which this process fills its share; a slot gives rows.

  A subclass sets `_total`, the number of items that a pass without training goes through, and defines
  `_slot_rows(batch, slot)`. `unit` names a slot in errors.
  """

  _total: int

  def __init__(self, kind: str, config, sets: _Sets, split: str, run: Run, count: int, unit: str):
    self._config, self._sets, self._run, self._count = config, sets, run, count
    self._slots = run.rows(count, unit)
    index = self._index = sets.index
    self.clips = index.clip
    self.identities, self._identity = np.unique(index.identity, return_inverse=True)
    self.fingerprint = {
      "kind": kind,
      "seed": int(run.seed),
      "split": split,
      "training": bool(run.training),
      "settings": as_json(config),
      "data": {"clips": len(index), "names": _digest(index)},
    }
    self.defaults = {"settings": as_json(type(config)())}

  def __len__(self):
    return ENDLESS if self._run.training else math.ceil(self._total / self._count)

  def __getitem__(self, batch: int) -> dict[str, np.ndarray]:
    return stacked([row for slot in self._slots for row in self._slot_rows(batch, slot)])

  def _item(self, batch: int, slot: int, order: int, draw: int, whole: bool = False):
    """(item, generator, valid) of a slot: shuffled in training, else in order with no generator.

    order, draw: keys of the random numbers. whole: an epoch has whole batches only, so that no batch has an item twice.
    """
    place, total = batch * self._count + slot, self._total
    if not self._run.training:
      return place % total, None, place < total
    index = place
    if whole:
      epoch, batch = divmod(batch, total // self._count)
      index = epoch * total + batch * self._count + slot
    return shuffled(index, total, self._run.seed, order), generator(self._run.seed, draw, place), True

  def _labels(self, **numbers) -> dict[str, np.ndarray]:
    """Integers and `valid` as a row takes them."""
    valid = np.bool_(numbers.pop("valid"))
    return {name: np.int32(number) for name, number in numbers.items()} | {"valid": valid}


def stacked(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def spread(members: np.ndarray, count: int, rng) -> list[tuple[int, int]]:
  """`count` samples over as many records as there are: (record, samples of it). Evenly spread without a generator."""
  if rng is not None:
    members = rng.permutation(members)
  elif len(members) > count:
    members = members[np.linspace(0, len(members) - 1, count).astype(int)]
  members = members[:count]
  times, more = divmod(count, len(members))
  return [(int(record), times + (i < more)) for i, record in enumerate(members)]


def members_of(names) -> dict[str, np.ndarray]:
  """Group names of all records -> the records of each group, in the order of the names."""
  members = collections.defaultdict(list)
  for record, name in enumerate(names):
    members[str(name)].append(record)
  return {name: np.array(members[name]) for name in sorted(members)}


def limited(records: np.ndarray, limit: int | None) -> np.ndarray:
  """At most `limit` records, spread over all."""
  if limit is None or limit >= len(records):
    return records
  return records[np.linspace(0, len(records) - 1, max(limit, 1)).astype(int)]


def _digest(index: Index) -> str:
  digest = hashlib.sha256()
  for clip, frames, emotion in zip(index.clip, index.num_frames, index.emotion, strict=True):
    digest.update(f"{clip}\0{frames}\0{emotion}\n".encode())
  return digest.hexdigest()[:16]
