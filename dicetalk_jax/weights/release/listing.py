"""What `source.json` of a weights folder lists: the released files, their tensors in order, and where each has gone.

{"documents": JSON file -> its text, "files": [{"path", "network", "wrapper", "metadata", "retained", "tensors"}]}, each
tensor as [name, dtype, shape, path of the parameter or None, name among the retained or None].
"""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from dicetalk_jax.weights.networks import TABLES
from dicetalk_jax.weights.release.layouts import (
  EMOTION_MODEL_AS_RELEASED,
  EMOTION_MODEL_FILE,
  OVERLAY_SUFFIX,
  OWN,
  PARTS,
  SETTINGS,
  Part,
  is_adapter,
)
from dicetalk_jax.weights.store import item_shapes


def canonical(weights: pathlib.Path, config: Mapping) -> dict:
  """A listing for weights that came from no file: released file names, the tables' names."""
  files, documents = [], settings(config)
  for part in PARTS:
    if part.network in config["networks"]:
      files += _files(part, item_shapes(weights / part.network))
      documents |= _architecture(part, config["networks"][part.network])
  return {"files": files, "documents": documents}


def replaced(listing: Mapping, old: Mapping, new: Mapping, shapes: Mapping[str, Mapping]) -> dict:
  """The listing of weights in which some networks are others: shapes, network -> {'a/b': anything with shape, dtype}.

  old, new: config.json before and after. A network's files stay what they were, with the new dtypes, where they have a
  place for each parameter and, of the U-Net, `unet.pth` has; otherwise they become the canonical ones.
  """
  files, documents = list(listing["files"]), dict(listing["documents"])
  for part in PARTS:
    before, after = (config["networks"].get(part.network) for config in (old, new))
    if after is not None and before != after:
      if part.network == "emotion_model":
        documents.pop(EMOTION_MODEL_FILE, None)
      documents |= _architecture(part, after)
    if part.network not in shapes:
      continue
    own = [file for file in files if file["network"] == part.network]
    followed = _followed(part, own, shapes[part.network])
    if followed is None:
      _forget_indices(documents, own)
      followed = _files(part, shapes[part.network])
    first = files.index(own[0]) if own else len(files)
    files = [*files[:first], *followed, *(file for file in files[first:] if file["network"] != part.network)]
  changed = {name: new.get(name) for name in SETTINGS if new.get(name) != old.get(name)}
  kept = {path: text for path, text in documents.items() if path not in {SETTINGS[name] for name in changed}}
  return {"files": files, "documents": kept | settings(changed)}


def settings(config: Mapping) -> dict[str, str]:
  """The documents that config.json's keys other than the networks come from."""
  return {path: _dump(config[key]) for key, path in SETTINGS.items() if config.get(key)}


def _files(part: Part, shapes: Mapping) -> list[dict]:
  table, tensors = TABLES[part.network], []
  for path, leaf in shapes.items():
    key = table.key(path)
    shape = table.rule(key).transform.torch_shape(leaf.shape)
    tensors.append([key, np.dtype(leaf.dtype).name, shape, path, None])
  file, files = {"network": part.network, "wrapper": None, "metadata": {"format": "pt"}, "retained": None}, []
  if part.overlay:
    files.append(file | {"path": f"{OWN}/{part.overlay}{OVERLAY_SUFFIX}", "tensors": tensors})
    tensors = [tensor for tensor in tensors if not is_adapter(tensor[0])]
  return [*files, file | {"path": f"{part.folder}/{part.written}", "tensors": tensors}]


def _followed(part: Part, files: list[Mapping], shapes: Mapping) -> list[dict] | None:
  """The files with the dtypes of other parameters, None where these have no place in them."""
  table, placed = TABLES[part.network], {}
  for file in files:
    # Whoever takes the DICE-Talk files alone is to get all that may have changed.
    if not part.overlay or file["path"].startswith(f"{OWN}/"):
      placed |= {path: tuple(shape) for _, _, shape, path, _ in file["tensors"] if path is not None}
  wanted = {path: table.rule(table.key(path)).transform.torch_shape(leaf.shape) for path, leaf in shapes.items()}
  if placed != wanted:
    return None
  return [file | {"tensors": [_as_stored(row, shapes) for row in file["tensors"]]} for file in files]


def _as_stored(row, shapes: Mapping) -> list:
  key, dtype, shape, path, kept = row
  return [key, dtype if path is None else np.dtype(shapes[path].dtype).name, shape, path, kept]


def _forget_indices(documents: dict[str, str], files: list[Mapping]) -> None:
  """Removes the indices of shards that are no longer written."""
  gone = {pathlib.PurePosixPath(file["path"]) for file in files}
  for name in list(documents):
    shards = json.loads(documents[name]).get("weight_map") or {}
    if any(pathlib.PurePosixPath(name).with_name(shard) in gone for shard in shards.values()):
      del documents[name]


def _architecture(part: Part, config: Mapping) -> dict[str, str]:
  if part.network == "emotion_model":
    released = EMOTION_MODEL_AS_RELEASED
    other = {name: config[name] for name in released if config.get(name, released[name]) != released[name]}
    return {EMOTION_MODEL_FILE: _dump(other)} if other else {}
  if not part.config:
    return {}
  return {part.config_path: _dump({key: value for key, value in config.items() if key != "adapter_scales"})}


def _dump(value) -> str:
  return json.dumps(value, indent=2) + "\n"
