"""Initial parameters of a new VAE whose latents are a small copy of the picture.

From random parameters it takes thousands of steps until colours are right, because group normalisation and SiLU stand
between latents and picture on both sides. But silu(x) - silu(-x) = x: if every colour stands beside its negative, both
let it pass.
"""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.models.vae import VAE

_COLOURS = 3
# Two more channels per colour are constant at plus and minus this level (colours are from -1 to 1). A normalisation
# then divides every picture by nearly the same number, so brightness and saturation survive.
_LEVEL = 4.0
# Initial log-variance of latents. With the modules' own, 0, a VAE first learns to ignore its noisy latents.
_LOGVAR = -4.0


def as_thumbnail(model: VAE, params: Mapping) -> dict:
  """Changes a VAE's parameters so that it encodes the mean colours of each latent's square and decodes the same.

  Residual blocks add nothing and frames are decoded one by one; the other channels stay random. Needs at least three
  colours, three latent channels and widths of twelve; returns `params` unchanged otherwise.
  """
  widths, latents, groups = model.block_out_channels, model.latent_channels, model.norm_num_groups
  if min(model.in_channels, model.out_channels, latents) < _COLOURS or min(widths) < 4 * _COLOURS:
    return dict(params)
  flat = {path: np.array(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
  for path, kernel in flat.items():
    if re.search(r"/(conv2|to_out_0)/kernel$", path):
      kernel[:] = 0
    elif path.endswith("downsamplers_0/conv/kernel"):
      # The mean of the pixel and those below and right of it.
      kernel[:] = 0
      kernel[:2, :2] = np.eye(*kernel.shape[2:]) / 4
    elif path.endswith("upsamplers_0/conv/kernel"):
      kernel[:] = 0
      kernel[1, 1] = np.eye(*kernel.shape[2:])
    elif path.endswith("conv_shortcut/kernel"):
      count = min(kernel.shape[2:])
      kernel[..., :count] = np.eye(kernel.shape[2], count)
  # The four channels of a colour are neighbours, in a normalisation group of their own if there are enough groups.
  stride = max(4, min(max(widths) // groups, min(widths) // _COLOURS))
  colours = np.arange(_COLOURS)
  plus = stride * colours
  minus, high, low = plus + 1, plus + 2, plus + 3
  for coder, width in (("encoder", widths[-1]), ("decoder", widths[0])):
    kernel, bias = flat[f"{coder}/conv_in/kernel"], flat[f"{coder}/conv_in/bias"]
    kernel[..., [*plus, *minus, *high, *low]] = 0
    kernel[1, 1, colours, plus], kernel[1, 1, colours, minus] = 1, -1
    bias[high], bias[low] = _LEVEL, -_LEVEL
    kernel = flat[f"{coder}/conv_out/kernel"]
    kernel[..., :_COLOURS] = 0
    scale = _divisor(width // groups, stride)
    kernel[1, 1, plus, colours], kernel[1, 1, minus, colours] = scale, -scale
  flat["encoder/conv_out/kernel"][..., latents:] = 0
  flat["quant_conv/kernel"][:] = np.eye(2 * latents)
  flat["quant_conv/bias"][latents:] += _LOGVAR
  flat["decoder/time_conv_out/kernel"][:] = 0
  flat["decoder/time_conv_out/kernel"][1] = np.eye(model.out_channels)
  return unflatten_dict({path: jnp.asarray(leaf) for path, leaf in flat.items()}, sep="/")


def _divisor(size: int, stride: int) -> float:
  """Approximate divisor of the normalisation for a group of `size` channels with colours."""
  levels = 2 * min(_COLOURS, -(-size // stride)) if size >= 4 else 0
  return _LEVEL * (levels / size) ** 0.5 if levels else 1.0
