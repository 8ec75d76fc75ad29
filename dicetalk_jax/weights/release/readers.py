"""PyTorch checkpoint files: the names, shapes and dtypes in one first, then its tensors a few at a time.

A reader keeps nothing open or in memory between calls: files are memory-mapped, and mapped pages count as this
process's memory until the mapping is closed.
"""

import dataclasses
import pathlib
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from dicetalk_jax.errors import MissingDependencyError, WeightsError
from dicetalk_jax.weights.tensors import (
  BYTES_MAPPED,
  DTYPES,
  Shapes,
  StoredTensors,
  bytes_of,
  damaged,
  open_files,
  opened,
  other_kind,
)

# Keys under which training scripts save a state dict.
_WRAPPERS = ("state_dict", "model_state_dict", "params")
_BY_NAME = {dtype.name: dtype for dtype in DTYPES.values()}
_LFS_POINTER = b"version https://git-lfs"


@dataclasses.dataclass(frozen=True)
class CheckpointFile:
  """One file: `specs` in its own order, the key that its state dict is under if any, and its own metadata."""

  path: pathlib.Path
  specs: Shapes
  wrapper: str | None = None
  metadata: dict[str, str] | None = None

  def read(self, keys: Iterable[str]) -> Iterator[np.ndarray]:
    """The array of each of `keys` in the source's dtype."""
    if self.path.suffix == ".safetensors":
      for _, array in StoredTensors(self.specs, dict.fromkeys(self.specs, self.path)).read(keys):
        yield array
    else:
      mapped = BYTES_MAPPED
      for key in keys:
        if mapped >= BYTES_MAPPED:
          state, mapped = _state_dict(self.path)[1], 0
        mapped += bytes_of(self.specs[key])
        yield _torch_to_numpy(state[key], self.specs[key])


def open_checkpoint(path: pathlib.Path) -> CheckpointFile:
  """Reads what a `.safetensors`, `.pth`, `.bin`, `.pkl` or `.pt` file holds.

  Raises WeightsError if the file is damaged, holds anything but named tensors or, being a pickle, imports code;
  MissingDependencyError if it needs PyTorch and there is none.
  """
  with path.open("rb") as file:
    start = file.read(len(_LFS_POINTER))
  if not start:
    raise WeightsError(f"{path} is empty (0 bytes); download or copy it again.")
  if start == _LFS_POINTER:
    raise WeightsError(f"{path} is a Git LFS pointer and not the file itself; run `git lfs pull` where it was cloned.")
  if path.suffix == ".safetensors":
    with opened(path) as file:
      return CheckpointFile(path, open_files([path]).shapes, metadata=file.metadata())
  _check_zip(path)
  wrapper, state = _state_dict(path)
  specs = {}
  for key, value in state.items():
    if (dtype := str(value.dtype).removeprefix("torch.")) not in _BY_NAME:
      raise WeightsError(f"{path}: tensor '{key}' is {dtype}; one of {', '.join(_BY_NAME)} is required.")
    specs[key] = jax.ShapeDtypeStruct(tuple(value.shape), _BY_NAME[dtype])
  return CheckpointFile(path, specs, wrapper)


def _check_zip(path: pathlib.Path) -> None:
  """PyTorch itself does not compare the check sums in its files."""
  if not zipfile.is_zipfile(path):
    return
  try:
    with zipfile.ZipFile(path) as archive:
      bad = archive.testzip()
  except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
    raise damaged(path) from None
  if bad:
    raise damaged(path, f"the check sum of '{bad}' is wrong")


def import_torch(purpose: str):
  """PyTorch, or a MissingDependencyError that says what needs it and how to get it."""
  try:
    import torch
  except ImportError:
    raise MissingDependencyError(f"{purpose} needs PyTorch: pip install 'dicetalk-jax[convert]'.") from None
  return torch


def _load(path: pathlib.Path):
  torch = import_torch(f"Reading {path}")
  try:
    with warnings.catch_warnings():
      # PyTorch warns of pickles that it then refuses.
      warnings.simplefilter("ignore")
      # Files from before PyTorch 1.6 are not zip archives and cannot be mapped.
      return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
  except Exception as error:
    # Text may happen to read like the imports of a pickle.
    if not other_kind(path) and (import_ := re.search(r"GLOBAL ([\w.]+)|Unsupported operand 1[2-5]\d", str(error))):
      raise WeightsError(
        f"{path} is a pickle that imports {import_[1] or 'something'}, which weights never do; it was refused and "
        "nothing in it was run. Get the file from its publisher."
      ) from None
    raise damaged(path) from None


def _state_dict(path: pathlib.Path) -> tuple[str | None, dict]:
  """(the key that wraps the state dict, name -> tensor)."""
  state, wrapper = _load(path), None
  if isinstance(state, dict):
    wrapper = next((key for key in _WRAPPERS if isinstance(state.get(key), dict)), None)
    state = state[wrapper] if wrapper else state
  torch = import_torch(f"Reading {path}")
  if not isinstance(state, dict) or not state:
    raise WeightsError(f"{path} holds no state dict (name -> tensor) but {type(state).__name__} of no tensors.")
  for key, value in state.items():
    if not isinstance(key, str) or not isinstance(value, torch.Tensor):
      raise WeightsError(f"{path}: entry '{key}' is a {type(value).__name__}; a state dict holds tensors alone.")
  return wrapper, state


def _torch_to_numpy(tensor, spec: jax.ShapeDtypeStruct) -> np.ndarray:
  import torch

  # NumPy has no bfloat16 that PyTorch knows, so the bytes are copied.
  raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
  return np.array(raw).view(spec.dtype).reshape(spec.shape)
