"""The index of a split: labels and lengths of all records, in a small file beside the large ones."""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dicetalk_jax.data.sets import Records
from dicetalk_jax.files import new_file


@dataclasses.dataclass(frozen=True)
class Index:
  """Labels and lengths of the N records of a split, arrays (N,).

  emotion: index in EMOTIONS, -1 when unknown. references: number of CLIP embeddings of an encoded record, else 0.
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
  def of_rows(cls, rows: Iterable[tuple]) -> "Index":
    """The index of rows, as `row` makes them."""
    columns = list(zip(*rows, strict=True)) or [()] * len(dataclasses.fields(cls))
    types = 4 * [str] + 5 * [np.int32] + [bool, np.int32]
    return cls(*(np.array(column, dtype) for column, dtype in zip(columns, types, strict=True)))

  @classmethod
  def join(cls, parts: Sequence["Index"]) -> "Index":
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

  def save(self, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temporary, temporary.open("wb") as file:
      np.savez_compressed(file, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

  @classmethod
  def load(cls, path: Path) -> "Index | None":
    """The index in a file; None when it is missing, damaged or older."""
    try:
      with np.load(path) as stored:
        return cls(**stored)
    except Exception:  # of many kinds, for a damaged zip file
      return None


def row(example: Mapping) -> tuple:
  """The row of a record, as JSON values."""
  texts = (as_text(example[name]) for name in ("clip", "identity", "video", "source"))
  numbers = (int(example[name]) for name in ("emotion", "level", "num_frames", "height", "width"))
  references = example.get("reference_index")
  return (*texts, *numbers, len(example["expression"]) > 0, 0 if references is None else len(references))


def as_text(value) -> str:
  """A text of an example, which TFDS gives as bytes."""
  return value.decode() if isinstance(value, bytes) else str(value)


def index_path(folder: Path, split: str) -> Path:
  return folder / f"index-{split}.npz"


def read_index(records: Records) -> Index:
  """The index of a split. A missing or outdated one is made by a pass over the records, and saved."""
  path = index_path(records.folder, records.split)
  index = Index.load(path)
  if index is None or len(index) != len(records):
    index = Index.of_rows(row(records[i]) for i in range(len(records)))
    # The folder may be read-only; then the next start takes as long.
    with contextlib.suppress(OSError):
      index.save(path)
  return index
