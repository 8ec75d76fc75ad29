"""The index of a set: labels and lengths of every record, in a small file beside the large ones."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dicetalk_jax.data.sets import Records


@dataclasses.dataclass(frozen=True)
class Index:
  """What is asked of every record of a split before any is read, arrays (N,).

  emotion: index in EMOTIONS, -1 not known. references: how many CLIP embeddings an encoded record has, else 0.
  """

  clip: np.ndarray
  identity: np.ndarray
  video: np.ndarray
  source: np.ndarray
  emotion: np.ndarray
  level: np.ndarray
  num_frames: np.ndarray
  height: np.ndarray
  width: np.ndarray
  has_expression: np.ndarray
  references: np.ndarray

  def __len__(self):
    return len(self.clip)

  @classmethod
  def of(cls, examples: Iterable[Mapping]) -> "Index":
    """Of records as their features take them or give them."""
    return cls.of_rows(map(row, examples))

  @classmethod
  def of_rows(cls, rows: Iterable[tuple]) -> "Index":
    """Of what `row` gives."""
    columns = list(zip(*rows, strict=True)) or [()] * len(dataclasses.fields(cls))
    types = 4 * [str] + 5 * [np.int32] + [bool, np.int32]
    return cls(*(np.array(column, dtype) for column, dtype in zip(columns, types, strict=True)))

  @classmethod
  def join(cls, parts: Sequence["Index"]) -> "Index":
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

  def save(self, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
      with partial.open("wb") as file:
        np.savez_compressed(file, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})
      os.replace(partial, path)
    finally:
      partial.unlink(missing_ok=True)

  @classmethod
  def load(cls, path: Path) -> "Index | None":
    """None where there is none, or a damaged or older one."""
    try:
      with np.load(path) as stored:
        return cls(**stored)
    except Exception:  # a damaged zip file makes NumPy raise nearly anything
      return None


def row(example: Mapping) -> tuple:
  """A record's row of the index, as JSON could hold it."""
  texts = (_text(example[name]) for name in ("clip", "identity", "video", "source"))
  numbers = (int(example[name]) for name in ("emotion", "level", "num_frames", "height", "width"))
  references = example.get("reference_index")
  return (*texts, *numbers, len(example["expression"]) > 0, 0 if references is None else len(references))


def _text(value) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def index_path(folder: Path, split: str) -> Path:
  return folder / f"index-{split}.npz"


def read_index(records: Records) -> Index:
  """The index of a split; it is made by a pass over the records, and kept, where it is missing or of others."""
  path = index_path(records.folder, records.split)
  index = Index.load(path)
  if index is None or len(index) != len(records):
    index = Index.of(records[i] for i in range(len(records)))
    # The folder may be read-only: it only takes longer at the next start.
    with contextlib.suppress(OSError):
      index.save(path)
  return index
