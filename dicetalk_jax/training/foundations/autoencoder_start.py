"""Where a new VAE begins: at latents that are a small copy of the picture, which it has only to improve.

From the modules' own random parameters thousands of steps go by before colours are right, for group normalisation and
SiLU stand between latents and picture on both sides. But silu(x) - silu(-x) = x: with every colour beside its negative
they let it pass.
"""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.models.vae import VAE

_COLOURS = 3
# Beside each colour two channels stand at plus and minus this level, colours being from -1 to 1: what a normalisation
# divides by is then nearly the same for every picture, and pictures stay as bright and as colourful as they are.
_LEVEL = 4.0
# Latents begin with little noise: at variance 1, which is the modules' own, a VAE first learns that they say nothing.
_LOGVAR = -4.0


def as_thumbnail(model: VAE, params: Mapping) -> dict:
  """A VAE's parameters, changed so that its means are the mean colours of each latent's square, and are drawn as such.

  Residual blocks add nothing yet and frames are drawn one by one; what else channels carry stays random. It wants at
  least three colours, three latent channels and widths of twelve: otherwise `params` come back as they are.
  """
  widths, latents, groups = model.block_out_channels, model.latent_channels, model.norm_num_groups
  if min(model.in_channels, model.out_channels, latents) < _COLOURS or min(widths) < 4 * _COLOURS:
    return dict(params)
  flat = {path: np.array(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
  for path, kernel in flat.items():
    if re.search(r"/(conv2|to_out_0)/kernel$", path):
      kernel[:] = 0
    elif path.endswith("downsamplers_0/conv/kernel"):
      # It sees the position and those below and right of it: the mean of four pixels.
      kernel[:] = 0
      kernel[:2, :2] = np.eye(*kernel.shape[2:]) / 4
    elif path.endswith("upsamplers_0/conv/kernel"):
      kernel[:] = 0
      kernel[1, 1] = np.eye(*kernel.shape[2:])
    elif path.endswith("conv_shortcut/kernel"):
      kept = min(kernel.shape[2:])
      kernel[..., :kept] = np.eye(kernel.shape[2], kept)
  # Four channels of each colour stand together, in a group of their own where there are so many.
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
  """About what a group of `size` channels that has colours is divided by."""
  levels = 2 * min(_COLOURS, -(-size // stride)) if size >= 4 else 0
  return _LEVEL * (levels / size) ** 0.5 if levels else 1.0
