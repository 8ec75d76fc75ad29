"""The released layout -> a weights folder."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import numpy as np

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.files import check_new, expanded, new_folder, write_json
from dicetalk_jax.weights.description import RETAINED, SOURCE
from dicetalk_jax.weights.folder import Weights, describe
from dicetalk_jax.weights.priors import read_priors
from dicetalk_jax.weights.release.source import Release, ReleasedNetwork, Tensor, open_release
from dicetalk_jax.weights.tensors import bytes_of, write_file, write_network

Progress = Callable[[str, int, int], None]


def convert(
  source: str | os.PathLike,
  weights: str | os.PathLike,
  priors_folder: str | os.PathLike | None = None,
  slim: bool = False,
  progress: Progress | None = None,
) -> Weights:
  """Converts a release, every tensor in its own dtype; `weights` appears when all of it is written.

  priors_folder: holds emotion priors as `<label>.npy` and the like; by default it is looked for in `source`. Weights
  without priors have no emotion labels. slim: leave out what no network reads, so that `export` can write only the
  model's own files. progress(what, bytes done, bytes in total) is called after each tensor.
  Raises WeightsError if the release is incomplete, damaged or of another architecture, InputError if the priors cannot
  be used, OutputError if `weights` cannot be written.
  """
  source = expanded(source, "release", WeightsError).absolute()
  check_new(weights)
  release = open_release(source)
  priors = _priors(release, priors_folder)
  total = sum(bytes_of(t.spec) for network in release.networks for t in network.tensors if t.entry or not slim)
  done = 0

  def report(what: str, arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    nonlocal done
    for array in arrays:
      yield array
      done += array.nbytes
      if progress:
        progress(what, done, total)

  with new_folder(weights, needed=total) as folder:
    files = []
    for network in release.networks:
      used = [t for t in network.tensors if t.entry]
      shapes = {t.entry.path: jax.ShapeDtypeStruct(t.entry.transform.shape(t.spec.shape), t.spec.dtype) for t in used}
      write_network(folder, network.name, shapes, report(network.name, (_parameter(*t) for t in _read(release, used))))
      files += _write_unused(release, network, folder, slim, report)
    write_json({"documents": release.documents, "files": files}, folder / SOURCE, indent=None)
    describe(folder, _config(release), priors)
  return Weights.open(weights)


def _priors(release: Release, folder: str | os.PathLike | None) -> dict:
  if folder is None:
    folders = [release.folder / name for name in release.layout.prior_folders]
    folder = next((folder for folder in folders if any(folder.glob("*.npy"))), None)
  sizes = (network.config["prior_dim"] for network in release.networks if "prior_dim" in network.config)
  return read_priors(folder, next(sizes, 256)) if folder is not None else {}


def _read(release: Release, tensors: list[Tensor]) -> Iterator[tuple[Path, Tensor, np.ndarray]]:
  """(file, tensor, array) of each of `tensors`, in their order."""
  for number, group in itertools.groupby(tensors, lambda tensor: tensor.file):
    file, group = release.files[number], list(group)
    for tensor, array in zip(group, file.read(tensor.key for tensor in group), strict=True):
      yield file.path, tensor, array


def _parameter(path: Path, tensor: Tensor, array: np.ndarray) -> np.ndarray:
  if not np.isfinite(array).all():
    raise WeightsError(f"{path}: tensor '{tensor.key}' holds NaN or infinite numbers; download or copy the file again.")
  return tensor.entry.transform.to_flax(array)


def _write_unused(release: Release, network: ReleasedNetwork, folder: Path, slim: bool, report: Callable) -> list[dict]:
  """Keeps the tensors of each file that no network reads; the rows of `source.json`, see `release.manifest`."""
  rows = []
  for number in dict.fromkeys(t.file for t in network.tensors):
    file, tensors = release.files[number], [t for t in network.tensors if t.file == number]
    unused = [t for t in tensors if not t.entry]
    retained = f"{RETAINED}/{number}.safetensors" if unused and not slim else None
    if retained:
      (folder / RETAINED).mkdir(exist_ok=True)
      shapes = {t.key: t.spec for t in unused}
      write_file(folder / retained, shapes, report(network.name, (array for *_, array in _read(release, unused))))
    rows.append(
      {
        "path": release.relative(number),
        "network": network.name,
        "wrapper": file.wrapper,
        "metadata": file.metadata,
        "retained": retained,
        "tensors": [[t.key, t.spec.dtype.name, t.spec.shape, t.entry and t.entry.path] for t in tensors],
      }
    )
  return rows


def _config(release: Release) -> dict:
  layout = release.layout
  return {
    "layout": layout.name,
    "networks": {network.name: network.config for network in release.networks},
    # Settings that are not part of the publication are left out where the release does not have them.
    **{
      name: release.document(path)
      for name, path in layout.settings.items()
      if path in release.documents or not layout.is_own(path)
    },
    "source": [release.relative(number) for number in range(len(release.files))],
  }
