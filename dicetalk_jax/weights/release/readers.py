"""Checkpoint files: the names, shapes and dtypes in one first, then its tensors a few at a time.

A reader keeps nothing open or in memory between calls: `.safetensors` and `.pth` files are memory-mapped, and mapped
pages count as this process's memory until the mapping is closed.
"""

import codecs
import contextlib
import dataclasses
import pathlib
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator

import ml_dtypes
import numpy as np

from dicetalk_jax.errors import MissingDependencyError, WeightsError

DTYPES = {
  "float16": np.dtype(np.float16),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
  "float32": np.dtype(np.float32),
  "float64": np.dtype(np.float64),
  "int8": np.dtype(np.int8),
  "int16": np.dtype(np.int16),
  "int32": np.dtype(np.int32),
  "int64": np.dtype(np.int64),
  "uint8": np.dtype(np.uint8),
  "bool": np.dtype(np.bool_),
}
SAFETENSORS_DTYPES = {
  "F16": "float16",
  "BF16": "bfloat16",
  "F32": "float32",
  "F64": "float64",
  "I8": "int8",
  "I16": "int16",
  "I32": "int32",
  "I64": "int64",
  "U8": "uint8",
  "BOOL": "bool",
}
TORCH_SUFFIXES = (".pth", ".bin", ".pkl", ".pt")
_LFS_POINTER = b"version https://git-lfs"
_HARMLESS = re.compile(r"collections\.OrderedDict|torch\._utils\._rebuild_\w+|torch\.\w+Storage|torch\.\w+\d+")


@dataclasses.dataclass(frozen=True)
class Spec:
  """A tensor before it is read; dtype is a key of DTYPES."""

  dtype: str
  shape: tuple[int, ...]

  @property
  def bytes(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64)) * DTYPES[self.dtype].itemsize


@dataclasses.dataclass(frozen=True)
class CheckpointFile:
  """One file: `specs` in its own order, the key its state dict is under if any, and its own metadata."""

  path: pathlib.Path
  specs: dict[str, Spec]
  wrapper: str | None = None
  metadata: dict[str, str] | None = None

  @property
  def format(self) -> str:
    return "safetensors" if self.path.suffix == ".safetensors" else "torch"

  @property
  def bytes(self) -> int:
    return sum(spec.bytes for spec in self.specs.values())

  def read(self, keys: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(key, array of the source's dtype) for each of `keys`, each array the caller's own."""
    if self.format == "safetensors":
      with _open_safetensors(self.path) as file:
        for key in keys:
          yield key, np.array(file.get_tensor(key)).reshape(self.specs[key].shape)
    else:
      state = _state_dict(self.path)[1]
      for key in keys:
        yield key, _torch_to_numpy(state[key], self.specs[key])


def open_checkpoint(path: pathlib.Path) -> CheckpointFile:
  """Reads what a `.safetensors`, `.pth`, `.bin`, `.pkl` or `.pt` file holds.

  Raises WeightsError for a file that is damaged, holds anything but named tensors or, being a pickle, wants to import
  code; MissingDependencyError where it needs PyTorch and there is none.
  """
  with path.open("rb") as file:
    start = file.read(len(_LFS_POINTER))
  if not start:
    raise WeightsError(f"{path} is empty (0 bytes); download or copy it again.")
  if start == _LFS_POINTER:
    raise WeightsError(f"{path} is a Git LFS pointer and not the file itself; run `git lfs pull` where it was cloned.")
  if path.suffix == ".safetensors":
    specs = {}
    with _open_safetensors(path) as file:
      for key in file.offset_keys():
        view = file.get_slice(key)
        specs[key] = Spec(_known(view.get_dtype(), SAFETENSORS_DTYPES, key, path), tuple(view.get_shape()))
      return CheckpointFile(path, specs, metadata=file.metadata())
  _check_zip(path)
  wrapper, state = _state_dict(path)
  torch_dtypes = {name: name for name in DTYPES}
  specs = {
    key: Spec(_known(str(value.dtype).removeprefix("torch."), torch_dtypes, key, path), tuple(value.shape))
    for key, value in state.items()
  }
  return CheckpointFile(path, specs, wrapper)


def _known(dtype: str, names: dict[str, str], key: str, path: pathlib.Path) -> str:
  if dtype not in names:
    raise WeightsError(f"{path}: tensor '{key}' is {dtype}; wanted one of {', '.join(names)}.")
  return names[dtype]


def _damaged(path: pathlib.Path, found: str | None = None) -> WeightsError:
  if kind := _other_kind(path):
    return WeightsError(f"{path} is {kind} and no checkpoint; download or copy it again.")
  return WeightsError(f"{path} is truncated or damaged{f' ({found})' if found else ''}; download or copy it again.")


def _other_kind(path: pathlib.Path) -> str | None:
  """What a server or a person may have put in place of a checkpoint, judged by how it starts."""
  with path.open("rb") as file:
    start = file.read(512)
  if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
    return "a web page"
  # The last character may be cut in two.
  text = codecs.getincrementaldecoder("utf-8")("replace").decode(start)
  return "a text file" if all(c.isprintable() or c.isspace() for c in text) and "\ufffd" not in text else None


def _open_safetensors(path: pathlib.Path):
  from safetensors import SafetensorError, safe_open

  try:
    return safe_open(path, framework="numpy")
  except SafetensorError:
    raise _damaged(path) from None


def _check_zip(path: pathlib.Path) -> None:
  """PyTorch itself does not compare the check sums in its files."""
  if not zipfile.is_zipfile(path):
    return
  try:
    with zipfile.ZipFile(path) as archive:
      bad = archive.testzip()
  except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
    raise _damaged(path) from None
  if bad:
    raise _damaged(path, f"the check sum of '{bad}' is wrong")


def import_torch(purpose: str):
  """PyTorch, or a MissingDependencyError that says for what it is needed and how to get it."""
  try:
    import torch
  except ImportError:
    raise MissingDependencyError(f"{purpose} needs PyTorch: pip install 'dicetalk-jax[convert]'.") from None
  return torch


def _load(path: pathlib.Path):
  torch = import_torch(f"Reading {path}")
  options = {"map_location": "cpu", "weights_only": True}
  try:
    with warnings.catch_warnings():
      # PyTorch remarks on pickles that it then refuses.
      warnings.simplefilter("ignore")
      # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
      return torch.load(path, mmap=zipfile.is_zipfile(path), **options)
  except Exception:
    # Text may happen to read like a pickle's imports.
    if not _other_kind(path) and (wanted := _imports(path)):
      raise WeightsError(
        f"{path} is a pickle that wants to import {wanted}, which weights never need; it was refused and nothing in "
        "it was run. Get the file from its publisher."
      ) from None
    raise _damaged(path) from None


def _imports(path: pathlib.Path) -> str | None:
  """What a pickle imports first that a state dict does not, found without running it."""
  archive = zipfile.ZipFile(path) if zipfile.is_zipfile(path) else None
  names = [name for name in archive.namelist() if name.endswith("data.pkl")] if archive else [None]
  for name in names:
    with archive.open(name) if archive else path.open("rb") as file:
      strings = []
      # A file from before PyTorch 1.6 is several pickles, then raw numbers, where this ends.
      with contextlib.suppress(Exception):
        while True:
          for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL":
              imported = argument.replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
              imported = ".".join(strings[-2:])
            else:
              strings += [argument] if isinstance(argument, str) else []
              continue
            if not _HARMLESS.fullmatch(imported):
              return imported
  return None


def _state_dict(path: pathlib.Path) -> tuple[str | None, dict]:
  """(the key that wraps the state dict, name -> tensor)."""
  state, wrapper = _load(path), None
  if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
    state, wrapper = state["state_dict"], "state_dict"
  torch = import_torch(f"Reading {path}")
  if not isinstance(state, dict) or not state:
    raise WeightsError(f"{path} holds no state dict (name -> tensor) but {type(state).__name__} of no tensors.")
  for key, value in state.items():
    if not isinstance(key, str) or not isinstance(value, torch.Tensor):
      raise WeightsError(f"{path}: entry '{key}' is a {type(value).__name__}; a state dict holds tensors alone.")
  return wrapper, state


def _torch_to_numpy(tensor, spec: Spec) -> np.ndarray:
  import torch

  # NumPy has no bfloat16 that PyTorch knows, so the bytes go over.
  raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
  return np.array(raw).view(DTYPES[spec.dtype]).reshape(spec.shape)
