"""The disentangled emotion embedder: a clip's expression and speech -> the Gaussian of its emotion prior (section 3.1).

The authors published neither its code nor its weights: this follows the paper, and StyleTalk (Ma et al. 2023) where the
paper does.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange


class EmotionPrior(NamedTuple):
  """N(μ_s, σ_s²) of the prior s, both (b, d) float32."""

  mu: jax.Array
  sigma: jax.Array

  def sample(self, key):
    """s = μ_s + σ_s ε (Eq. 6): (b, d)."""
    return self.mu + self.sigma * jax.random.normal(key, self.mu.shape, self.mu.dtype)


def gaussian_pool(s_hat, mask, w_s):
  """Attention-pools a sequence into the emotion prior's Gaussian (Eq. 4, 5).

  s_hat (b, n, d), mask (b, n) true where a frame exists, w_s (d,) -> mu (b, d), sigma (b, d) >= 0, float32.
  """
  s_hat = s_hat.astype(jnp.float32)
  score = jnp.where(mask, s_hat @ w_s.astype(jnp.float32), -jnp.inf)
  # A row without any frame has weights of 0, not NaN.
  weight = jnp.where(mask, jax.nn.softmax(jnp.where(mask.any(-1, keepdims=True), score, 0.0), axis=-1), 0.0)
  mu = jnp.einsum("bn,bnd->bd", weight, s_hat)
  variance = jnp.einsum("bn,bnd->bd", weight, jnp.square(s_hat - mu[:, None]))
  # The root's slope at 0 is infinite: where all frames agree, σ is 0 and pulls at nothing.
  sigma = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
  return EmotionPrior(mu, sigma)


def sinusoidal_positions(length: int, features: int) -> np.ndarray:
  """sin and cos of n / 10000^(2i/d), alternating (Vaswani et al. 2017): (length, features) float32."""
  rate = 10_000.0 ** (-np.arange(0, features, 2) / features)
  angle = np.arange(length)[:, None] * rate
  return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, -1)[:, :features].astype(np.float32)


class MaskedAttention(nn.Module):
  """Multi-head attention of x (b, n, c) to memory (b, m, c) where mask (b, m) is true; 0 where it is nowhere."""

  num_heads: int
  dropout_rate: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, memory, mask, deterministic=True):
    features = x.shape[-1]

    def project(y, name):
      projected = nn.Dense(features, dtype=self.dtype, name=name)(y)
      return rearrange(projected, "b n (heads d) -> b heads n d", heads=self.num_heads)

    q, k, v = project(x, "q_proj"), project(memory, "k_proj"), project(memory, "v_proj")
    score = jnp.einsum("bhnd,bhmd->bhnm", q, k).astype(jnp.float32) / np.sqrt(q.shape[-1])
    mask = mask[:, None, None, :]
    weight = jax.nn.softmax(jnp.where(mask, score, jnp.finfo(jnp.float32).min), axis=-1)
    weight = jnp.where(mask, weight, 0.0).astype(self.dtype)
    weight = nn.Dropout(self.dropout_rate)(weight, deterministic=deterministic)
    attended = rearrange(jnp.einsum("bhnm,bhmd->bhnd", weight, v), "b heads n d -> b n (heads d)")
    # No bias: what attends to nothing changes nothing.
    return nn.Dense(features, use_bias=False, dtype=self.dtype, name="out_proj")(attended)


class TransformerLayer(nn.Module):
  """A post-norm encoder layer: self-attention, then a ReLU MLP, each added and normalised: (b, n, c) -> (b, n, c)."""

  num_heads: int = 8
  mlp: int = 1024
  dropout_rate: float = 0.1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, mask, deterministic=True):
    drop = nn.Dropout(self.dropout_rate, deterministic=deterministic)
    attended = MaskedAttention(self.num_heads, self.dropout_rate, self.dtype, name="self_attn")(
      x, x, mask, deterministic
    )
    x = nn.LayerNorm(dtype=self.dtype, name="norm1")(x + drop(attended))
    y = drop(nn.relu(nn.Dense(self.mlp, dtype=self.dtype, name="linear1")(x)))
    y = nn.Dense(x.shape[-1], dtype=self.dtype, name="linear2")(y)
    return nn.LayerNorm(dtype=self.dtype, name="norm2")(x + drop(y))


class SequenceEncoder(nn.Module):
  """One modality at 25 Hz: (b, n, d) -> s (b, n, features); positions are added once, before the layers.

  present (b,) false: the features are replaced by a learned vector, as zeros are in the paper, so that s still knows
  the time.
  """

  features: int = 256
  num_layers: int = 3
  num_heads: int = 8
  mlp: int = 1024
  dropout_rate: float = 0.1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, mask, present, deterministic=True):
    absent = self.param("absent", nn.initializers.zeros, (self.features,))
    x = nn.Dense(self.features, dtype=self.dtype, name="proj_in")(x.astype(self.dtype))
    x = jnp.where(present[:, None, None], x, absent.astype(self.dtype))
    x = x + sinusoidal_positions(x.shape[1], self.features).astype(self.dtype)
    for i in range(self.num_layers):
      x = TransformerLayer(self.num_heads, self.mlp, self.dropout_rate, self.dtype, name=f"layers_{i}")(
        x, mask, deterministic
      )
    return x


class EmotionEmbedder(nn.Module):
  """expression (b, n, 64) and speech (b, n, d), both at 25 Hz -> `EmotionPrior` of size `features`.

  expression_mask, speech_mask (b, n): true where there is a frame; a row of False is a modality that is absent, of both
  at once nothing can be said: μ and σ are 0. `inputs` ("both", "video", "audio") leaves a modality out for good.
  """

  features: int = 256
  expression_features: int = 64
  speech_features: int = 384
  num_layers: int = 3
  num_fusion_layers: int = 3
  num_heads: int = 8
  mlp: int = 1024
  dropout_rate: float = 0.1
  fusion_scale: float = 1.0  # λ of Eq. 3
  inputs: str = "both"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, expression, expression_mask, speech, speech_mask, deterministic=True):
    if self.inputs not in ("both", "video", "audio"):
      raise ValueError(f'inputs is {self.inputs!r}, wanted "both", "video" or "audio"')
    if self.inputs == "video":
      speech_mask = jnp.zeros_like(speech_mask)
    if self.inputs == "audio":
      expression_mask = jnp.zeros_like(expression_mask)
    sizes = (self.features, self.num_layers, self.num_heads, self.mlp, self.dropout_rate, self.dtype)
    seen, heard = expression_mask.any(-1), speech_mask.any(-1)
    # Frames of the clip: a modality that is absent takes the other's.
    frames_alpha = jnp.where(heard[:, None], speech_mask, expression_mask)
    frames_beta = jnp.where(seen[:, None], expression_mask, speech_mask)
    s_alpha = SequenceEncoder(*sizes, name="audio")(speech, frames_alpha, heard, deterministic)
    s_beta = SequenceEncoder(*sizes, name="visual")(expression, frames_beta, seen, deterministic)
    for i in range(self.num_fusion_layers):
      # Eq. 2, 3.
      ca = MaskedAttention(self.num_heads, self.dropout_rate, self.dtype, name=f"fusion_{i}")
      s_alpha = s_alpha + self.fusion_scale * ca(s_alpha, s_beta, expression_mask, deterministic)
    w_s = self.param("w_s", nn.initializers.normal(self.features**-0.5), (self.features,))
    return gaussian_pool(s_alpha, frames_alpha, w_s)
