"""A weights folder -> the released layout."""

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.files import check_new, new_folder, stop_if_interrupted
from dicetalk_jax.weights.description import SOURCE, read_json
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import row
from dicetalk_jax.weights.release.manifest import canonical, layout_in
from dicetalk_jax.weights.release.readers import import_torch
from dicetalk_jax.weights.tensors import Shapes, open_files, size_of, write_file


def export(
  weights: str | os.PathLike,
  target: str | os.PathLike,
  all: bool = False,
  progress: Callable[[str, int, int], None] | None = None,
) -> list[str]:
  """Writes the files of the released layout; returns their paths within `target`.

  Converted weights give the files that they came from, each tensor bit-equal and in its place. Trained weights, which
  have no source, give files of the released names. all: also the parts by other authors (Stable Video Diffusion,
  Whisper, RIFE) with their JSON files, and the emotion priors; `convert` reads such a folder back.
  progress(file, files done, files in total) is called after each file.
  Raises WeightsError if the folder is damaged or was converted slim and lacks what a file needs; OutputError if
  `target` cannot be written; MissingDependencyError without PyTorch.
  """
  opened = Weights.open(weights)
  check_new(target)
  weights, config = opened.folder, opened.config
  layout = layout_in(config)
  source = read_json(weights / SOURCE) if (weights / SOURCE).is_file() else canonical(opened)
  files = [file for file in source["files"] if all or layout.is_own(file["path"])]
  for file in files:
    if any(path is None for *_, path in file["tensors"]) and not file["retained"]:
      raise WeightsError(
        f"{weights} was converted with --slim and does not hold all of {file['path']}; convert the release without it."
      )
  with new_folder(target, sum(size_of(_shapes(file)) for file in files)) as folder:
    network, params = None, {}
    for number, file in enumerate(files):
      stop_if_interrupted()
      if file["network"] != network:
        params.clear()
        network = file["network"]
        params |= opened.tensors(network).read()
      path = folder / file["path"]
      path.parent.mkdir(parents=True, exist_ok=True)
      _write(path, file, _arrays(weights, file, params))
      if progress:
        progress(file["path"], number + 1, len(files))
    for name, text in source["documents"].items():
      if all or layout.is_own(name):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    if all and (priors := opened.priors()):
      _write_priors(priors, folder / layout.prior_folders[0])
  return [file["path"] for file in files]


def _shapes(file: Mapping) -> Shapes:
  return {key: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype)) for key, dtype, shape, _ in file["tensors"]}


def _arrays(weights: pathlib.Path, file: Mapping, params: Mapping) -> Iterator[np.ndarray]:
  """The arrays of one file, in its order."""
  retained = dict(open_files([weights / file["retained"]]).read()) if file["retained"] else {}
  table = row(file["network"]).table
  for key, _, _, path in file["tensors"]:
    yield retained[key] if path is None else table.rule(key).transform.to_torch(params[path])


def _write(path: pathlib.Path, file: Mapping, arrays: Iterator[np.ndarray]) -> None:
  if path.suffix == ".safetensors":
    # Not with the library's function, which wants all tensors in memory and sorts them.
    write_file(path, _shapes(file), arrays, file["metadata"])
    return
  torch = import_torch(f"Writing {file['path']}")
  state = {}
  for key, array in zip(_shapes(file), arrays, strict=True):
    # NumPy has no bfloat16 that PyTorch knows, so the bytes are copied.
    raw = torch.from_numpy(np.frombuffer(bytearray(array.tobytes()), np.uint8))
    dtype = getattr(torch, array.dtype.name)
    state[key] = raw.view(dtype).reshape(array.shape) if array.size else torch.empty(array.shape, dtype=dtype)
  torch.save({file["wrapper"]: state} if file["wrapper"] else state, path)


def _write_priors(priors: Mapping[str, Mapping[str, np.ndarray]], folder: pathlib.Path) -> None:
  """In the released form: a pickled 0-d object array of {'mu': (1, d)}."""
  folder.mkdir(parents=True)
  for label, fields in priors.items():
    prior = {name: value[None] for name, value in fields.items()}
    np.save(folder / f"{label}.npy", np.array(prior, dtype=object), allow_pickle=True)
