"""A weights folder -> another in which some networks, priors or settings are others."""

import os
import pathlib
import shutil
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict

from dicetalk_jax.files import new_folder, stop_if_interrupted, write_json
from dicetalk_jax.parallel import hosts
from dicetalk_jax.weights.release.convert import write_priors
from dicetalk_jax.weights.release.listing import replaced
from dicetalk_jax.weights.store import (
  CONFIG,
  PRIORS,
  SOURCE,
  in_pieces,
  item_shapes,
  read_json,
  write_item,
)


def derive(
  weights: pathlib.Path,
  target: str | os.PathLike,
  old: Mapping,
  new: Mapping,
  networks: Mapping[str, Mapping],
  priors: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> None:
  """Writes `target`: `weights` with other `networks` (nested parameters), other `priors` and another config.json.

  old, new: the config.json before and after, of which `emotions` and `source` are seen to. What stays is hard-linked
  where the file system can, else copied: a weights folder's files are never changed.
  Of several processes all call this, each writes what it has of arrays that lie over them, and the first all else.
  Raises OutputError where `target` cannot be written, WeightsError where `weights` is damaged.
  """
  flat = {name: flatten_dict(params, sep="/") for name, params in networks.items()}
  needed = sum(leaf.nbytes for params in flat.values() for leaf in params.values())
  with new_folder(target, needed, hosts) as folder:
    for name, params in flat.items():
      write_item(folder / name, in_pieces(params))
    if not hosts.is_first():
      return
    for name in old["networks"]:
      if name not in flat:
        _take(weights / name, folder / name)
    if (weights / SOURCE).is_file():
      shapes = {name: item_shapes(folder / name) for name in flat}
      listing = replaced(read_json(weights / SOURCE), old, new, shapes)
      for retained in {file["retained"] for file in listing["files"]} - {None}:
        _take(weights / retained, folder / retained)
      write_json(listing, folder / SOURCE, indent=None)
      new = dict(new) | {"source": [file["path"] for file in listing["files"] if file["network"] not in flat]}
    if priors is not None:
      write_priors(priors, folder / PRIORS)
      new = dict(new) | {"emotions": sorted(priors)}
    elif (weights / PRIORS).is_file():
      _take(weights / PRIORS, folder / PRIORS)
    # Without this file nothing takes the folder for weights.
    write_json(new, folder / CONFIG)


def _take(source: pathlib.Path, target: pathlib.Path) -> None:
  target.parent.mkdir(exist_ok=True)
  if source.is_dir():
    shutil.copytree(source, target, copy_function=_link)
  else:
    _link(source, target)
  stop_if_interrupted()


def _link(source, target) -> None:
  try:
    os.link(source, target)
  except OSError:  # another disk, or a file system without links
    shutil.copy2(source, target)
