"""The released layout -> a weights folder."""

import os
import pathlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import safetensors.numpy

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.files import expanded, new_folder, write_json
from dicetalk_jax.parallel import hosts
from dicetalk_jax.weights.release.source import Release, ReleasedNetwork, Tensor, open_release
from dicetalk_jax.weights.store import (
  CONFIG,
  FORMAT,
  PRIORS,
  RETAINED,
  SOURCE,
  VERSION,
  write_item,
)

Progress = Callable[[str, int, int], None]
# How much of a network is in memory at a time, as read and as written.
_PIECE_BYTES = 128 << 20


def convert(
  source: str | os.PathLike,
  weights: str | os.PathLike,
  priors: Mapping[str, Mapping[str, np.ndarray]] | None = None,
  slim: bool = False,
  progress: Progress | None = None,
) -> None:
  """Converts a release, every tensor in its own dtype; `weights` appears when all of it is written.

  priors: label -> {'mu': (256,)[, 'sigma': (256,)]}. slim leaves out what no network reads, so that `export` can write
  the DICE-Talk files alone. progress is called with (what, bytes done, bytes in all).
  Raises WeightsError for a release that is incomplete, damaged or of another architecture, OutputError where `weights`
  cannot be written.
  """
  release = open_release(expanded(source, "release", WeightsError).absolute())
  total = sum(t.spec.bytes for network in release.networks for t in network.tensors if t.entry or not slim)
  report = _Report(progress, total)
  with new_folder(weights, total, hosts) as folder:
    listing = []
    for network in release.networks:
      used = [t for t in network.tensors if t.entry]
      write_item(folder / network.name, report(network.name, _pieces(release, used, _parameter)))
      listing += _write_unused(release, network, folder, slim, report)
    write_json({"documents": release.documents, "files": listing}, folder / SOURCE, indent=None)
    if priors:
      write_priors(priors, folder / PRIORS)
    # Without this file nothing takes the folder for weights.
    write_json(_config(release, priors), folder / CONFIG)


def write_priors(priors: Mapping[str, Mapping[str, np.ndarray]], path: pathlib.Path) -> None:
  """label -> {'mu', 'sigma'} as the tensors `label` and `label/sigma`."""
  names = {"mu": "", "sigma": "/sigma"}
  tensors = {f"{label}{names[k]}": np.asarray(v, np.float32) for label, p in priors.items() for k, v in p.items()}
  path.write_bytes(safetensors.numpy.save(tensors))


class _Report:
  """Counts the bytes of all pieces for `progress`."""

  def __init__(self, progress: Progress | None, total: int):
    self.progress, self.done, self.total = progress or (lambda *_: None), 0, total

  def __call__(self, what: str, pieces: Iterable[dict]) -> Iterator[dict]:
    for piece in pieces:
      size = sum(array.nbytes for array in piece.values())
      yield piece
      self.done += size
      self.progress(what, self.done, self.total)


def _parameter(tensor: Tensor, array: np.ndarray, path: pathlib.Path) -> tuple[str, np.ndarray]:
  if not np.isfinite(array).all():
    raise WeightsError(f"{path}: tensor '{tensor.key}' holds NaN or infinite numbers; download or copy the file again.")
  return tensor.entry.path, tensor.entry.transform.to_flax(array)


def _pieces(release: Release, tensors: list[Tensor], place: Callable) -> Iterator[dict[str, np.ndarray]]:
  """Reads `tensors` file by file in pieces of about _PIECE_BYTES; `place` gives each its name and final array."""
  groups, size = [[]], 0
  for tensor in tensors:
    if size + tensor.spec.bytes > _PIECE_BYTES and groups[-1]:
      groups.append([])
      size = 0
    groups[-1].append(tensor)
    size += tensor.spec.bytes
  for group in groups:
    by_file = defaultdict(dict)
    for tensor in group:
      by_file[tensor.file][tensor.key] = tensor
    piece = {}
    for number, keys in by_file.items():
      file = release.files[number]
      for key, array in file.read(keys):
        name, value = place(keys[key], array, file.path)
        piece[name] = value
    yield piece


def _write_unused(
  release: Release, network: ReleasedNetwork, folder: pathlib.Path, slim: bool, report: _Report
) -> list[dict]:
  """Retains, a file at a time, what the network does not read; lists each file's tensors and where they went."""
  listing = []
  for number in dict.fromkeys(t.file for t in network.tensors):
    file, tensors = release.files[number], [t for t in network.tensors if t.file == number]
    # Orbax writes no array without elements; the listing is enough to make it again.
    kept = [t for t in tensors if not t.entry and t.spec.bytes]
    names = {t.key: f"t{i}" for i, t in enumerate(kept)}
    retained = f"{RETAINED}/{number}" if kept and not slim else None
    if retained:
      write_item(folder / retained, report(network.name, _pieces(release, kept, _as_it_is(names))))
    rows = [[t.key, t.spec.dtype, t.spec.shape, t.entry and t.entry.path, names.get(t.key)] for t in tensors]
    listing.append(
      {
        "path": release.relative(number),
        "network": network.name,
        "wrapper": file.wrapper,
        "metadata": file.metadata,
        "retained": retained,
        "tensors": rows,
      }
    )
  return listing


def _as_it_is(names: Mapping[str, str]) -> Callable:
  return lambda tensor, array, path: (names[tensor.key], array)


def _config(release: Release, priors: Mapping | None) -> dict:
  return {
    "format": FORMAT,
    "version": VERSION,
    "layout": release.layout.name,
    "networks": {network.name: network.config for network in release.networks},
    # Settings that are not part of the publication are left out where the release does not have them.
    **{
      name: release.document(path)
      for name, path in release.layout.settings.items()
      if path in release.documents or not release.layout.is_own(path)
    },
    "emotions": sorted(priors or ()),
    "source": [release.relative(number) for number in range(len(release.files))],
  }
