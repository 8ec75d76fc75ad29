"""Multi-head self-attention of the CLIP and Whisper encoders, with their parameter names."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from dicetalk_jax.models.attention import attention


class SelfAttention(nn.Module):
  """Every position attends to all of its sequence: (b, n, c) -> (b, n, c); c a multiple of `num_heads`."""

  num_heads: int
  key_bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    def project(name, use_bias=True):
      projected = nn.Dense(x.shape[-1], use_bias=use_bias, dtype=self.dtype, name=name)(x)
      return rearrange(projected, "b n (heads d) -> b n heads d", heads=self.num_heads)

    attended = attention(project("q_proj"), project("k_proj", self.key_bias), project("v_proj"))
    attended = rearrange(attended, "b n heads d -> b n (heads d)")
    return nn.Dense(x.shape[-1], dtype=self.dtype, name="out_proj")(attended)
