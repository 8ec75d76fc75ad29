"""A weights folder -> the released layout."""

import json
import os
import pathlib
import struct
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.files import check_new, expanded, new_folder, stop_if_interrupted
from dicetalk_jax.parallel import hosts
from dicetalk_jax.weights.networks import row
from dicetalk_jax.weights.release.listing import canonical, layout_in
from dicetalk_jax.weights.release.readers import DTYPES, SAFETENSORS_DTYPES, import_torch
from dicetalk_jax.weights.store import (
  PRIORS,
  SOURCE,
  read_config,
  read_item,
  read_json,
)


def export(
  weights: str | os.PathLike,
  target: str | os.PathLike,
  all: bool = False,
  progress: Callable[[str, int, int], None] | None = None,
) -> list[str]:
  """Writes the released layout's files; returns their paths within `target`.

  Converted weights give the files they came from, each tensor bit-equal and in its place. Weights without a source, as
  from training, give files of the released names. all: the parts by others too (Stable Video Diffusion, Whisper, RIFE),
  with their JSON files and the emotion priors. progress is called with (file, files done, files in all).
  Raises WeightsError where the folder is damaged or, being slim, has not kept what a file needs; OutputError where
  `target` cannot be written; MissingDependencyError without PyTorch.
  """
  weights = expanded(weights, "weights folder", WeightsError).absolute()
  config = read_config(weights)
  check_new(target)
  layout = layout_in(config)
  source = read_json(weights / SOURCE) if (weights / SOURCE).is_file() else canonical(weights, config)
  files = [file for file in source["files"] if all or layout.is_own(file["path"])]
  for file in files:
    if any(place is None and kept is not None for *_, place, kept in file["tensors"]) and not file["retained"]:
      raise WeightsError(
        f"{weights} was converted with --slim and has not kept all of {file['path']}; convert the release without it."
      )
  needed = sum(
    DTYPES[dtype].itemsize * int(np.prod(shape)) for file in files for _, dtype, shape, *_ in file["tensors"]
  )
  with new_folder(target, needed, hosts) as folder:
    network, params = None, {}
    for number, file in enumerate(files):
      stop_if_interrupted()
      if file["network"] != network:
        params.clear()
        network, params = file["network"], flatten_dict(read_item(weights / file["network"]), sep="/")
      path = folder / file["path"]
      path.parent.mkdir(parents=True, exist_ok=True)
      _write(path, file, _tensors(weights, file, params))
      if progress:
        progress(file["path"], number + 1, len(files))
    for name, text in source["documents"].items():
      if all or layout.is_own(name):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    if all:
      _write_priors(weights, folder / layout.prior_folders[0])
  return [file["path"] for file in files]


def _tensors(weights: pathlib.Path, file: Mapping, params: Mapping) -> Iterator[tuple[str, np.ndarray]]:
  """(name, array) of one file, in its order."""
  retained = flatten_dict(read_item(weights / file["retained"]), sep="/") if file["retained"] else {}
  table = row(file["network"]).table
  for key, dtype, shape, path, kept in file["tensors"]:
    if path is not None:
      yield key, table.rule(key).transform.to_torch(params[path])
    elif kept is not None:
      yield key, retained[kept]
    else:
      yield key, np.empty(shape, DTYPES[dtype])


def _write(path: pathlib.Path, file: Mapping, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
  if path.suffix == ".safetensors":
    _write_safetensors(path, file, tensors)
    return
  torch = import_torch(f"Writing {file['path']}")
  state = {}
  for key, array in tensors:
    # NumPy has no bfloat16 that PyTorch knows, so the bytes go over.
    raw = torch.from_numpy(np.frombuffer(bytearray(array.tobytes()), np.uint8))
    dtype = getattr(torch, array.dtype.name)
    state[key] = raw.view(dtype).reshape(array.shape) if array.size else torch.empty(array.shape, dtype=dtype)
  torch.save({file["wrapper"]: state} if file["wrapper"] else state, path)


def _write_safetensors(path: pathlib.Path, file: Mapping, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
  """One tensor at a time and in the source's order, where the library wants all of them and sorts."""
  names = {ours: theirs for theirs, ours in SAFETENSORS_DTYPES.items()}
  header, end = ({"__metadata__": file["metadata"]} if file["metadata"] else {}), 0
  for key, dtype, shape, *_ in file["tensors"]:
    start, end = end, end + DTYPES[dtype].itemsize * int(np.prod(shape))
    header[key] = {"dtype": names[dtype], "shape": shape, "data_offsets": [start, end]}
  text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
  text += b" " * (-len(text) % 8)
  with path.open("wb") as out:
    out.write(struct.pack("<Q", len(text)) + text)
    for _, array in tensors:
      out.write(np.ascontiguousarray(array).tobytes())


def _write_priors(weights: pathlib.Path, folder: pathlib.Path) -> None:
  """In the released form: a pickled 0-d object array of {'mu': (1, 256)}."""
  if not (weights / PRIORS).is_file():
    return
  folder.mkdir(parents=True)
  stored = safetensors.numpy.load_file(weights / PRIORS)
  for label in (name for name in stored if "/" not in name):
    prior = {"mu": stored[label][None]}
    if f"{label}/sigma" in stored:
      prior["sigma"] = stored[f"{label}/sigma"][None]
    np.save(folder / f"{label}.npy", np.array(prior, dtype=object), allow_pickle=True)
