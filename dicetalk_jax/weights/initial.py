"""Initial parameters, for networks that have no weights yet."""

import os
import zlib
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import build, network_inputs, row


def network_key(name: str, seed: int) -> jax.Array:
  """The key of a network's initial parameters, independent of which other networks are drawn."""
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def init_params(
  name: str,
  architecture: Mapping,
  key: jax.Array,
  shardings: Callable[[dict], Mapping] | None = None,
  module: nn.Module | None = None,
) -> dict:
  """Initial float32 parameters of a registered network, nested, drawn from `key`.

  They are the module's own, except in the U-Net: its adapters start as copies of the keys and values beside them, and
  its last convolution starts at 0, the mean of what it predicts. shardings: nested shapes -> a sharding per parameter.
  module: takes the place of the network's own. Raises WeightsError for an architecture of another network.
  """
  module = module or build(name, architecture)
  shapes = network_inputs(name, architecture, module)

  def draw(key):
    inputs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    params = module.init(key, **inputs)["params"]
    if (initial := row(name).initial) is None:
      return params
    return unflatten_dict(initial(flatten_dict(params, sep="/")), sep="/")

  return jax.jit(draw, out_shardings=shardings(jax.eval_shape(draw, key)) if shardings else None)(key)


def initial_weights(
  networks: Mapping[str, Mapping], folder: str | os.PathLike, seed: int = 0, config: Mapping | None = None
) -> Weights:
  """Writes a weights folder of untrained networks: name -> architecture. Raises as `init_params` and `Weights.save`.

  config: further entries of config.json, such as "conditions".
  """
  params = {name: init_params(name, sizes, network_key(name, seed)) for name, sizes in networks.items()}
  return Weights.save(folder, params, {"networks": dict(networks)} | dict(config or {}))
