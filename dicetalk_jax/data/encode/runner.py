"""Encodes a set: frames, sound and reference pictures of every clip through the frozen networks, shard by shard."""

import contextlib
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from dicetalk_jax.data.encode.networks import Encoders
from dicetalk_jax.data.encode.record import CONFIG, FORMAT, VERSION, WHAT, EncodedClip, encoding_config, features
from dicetalk_jax.data.index import row
from dicetalk_jax.data.sets import INFO, Records, locked, open_set, serialize, writing
from dicetalk_jax.data.shards import SetFile, finish_set
from dicetalk_jax.errors import InputError, out_of_memory
from dicetalk_jax.files import check_folder, expanded, lock, protect_inputs, write_json
from dicetalk_jax.weights.folder import Weights


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
  check_folder(target, "encoded set", marker=CONFIG)
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
  with writing(target), locked(target / f".part-{index}-of-{count}"):
    with lock(target / ".lock", busy=None):
      _bind(target, config)
    own = shards[index::count]
    todo = [shard for shard in own if shard.facts is None]
    total, remaining = sum(shard.length for shard in own), sum(shard.length for shard in todo)
    places = ((shard.records, shard.first + i) for shard in todo for i in range(shard.length))
    # One stream over all files, so that no batch is left half empty at the end of a file.
    with contextlib.closing(encoders.stream(places, reference_every, threads)) as stream, _memory_advice():
      counted = _counted(stream, total - remaining, total, progress)
      for shard in todo:
        shard.encode(counted, what)
    complete = all(shard.facts is not None for shard in shards)
    if complete and not (target / INFO).is_file():
      with lock(target / ".lock", busy=None):
        finish_set(target, shards[0].records.name, features(what), shards)
  return Encoded(target, remaining, len(own) - len(todo), complete)


@dataclasses.dataclass(frozen=True)
class _Shard(SetFile):
  """A file of the target, of the records `first` and following of the set."""

  records: Records
  first: int
  length: int

  def encode(self, clips: Iterator[EncodedClip], what: str) -> None:
    record = features(what)
    examples = (clip.example() for clip in itertools.islice(clips, self.length))
    self.write((serialize(record, example), row(example)) for example in examples)


@contextlib.contextmanager
def _memory_advice() -> Iterator[None]:
  try:
    yield
  except RuntimeError as error:
    if not out_of_memory(error):
      raise
    raise InputError(
      "the device has too little memory for so many frames at once; run the same command with a smaller --batch"
    ) from error


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
      _Shard(target, split, path.name, i, records, int(first), int(end - first))
      for i, (path, first, end) in enumerate(zip(records.paths, firsts, records.ends, strict=True))
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
