"""Stable Video Diffusion's VAE: an encoder of single frames, and a decoder that mixes frames."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from dicetalk_jax.models.attention import attention
from dicetalk_jax.models.layers import (
  Downsample,
  GroupNorm,
  ResnetBlock,
  SpatioTemporalResBlock,
  TemporalConv,
  Upsample,
  conv,
  over_frames,
)

# Parameters that encoding needs.
ENCODING_PARTS = ("encoder", "quant_conv")


class VAE(nn.Module):
  """Encoder and temporal decoder (diffusers' AutoencoderKLTemporalDecoder).

  Latents are the encoder's own scale; the diffusion model works on them times `scaling_factor`. norm_num_groups:
  of every group normalisation. A group of one or two channels loses the brightness and colour of a picture.
  """

  in_channels: int = 3
  out_channels: int = 3
  block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
  layers_per_block: int = 2
  latent_channels: int = 4
  scaling_factor: float = 0.18215
  norm_num_groups: int = 32
  dtype: jnp.dtype = jnp.float32

  @classmethod
  def from_config(cls, config: Mapping, **attributes) -> "VAE":
    """The VAE of a diffusers config.json; ValueError for a feature that this VAE does not have."""
    channels = tuple(config["block_out_channels"])
    if list(config["down_block_types"]) != ["DownEncoderBlock2D"] * len(channels):
      raise ValueError(f"down_block_types: {config['down_block_types']}; known is DownEncoderBlock2D, one a width")
    return cls(
      in_channels=config["in_channels"],
      out_channels=config["out_channels"],
      block_out_channels=channels,
      layers_per_block=config["layers_per_block"],
      latent_channels=config["latent_channels"],
      scaling_factor=config["scaling_factor"],
      # diffusers' temporal decoder has 32 and no such entry; its other VAEs have it.
      norm_num_groups=config.get("norm_num_groups", 32),
      **attributes,
    )

  @property
  def downscale(self) -> int:
    """Pixels a latent position along each side."""
    return 2 ** (len(self.block_out_channels) - 1)

  def setup(self):
    levels, groups = (self.block_out_channels, self.layers_per_block), self.norm_num_groups
    self.encoder = Encoder(*levels, 2 * self.latent_channels, self.dtype, groups)
    self.decoder = TemporalDecoder(*levels, self.out_channels, self.dtype, groups)
    self.quant_conv = conv(2 * self.latent_channels, 1, dtype=self.dtype)

  def encode(self, images):
    """images (b, H, W, 3) in [-1, 1] -> mean and log-variance, (b, H/8, W/8, 4) float32 each."""
    moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(log_variance, -30, 20)

  def decode(self, latents):
    """latents (b, f, h, w, 4), the frames of a chunk together -> images (b, f, 8h, 8w, 3) float32, about [-1, 1]."""
    return self.decoder(latents).astype(jnp.float32)

  def __call__(self, images):
    """Means and their decoding, for initialisation: images (b, f, H, W, 3) -> (b, f, H, W, 3)."""
    mean, _ = self.encode(rearrange(images, "b f h w c -> (b f) h w c"))
    return self.decode(rearrange(mean, "(b f) h w c -> b f h w c", b=images.shape[0]))


class SelfAttention(nn.Module):
  """Single-head attention over all positions around a shortcut: (b, h, w, c) -> (b, h, w, c)."""

  dtype: jnp.dtype = jnp.float32
  groups: int = 32

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    tokens = rearrange(GroupNorm(1e-6, self.dtype, self.groups, name="group_norm")(x), "b h w c -> b (h w) c")
    query, key, value = (nn.Dense(c, dtype=self.dtype, name=f"to_{name}")(tokens)[:, :, None] for name in "qkv")
    out = nn.Dense(c, dtype=self.dtype, name="to_out_0")(attention(query, key, value)[:, :, 0])
    return x + out.reshape(b, h, w, c)


class DownEncoderBlock(nn.Module):
  """Residual blocks, then half the resolution where `downsample`: (b, h, w, c) -> (b, h', w', features)."""

  features: int
  layers: int
  downsample: bool
  dtype: jnp.dtype = jnp.float32
  groups: int = 32

  @nn.compact
  def __call__(self, x):
    for j in range(self.layers):
      x = ResnetBlock(self.features, 1e-6, self.dtype, self.groups, name=f"resnets_{j}")(x)
    return Downsample(trailing=True, dtype=self.dtype, name="downsamplers_0")(x) if self.downsample else x


class EncoderMidBlock(nn.Module):
  """Residual block, attention, residual block: (b, h, w, c) -> (b, h, w, c)."""

  dtype: jnp.dtype = jnp.float32
  groups: int = 32

  @nn.compact
  def __call__(self, x):
    x = ResnetBlock(x.shape[-1], 1e-6, self.dtype, self.groups, name="resnets_0")(x)
    x = SelfAttention(self.dtype, self.groups, name="attentions_0")(x)
    return ResnetBlock(x.shape[-1], 1e-6, self.dtype, self.groups, name="resnets_1")(x)


class Encoder(nn.Module):
  """Images (b, H, W, 3) -> (b, H/8, W/8, features)."""

  block_out_channels: tuple[int, ...]
  layers_per_block: int
  features: int
  dtype: jnp.dtype = jnp.float32
  groups: int = 32

  @nn.compact
  def __call__(self, x):
    x = conv(self.block_out_channels[0], dtype=self.dtype, name="conv_in")(x.astype(self.dtype))
    last = len(self.block_out_channels) - 1
    for i, features in enumerate(self.block_out_channels):
      x = DownEncoderBlock(features, self.layers_per_block, i < last, self.dtype, self.groups, name=f"down_blocks_{i}")(
        x
      )
    x = EncoderMidBlock(self.dtype, self.groups, name="mid_block")(x)
    x = nn.silu(GroupNorm(1e-6, self.dtype, self.groups, name="conv_norm_out")(x))
    return conv(self.features, dtype=self.dtype, name="conv_out")(x)


def _res_block(features, dtype, groups, name):
  kind = dict(temporal_epsilon=1e-5, temporal_first=True, dtype=dtype, groups=groups, name=name)
  return SpatioTemporalResBlock(features, 1e-6, **kind)


class DecoderMidBlock(nn.Module):
  """One or two residual blocks with attention between: (b, f, h, w, c) -> (b, f, h, w, c)."""

  layers: int
  dtype: jnp.dtype = jnp.float32
  groups: int = 32

  @nn.compact
  def __call__(self, x):
    x = _res_block(x.shape[-1], self.dtype, self.groups, "resnets_0")(x)
    attend = SelfAttention(self.dtype, self.groups, name="attentions_0")
    if self.layers > 1:
      x = _res_block(x.shape[-1], self.dtype, self.groups, "resnets_1")(over_frames(attend, x))
    elif self.is_initializing():
      # diffusers pairs the attention with the second residual block: without one its weights exist and are unused.
      over_frames(attend, x)
    return x


class UpDecoderBlock(nn.Module):
  """Residual blocks, then twice the resolution where `upsample`: (b, f, h, w, c) -> (b, f, h', w', features)."""

  features: int
  layers: int
  upsample: bool
  dtype: jnp.dtype = jnp.float32
  groups: int = 32

  @nn.compact
  def __call__(self, x):
    for j in range(self.layers):
      x = _res_block(self.features, self.dtype, self.groups, f"resnets_{j}")(x)
    return over_frames(Upsample(self.dtype, name="upsamplers_0"), x) if self.upsample else x


class TemporalDecoder(nn.Module):
  """Latents (b, f, h, w, c) -> images (b, f, 8h, 8w, features)."""

  block_out_channels: tuple[int, ...]
  layers_per_block: int
  features: int
  dtype: jnp.dtype = jnp.float32
  groups: int = 32

  @nn.compact
  def __call__(self, x):
    x = over_frames(conv(self.block_out_channels[-1], dtype=self.dtype, name="conv_in"), x.astype(self.dtype))
    x = DecoderMidBlock(self.layers_per_block, self.dtype, self.groups, name="mid_block")(x)
    last = len(self.block_out_channels) - 1
    for i, features in enumerate(reversed(self.block_out_channels)):
      x = UpDecoderBlock(features, self.layers_per_block + 1, i < last, self.dtype, self.groups, name=f"up_blocks_{i}")(
        x
      )
    x = nn.silu(over_frames(GroupNorm(1e-6, self.dtype, self.groups, name="conv_norm_out"), x))
    x = over_frames(conv(self.features, dtype=self.dtype, name="conv_out"), x)
    return TemporalConv(self.features, self.dtype, name="time_conv_out")(x)
