"""The weights folder on disk: one Orbax item a network, `config.json`, emotion priors; written whole or not at all."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from orbax.checkpoint import v1 as ocp

from dicetalk_jax.conversion.engine import flatten, unflatten
from dicetalk_jax.errors import OutputError, WeightsError

FORMAT = "dicetalk_jax weights"
VERSION = 1
CONFIG = "config.json"
SOURCE = "source.json"
PRIORS = "emotion_priors.safetensors"
RETAINED = "retained"
_TEMPORARY = ".unfinished"


def _context() -> ocp.Context:
  context = ocp.Context()
  # Weights compress by 7 % at several times the cost of writing them, and nobody changes them while they are written.
  context.array.saving.use_compression = False
  context.memory.deepcopy_host_arrays = False
  return context


def write_item(folder: pathlib.Path, pieces: Iterable[Mapping[str, np.ndarray]]) -> None:
  """Writes one Orbax item from pieces {'a/b': array}, so that no more than a piece is in memory."""
  folder.parent.mkdir(exist_ok=True)
  with _context():
    for piece in pieces:
      # Asked before every piece: Orbax's own failure comes with thousands of lines on the terminal.
      if shutil.disk_usage(folder.parent).free < sum(array.nbytes for array in piece.values()):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      ocp.partial.save(folder, unflatten(piece))
    ocp.partial.finalize(folder)


def item_shapes(folder: pathlib.Path) -> dict:
  """{'a/b': anything with shape and dtype}, without reading arrays; WeightsError where the item is damaged."""
  with _readable(folder):
    return flatten(ocp.metadata(folder).metadata)


def read_item(folder: pathlib.Path, abstract: Mapping | None = None) -> dict:
  """Nested arrays: NumPy as written, or as `abstract` (jax.ShapeDtypeStruct leaves) wants; WeightsError if damaged."""
  with _readable(folder), _context():
    return ocp.load(folder, abstract)


@contextlib.contextmanager
def _readable(folder: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except Exception as error:  # Orbax and TensorStore have many names for a damaged file
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
      raise
    raise WeightsError(f"{folder} is damaged or incomplete; convert or copy the weights again.") from error


@contextlib.contextmanager
def new_folder(target: str | os.PathLike, needed: int = 0) -> Iterator[pathlib.Path]:
  """A folder to fill that takes the name `target` when the block ends well and otherwise leaves nothing.

  What an interrupted process left is removed first. Raises OutputError where the target holds something already, cannot
  be made, or where less than `needed` bytes are free.
  """
  target = pathlib.Path(target).expanduser().resolve()
  temporary = target.with_name(f".{target.name}{_TEMPORARY}")
  if target.exists() and not (target.is_dir() and not any(target.iterdir())):
    raise OutputError(f"{target} exists and is not an empty folder; name another one, or remove it first.")
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    if temporary.exists():
      shutil.rmtree(temporary)
    free = shutil.disk_usage(target.parent).free
    if free < needed:
      raise OutputError(f"{target} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there.")
    temporary.mkdir()
    yield temporary
    temporary.rename(target)
  except Exception as error:
    if reason := _write_failure(error):
      raise OutputError(f"{target} could not be written: {reason}. Nothing was left there.") from error
    raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _write_failure(error: BaseException | None) -> str | None:
  """The operating system's words where `error` or what caused it is a failure to write."""
  while error is not None and not isinstance(error, OutputError | WeightsError):
    if isinstance(error, OSError) and error.errno is not None:
      return error.strerror
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG):
      if os.strerror(code) in str(error):
        return os.strerror(code)
    error = error.__cause__ or error.__context__
  return None


def write_json(value, path: pathlib.Path, indent: int | None = 2) -> None:
  path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: pathlib.Path) -> dict:
  """A JSON object; WeightsError that names the file where it is missing or none."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise WeightsError(f"{path} is missing.") from None
  except (OSError, ValueError) as error:
    raise WeightsError(f"{path} cannot be read as JSON: {error}.") from None
  if not isinstance(value, dict):
    raise WeightsError(f"{path} holds a JSON {type(value).__name__}, wanted an object.")
  return value


def read_config(folder: pathlib.Path) -> dict:
  """The config.json of a weights folder; WeightsError where it is none, or one that this version cannot read."""
  if not folder.is_dir():
    raise WeightsError(f"{folder} is not a folder; a weights folder is made by `dicetalk convert SOURCE WEIGHTS`.")
  if not (folder / CONFIG).is_file():
    hint = (
      "it is in the released layout: run `dicetalk convert` on it"
      if (folder / "DICE-Talk").is_dir()
      else ("it is no weights folder, or an interrupted one")
    )
    raise WeightsError(f"{folder} has no {CONFIG}; {hint}.")
  config = read_json(folder / CONFIG)
  if config.get("format") != FORMAT or not isinstance(config.get("version"), int):
    raise WeightsError(f'{folder / CONFIG} is not that of a weights folder; those say "format": "{FORMAT}".')
  if config["version"] > VERSION:
    raise WeightsError(
      f"{folder} has format version {config['version']} and this is able to read up to {VERSION}; update dicetalk-jax."
    )
  networks = config.get("networks")
  if not isinstance(networks, dict) or not networks:
    raise WeightsError(f"{folder / CONFIG} lists no networks.")
  if missing := [name for name in networks if not (folder / name).is_dir()]:
    raise WeightsError(f"{folder} is incomplete: {', '.join(missing)} missing; convert or copy the weights again.")
  return config
