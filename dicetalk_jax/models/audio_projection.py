"""Projects a vector to a set of cross-attention tokens; for speech (`AudioProjection`) and for emotion."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from dicetalk_jax.models.layers import LayerNorm


class TokenProjection(nn.Module):
  """Three linear layers with ReLU between, split into normalised tokens: (..., d) -> (..., num_tokens, features)."""

  hidden: int = 1024
  num_tokens: int = 32
  features: int = 1024
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="proj1")(x))
    x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="proj2")(x))
    x = nn.Dense(self.num_tokens * self.features, dtype=self.dtype, name="proj3")(x)
    tokens = rearrange(x, "... (tokens features) -> ... tokens features", tokens=self.num_tokens)
    return LayerNorm(self.dtype, name="norm")(tokens)


class AudioProjection(TokenProjection):
  """One video frame's window of Whisper hidden states -> its audio tokens.

  windows (..., positions, states, d_model), released as (b, 10, 5, 384) at 50 Hz -> (..., num_tokens, features).
  """

  def __call__(self, windows):
    return super().__call__(rearrange(windows, "... position state d -> ... (position state d)"))
