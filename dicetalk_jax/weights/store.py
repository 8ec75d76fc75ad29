"""The weights folder on disk: one Orbax item a network, `config.json`, emotion priors; written whole or not at all."""

import contextlib
import errno
import json
import logging
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1 as ocp

from dicetalk_jax.errors import WeightsError, out_of_memory
from dicetalk_jax.files import free_space, stop_if_interrupted

FORMAT = "dicetalk_jax weights"
VERSION = 1
CONFIG = "config.json"
SOURCE = "source.json"
PRIORS = "emotion_priors.safetensors"
RETAINED = "retained"


def _context(alone: bool = False) -> ocp.Context:
  """alone: this process waits for no other."""
  context = ocp.Context()
  if alone and jax.process_count() > 1:
    me = jax.process_index()
    context.multiprocessing.primary_host = me
    context.multiprocessing.active_processes = {me}
    context.multiprocessing.barrier_sync_key_prefix = f"process_{me}"
  # Weights compress by 7 % at several times the cost of writing them, and nobody changes them while they are written.
  context.array.saving.use_compression = False
  context.memory.deepcopy_host_arrays = False
  return context


def in_pieces(params: Mapping[str, jax.Array], size: int = 2**28) -> Iterator[dict[str, np.ndarray]]:
  """{'a/b': array} for `write_item`: in pieces of about `size` bytes that are fetched one after another.

  Of several processes each writes what it has, and nothing is fetched: one piece of arrays as they are.
  """
  if jax.process_count() > 1:
    yield dict(params)
    return
  piece, held = {}, 0
  for path, leaf in params.items():
    piece[path] = np.asarray(leaf)
    held += piece[path].nbytes
    if held >= size:
      yield piece
      piece, held = {}, 0
  if piece:
    yield piece


def write_item(folder: pathlib.Path, pieces: Iterable[Mapping[str, np.ndarray]]) -> None:
  """Writes one Orbax item from pieces {'a/b': array}, so that no more than a piece is in memory. All processes call.

  Within `new_folder`, Ctrl-C ends it between two pieces.
  """
  folder.parent.mkdir(exist_ok=True)
  with _context():
    for piece in pieces:
      # Asked before every piece: Orbax's own failure comes with thousands of lines on the terminal.
      if free_space(folder) < sum(array.nbytes for array in piece.values()):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      ocp.partial.save(folder, unflatten_dict(piece, sep="/"))
      stop_if_interrupted()
    ocp.partial.finalize(folder)


def item_shapes(folder: pathlib.Path) -> dict:
  """{'a/b': anything with shape and dtype}, without reading arrays; WeightsError where the item is damaged."""
  with _readable(folder):
    # Orbax takes a relative path for a damaged item.
    shapes = ocp.metadata(folder.absolute()).metadata
    if shapes is None:
      raise ValueError("what it holds cannot be told")
    return flatten_dict(shapes, sep="/")


def read_item(folder: pathlib.Path, abstract: Mapping | None = None) -> dict:
  """Nested arrays: NumPy as written, or as `abstract` (jax.ShapeDtypeStruct leaves) wants; WeightsError if damaged."""
  with _readable(folder), _context(alone=True):
    return ocp.load(folder.absolute(), abstract)


@contextlib.contextmanager
def _readable(folder: pathlib.Path) -> Iterator[None]:
  # Orbax logs what it then raises, with tracebacks.
  loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
  levels = [logger.level for logger in loggers]
  try:
    for logger in loggers:
      logger.setLevel(logging.CRITICAL)
    yield
  except Exception as error:  # Orbax and TensorStore have many names for a damaged file
    if out_of_memory(error):
      raise
    cause = (str(error).strip().splitlines() or [""])[0].rstrip(" .:")[:200]
    raise WeightsError(
      f"{folder} is damaged or incomplete ({type(error).__name__}: {cause}); convert or copy the weights again."
    ) from error
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)


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
  version = config.get("version")
  if config.get("format") != FORMAT or type(version) is not int or version < 1:
    raise WeightsError(f'{folder / CONFIG} is not that of a weights folder; those say "format": "{FORMAT}".')
  if version > VERSION:
    raise WeightsError(
      f"{folder} has format version {version} and this is able to read up to {VERSION}; update dicetalk-jax."
    )
  networks = config.get("networks")
  if not isinstance(networks, dict) or not networks:
    raise WeightsError(f"{folder / CONFIG} lists no networks.")
  for name, architecture in networks.items():
    if not isinstance(architecture, dict):
      raise WeightsError(
        f"{folder / CONFIG}: networks.{name} is {_short(architecture)}, wanted an object of its sizes."
      )
  for name in ("emotions", "source"):
    listed = config.get(name, [])
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
      raise WeightsError(f"{folder / CONFIG}: {name} is {_short(listed)}, wanted a list of names.")
  check_sampler(config.get("sampler", {}), folder / CONFIG)
  if missing := [name for name in networks if not (folder / name).is_dir() or not any((folder / name).iterdir())]:
    raise WeightsError(f"{folder} is incomplete: {', '.join(missing)} missing; convert or copy the weights again.")
  return config


def check_sampler(sampler, path: pathlib.Path) -> None:
  """WeightsError, naming `path`, where noise levels are given that are not positive numbers."""
  if not isinstance(sampler, dict):
    raise WeightsError(f"{path}: the sampler is {_short(sampler)}, wanted an object with sigma_min and sigma_max.")
  for name in ("sigma_min", "sigma_max"):
    sigma = sampler.get(name)
    is_number = isinstance(sigma, int | float) and not isinstance(sigma, bool) and math.isfinite(sigma)
    if sigma is not None and not (is_number and sigma > 0):
      raise WeightsError(f"{path}: {name} is {_short(sigma)}, wanted a number above 0.")


def _short(value) -> str:
  return json.dumps(value, ensure_ascii=False)[:80]
