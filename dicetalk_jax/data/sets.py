"""A set on disk: a TFDS dataset folder with array_record files (shards), written and read without TensorFlow."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dicetalk_jax.errors import InputError, OutputError
from dicetalk_jax.files import expanded, lock, new_file, new_folder, remove_partial, require_space, stop_if_interrupted

VERSION = "1.0.0"
SHARD_CLIPS = 16
INFO = "dataset_info.json"
_UNFINISHED = ".unfinished"
# Files that a build and an encoding start with.
_PLANS = ("build.json", "encoding.json")


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of a split, with `records` examples of `bytes` in all."""

  records: int
  bytes: int


def shard_name(name: str, split: str, index: int, count: int) -> str:
  return f"{name}-{split}.array_record-{index:05d}-of-{count:05d}"


def serialize(features, example: dict) -> bytes:
  """An example of a `tfds.features.FeaturesDict` as bytes, deterministic unlike those of TFDS."""
  from tensorflow_datasets.proto import tf_example_pb2

  encoded = features.serialize_example(features.encode_example(example))
  return tf_example_pb2.Example.FromString(encoded).SerializeToString(deterministic=True)


def write_shard(path: Path, examples: Iterable[bytes]) -> Shard:
  """Writes serialised examples; `path` appears when it is complete. Raises OutputError when writing fails."""
  from array_record.python.array_record_module import ArrayRecordWriter

  records = size = 0
  with writing(path):
    remove_partial(path)
    with new_file(path) as temporary:
      # Records are read one at a time, in random order.
      with _system_errors(temporary):
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
      try:
        for example in examples:
          # The writer buffers, and reports a full disk badly.
          buffered = size - (temporary.stat().st_size if temporary.exists() else 0)
          check_space(path.parent, len(example) + max(0, buffered))
          with _system_errors(temporary):
            writer.write(example)
          records, size = records + 1, size + len(example)
      finally:
        with _system_errors(temporary):
          writer.close()
  return Shard(records, size)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
  """Raises an OSError of the block as the OutputError of a command that continues when it is run again."""
  try:
    yield
  except OSError as error:
    raise OutputError(
      f"{path} cannot be written ({error.strerror or error}); finished files are kept: make space or repair the "
      "folder, and run the same command again"
    ) from error


@contextlib.contextmanager
def _system_errors(path: Path) -> Iterator[None]:
  """Raises the system's error for writing to `path`, which array_record does not report."""
  try:
    yield
  except RuntimeError as error:
    with path.open("ab") as file:
      file.write(bytes(1 << 16))
      os.fsync(file.fileno())
    raise OSError("the disk is full, or failed") from error


def check_space(folder: Path, size: int) -> None:
  """Raises OutputError when the disk has no room for `size` bytes and 1 MiB more."""
  require_space(folder, size + (1 << 20), "Finished files are kept: make space and run the same command again.")


def write_info(folder: Path, name: str, features, splits: Mapping[str, Sequence[Shard]], description: str = "") -> None:
  """Writes dataset_info.json and features.json, which turn a folder with these shards into a TFDS dataset.

  features: a `tfds.features.FeaturesDict`; splits: name -> its shards in order.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import dataset_info, file_adapters, naming

  identity = dataset_info.DatasetIdentity(
    name=name, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=__name__
  )
  info = tfds.core.DatasetInfo(builder=identity, features=features, description=description or name)
  info.set_file_format(file_adapters.FileFormat.ARRAY_RECORD)
  template = naming.ShardedFileTemplate(dataset_name=name, data_dir=folder, filetype_suffix="array_record")
  info.set_splits(
    tfds.core.SplitDict(
      [
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=[shard.records for shard in shards],
          num_bytes=sum(shard.bytes for shard in shards),
          filename_template=template.replace(split=split),
        )
        for split, shards in splits.items()
      ]
    )
  )
  unfinished = folder / _UNFINISHED
  unfinished.mkdir(exist_ok=True)
  info.write_to_directory(unfinished)
  # dataset_info.json is last: a folder with it is complete.
  for path in sorted(unfinished.iterdir(), key=lambda path: path.name == INFO):
    os.replace(path, folder / path.name)
  unfinished.rmdir()


def write_set(
  folder: str | os.PathLike, clips: Iterable, name: str = "clips", description: str = "", shard_clips: int = SHARD_CLIPS
) -> Path:
  """Writes `Clip`s or `EncodedClip`s, all of one kind, as a finished set into a new folder; returns the folder.

  Each clip goes to the split that it names, in files of `shard_clips` clips, which memory holds for each split. After
  an error nothing is left. Raises InputError when there is no clip, OutputError when the folder is not empty or cannot
  be written.
  """
  with new_folder(folder) as new:
    features, waiting, shards = None, {}, {}

    def write(split):
      path = new / f"{split}-{len(shards.setdefault(split, []))}"
      shards[split].append((path, write_shard(path, waiting.pop(split))))

    for clip in clips:
      stop_if_interrupted()
      features = features or clip.features()
      waiting.setdefault(clip.split, []).append(serialize(features, clip.example()))
      if len(waiting[clip.split]) == shard_clips:
        write(clip.split)
    if features is None:
      raise InputError(f"there are no clips to write into {folder}")
    for split in list(waiting):
      write(split)
    for split, written in shards.items():
      for i, (path, _) in enumerate(written):
        os.replace(path, new / shard_name(name, split, i, len(written)))
    splits = {split: [shard for _, shard in written] for split, written in shards.items()}
    write_info(new, name, features, splits, description)
  return Path(folder)


def open_set(folder: str | os.PathLike):
  """The `tfds.core.DatasetBuilder` of a finished set.

  Read it with `.info.splits`, `.info.features` and `.as_data_source(split)`. Raises InputError for a folder that is
  missing, not a set, not finished, or without one of its files.
  """
  import tensorflow_datasets as tfds

  folder = expanded(folder, "data set")
  if not folder.is_dir():
    raise InputError(f"data set {folder} is not a folder; make one with `dicetalk data build`")
  if not (folder / INFO).is_file():
    if any((folder / plan).exists() for plan in _PLANS):
      raise InputError(f"data set {folder} is not finished: run the same `dicetalk data` command again")
    raise InputError(
      f"data set {folder} has no {INFO}; give a folder that `dicetalk data build` or `dicetalk data encode` has made"
    )
  try:
    builder = tfds.builder_from_directory(str(folder))
  except Exception as error:  # a damaged JSON makes TFDS raise nearly anything
    raise InputError(f"data set {folder} has a damaged {INFO} ({error}); build it again") from error
  for split in builder.info.splits.values():
    for path in map(Path, split.filepaths):
      if not path.is_file():
        raise InputError(f"data set {folder} lacks its file {path.name}; copy or build the set again")
  return builder


class Records:
  """The records of a split, by number. Picklable: each process opens the files at its first read.

  Raises InputError as `open_set` does, for a split that the set does not have, and with the name of a damaged file.
  """

  def __init__(self, folder: str | os.PathLike, split: str):
    self.folder, self.split = expanded(folder, "data set").absolute(), split
    self._source = None
    # For each file: the number after its last record, and its path.
    self.ends, self.paths = np.zeros(0, int), []
    self._lock = threading.Lock()
    info = self._open(open_set(self.folder))
    self.name, self.features = info.name, frozenset(info.features)

  def _open(self, builder):
    if self.split not in builder.info.splits:
      raise InputError(f"data set {self.folder} has no split '{self.split}'; it has {', '.join(builder.info.splits)}")
    split = builder.info.splits[self.split]
    self.ends, self.paths = np.cumsum(split.shard_lengths), list(map(Path, split.filepaths))
    # TFDS makes no source of an empty split.
    self._source = builder.as_data_source(self.split) if split.num_examples else ()
    return builder.info

  def __len__(self):
    return int(self.ends[-1]) if len(self.ends) else 0

  def file_of(self, record: int) -> Path:
    return self.paths[int(np.searchsorted(self.ends, record, side="right"))]

  def __getitem__(self, record: int) -> dict:
    if self._source is None:
      with self._lock:
        if self._source is None:
          self._open(open_set(self.folder))
    try:
      return self._source[record]
    except IndexError:
      raise
    except Exception as error:  # of many kinds: the reader's C++ core and the parser of a damaged record
      raise _damaged(self.file_of(record)) from error

  def __getstate__(self):
    return self.__dict__ | {"_source": None, "_lock": None}

  def __setstate__(self, state):
    self.__dict__ |= state | {"_lock": threading.Lock()}


def check_files(builder) -> None:
  """Raises InputError with the name of a shard that cannot be opened or has another number of records."""
  from array_record.python.array_record_module import ArrayRecordReader

  for split in builder.info.splits.values():
    for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
      try:
        reader = ArrayRecordReader(str(path))
        records = reader.num_records()
        reader.close()
      except Exception:  # of many kinds, from the reader's C++ core
        records = None
      if records != length:
        raise _damaged(path)


def _damaged(path) -> InputError:
  return InputError(
    f"{path} is damaged or cut short; copy it again, or delete it and run the command that made it again"
  )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
  """Locks a folder for one writer; InputError when another process holds it. The lock ends with its process."""
  folder.mkdir(parents=True, exist_ok=True)
  with lock(folder / ".lock", f"another process is writing {folder}; wait until it ends, or give another folder"):
    yield
