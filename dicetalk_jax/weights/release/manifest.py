"""The manifest of a weights folder, `source.json`: the released files, their tensors in order, and where each is.

{"documents": JSON file -> its text, "files": [{"path", "network", "wrapper", "metadata", "retained", "tensors"}]}, each
tensor as [name, dtype, shape, path of the parameter]. A tensor without a path is not read by the network; the file
`retained` has it under its own name.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dicetalk_jax.weights.networks import NETWORKS, Network
from dicetalk_jax.weights.release.layouts import DICETALK, LAYOUTS, Files, Layout
from dicetalk_jax.weights.tensors import Shapes


def layout_in(config: Mapping) -> Layout:
  """The released layout that a weights folder came from; DICE-Talk's for trained weights."""
  return LAYOUTS.get(config.get("layout"), DICETALK)


def canonical(weights: Any) -> dict:
  """The manifest of a `Weights` that came from no file: released file names, the tables' names."""
  layout, files = layout_in(weights.config), []
  documents = settings(layout, weights.config)
  for name, architecture in weights.config["networks"].items():
    network = NETWORKS[name]
    if own := network.files.get(layout.name):
      files += _files(network, own, weights.tensors(name).shapes)
      documents |= _document(network, own, architecture)
  return {"files": files, "documents": documents}


def replaced(manifest: Mapping, old: Mapping, new: Mapping, shapes: Mapping[str, Shapes]) -> dict:
  """The manifest after some networks were replaced by others of `shapes`.

  old, new: config.json before and after. A network's files stay what they were, with the new dtypes, if they
  (or the overlay, for a network with one) have a place for each parameter; otherwise they become the canonical ones.
  """
  layout, files, documents = layout_in(new), list(manifest["files"]), dict(manifest["documents"])
  for network in NETWORKS.values():
    if (own := network.files.get(layout.name)) is None:
      continue
    before, after = (config["networks"].get(network.name) for config in (old, new))
    if after is not None and before != after:
      documents.pop(own.config, None)
      documents |= _document(network, own, after)
    if network.name not in shapes:
      continue
    former = [file for file in files if file["network"] == network.name]
    followed = _followed(network, own, former, shapes[network.name])
    if followed is None:
      _forget_indices(documents, former)
      followed = _files(network, own, shapes[network.name])
    first = files.index(former[0]) if former else len(files)
    files = [*files[:first], *followed, *(file for file in files[first:] if file["network"] != network.name)]
  changed = {name: new.get(name) for name in layout.settings if new.get(name) != old.get(name)}
  for name in changed:
    documents.pop(layout.settings[name], None)
  return {"files": files, "documents": documents | settings(layout, changed)}


def settings(layout: Layout, config: Mapping) -> dict[str, str]:
  """The documents that config.json's keys other than the networks come from."""
  return {path: _dump(config[key]) for key, path in layout.settings.items() if config.get(key)}


def _files(network: Network, own: Files, shapes: Mapping) -> list[dict]:
  table, tensors = network.table, []
  for path, leaf in shapes.items():
    key = table.key(path)
    shape = table.rule(key).transform.torch_shape(leaf.shape)
    tensors.append([key, np.dtype(leaf.dtype).name, shape, path])
  file = {"network": network.name, "wrapper": None, "metadata": {"format": "pt"}, "retained": None}
  base = file | {"path": own.written, "tensors": [tensor for tensor in tensors if own.in_base(tensor[0])]}
  return [file | {"path": own.overlay, "tensors": tensors}, base] if own.overlay else [base]


def _followed(network: Network, own: Files, files: list[Mapping], shapes: Mapping) -> list[dict] | None:
  """The files with the dtypes of other parameters; None if these have no place in them."""
  table, placed = network.table, {}
  overlay = own.overlay and pathlib.PurePosixPath(own.overlay)
  for file in files:
    path = pathlib.PurePosixPath(file["path"])
    # Whoever takes the model's own files alone must get everything that may have changed.
    if not overlay or path.parent == overlay.parent:
      placed |= {path: tuple(shape) for _, _, shape, path in file["tensors"] if path is not None}
  wanted = {path: table.rule(table.key(path)).transform.torch_shape(leaf.shape) for path, leaf in shapes.items()}
  if placed != wanted:
    return None
  return [file | {"tensors": [_as_stored(row, shapes) for row in file["tensors"]]} for file in files]


def _as_stored(row, shapes: Mapping) -> list:
  key, dtype, shape, path = row
  return [key, dtype if path is None else np.dtype(shapes[path].dtype).name, shape, path]


def _forget_indices(documents: dict[str, str], files: list[Mapping]) -> None:
  """Removes the indices of shards that are no longer written."""
  gone = {pathlib.PurePosixPath(file["path"]) for file in files}
  for name in list(documents):
    shards = json.loads(documents[name]).get("weight_map") or {}
    if any(pathlib.PurePosixPath(name).with_name(shard) in gone for shard in shards.values()):
      del documents[name]


def _document(network: Network, own: Files, architecture: Mapping) -> dict[str, str]:
  if own.config and (document := network.write(architecture)):
    return {own.config: _dump(document)}
  return {}


def _dump(value) -> str:
  return json.dumps(value, indent=2) + "\n"
