"""A weights folder: what `dicetalk convert` writes, and every other verb reads."""

import collections
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import types
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import WeightsError
from dicetalk_jax.files import check_new, expanded, new_folder, readable_size, write_json
from dicetalk_jax.parallel import hosts
from dicetalk_jax.weights.derive import derive
from dicetalk_jax.weights.networks import NETWORKS, build, network_shapes, row
from dicetalk_jax.weights.priors import read_priors
from dicetalk_jax.weights.release.convert import convert, write_priors
from dicetalk_jax.weights.release.layouts import layout_of
from dicetalk_jax.weights.store import (
  CONFIG,
  FORMAT,
  PRIORS,
  VERSION,
  in_pieces,
  item_shapes,
  read_config,
  read_item,
  write_item,
)

# What of an architecture a person wants to see at a glance.
_SIZES = (
  *("block_out_channels", "num_attention_heads", "cross_attention_dim", "adapter_scales", "latent_channels"),
  *("hidden_size", "num_hidden_layers", "patch_size", "d_model", "encoder_layers", "num_mel_bins"),
  *("num_tokens", "features", "prior_dim", "num_codes", "num_classes", "speech_features", "num_layers", "inputs"),
)


@dataclasses.dataclass(frozen=True)
class NetworkInfo:
  """What a weights folder holds of one network; `bytes` as stored."""

  parameters: int
  bytes: int
  dtypes: dict[str, int]
  architecture: dict


@dataclasses.dataclass(frozen=True)
class Info:
  """What a weights folder holds; str() of it is for people."""

  folder: pathlib.Path
  version: int
  networks: dict[str, NetworkInfo]
  emotions: list[str]
  source: list[str]

  def __str__(self):
    rows = [f"{self.folder}: format version {self.version}", ""]
    stored = {name: ", ".join(network.dtypes) for name, network in self.networks.items()}
    width = max(map(len, ("stored as", *stored.values())))
    rows.append(f"{'network':<20}{'parameters':>14}{'size':>11}  {'stored as':<{width}}  architecture")
    for name, network in self.networks.items():
      facts = ", ".join(f"{key} {_short(value)}" for key, value in network.architecture.items() if key in _SIZES)
      size = readable_size(network.bytes)
      rows.append(f"{name:<20}{network.parameters:>14,}{size:>11}  {stored[name]:<{width}}  {facts}")
    total = sum(network.bytes for network in self.networks.values())
    parameters = sum(network.parameters for network in self.networks.values())
    rows += [f"{'all':<20}{parameters:>14,}{readable_size(total):>11}", ""]
    rows.append(f"emotions: {', '.join(self.emotions) or 'none (convert with --priors DIR to have some)'}")
    rows.append(f"source: {', '.join(self.source) or 'trained'}")
    return "\n".join(rows)


@dataclasses.dataclass(frozen=True)
class Weights:
  """An opened weights folder; `config` is its config.json: networks, sampler, image_processor, audio_processor, …"""

  folder: pathlib.Path
  config: dict

  @classmethod
  def open(cls, folder: str | os.PathLike) -> "Weights":
    """Raises WeightsError for a folder that is missing, another thing, incomplete or of a newer format version."""
    folder = expanded(folder, "weights folder", WeightsError).absolute()
    return cls(folder, read_config(folder))

  @property
  def generation(self) -> GenerationConfig:
    """How these weights are meant to be used: the release's settings, but for those that config.json has of its own."""
    own = self.config.get("generation") or {}
    known = {field.name for field in dataclasses.fields(GenerationConfig)}
    if not isinstance(own, Mapping) or not set(own) <= known:
      raise WeightsError(f"{self.folder / CONFIG}: generation is {_short(own)}, wanted settings of dicetalk generate.")
    return GenerationConfig(**own)

  @classmethod
  def bundled(cls) -> pathlib.Path:
    """The folder of the small weights inside the package; WeightsError where this version has none."""
    folder = pathlib.Path(__file__).parents[1] / "small_weights"
    if not folder.is_dir():
      raise WeightsError(
        "No weights folder was given, and this version of the package has none inside: fetch the published files with "
        "`dicetalk download released/`, make a folder with `dicetalk convert released/ weights/`, and give that."
      )
    return folder

  @classmethod
  def save(
    cls,
    folder: str | os.PathLike,
    networks: Mapping[str, Mapping],
    config: Mapping,
    priors: Mapping[str, Mapping[str, np.ndarray]] | None = None,
  ) -> "Weights":
    """Writes networks that came from training: name -> nested parameters, each kept in its own dtype.

    config: as `Weights.config`, of which "networks" (name -> architecture, see `weights.networks.build`) must cover
    `networks`. Raises OutputError where `folder` cannot be written.
    """
    config = {k: v for k, v in config.items() if k != "source"} | {"format": FORMAT, "version": VERSION}
    config["networks"] = {name: config["networks"][name] for name in networks}
    size = sum(leaf.nbytes for params in networks.values() for leaf in jax.tree.leaves(params))
    with new_folder(folder, size, hosts) as unfinished:
      for name, params in networks.items():
        write_item(unfinished / name, in_pieces(flatten_dict(params, sep="/")))
      if hosts.is_first():
        if priors:
          write_priors(priors, unfinished / PRIORS)
        write_json(config | {"emotions": sorted(priors or ())}, unfinished / CONFIG)
    return cls.open(folder)

  def derive(
    self,
    folder: str | os.PathLike,
    networks: Mapping[str, Mapping] = types.MappingProxyType({}),
    architectures: Mapping[str, Mapping] = types.MappingProxyType({}),
    priors: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    config: Mapping = types.MappingProxyType({}),
  ) -> "Weights":
    """Writes a new folder: these weights with some networks replaced or added, each leaf kept in its own dtype.

    networks: name -> nested parameters on this host. architectures: of those that are added or of other sizes.
    priors: label -> {'mu': (256,)[, 'sigma': (256,)]} instead of these weights' own; None keeps those. config: other
    keys of config.json, such as `emotion_embedder`. What is not replaced is shared with this folder on disk, and is
    exported bit-equal. Raises WeightsError for a network that is unknown, lacks its architecture or does not fit it,
    OutputError where `folder` cannot be written.
    """
    described = self.config["networks"] | {name: dict(sizes) for name, sizes in architectures.items()}
    for name in {**networks, **architectures}:
      row(name)
      if name not in described:
        raise WeightsError(f"{self.folder} has no {name}, so a new one needs its architecture, and none was given.")
      if name not in networks and name not in self.config["networks"]:
        raise WeightsError(f"The architecture of a new {name} was given without its parameters.")
      stored = flatten_dict(networks[name], sep="/") if name in networks else item_shapes(self.folder / name)
      _check_fit(name, described[name], stored, f"The new {name}", "its architecture")
    new = self.config | dict(config) | {"format": FORMAT, "version": VERSION, "networks": described}
    derive(self.folder, folder, self.config, new, networks, priors)
    return Weights.open(folder)

  def pack(
    self, folder: str | os.PathLike, generation: GenerationConfig | None = None, dtype=jnp.bfloat16
  ) -> "Weights":
    """Writes a new folder to give away: the networks and priors alone, tensors rounded to `dtype`.

    generation: how they are meant to be used; None keeps what these weights say. What only an export needs is left out,
    and config.json's `fits` spares whoever loads them the check that tensors and architecture agree.
    Raises WeightsError where this folder is damaged, OutputError where `folder` cannot be written.
    """
    check_new(folder)
    own = dataclasses.asdict(generation or self.generation)
    released = dataclasses.asdict(GenerationConfig())
    changed = {name: value for name, value in own.items() if value != released[name]}
    networks = {name: jax.device_get(self.load(name, dtype)) for name in self.config["networks"]}
    marks = {
      name: _mark(name, self.config["networks"][name], flatten_dict(params, sep="/"))
      for name, params in networks.items()
    }
    return Weights.save(folder, networks, self.config | {"generation": changed, "fits": marks}, self.priors())

  def module(self, network: str, dtype=jnp.float32) -> nn.Module:
    """The Flax module of a network, computing in `dtype`."""
    return build(network, self._architecture(network), dtype)

  def load(self, network: str, dtype=None, sharding=None) -> dict:
    """A network's parameters as nested jax.Arrays.

    dtype: to cast to while reading; None keeps what is stored. sharding: a Sharding for all, a nested dict of them as
    the parameters, a function that gives such a dict of the nested shapes, or None for the default device. Raises
    WeightsError where the folder is damaged or holds tensors other than those of its config.json.
    """
    shapes = self._shapes(network)
    if sharding is None:
      sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if callable(sharding):
      sharding = sharding(unflatten_dict(shapes, sep="/"))
    shardings = (
      flatten_dict(sharding, sep="/") if isinstance(sharding, Mapping) else collections.defaultdict(lambda: sharding)
    )
    abstract = {
      path: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=shardings[path])
      for path, leaf in shapes.items()
    }
    return read_item(self.folder / network, unflatten_dict(abstract, sep="/"))

  def priors(self) -> dict[str, dict[str, np.ndarray]]:
    """label -> {'mu': (256,)[, 'sigma': (256,)]} float32, empty where there are none; WeightsError where damaged."""
    path, priors = self.folder / PRIORS, {}
    if not self.config.get("emotions"):
      return priors
    try:
      stored = safetensors.numpy.load_file(path)
    except (OSError, SafetensorError) as error:
      raise WeightsError(f"{path} is missing or damaged ({error}); convert or copy the weights again.") from None
    for name, vector in stored.items():
      label, _, field = name.partition("/")
      priors.setdefault(label, {})[field or "mu"] = vector
    return priors

  def info(self) -> Info:
    """What the folder holds, without reading arrays."""
    networks = {}
    for name in self.config["networks"]:
      leaves = item_shapes(self.folder / name).values()
      dtypes = collections.Counter()
      for leaf in leaves:
        dtypes[np.dtype(leaf.dtype).name] += math.prod(leaf.shape)
      size = sum(np.dtype(dtype).itemsize * count for dtype, count in dtypes.items())
      networks[name] = NetworkInfo(dtypes.total(), size, dict(dtypes), self._architecture(name))
    emotions, source = self.config.get("emotions", []), self.config.get("source", [])
    return Info(self.folder, self.config["version"], networks, list(emotions), list(source))

  def _shapes(self, network: str) -> dict:
    """{'a/b': anything with shape and dtype} as stored, which must be what the architecture wants."""
    architecture, stored = self._architecture(network), item_shapes(self.folder / network)
    fits = self.config.get("fits")
    if isinstance(fits, Mapping) and fits.get(network) == _mark(network, architecture, stored):
      return stored
    item, config, hint = self.folder / network, self.folder / CONFIG, "; convert or copy the weights again"
    _check_fit(network, architecture, stored, str(item), str(config), hint)
    return stored

  def _architecture(self, network: str) -> dict:
    if network not in self.config["networks"]:
      held = ", ".join(self.config["networks"])
      raise WeightsError(f"{self.folder} has no {network}; it holds {held} (all there is: {', '.join(NETWORKS)}).")
    return self.config["networks"][network]


def convert_release(
  source: str | os.PathLike,
  weights: str | os.PathLike,
  priors_folder: str | os.PathLike | None = None,
  slim: bool = False,
  progress: Callable[[str, int, int], None] | None = None,
) -> Weights:
  """`weights.release.convert.convert` with the emotion priors of `priors_folder` (<label>.npy and the like).

  Without one, priors are taken from `emotion_priors`, `DICE-Talk/emotion_priors` or `examples/emo` in `source`, if
  there; weights without priors have no emotion labels. Raises InputError for priors that cannot be used, and what
  `convert` raises.
  """
  source = expanded(source, "release", WeightsError).absolute()
  check_new(weights)
  if priors_folder is None:
    folders = [source / name for name in layout_of(source).prior_folders]
    priors_folder = next((folder for folder in folders if any(folder.glob("*.npy"))), None)
  priors = read_priors(priors_folder) if priors_folder is not None else None
  convert(source, weights, priors, slim, progress)
  return Weights.open(weights)


def _check_fit(network: str, architecture: Mapping, stored: Mapping, item: str, config: str, hint: str = "") -> None:
  """WeightsError where the leaves `stored` are not those of the architecture."""
  wanted = flatten_dict(network_shapes(network, architecture), sep="/")
  for path in sorted(wanted.keys() | stored.keys()):
    found, right = (tuple(leaves[path].shape) if path in leaves else None for leaves in (stored, wanted))
    if found != right:
      found, right = found if path in stored else "missing", right if path in wanted else "none of that name"
      raise WeightsError(f"{item} does not fit {config}: '{path}' is {found}, wanted {right}{hint}.")


def _mark(network: str, architecture: Mapping, stored: Mapping) -> str:
  """Of leaves that have been found to fit an architecture: told in no time, where tracing the network takes seconds."""
  shapes = sorted((path, list(leaf.shape)) for path, leaf in stored.items())
  return hashlib.sha256(json.dumps([VERSION, network, architecture, shapes], sort_keys=True).encode()).hexdigest()[:16]


def _short(value) -> str:
  return "/".join(map(str, value)) if isinstance(value, list) else str(value)
