"""PyTorch checkpoint files: the names, shapes and dtypes in one first, then its tensors a few at a time.

A reader keeps nothing open or in memory between calls: files are memory-mapped, and mapped pages count as this
process's memory until the mapping is closed.
"""

import codecs
import dataclasses
import pathlib
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from dicetalk_jax.errors import MissingDependencyError, WeightsError
from dicetalk_jax.weights.tensors import DTYPES

TORCH_SUFFIXES = (".pth", ".bin", ".pkl", ".pt")
# Keys under which training scripts save a state dict.
_WRAPPERS = ("state_dict", "model_state_dict", "params")
_BY_NAME = {dtype.name: dtype for dtype in DTYPES.values()}
_LFS_POINTER = b"version https://git-lfs"


@dataclasses.dataclass(frozen=True)
class Spec:
  """Shape and dtype of a tensor before it is read."""

  dtype: np.dtype
  shape: tuple[int, ...]

  @property
  def bytes(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class CheckpointFile:
  """One file: `specs` in its own order, the key that its state dict is under if any, and its own metadata."""

  path: pathlib.Path
  specs: dict[str, Spec]
  wrapper: str | None = None
  metadata: dict[str, str] | None = None

  def read(self, keys: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(key, array of the source's dtype) for each of `keys`, each array the caller's own."""
    if self.path.suffix == ".safetensors":
      with _open_safetensors(self.path) as file:
        for key in keys:
          yield key, np.array(file.get_tensor(key)).reshape(self.specs[key].shape)
    else:
      state = _state_dict(self.path)[1]
      for key in keys:
        yield key, _torch_to_numpy(state[key], self.specs[key])


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
    specs = {}
    with _open_safetensors(path) as file:
      for key in file.offset_keys():
        view = file.get_slice(key)
        specs[key] = Spec(_known(view.get_dtype(), DTYPES, key, path), tuple(view.get_shape()))
      return CheckpointFile(path, specs, metadata=file.metadata())
  _check_zip(path)
  wrapper, state = _state_dict(path)
  specs = {
    key: Spec(_known(str(value.dtype).removeprefix("torch."), _BY_NAME, key, path), tuple(value.shape))
    for key, value in state.items()
  }
  return CheckpointFile(path, specs, wrapper)


def _known(dtype: str, dtypes: dict[str, np.dtype], key: str, path: pathlib.Path) -> np.dtype:
  if dtype not in dtypes:
    raise WeightsError(f"{path}: tensor '{key}' is {dtype}; one of {', '.join(dtypes)} is required.")
  return dtypes[dtype]


def _damaged(path: pathlib.Path, cause: str | None = None) -> WeightsError:
  if kind := _other_kind(path):
    return WeightsError(f"{path} is {kind} and no checkpoint; download or copy it again.")
  return WeightsError(f"{path} is truncated or damaged{f' ({cause})' if cause else ''}; download or copy it again.")


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
    if not _other_kind(path) and (import_ := re.search(r"GLOBAL ([\w.]+)|Unsupported operand 1[2-5]\d", str(error))):
      raise WeightsError(
        f"{path} is a pickle that imports {import_[1] or 'something'}, which weights never do; it was refused and "
        "nothing in it was run. Get the file from its publisher."
      ) from None
    raise _damaged(path) from None


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


def _torch_to_numpy(tensor, spec: Spec) -> np.ndarray:
  import torch

  # NumPy has no bfloat16 that PyTorch knows, so the bytes are copied.
  raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
  return np.array(raw).view(spec.dtype).reshape(spec.shape)
