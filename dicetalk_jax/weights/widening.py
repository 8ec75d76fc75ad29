"""A trained U-Net with twice the channels that computes the same: what a small one has learned, for a larger one.

Each unit becomes two that are alike, and whatever reads them gives each half of the weight (Net2WiderNet of Chen et
al., 2016). Means, variances and groups of normalisations stay as they are, for every unit is doubled in place.
"""

import os
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.files import check_new
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import network_shapes

# Of each network the sizes that double.
_SIZES = {
  "unet": ("block_out_channels", "addition_time_embed_dim", "projection_class_embeddings_input_dim"),
  "pose_guider": ("features",),
  "emotion_model": ("mid_features",),
}
# They read cosines and sines: of twice as many frequencies, each second is one that was there before.
_OF_SINUSOIDS = ("time_embedding/linear_1", "time_pos_embed/linear_1", "add_embedding/linear_1")
# Of what is added to one of two weights and taken from the other, in standard deviations of the weights.
_APART = 0.5


def widen(weights: Weights, out: str | os.PathLike, seed: int = 0) -> Weights:
  """Saves `weights` in a new folder `out` with a U-Net twice as wide, and all else that has to do with its width.

  Attention keeps its heads, each of twice the features. Two halves of a unit learn apart, for what reads them does not
  weigh them alike; the difference is random, of `seed`. All else is as in `weights`. Raises WeightsError for weights
  without a U-Net and what `Weights.derive` raises.
  """
  held = weights.config["networks"]
  if "unet" not in held:
    raise WeightsError(f"{weights.folder} holds no unet, wanted weights of an adaptation; give such a folder")
  check_new(out)
  rng = np.random.default_rng([0x51DE, seed])
  architectures = {name: _doubled(held[name], sizes) for name, sizes in _SIZES.items() if name in held}
  networks = {
    name: _widened(weights.load(name), flatten_dict(network_shapes(name, architecture), sep="/"), rng)
    for name, architecture in architectures.items()
  }
  return weights.derive(out, networks, architectures)


def _doubled(architecture: Mapping, sizes) -> dict:
  def twice(value):
    return [2 * each for each in value] if isinstance(value, list | tuple) else 2 * value

  return dict(architecture) | {name: twice(architecture[name]) for name in sizes}


def _widened(params: Mapping, shapes: Mapping, rng) -> dict:
  """Nested parameters in the shapes {path: shape} of a network of which any axis is as long as it was, or twice."""
  wide = {}
  for path, leaf in flatten_dict(params, sep="/").items():
    made = _weight(path, np.asarray(leaf, np.float32), shapes[path].shape, rng)
    wide[path] = made.astype(np.asarray(leaf).dtype)
  return unflatten_dict(wide, sep="/")


def _weight(path: str, x: np.ndarray, shape: tuple[int, ...], rng) -> np.ndarray:
  is_kernel = path.endswith("/kernel")
  if is_kernel and x.shape[0] != shape[0] and any(f"{name}/kernel" in path for name in _OF_SINUSOIDS):
    spread = np.zeros((shape[0], *x.shape[1:]), np.float32)
    spread[::2] = x
    x = spread
  doubled = [axis for axis in range(x.ndim) if x.shape[axis] != shape[axis]]
  for axis in doubled:
    x = np.repeat(x, 2, axis)
  if not is_kernel:
    return x
  read = [axis for axis in doubled if axis < x.ndim - 1]
  x = x / 2 ** len(read)
  if "/to_q/" in path:
    # Queries meet keys in twice the features, of which the scale takes the root.
    x = x / np.sqrt(2)
  for axis in read:
    half = [length // 2 if i == axis else length for i, length in enumerate(x.shape)]
    sign = np.where(np.arange(x.shape[axis]) % 2, -1, 1).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    x = x + sign * np.repeat(_APART * x.std() * rng.standard_normal(half, np.float32), 2, axis)
  return x
