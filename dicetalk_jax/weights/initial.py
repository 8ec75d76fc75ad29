"""Parameters before any training, where no weights are at hand."""

import os
import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import build, network_inputs


def network_key(name: str, seed: int) -> jax.Array:
  """The key of a network's initial parameters: its own, whatever else is drawn beside it."""
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def initial_params(
  name: str, architecture: Mapping, key: jax.Array, shardings: Callable[[dict], Mapping] | None = None
) -> dict:
  """Nested float32 parameters of network `name`, of weights.networks.NETWORKS, drawn from `key`.

  As the modules draw them, but for the U-Net: its adapters begin as copies of the keys and values beside them, and it
  begins by predicting 0, which is the mean of what it has to predict. shardings: nested shapes -> where each parameter
  is drawn. Raises WeightsError for an architecture that is not of this network.
  """
  module = build(name, architecture)
  shapes = network_inputs(name, architecture)

  def draw(key):
    inputs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    params = module.init(key, **inputs)["params"]
    if name != "unet":
      return params
    flat = flatten_dict(params, sep="/")
    for path in flat:
      original, adapter, _ = path.partition("_ip_")
      if adapter:
        flat[path] = flat[f"{original}/kernel"]
    flat |= {path: jnp.zeros_like(leaf) for path, leaf in flat.items() if path.startswith("conv_out/")}
    return unflatten_dict(flat, sep="/")

  return jax.jit(draw, out_shardings=shardings(jax.eval_shape(draw, key)) if shardings else None)(key)


def initial_weights(networks: Mapping[str, Mapping], folder: str | os.PathLike, seed: int = 0) -> Weights:
  """A weights folder of untrained networks: name -> architecture. Errors as of `initial_params` and `Weights.save`."""
  params = {name: initial_params(name, config, network_key(name, seed)) for name, config in networks.items()}
  return Weights.save(folder, params, {"networks": dict(networks)})
