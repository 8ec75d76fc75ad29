"""Encodes a set: frames, sound and reference pictures of every clip through the frozen networks, shard by shard."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from dicetalk_jax.data.encode.networks import Encoders
from dicetalk_jax.data.encode.record import (
  CONFIG,
  FORMAT,
  VERSION,
  WHAT,
  EncodedClip,
  encoding_config,
  features,
)
from dicetalk_jax.data.index import Index, index_path, row
from dicetalk_jax.data.sets import INFO, Records, Shard, locked, open_set, serialize, write_info, write_shard
from dicetalk_jax.errors import InputError, OutputError, out_of_memory
from dicetalk_jax.files import check_folder, expanded, lock, protect_inputs, write_json
from dicetalk_jax.weights.folder import Weights

# Folder of a JSON file for each finished shard.
_SHARDS = "shards"


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Result of `encode`: clips encoded, shards that existed before, and whether all parts are complete."""

  folder: Path
  clips: int
  kept_shards: int
  complete: bool

  def __str__(self):
    state = "complete" if self.complete else "not complete: other parts have yet to be encoded"
    kept = f", {self.kept_shards} files kept from before" if self.kept_shards else ""
    return f"{self.folder}: {self.clips} clips encoded{kept}; {state}"


def encode(
  data: str | os.PathLike,
  target: str | os.PathLike,
  weights: str | os.PathLike | Weights,
  what: str = "all",
  batch: int = 8,
  part: tuple[int, int] = (0, 1),
  reference_every: int = 10,
  dtype: str | None = None,
  threads: int = 2,
  progress: Callable[[str, int, int], None] | None = None,
) -> Encoded:
  """Encodes all splits of the set in `data` into `target`, as `EncodedClip` records.

  what: "all", or "audio" for Whisper's states and the coefficients only, which is enough for the emotion embedder.
  batch: frames at once on each device. part (i, k): every k-th file from the i-th on, so that k hosts share the work;
  the last to finish completes the set. reference_every: every how many frames one gets a CLIP embedding. dtype of VAE
  and CLIP: by default bfloat16 on an accelerator and float32 on a CPU. threads: for decoding frames while the device
  computes. progress("encoding clips", done, total).

  A stopped run continues: a file of the target is complete or does not exist. Raises InputError for data that is not a
  set of clips or is damaged (with the file's name), for a target of other data, weights or options, and when another
  process encodes the same part; OutputError when the disk is full. Finished files are kept.
  """
  if what not in WHAT:
    raise InputError(f"what is {what!r}; choose one of {', '.join(WHAT)}")
  index, count = part
  if not 0 <= index < count:
    raise InputError(f"part {index} of {count} does not exist; parts count from 0")
  for name, value in dict(batch=batch, reference_every=reference_every, threads=threads).items():
    if value < 1:
      raise InputError(f"{name} {value} is too small; give a whole number of at least 1")
  data, target = expanded(data, "data set"), expanded(target, "target")
  folder = weights.folder if isinstance(weights, Weights) else weights
  protect_inputs(target, {"data set": data, "weights folder": folder}, inside=True)
  check_folder(target, "encoded set")
  shards = _plan(data, target)
  encoders = Encoders(weights if isinstance(weights, Weights) else Weights.open(weights), what, batch, dtype)
  config = {
    "format": FORMAT,
    "version": VERSION,
    "what": what,
    "reference_every": reference_every,
    "dtype": encoders.dtype_name,
    "networks": encoders.fingerprints,
    "data": {"folder": str(data.resolve()), "fingerprint": _fingerprint(data)},
    "sizes": encoders.sizes,
  }
  try:
    with locked(target / _SHARDS / f"part-{index}-of-{count}"):
      with lock(target / ".lock", busy=None):
        _bind(target, config)
      own = shards[index::count]
      todo = [shard for shard in own if not shard.finished]
      total, remaining = sum(shard.length for shard in own), sum(shard.length for shard in todo)
      places = itertools.chain.from_iterable(shard.places() for shard in todo)
      # One stream over all files, so that no batch is left half empty at the end of a file.
      with contextlib.closing(encoders.stream(places, reference_every, threads)) as stream:
        counted = _counted(stream, total - remaining, total, progress)
        for shard in todo:
          shard.write(itertools.islice(counted, shard.length), what)
      complete = all(shard.finished for shard in shards)
      if complete:
        with lock(target / ".lock", busy=None):
          _complete(target, shards, what)
  except OSError as error:
    raise OutputError(
      f"{target} cannot be written ({error.strerror or error}); finished files are kept: make space or repair the "
      "folder, and run the same command again"
    ) from error
  return Encoded(target, remaining, len(own) - len(todo), complete)


class _NetworkError(Exception):
  """Carries an error of the networks past `write_shard`, which would take it for one of the disk."""


@dataclasses.dataclass(frozen=True)
class _Shard:
  """A file of the set, and the file of the same name in the target."""

  records: Records
  target: Path
  split: str
  number: int
  first: int
  length: int

  @property
  def path(self) -> Path:
    return self.target / self.records.paths[self.number].name

  @property
  def _facts(self) -> Path:
    return self.target / _SHARDS / f"{self.split}-{self.number:05d}.json"

  @property
  def _index(self) -> Path:
    return self._facts.with_suffix(".npz")

  @property
  def finished(self) -> bool:
    try:
      return self.path.stat().st_size == json.loads(self._facts.read_text())["file_bytes"]
    except (OSError, ValueError, KeyError, TypeError):
      return False

  @property
  def summary(self) -> Shard:
    return Shard(self.length, json.loads(self._facts.read_text())["bytes"])

  def index(self) -> Index | None:
    """The shard's part of the index; None when it is damaged."""
    index = Index.load(self._index)
    return index if index is not None and len(index) == self.length else None

  def places(self) -> Iterator[tuple[Records, int]]:
    return ((self.records, self.first + i) for i in range(self.length))

  def write(self, clips: Iterable[EncodedClip], what: str) -> None:
    record, rows = features(what), []

    def examples():
      try:
        for clip in clips:
          example = clip.example()
          rows.append(row(example))
          yield serialize(record, example)
      except (OSError, RuntimeError) as error:
        raise _NetworkError from error

    try:
      written = write_shard(self.path, examples())
    except _NetworkError as error:
      if out_of_memory(error.__cause__):
        raise InputError(
          "the device has too little memory for so many frames at once; run the same command with a smaller --batch"
        ) from error.__cause__
      raise error.__cause__ from None
    Index.of_rows(rows).save(self._index)
    # Last, because the shard is finished when this file exists.
    write_json({"bytes": written.bytes, "file_bytes": self.path.stat().st_size}, self._facts, indent=None)


def _counted(clips, done, total, progress) -> Iterator[EncodedClip]:
  if progress:
    progress("encoding clips", done, total)
  for clip in clips:
    done += 1
    if progress:
      progress("encoding clips", done, total)
    yield clip


def _plan(data: Path, target: Path) -> list[_Shard]:
  shards = []
  for split in open_set(data).info.splits:
    records = Records(data, split)
    if "frames" not in records.features:
      raise InputError(f"{data} holds no clips as `dicetalk data build` makes them; give the folder of such a set")
    firsts = [0, *records.ends[:-1]]
    shards += [
      _Shard(records, target, split, i, int(first), int(end - first))
      for i, (first, end) in enumerate(zip(firsts, records.ends, strict=True))
    ]
  return shards


def _fingerprint(data: Path) -> str:
  """A hash of the names, lengths and sizes of a set's files: the same for a copy."""
  digest = hashlib.sha256()
  splits = open_set(data).info.splits
  for name in sorted(splits):
    files = [Path(path).name for path in splits[name].filepaths]
    digest.update(f"{name} {files} {list(splits[name].shard_lengths)} {int(splits[name].num_bytes)}\n".encode())
  return digest.hexdigest()[:16]


def _bind(target: Path, config: dict) -> None:
  """Starts a target, or refuses one that was started with other data, weights or options."""
  old = encoding_config(target)
  if old is None:
    if others := sorted(path.name for path in target.iterdir() if path.name not in (".lock", _SHARDS)):
      raise InputError(f"{target} is not empty (it holds {', '.join(others[:3])}); give a new folder")
    write_json(config, target / CONFIG)
    return
  differences = [
    (old["data"]["fingerprint"], config["data"]["fingerprint"], f"other clips, those of {old['data']['folder']}"),
    *((old[name], config[name], f"{name} {old[name]}, not {config[name]}") for name in ("what", "reference_every")),
    *((old["networks"].get(name), new, f"other weights of the {name}") for name, new in config["networks"].items()),
    (old["dtype"], config["dtype"], f"dtype {old['dtype']}, not {config['dtype']}"),
  ]
  for old, new, text in differences:
    if old != new:
      raise InputError(f"{target} was started with {text}; continue with the same, or give another folder")


def _complete(target: Path, shards: list[_Shard], what: str) -> None:
  """Writes the index and the files that turn the target into a set."""
  if (target / INFO).is_file():
    return
  splits = {split: list(group) for split, group in itertools.groupby(shards, lambda shard: shard.split)}
  for split, group in splits.items():
    indices = [shard.index() for shard in group]
    if all(index is not None for index in indices):  # else the first reader makes the index
      Index.join(indices).save(index_path(target, split))
  name = shards[0].records.name
  write_info(
    target, name, features(what), {split: [shard.summary for shard in group] for split, group in splits.items()}
  )
