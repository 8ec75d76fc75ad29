"""Emotion prior files: the Gaussian of an emotion (Eq. 4, 5) as `.npy`, `.npz` or `.safetensors`.

A prior is a mean `mu` and, if the file has it, a standard deviation `sigma`. The released files are `.npy` files with a
pickled dict, {'mu': float32 (1, 256)}. The pickle is read without calling anything that it names, so it cannot run
code.
"""

import io
import math
import os
import pathlib
import pickle
import pickletools
import zipfile
from typing import NamedTuple

import numpy as np
import safetensors.numpy

from dicetalk_jax.errors import InputError
from dicetalk_jax.files import existing_file

SUFFIXES = (".npy", ".npz", ".safetensors")
_LARGEST = 1 << 20  # bytes; a prior takes about 1500


class Prior(NamedTuple):
  """The Gaussian of an emotion: mu (d,) and sigma (d,), float32; sigma is None if unknown."""

  mu: np.ndarray
  sigma: np.ndarray | None = None


def read_prior(path: str | os.PathLike, size: int = 256) -> Prior:
  """Reads a prior of `size` numbers from a `.npy` (plain, or pickled as released), `.npz` or `.safetensors` file.

  Raises InputError if the file is missing, empty, damaged, of another size, not finite, has keys other than mu and
  sigma, or is a pickle of something else.
  """
  path = pathlib.Path(path)
  readers = dict(zip(SUFFIXES, (_npy, _npz, safetensors.numpy.load), strict=True))
  data = _content(path)
  if path.suffix.lower() not in readers:
    raise InputError(f"{path} is no emotion prior; a prior is a {', '.join(SUFFIXES)} file.")
  try:
    fields = readers[path.suffix.lower()](data)
    if "mu" not in fields or not set(fields) <= {"mu", "sigma"}:
      keys = ", ".join(sorted(str(key)[:40] for key in fields)[:8]) or "nothing"
      raise _NoPrior(f"it must have mu and may have sigma, but holds {keys}")
  except _NoPrior as error:
    raise InputError(f"{path} is no emotion prior: {error}.") from None
  except Exception:  # the libraries raise many types for a damaged or hostile file
    raise InputError(f"{path} cannot be read: it is damaged, or not a {path.suffix} file.") from None
  mu, sigma = (vector(fields[key], size, f"{key} of {path}") if key in fields else None for key in Prior._fields)
  if sigma is not None and (sigma < 0).any():
    raise InputError(f"sigma of {path} has negative numbers; a standard deviation cannot be negative.")
  return Prior(mu, sigma)


def read_priors(folder: str | os.PathLike, size: int = 256) -> dict[str, dict[str, np.ndarray]]:
  """Reads a folder of `<label>.npy`, `.npz` or `.safetensors` files: label -> {'mu': (size,)[, 'sigma': (size,)]}.

  Raises InputError if the folder is missing, has no prior file or two of one label, or a file cannot be used.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise InputError(f"{folder} is not a folder; emotion priors are read from a folder of <label>.npy files.")
  priors = {}
  for path in sorted(folder.iterdir()):
    if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
      continue
    if path.stem in priors:
      raise InputError(f"{folder} holds two prior files for the label {path.stem!r}; keep one.")
    prior = read_prior(path, size)
    priors[path.stem] = {key: value for key, value in prior._asdict().items() if value is not None}
  if not priors:
    raise InputError(f"{folder} holds no emotion priors: no <label>{', '.join(SUFFIXES)} file was found.")
  return priors


def finite(value, name: str) -> np.ndarray:
  """`value` as a float32 array; InputError, with `name` in it, if it does not consist of finite numbers."""
  try:
    array = np.asarray(value)
    if array.dtype.kind not in "fiuV":  # V: bfloat16
      raise TypeError
    with np.errstate(over="ignore"):
      array = array.astype(np.float32)
  except (TypeError, ValueError, RuntimeError):  # RuntimeError: a PyTorch tensor that needs a gradient
    raise InputError(f"{name} is not an array of numbers.") from None
  if not np.isfinite(array).all():
    raise InputError(f"{name} has numbers that are NaN or infinite.")
  return array


def vector(value, size: int, name: str) -> np.ndarray:
  """`value`, which may have axes of length 1, as a float32 vector (size,); InputError, with `name` in it, otherwise."""
  array = finite(value, name)
  if array.size != size or max(array.shape, default=0) != size:
    raise InputError(f"{name} has shape {array.shape}; an emotion prior of these weights has {size} numbers.")
  return array.reshape(size)


class _NoPrior(ValueError):
  """Why a file is not a prior, as the end of a sentence."""


def _content(path: pathlib.Path) -> bytes:
  if not path.is_file():
    state = "is not a file" if path.exists() else "was not found"
    raise InputError(f"The emotion file {path} {state}; an emotion prior is a {', '.join(SUFFIXES)} file.")
  with existing_file(path, "emotion file").open("rb") as file:
    data = file.read(_LARGEST + 1)
  if len(data) > _LARGEST:
    raise InputError(f"{path} is larger than 1 MiB; an emotion prior has a few kilobytes.")
  return data


def _npy(data: bytes, pickled: bool = True) -> dict:
  file = io.BytesIO(data)
  readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
  shape, fortran, dtype = readers[np.lib.format.read_magic(file)](file)
  content = data[file.tell() :]
  if dtype.hasobject and pickled:
    return _pickled_dict(content)
  if dtype.kind != "f":
    raise _NoPrior(f"its numbers are {dtype}, not floating-point")
  return {"mu": _array(content, dtype, shape, fortran)}


def _npz(data: bytes) -> dict:
  fields = {}
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    for member in archive.infolist()[:8]:
      if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _NoPrior("it is packed in a way that NumPy does not use")
      with archive.open(member) as file:
        fields[member.filename.removesuffix(".npy")] = _npy(file.read(_LARGEST), pickled=False)["mu"]
  return fields


def _array(content: bytes, dtype: np.dtype, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
  # Compared with the actual bytes first, so that a declared shape cannot allocate memory.
  sane = len(shape) <= 8 and all(isinstance(side, int) and side >= 0 for side in shape)
  if not sane or math.prod(shape) * dtype.itemsize != len(content):
    raise _NoPrior("it does not hold the numbers its header announces")
  return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


class _Inert:
  """Stands for what a pickle imports, calls or builds; it only records the arguments."""

  def __init__(self, name, args=()):
    self.name, self.args, self.state = name, args, None

  def __call__(self, *args):
    return _Inert(self.name, args)

  def __setstate__(self, state):
    self.state = state


# The instructions in NumPy's pickles of arrays. Not LONG_BINPUT: its index alone can allocate gigabytes.
_OPCODES = """PROTO FRAME STOP MARK GLOBAL STACK_GLOBAL REDUCE BUILD BINPUT MEMOIZE BINGET LONG_BINGET NONE NEWTRUE
  NEWFALSE BININT BININT1 BININT2 SHORT_BINBYTES BINBYTES BYTEARRAY8 BINUNICODE SHORT_BINUNICODE EMPTY_TUPLE TUPLE
  TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS"""
# A released prior has 97. Hashing a tuple nested a million levels deep would crash the interpreter.
_MOST_OPCODES = 1000
_IMPORTS = {("numpy", "ndarray"), ("numpy", "dtype")}
_IMPORTS |= {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
_IMPORTS |= {(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}


class _InertUnpickler(pickle.Unpickler):
  def find_class(self, module, name):
    if (module, name) not in _IMPORTS:
      raise _NoPrior(f"its pickle wants to import {module}.{name}, and a prior holds numbers only (nothing was run)")
    return _Inert(name)

  def persistent_load(self, pid):
    raise _NoPrior("its pickle refers to objects outside the file (nothing was run)")


def _pickled_dict(content: bytes) -> dict:
  allowed = frozenset(_OPCODES.split())
  for count, (opcode, _, _) in enumerate(pickletools.genops(content)):
    if count == _MOST_OPCODES:
      raise _NoPrior("its pickle is far longer than a prior's")
    if opcode.name not in allowed:
      raise _NoPrior(f"its pickle uses the instruction {opcode.name}, which no prior needs (nothing was run)")
  match _InertUnpickler(io.BytesIO(content)).load():
    case _Inert(name="_reconstruct", state=(_, (), _Inert(name="dtype", args=("O8", _, _)), _, [dict() as fields])):
      return {key: _pickled_array(value) for key, value in fields.items()}
  raise _NoPrior("its pickle is not that of a dict with mu")


def _pickled_array(value) -> np.ndarray:
  match value:
    case _Inert(name="_reconstruct", state=(_, tuple() as shape, dtype, bool() as fortran, bytes() as content)):
      pass
    case _Inert(
      name="_frombuffer", args=(bytes() | bytearray() as content, dtype, tuple() as shape, "C" | "F" as axes)
    ):
      fortran = axes == "F"
    case _:
      raise _NoPrior("its pickle holds something other than arrays of numbers")
  match dtype:
    case _Inert(name="dtype", args=("f2" | "f4" | "f8" as kind, _, _), state=(_, "<" | ">" as byte_order, *_)):
      return _array(content, np.dtype(byte_order + kind), shape, fortran)
  raise _NoPrior("its pickle holds numbers that are not floating-point")
