"""The tensors of one network on disk: safetensors files, written one tensor at a time and read by slices.

A network is `NAME.safetensors`. Above 5 GB it is `NAME-00001-of-0000N.safetensors`, … and the index that the hub's
libraries write, `NAME.safetensors.index.json`.
"""

import codecs
import collections
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError, safe_open

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.files import stop_if_interrupted, write_json
from dicetalk_jax.parallel.hosts import is_first
from dicetalk_jax.parallel.mesh import to_host

DTYPES = {
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F32": np.dtype(np.float32),
  "F64": np.dtype(np.float64),
  "I8": np.dtype(np.int8),
  "I16": np.dtype(np.int16),
  "I32": np.dtype(np.int32),
  "I64": np.dtype(np.int64),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LARGEST_FILE = 5 * 10**9
# Pages of a mapped file count as memory of the process until the file is closed.
BYTES_MAPPED = 128 << 20

Shapes = Mapping[str, jax.ShapeDtypeStruct]


def shapes_of(tensors: Mapping[str, jax.Array]) -> dict[str, jax.ShapeDtypeStruct]:
  return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in tensors.items()}


def size_of(shapes: Shapes) -> int:
  """Bytes of all tensors."""
  return sum(bytes_of(leaf) for leaf in shapes.values())


def bytes_of(leaf: jax.ShapeDtypeStruct) -> int:
  return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def write_file(
  path: pathlib.Path, shapes: Shapes, arrays: Iterable[np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
  """Writes one safetensors file. arrays: one for each of `shapes`, in the same order; one is in memory at a time.

  Within `new_folder`, Ctrl-C takes effect between two tensors.
  """
  header, end = ({"__metadata__": dict(metadata)} if metadata else {}), 0
  for name, leaf in shapes.items():
    start, end = end, end + bytes_of(leaf)
    header[name] = {"dtype": _NAMES[np.dtype(leaf.dtype)], "shape": list(leaf.shape), "data_offsets": [start, end]}
  text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
  text += b" " * (-len(text) % 8)
  with path.open("wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    for leaf, array in zip(shapes.values(), arrays, strict=True):
      assert array.shape == tuple(leaf.shape) and array.dtype == leaf.dtype
      file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
      stop_if_interrupted()


def write_network(
  folder: pathlib.Path, network: str, shapes: Shapes, arrays: Iterable[np.ndarray], largest: int = _LARGEST_FILE
) -> None:
  """Writes the tensors of a network to `folder`, in files of at most `largest` bytes. Arguments as of `write_file`."""
  parts, size = [{}], 0
  for path, leaf in shapes.items():
    size += bytes_of(leaf)
    if parts[-1] and size > largest:
      parts.append({})
      size = bytes_of(leaf)
    parts[-1][path] = leaf
  arrays = iter(arrays)
  if len(parts) == 1:
    write_file(folder / f"{network}.safetensors", shapes, arrays)
    return
  weight_map = {}
  for number, part in enumerate(parts, start=1):
    name = f"{network}-{number:05d}-of-{len(parts):05d}.safetensors"
    write_file(folder / name, part, (next(arrays) for _ in part))
    weight_map |= dict.fromkeys(part, name)
  write_json({"metadata": {"total_size": size_of(shapes)}, "weight_map": weight_map}, folder / index_name(network))


def save_network(folder: pathlib.Path, network: str, params: Mapping) -> None:
  """Writes nested parameters; leaves are fetched to the host one at a time.

  Of several processes all call this, because a leaf may be spread over them. The first one writes.
  """
  flat = flatten_dict(params, sep="/")
  arrays = (to_host(leaf) for leaf in flat.values())
  if is_first():
    write_network(folder, network, shapes_of(flat), arrays)
  else:
    collections.deque(arrays, maxlen=0)


def index_name(network: str) -> str:
  return f"{network}.safetensors.index.json"


def network_files(folder: pathlib.Path, network: str) -> list[pathlib.Path]:
  """The files that hold a network, an index first; empty if there are none. WeightsError if the index is damaged."""
  if (path := folder / f"{network}.safetensors").is_file():
    return [path]
  if not (index := folder / index_name(network)).is_file():
    return []
  return [index, *dict.fromkeys(index.with_name(name) for name in _weight_map(index).values())]


def _weight_map(index: pathlib.Path) -> dict[str, str]:
  try:
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    if not names or any(pathlib.PurePath(name).name != name for name in names.values()):
      raise ValueError
    return names
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    raise damaged(index, "it has no weight_map from tensor names to names of files beside it") from None


@dataclasses.dataclass(frozen=True)
class StoredTensors:
  """The tensors of safetensors files. shapes: name -> shape and dtype as stored; files: name -> its file."""

  shapes: dict[str, jax.ShapeDtypeStruct]
  files: dict[str, pathlib.Path]

  def read(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array as stored) of `names`, by default of every tensor in the order of the files."""
    for name, tensor in self._tensors(names):
      yield name, tensor((slice(None),) * len(self.shapes[name].shape))

  def rows(self) -> Iterator[tuple[str, np.ndarray]]:
    """(name, first row) of every tensor: a sample that tells one training's result from another's."""
    for name, tensor in self._tensors():
      yield (
        name,
        tensor([slice(0, 1) for _ in self.shapes[name].shape[:-1]] + [slice(None)] * bool(self.shapes[name].shape)),
      )

  def load(self, dtype=None, sharding: Callable[[str], jax.sharding.Sharding] | None = None) -> dict[str, jax.Array]:
    """name -> array that lies as `sharding` says. Only the slices for this process's devices are read.

    dtype: to cast to while reading; None keeps what is stored.
    """
    arrays = {}
    for name, tensor in self._tensors():
      leaf = self.shapes[name]

      def slices(index, tensor=tensor, dtype=dtype or leaf.dtype):
        return tensor(index).astype(dtype, copy=False)

      arrays[name] = jax.make_array_from_callback(leaf.shape, sharding(name), slices)
      arrays[name].block_until_ready()
    return arrays

  def _tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Callable]]:
    """(name, function that reads a slice) of tensors. Files are closed often, so that little stays mapped."""
    names = collections.deque(self.shapes if names is None else names)
    while names:
      path, mapped = self.files[names[0]], 0
      with opened(path) as file:
        while names and self.files[names[0]] == path and mapped < BYTES_MAPPED:
          name = names.popleft()
          mapped += bytes_of(self.shapes[name])
          yield name, lambda index, name=name, file=file: _slice(file, name, index)


def _slice(file, name: str, index: Sequence[slice]) -> np.ndarray:
  stored = file.get_slice(name)
  if 0 in (shape := stored.get_shape()):  # which the library cannot slice
    return np.empty(shape, DTYPES[stored.get_dtype()])[tuple(index)]
  return np.asarray(stored[tuple(index)] if index else file.get_tensor(name))


def open_network(folder: pathlib.Path, network: str) -> StoredTensors:
  """The tensors of a network, from the headers of its files; WeightsError if one is missing or damaged."""
  paths = network_files(folder, network)
  if not paths:
    raise WeightsError(f"{folder} has no {network}.safetensors; convert or copy the weights again.")
  return open_files([path for path in paths if path.suffix == ".safetensors"])


def open_files(paths: Iterable[pathlib.Path]) -> StoredTensors:
  """The tensors of safetensors files, from their headers; WeightsError if one is missing or damaged."""
  stored = StoredTensors({}, {})
  for path in paths:
    with opened(path) as file:
      for name in file.offset_keys():
        view = file.get_slice(name)
        if view.get_dtype() not in DTYPES:
          raise WeightsError(f"{path}: tensor '{name}' is {view.get_dtype()}; one of {', '.join(DTYPES)} is required.")
        stored.shapes[name] = jax.ShapeDtypeStruct(tuple(view.get_shape()), DTYPES[view.get_dtype()])
        stored.files[name] = path
  return stored


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator:
  """`safetensors.safe_open` with NumPy; WeightsError if the file is missing or damaged."""
  try:
    with safe_open(path, framework="numpy") as file:
      yield file
  except (SafetensorError, OSError) as error:
    raise damaged(path, getattr(error, "strerror", None) or str(error)) from None


def damaged(path: pathlib.Path, cause: str | None = None) -> WeightsError:
  """The error for a checkpoint that cannot be read."""
  if not path.is_file():
    return WeightsError(f"{path} is missing; convert, download or copy the weights again.")
  if kind := other_kind(path):
    return WeightsError(f"{path} is {kind} and no checkpoint; download or copy it again.")
  cause = f" ({cause.strip().splitlines()[0].rstrip(' .')[:200]})" if cause else ""
  return WeightsError(f"{path} is truncated or damaged{cause}; download or copy it again.")


def other_kind(path: pathlib.Path) -> str | None:
  """What a server or a person may have put in place of a checkpoint, judged by how it starts."""
  with path.open("rb") as file:
    start = file.read(512)
  if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
    return "a web page"
  # The last character may be cut in two.
  text = codecs.getincrementaldecoder("utf-8")("replace").decode(start)
  is_text = text and all(c.isprintable() or c.isspace() for c in text) and "\ufffd" not in text
  return "a text file" if is_text else None


def link_or_copy(source: pathlib.Path, target: pathlib.Path) -> None:
  """Hard-links a file of a weights folder, which never changes; copies it where links are impossible."""
  target.parent.mkdir(parents=True, exist_ok=True)
  try:
    os.link(source, target)
  except OSError:  # another disk, or a file system without links
    shutil.copy2(source, target)
