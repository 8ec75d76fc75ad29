"""Blocks shared by the U-Net and the VAE. Names and epsilons are those of Stable Video Diffusion in diffusers."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from dicetalk_jax.models.cpu import materialised_gradient


def sinusoidal_embedding(values, dim):
  """Cosines then sines of `values` (...,) at dim/2 frequencies from 1 down to 1e-4 -> (..., dim) float32."""
  half = dim // 2
  frequencies = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)
  angles = jnp.asarray(values, jnp.float32)[..., None] * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nn.Module):
  """Two linear layers with SiLU between: (..., d) -> (..., features)."""

  hidden: int
  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(self.hidden, dtype=self.dtype, name="linear_1")(x)
    return nn.Dense(self.features, dtype=self.dtype, name="linear_2")(nn.silu(x))


class GroupNorm(nn.Module):
  """Group normalisation over all axes but the first, in float32: (b, ..., c) -> (b, ..., c)."""

  epsilon: float
  dtype: jnp.dtype = jnp.float32
  groups: int = 32

  @nn.compact
  def __call__(self, x):
    norm = nn.GroupNorm(self.groups, epsilon=self.epsilon, dtype=jnp.float32, use_fast_variance=False, name="norm")
    # The parameters belong to this module, under the names in the checkpoint.
    nn.share_scope(self, norm)
    return materialised_gradient(norm(materialised_gradient(x)).astype(self.dtype))


class LayerNorm(nn.Module):
  """LayerNorm over the last axis in float32, ε = 1e-5: (..., c) -> (..., c) in `dtype`."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    norm = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False, name="norm")
    nn.share_scope(self, norm)
    return materialised_gradient(norm(materialised_gradient(x)).astype(self.dtype))


def conv(features, kernel=3, stride=1, dtype=jnp.float32, name=None):
  """A square convolution over h and w with PyTorch's symmetric padding: (..., h, w, c) -> (..., h', w', features)."""
  return nn.Conv(features, (kernel, kernel), (stride, stride), padding=kernel // 2, dtype=dtype, name=name)


class TemporalConv(nn.Module):
  """A convolution over three neighbouring frames at each position: (b, f, h, w, c) -> (b, f, h, w, features)."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, x.shape[-1], self.features))
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    b, f, h, w, c = x.shape
    out = lax.conv_general_dilated(
      x.astype(self.dtype).reshape(b, f, h * w, c),
      kernel.astype(self.dtype)[:, None],
      window_strides=(1, 1),
      padding=((1, 1), (0, 0)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return out.reshape(b, f, h, w, self.features) + bias.astype(self.dtype)


class ResnetBlock(nn.Module):
  """GroupNorm, SiLU, 3×3 convolution, twice, with the time embedding between and a shortcut around.

  x (b, h, w, c), time_embedding (b, d) or None -> (b, h, w, features).
  """

  features: int
  epsilon: float
  dtype: jnp.dtype = jnp.float32
  groups: int = 32

  @nn.compact
  def __call__(self, x, time_embedding=None):
    h = nn.silu(GroupNorm(self.epsilon, self.dtype, self.groups, name="norm1")(x))
    h = conv(self.features, dtype=self.dtype, name="conv1")(h)
    if time_embedding is not None:
      shift = nn.Dense(self.features, dtype=self.dtype, name="time_emb_proj")(nn.silu(time_embedding))
      h += shift[:, None, None]
    h = nn.silu(GroupNorm(self.epsilon, self.dtype, self.groups, name="norm2")(h))
    h = conv(self.features, dtype=self.dtype, name="conv2")(h)
    if x.shape[-1] != self.features:
      x = conv(self.features, 1, dtype=self.dtype, name="conv_shortcut")(x)
    return x + h


class TemporalResnetBlock(nn.Module):
  """`ResnetBlock` along frames: x (b, f, h, w, c), time_embedding (b, f, d) or None -> (b, f, h, w, c).

  Its norms run over all frames together.
  """

  epsilon: float
  dtype: jnp.dtype = jnp.float32
  groups: int = 32

  @nn.compact
  def __call__(self, x, time_embedding=None):
    features = x.shape[-1]
    h = nn.silu(GroupNorm(self.epsilon, self.dtype, self.groups, name="norm1")(x))
    h = TemporalConv(features, self.dtype, name="conv1")(h)
    if time_embedding is not None:
      shift = nn.Dense(features, dtype=self.dtype, name="time_emb_proj")(nn.silu(time_embedding))
      h += shift[:, :, None, None]
    h = nn.silu(GroupNorm(self.epsilon, self.dtype, self.groups, name="norm2")(h))
    return x + TemporalConv(features, self.dtype, name="conv2")(h)


class TimeMixer(nn.Module):
  """A learned weighted mean of a spatial and a temporal result.

  sigmoid(mix_factor) is the weight of the spatial one in the U-Net, of the temporal one in the VAE (`temporal_first`).
  """

  temporal_first: bool = False

  @nn.compact
  def __call__(self, spatial, temporal):
    mix_factor = self.param("mix_factor", nn.initializers.constant(0.0 if self.temporal_first else 0.5), (1,))
    alpha = jax.nn.sigmoid(mix_factor.astype(jnp.float32)).astype(spatial.dtype)
    if self.temporal_first:
      alpha = 1 - alpha
    return alpha * spatial + (1 - alpha) * temporal


class SpatioTemporalResBlock(nn.Module):
  """A spatial residual block, a temporal one after it, and the mixture of both.

  x (b, f, h, w, c), time_embedding (b, d) or None -> (b, f, h, w, features).
  """

  features: int
  epsilon: float
  temporal_epsilon: float | None = None
  temporal_first: bool = False
  dtype: jnp.dtype = jnp.float32
  groups: int = 32

  @nn.compact
  def __call__(self, x, time_embedding=None):
    frames = x.shape[1]
    per_frame = None if time_embedding is None else jnp.repeat(time_embedding, frames, axis=0)
    spatial = ResnetBlock(self.features, self.epsilon, self.dtype, self.groups, name="spatial_res_block")(
      rearrange(x, "b f h w c -> (b f) h w c"), per_frame
    )
    spatial = rearrange(spatial, "(b f) h w c -> b f h w c", f=frames)
    if time_embedding is not None:
      per_frame = jnp.repeat(time_embedding[:, None], frames, axis=1)
    epsilon = self.epsilon if self.temporal_epsilon is None else self.temporal_epsilon
    temporal = TemporalResnetBlock(epsilon, self.dtype, self.groups, name="temporal_res_block")(spatial, per_frame)
    return TimeMixer(self.temporal_first, name="time_mixer")(spatial, temporal)


class Downsample(nn.Module):
  """A strided 3×3 convolution: (b, h, w, c) -> (b, h/2, w/2, c). `trailing`: pads below and right only, as the VAE."""

  trailing: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    padding = ((0, 1), (0, 1)) if self.trailing else 1
    return nn.Conv(x.shape[-1], (3, 3), (2, 2), padding=padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
  """Each pixel four times, then a 3×3 convolution: (b, h, w, c) -> (b, 2h, 2w, c)."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
    return conv(c, dtype=self.dtype, name="conv")(x)


def over_frames(module, x):
  """Applies a module of (b, h, w, c) to every frame of (b, f, h, w, c)."""
  frames = x.shape[1]
  return rearrange(module(rearrange(x, "b f h w c -> (b f) h w c")), "(b f) h w c -> b f h w c", f=frames)
