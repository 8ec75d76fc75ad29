"""Expression coefficients: the files that 3D face reconstruction leaves -> (n, 64) float32, a row a frame."""

import io
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dicetalk_jax.errors import InputError
from dicetalk_jax.files import existing_file
from dicetalk_jax.vocabulary import EXPRESSION_DIM

# Deep3DFaceRecon's 257: identity 80, expression 64, texture 80, rotation 3, light 27, translation 3.
COEFFICIENTS = 257
EXPRESSION = slice(80, 144)
SUFFIXES = (".mat", ".npy", ".npz", ".txt", ".csv", ".tsv")
_TEXTS = (".txt", ".csv", ".tsv")
# Bytes of a text file that hold three rows of 257 numbers in full precision.
_FEW_ROWS = 1 << 15
_NAMES = ("coeff", "expression")
# Reconstruction tools drop or double a frame at the ends.
_TOLERANCE = 2


def read_expression(source) -> np.ndarray:
  """A file of expression coefficients -> (n, 64) float32, a row for each frame of its video.

  source: .mat (MATLAB up to 7.2), .npy, .npz or numbers as text (.txt, .csv, .tsv), holding (n, 257) of
  Deep3DFaceRecon, of which 80:144 are the expression, or (n, 64); in .mat and .npz under `coeff` or `expression`, or as
  the only array of such a shape. Raises InputError for what is missing, not readable, of another shape or not finite.
  """
  path = existing_file(source, "expression")
  suffix = path.suffix.lower()
  if suffix not in SUFFIXES:
    raise InputError(f"expression {path} ends in '{path.suffix}'; give one of {', '.join(SUFFIXES)}")
  try:
    if suffix == ".mat":
      # SciPy takes a while to import, which reading a video should not cost.
      from scipy.io import loadmat

      array = _choose({name: value for name, value in loadmat(path).items() if not name.startswith("__")}, path)
    elif suffix == ".npz":
      with np.load(path, allow_pickle=False) as stored:
        array = _choose({name: stored[name] for name in stored.files}, path)
    elif suffix == ".npy":
      array = np.load(path, allow_pickle=False)
    else:
      array = _read_text(path)
  except InputError:
    raise
  except NotImplementedError as error:
    raise InputError(f"expression {path} is of MATLAB 7.3, which is not read; save it with -v7") from error
  except Exception as error:  # a damaged file makes readers raise nearly anything
    raise InputError(f"expression {path} is damaged or not a {suffix} file ({error})") from error
  if not _fits(array):
    raise InputError(
      f"expression {path} holds {array.shape} {array.dtype}; wanted is (frames, {COEFFICIENTS}) coefficients of "
      f"Deep3DFaceRecon or their (frames, {EXPRESSION_DIM}) of expression"
    )
  expression = array[:, EXPRESSION] if array.shape[1] == COEFFICIENTS else array
  expression = np.ascontiguousarray(expression, np.float32)
  if not (finite := np.isfinite(expression).all(axis=1)).all():
    bad = int(np.argmin(finite))
    raise InputError(f"expression {path} has values that are NaN or infinite, the first in row {bad}")
  return expression


def beside(path: Path, suffixes: Iterable[str]) -> Path | None:
  """The first existing file with the path's name and one of these suffixes."""
  return next((other for suffix in suffixes if (other := path.with_suffix(suffix)).is_file()), None)


def coefficients_of(video: Path) -> Path | None:
  """The file of coefficients beside a video, with its name. A text file counts if it holds numbers, not words."""
  return beside(video, [s for s in SUFFIXES if s not in _TEXTS or _is_numeric(video.with_suffix(s))])


def _is_numeric(path: Path) -> bool:
  """Whether a text file holds nothing but numbers, with or without a line of column names."""
  if not path.is_file():
    return False
  with path.open("rb") as file:
    lines = file.read(_FEW_ROWS).splitlines()[1:3]
  return bool(lines) and all(re.fullmatch(rb"(?i:[\s\d.,;e+-]|nan|inf)*", line) for line in lines)


def _read_text(path: Path) -> np.ndarray:
  lines = path.read_text(encoding="utf-8-sig").translate(str.maketrans(",;\t", "   ")).splitlines()
  lines = [line for line in lines if line.strip()]
  try:
    [float(word) for word in lines[0].split()]
  except ValueError:
    lines = lines[1:]  # the names of the columns
  return np.loadtxt(io.StringIO("\n".join(lines)), ndmin=2)


def _choose(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
  for name in _NAMES:
    if name in arrays:
      return np.asarray(arrays[name])
  fitting = [value for value in arrays.values() if _fits(value)]
  if len(fitting) == 1 or len(arrays) == 1:
    return (fitting or list(arrays.values()))[0]
  found = ", ".join(f"{name} {np.shape(value)}" for name, value in arrays.items()) or "nothing"
  raise InputError(
    f"expression {path} holds {found}; wanted is `coeff` (frames, {COEFFICIENTS}) or `expression` "
    f"(frames, {EXPRESSION_DIM})"
  )


def _fits(array) -> bool:
  array = np.asarray(array)
  return (
    array.ndim == 2
    and len(array) > 0
    and array.shape[1] in (COEFFICIENTS, EXPRESSION_DIM)
    and array.dtype.kind in "fiu"
  )


def expression_at(expression: np.ndarray, times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """Rows (n, 64) that stand at rising `times` (n,) -> rows (m, 64) float32 at `wanted` (m,), linear in between.

  Before the first and after the last they are held.
  """
  return np.stack([np.interp(wanted, times, column) for column in expression.T], axis=1).astype(np.float32)


def near(expression: np.ndarray, frames: int) -> bool:
  """Whether an expression can be that of `frames` frames: fitting leaves out a frame or two at the ends."""
  return len(expression) > 0 and abs(len(expression) - frames) <= _TOLERANCE


def matched(expression: np.ndarray, frames: int) -> np.ndarray:
  """Exactly `frames` rows, where there are up to two more or fewer: cut, or the last held; else InputError."""
  n = len(expression)
  if not near(expression, frames):
    raise InputError(f"the expression has {n} rows and its video {frames} frames; they must be of the same recording")
  return np.concatenate([expression, np.repeat(expression[-1:], max(0, frames - n), axis=0)])[:frames]
