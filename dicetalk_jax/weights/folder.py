"""A weights folder: what `dicetalk convert` writes, and every other verb reads."""

import collections
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import types
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import WeightsError
from dicetalk_jax.files import check_new, expanded, new_folder, write_json
from dicetalk_jax.parallel import hosts
from dicetalk_jax.weights.description import (
  CONFIG,
  FORMAT,
  PRIORS,
  SOURCE,
  VERSION,
  read_config,
  read_json,
)
from dicetalk_jax.weights.hub import fetch_weights, is_repository
from dicetalk_jax.weights.info import Info, NetworkInfo
from dicetalk_jax.weights.networks import NETWORKS, build, network_shapes, row
from dicetalk_jax.weights.release.manifest import replaced
from dicetalk_jax.weights.tensors import (
  StoredTensors,
  link_or_copy,
  network_files,
  open_files,
  open_network,
  save_network,
  shapes_of,
  size_of,
  write_file,
  write_network,
)


@dataclasses.dataclass(frozen=True)
class Weights:
  """An open weights folder. config: its config.json with networks, sampler, image_processor, audio_processor, …"""

  folder: pathlib.Path
  config: dict

  @classmethod
  def open(cls, weights: str | os.PathLike) -> "Weights":
    """Opens a folder or, if there is none of that name, the repository `user/repo` of the hub.

    A repository is fetched to the hub's cache, of which HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE decide as
    usual. Raises WeightsError if it is missing, something else, incomplete or of another format version, and if the hub
    cannot be reached.
    """
    folder = expanded(weights, "weights folder", WeightsError).absolute()
    if not folder.exists() and is_repository(weights):
      try:
        folder = fetch_weights(os.fspath(weights))
      except WeightsError as error:
        raise WeightsError(f"{weights} is not a folder here, and not to be had from the hub: {error}") from None
    return cls(folder, read_config(folder))

  @property
  def generation(self) -> GenerationConfig:
    """The settings to generate with: those in config.json, else the release's."""
    own = self.config.get("generation") or {}
    known = {field.name for field in dataclasses.fields(GenerationConfig)}
    sampler = self.config.get("sampler") or {}
    levels = {name: sampler[name] for name in ("sigma_min", "sigma_max") if sampler.get(name) is not None}
    if not isinstance(own, Mapping) or not set(own) <= known:
      raise WeightsError(f"{self.folder / CONFIG}: generation is {own}; settings of dicetalk generate are required.")
    return GenerationConfig(**levels | {name: value for name, value in own.items() if value is not None})

  @classmethod
  def bundled(cls) -> pathlib.Path:
    """The folder of the small weights inside the package."""
    return pathlib.Path(__file__).parents[1] / "small_weights"

  @classmethod
  def save(
    cls,
    folder: str | os.PathLike,
    networks: Mapping[str, Mapping],
    config: Mapping,
    priors: Mapping[str, Mapping[str, np.ndarray]] | None = None,
  ) -> "Weights":
    """Writes trained networks: name -> nested parameters, each leaf in its own dtype.

    config: as `Weights.config`, of which "networks" (name -> architecture, see `weights.networks.build`) must cover
    `networks`. Of several processes all call this, and the first one writes. Raises OutputError if `folder` cannot be
    written.
    """
    config = {k: v for k, v in config.items() if k != "source"}
    config["networks"] = {name: config["networks"][name] for name in networks}
    with new_folder(folder, sum(map(_size, networks.values())), hosts) as unfinished:
      for name, params in networks.items():
        save_network(unfinished, name, params)
      if hosts.is_first():
        describe(unfinished, config, priors or {})
    return cls.open(folder)

  def derive(
    self,
    folder: str | os.PathLike,
    networks: Mapping[str, Mapping] = types.MappingProxyType({}),
    architectures: Mapping[str, Mapping] = types.MappingProxyType({}),
    priors: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    config: Mapping = types.MappingProxyType({}),
  ) -> "Weights":
    """Writes a new folder: these weights with some networks replaced or added, each leaf in its own dtype.

    networks: name -> nested parameters. architectures: of networks that are new or change size. priors: label ->
    {'mu': (d,)[, 'sigma': (d,)]} instead of these weights' own; None keeps those. config: other keys of config.json,
    such as `emotion_embedder`. What is not replaced is shared with this folder on disk by hard links, and is exported
    bit-equal. Of several processes all call this, and the first one writes. Raises WeightsError for a network that is
    unknown, lacks its architecture or does not fit it, OutputError if `folder` cannot be written.
    """
    check_new(folder)
    described = self.config["networks"] | {name: dict(sizes) for name, sizes in architectures.items()}
    for name in {**networks, **architectures}:
      row(name)
      if name not in described:
        raise WeightsError(f"{self.folder} has no {name}, so a new one needs its architecture, and none was given.")
      if name not in networks and name not in self.config["networks"]:
        raise WeightsError(f"The architecture of a new {name} was given without its parameters.")
      stored = flatten_dict(networks[name], sep="/") if name in networks else self.tensors(name).shapes
      _check_fit(name, described[name], stored, f"The new {name}", "its architecture")
    new = self.config | dict(config) | {"networks": described}
    with new_folder(folder, sum(map(_size, networks.values())), hosts) as unfinished:
      for name, params in networks.items():
        save_network(unfinished, name, params)
      if hosts.is_first():
        self._copy_rest(unfinished, new, networks, priors)
    return Weights.open(folder)

  def _copy_rest(self, folder: pathlib.Path, config: dict, networks: Mapping, priors: Mapping | None) -> None:
    """Writes to `folder` everything but the new `networks`. config: its config.json but for `emotions` and `source`."""
    for name in self.config["networks"].keys() - networks.keys():
      for path in network_files(self.folder, name):
        link_or_copy(path, folder / path.name)
    if (self.folder / SOURCE).is_file():
      shapes = {name: shapes_of(flatten_dict(params, sep="/")) for name, params in networks.items()}
      manifest = replaced(read_json(self.folder / SOURCE), self.config, config, shapes)
      for retained in {file["retained"] for file in manifest["files"]} - {None}:
        link_or_copy(self.folder / retained, folder / retained)
      write_json(manifest, folder / SOURCE, indent=None)
      config = config | {"source": [file["path"] for file in manifest["files"] if file["network"] not in networks]}
    describe(folder, config, self.priors() if priors is None else priors)

  def pack(
    self, folder: str | os.PathLike, generation: GenerationConfig | None = None, dtype=jnp.bfloat16
  ) -> "Weights":
    """Writes a new folder to give away: networks and priors, tensors rounded to `dtype`.

    generation: the settings to generate with; None keeps these weights' own. What only an export needs is left out. An
    entry `fits` in config.json records that the tensors fit the architecture, so that loading need not check it again.
    Raises WeightsError if this folder is damaged, OutputError if `folder` cannot be written.
    """
    check_new(folder)
    own = dataclasses.asdict(generation or self.generation)
    released = dataclasses.asdict(GenerationConfig())
    config = {k: v for k, v in self.config.items() if k != "source"} | {"fits": {}}
    config["generation"] = {name: value for name, value in own.items() if value != released[name]}
    stored = {name: self._checked(name) for name in config["networks"]}
    shapes = {
      name: {path: jax.ShapeDtypeStruct(leaf.shape, dtype) for path, leaf in tensors.shapes.items()}
      for name, tensors in stored.items()
    }
    with new_folder(folder, sum(map(size_of, shapes.values()))) as unfinished:
      for name, tensors in stored.items():
        write_network(unfinished, name, shapes[name], (array.astype(dtype) for _, array in tensors.read()))
        config["fits"][name] = _mark(name, config["networks"][name], shapes[name])
      describe(unfinished, config, self.priors())
    return Weights.open(folder)

  def module(self, network: str, dtype=jnp.float32) -> nn.Module:
    """The Flax module of a network, computing in `dtype`."""
    return build(network, self._architecture(network), dtype)

  def load(self, network: str, dtype=None, sharding=None) -> dict:
    """A network's parameters as nested jax.Arrays. Each process reads only the slices for its own devices.

    dtype: to cast to while reading; None keeps what is stored. sharding: a Sharding for all leaves, a nested dict of
    Shardings, a function from the nested shapes to such a dict, or None for the default device. Raises WeightsError if
    the folder is damaged or holds other tensors than config.json describes.
    """
    stored = self._checked(network)
    if sharding is None:
      sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if callable(sharding):
      sharding = sharding(unflatten_dict(stored.shapes, sep="/"))
    if isinstance(sharding, Mapping):
      return unflatten_dict(stored.load(dtype, flatten_dict(sharding, sep="/").get), sep="/")
    return unflatten_dict(stored.load(dtype, lambda path: sharding), sep="/")

  def tensors(self, network: str) -> StoredTensors:
    """The tensors of a network as stored; only headers are read. WeightsError if they are missing or damaged."""
    self._architecture(network)
    return open_network(self.folder, network)

  def arrays(self, network: str) -> dict:
    """A network's parameters as nested NumPy arrays, as stored."""
    return unflatten_dict(dict(self.tensors(network).read()), sep="/")

  def priors(self) -> dict[str, dict[str, np.ndarray]]:
    """label -> {'mu': (d,)[, 'sigma': (d,)]} float32, empty if there are none; WeightsError if damaged."""
    priors = {}
    if self.config.get("emotions"):
      for name, vector in open_files([self.folder / PRIORS]).read():
        label, _, field = name.partition("/")
        priors.setdefault(label, {})[field or "mu"] = vector
    return priors

  def info(self) -> Info:
    """What the folder holds, without reading arrays."""
    networks = {}
    for name in self.config["networks"]:
      shapes, dtypes = self.tensors(name).shapes, collections.Counter()
      for leaf in shapes.values():
        dtypes[leaf.dtype.name] += math.prod(leaf.shape)
      networks[name] = NetworkInfo(dtypes.total(), size_of(shapes), dict(dtypes), self._architecture(name))
    emotions, source = self.config.get("emotions", []), self.config.get("source", [])
    return Info(self.folder, self.config["version"], networks, list(emotions), list(source))

  def _checked(self, network: str) -> StoredTensors:
    """The tensors of a network, which must be those of its architecture."""
    architecture, stored = self._architecture(network), self.tensors(network)
    fits = self.config.get("fits")
    if not isinstance(fits, Mapping) or fits.get(network) != _mark(network, architecture, stored.shapes):
      item, hint = f"{self.folder / network}.safetensors", "; convert or copy the weights again"
      _check_fit(network, architecture, stored.shapes, item, str(self.folder / CONFIG), hint)
    return stored

  def _architecture(self, network: str) -> dict:
    if network not in self.config["networks"]:
      held = ", ".join(self.config["networks"])
      raise WeightsError(f"{self.folder} has no {network}; it holds {held} (all there is: {', '.join(NETWORKS)}).")
    return self.config["networks"][network]


def describe(folder: pathlib.Path, config: Mapping, priors: Mapping[str, Mapping[str, np.ndarray]]) -> None:
  """Writes the priors, as the tensors `label` and `label/sigma`, and config.json.

  config.json comes last, because a folder without it is not a weights folder.
  """
  if priors:
    names = {"mu": "", "sigma": "/sigma"}
    tensors = {f"{label}{names[k]}": np.asarray(v, np.float32) for label, p in priors.items() for k, v in p.items()}
    write_file(folder / PRIORS, shapes_of(tensors), tensors.values())
  write_json({**config, "format": FORMAT, "version": VERSION, "emotions": sorted(priors)}, folder / CONFIG)


def _size(params: Mapping) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def _check_fit(network: str, architecture: Mapping, stored: Mapping, item: str, config: str, hint: str = "") -> None:
  """WeightsError if the tensors `stored` are not those of the architecture."""
  wanted = flatten_dict(network_shapes(network, architecture), sep="/")
  for path in sorted(wanted.keys() | stored.keys()):
    ours, right = (tuple(leaves[path].shape) if path in leaves else None for leaves in (stored, wanted))
    if ours != right:
      ours, right = ours if path in stored else "missing", right if path in wanted else "none of that name"
      raise WeightsError(f"{item} does not fit {config}: '{path}' is {ours}, wanted {right}{hint}.")


def _mark(network: str, architecture: Mapping, stored: Mapping) -> str:
  """Digest of tensors that fit an architecture. Comparing it takes no time, tracing the network takes seconds."""
  shapes = sorted((path, list(leaf.shape)) for path, leaf in stored.items())
  return hashlib.sha256(json.dumps([network, architecture, shapes], sort_keys=True).encode()).hexdigest()[:16]
