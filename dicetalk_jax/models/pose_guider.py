"""The pose guider: features of the face mask, which the U-Net adds after its first convolution."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from dicetalk_jax.models.layers import conv


class PoseGuider(nn.Module):
  """3×3 convolutions with SiLU, each frame alone; halves the size three times.

  mask (b, f, H, W, 3) in [0, 1], H and W multiples of 8 -> (b, f, H/8, W/8, features).
  """

  features: int = 320
  block_features: Sequence[int] = (16, 32, 96, 256)
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, mask):
    x = nn.silu(conv(self.block_features[0], dtype=self.dtype, name="conv_in")(mask))
    for i, (features, next_features) in enumerate(zip(self.block_features[:-1], self.block_features[1:], strict=True)):
      x = nn.silu(conv(features, dtype=self.dtype, name=f"blocks_{2 * i}")(x))
      x = nn.silu(conv(next_features, stride=2, dtype=self.dtype, name=f"blocks_{2 * i + 1}")(x))
    return conv(self.features, dtype=self.dtype, name="conv_out")(x)
