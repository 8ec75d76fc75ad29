"""Initial parameters of networks that are trained from scratch."""

import os
import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import build, network_inputs, row


def network_key(name: str, seed: int) -> jax.Array:
  """The PRNG key of a network's initial parameters; it depends on the name and the seed only."""
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def initial_params(
  name: str, architecture: Mapping, key: jax.Array, shardings: Callable[[dict], Mapping] | None = None
) -> dict:
  """Nested float32 parameters of network `name`, drawn from `key`.

  shardings: nested shapes -> sharding of each parameter, which is drawn in place. Raises WeightsError if `architecture`
  does not describe this network.
  """
  module = build(name, architecture)
  shapes = network_inputs(name, architecture)

  def draw(key):
    inputs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    params = module.init(key, **inputs)["params"]
    if (initial := row(name).initial) is None:
      return params
    return unflatten_dict(initial(flatten_dict(params, sep="/")), sep="/")

  return jax.jit(draw, out_shardings=shardings(jax.eval_shape(draw, key)) if shardings else None)(key)


def initial_weights(networks: Mapping[str, Mapping], folder: str | os.PathLike, seed: int = 0) -> Weights:
  """Writes a weights folder of untrained networks: name -> architecture. Raises as `initial_params`, `Weights.save`."""
  params = {name: initial_params(name, config, network_key(name, seed)) for name, config in networks.items()}
  return Weights.save(folder, params, {"networks": dict(networks)})
