"""Doubles the channels of a trained U-Net without changing its output (Net2WiderNet, Chen et al., 2016).

Each channel becomes two equal ones side by side, and the layers that read them halve their weights. Means,
variances and groups of normalisations do not change.
"""

import os
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.files import check_new
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import network_shapes

# Sizes that double.
_SIZES = {
  "unet": ("block_out_channels", "addition_time_embed_dim", "projection_class_embeddings_input_dim"),
  "pose_guider": ("features",),
  "emotion_model": ("mid_features",),
}
# They read sinusoids. With twice as many frequencies, every second one is an old one.
_OF_SINUSOIDS = ("time_embedding/linear_1", "time_pos_embed/linear_1", "add_embedding/linear_1")
# Noise that is added to one of two equal weights and subtracted from the other, in standard deviations of the weights.
_APART = 0.5


def widen(weights: Weights, out: str | os.PathLike, seed: int = 0) -> Weights:
  """Writes `weights` to a new folder `out` with a U-Net of twice the width and the networks that depend on its width.

  Attention keeps the number of heads; each has twice the features. Random differences, drawn from `seed`, between the
  weights that read two equal channels let these learn different things. Raises WeightsError if there is no U-Net, and
  what `Weights.derive` raises.
  """
  held = weights.config["networks"]
  if "unet" not in held:
    raise WeightsError(f"{weights.folder} has no unet; give weights with a U-Net")
  check_new(out)
  rng = np.random.default_rng([0x51DE, seed])
  architectures = {name: _doubled(held[name], sizes) for name, sizes in _SIZES.items() if name in held}
  networks = {
    name: _widened(weights.arrays(name), flatten_dict(network_shapes(name, architecture), sep="/"), rng)
    for name, architecture in architectures.items()
  }
  return weights.derive(out, networks, architectures)


def _doubled(architecture: Mapping, sizes) -> dict:
  def twice(value):
    return [2 * each for each in value] if isinstance(value, list | tuple) else 2 * value

  return dict(architecture) | {name: twice(architecture[name]) for name in sizes}


def _widened(params: Mapping, shapes: Mapping, rng) -> dict:
  """Nested parameters in the shapes {path: shape}; each axis is as long as before, or twice."""
  wide = {}
  for path, leaf in flatten_dict(params, sep="/").items():
    wide[path] = _weight(path, np.asarray(leaf, np.float32), shapes[path].shape, rng).astype(leaf.dtype)
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
    # Attention scales by the root of the features of a head, which double.
    x = x / np.sqrt(2)
  for axis in read:
    half = [length // 2 if i == axis else length for i, length in enumerate(x.shape)]
    sign = np.where(np.arange(x.shape[axis]) % 2, -1, 1).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    x = x + sign * np.repeat(_APART * x.std() * rng.standard_normal(half, np.float32), 2, axis)
  return x
