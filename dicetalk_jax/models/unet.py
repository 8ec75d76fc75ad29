"""DICE-Talk's U-Net: Stable Video Diffusion's spatio-temporal U-Net with an adapter per condition and a face mask."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.models.layers import (
  Downsample,
  GroupNorm,
  SpatioTemporalResBlock,
  TimestepEmbedding,
  Upsample,
  conv,
  over_frames,
  sinusoidal_embedding,
)
from dicetalk_jax.models.remat import Remat, rematerialiser
from dicetalk_jax.models.transformer import SpatioTemporalTransformer, Tokens

_DOWN = {"CrossAttnDownBlockSpatioTemporal": True, "DownBlockSpatioTemporal": False}
_UP = {"CrossAttnUpBlockSpatioTemporal": True, "UpBlockSpatioTemporal": False}


class UNet(nn.Module):
  """v-prediction of a window of frames.

  sample (b, f, h, w, in_channels): scaled noisy latents and image latents; h and w multiples of 2^(levels − 1).
  timestep (b,) or (): 0.25 ln σ.
  image_tokens (b, f, m, d): CLIP's embedding, one token a frame.
  adapter_tokens: (b, f, n, d) for each condition, such as audio and emotion.
  added_time_ids (b, 3): fps, motion bucket, noise augmentation.
  pose_features (b or 1, f or 1, h, w, c₀) or None: added after the first convolution.
  face_mask (b or 1, H, W) or None, in [0, 1] at pixel size: where the adapters act in spatial attention.
  -> (b, f, h, w, out_channels) float32.

  Collection "intermediates", if mutable: `after_conv_in`, `after_down_i`, `after_mid` (the emotion discriminator's
  input), `after_up_i`. adapter_scales: of each condition's adapter. remat, remat_policy: see `models.remat`.
  norm_num_groups: of every normalisation. A group of a single channel loses its mean and contrast, so widths below 128
  need fewer groups than Stable Video Diffusion's 32.
  """

  in_channels: int = 8
  out_channels: int = 4
  block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
  down_attention: tuple[bool, ...] = (True, True, True, False)
  up_attention: tuple[bool, ...] = (False, True, True, True)
  layers_per_block: tuple[int, ...] = (2, 2, 2, 2)
  transformer_layers_per_block: tuple[int, ...] = (1, 1, 1, 1)
  num_attention_heads: tuple[int, ...] = (5, 10, 20, 20)
  cross_attention_dim: int = 1024
  addition_time_embed_dim: int = 256
  adapter_scales: tuple[float, ...] = (1.0, 1.0)
  norm_num_groups: int = 32
  remat: Remat = False
  remat_policy: str | None = None
  dtype: jnp.dtype = jnp.float32

  @classmethod
  def from_config(cls, config: Mapping, **attributes) -> "UNet":
    """The U-Net of a diffusers config.json; ValueError for a feature that this U-Net does not have."""
    channels = tuple(config["block_out_channels"])
    levels = len(channels)

    def each(value):
      return tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels

    types = {"down_block_types": _DOWN, "up_block_types": _UP}
    for name, known in types.items():
      if len(config[name]) != levels or (unknown := set(config[name]) - set(known)):
        found = f"{len(config[name])} blocks for {levels} widths" if len(config[name]) != levels else sorted(unknown)
        raise ValueError(f"{name}: {found}; known are {sorted(known)}")
    groups = config.get("norm_num_groups", 32)
    if any(width % groups for width in channels):
      raise ValueError(f"block_out_channels: {list(channels)}; multiples of norm_num_groups, {groups}, are supported")
    widths = set(each(config["cross_attention_dim"]))
    if len(widths) != 1:
      raise ValueError(f"cross_attention_dim: {sorted(widths)}; one width for all levels is supported")
    if config["projection_class_embeddings_input_dim"] != 3 * config["addition_time_embed_dim"]:
      raise ValueError(
        f"projection_class_embeddings_input_dim: {config['projection_class_embeddings_input_dim']}; "
        f"three time ids of {config['addition_time_embed_dim']} are supported"
      )
    return cls(
      in_channels=config["in_channels"],
      out_channels=config["out_channels"],
      block_out_channels=channels,
      down_attention=tuple(_DOWN[t] for t in config["down_block_types"]),
      up_attention=tuple(_UP[t] for t in config["up_block_types"]),
      layers_per_block=each(config["layers_per_block"]),
      transformer_layers_per_block=each(config["transformer_layers_per_block"]),
      num_attention_heads=each(config["num_attention_heads"]),
      cross_attention_dim=widths.pop(),
      addition_time_embed_dim=config["addition_time_embed_dim"],
      norm_num_groups=groups,
      **attributes,
    )

  def example_inputs(self, batch=1, frames=2, size=None) -> dict:
    """Abstract inputs of the smallest size that runs, for `jax.eval_shape(unet.init, key, **inputs)`."""
    size = size or 2 ** (len(self.block_out_channels) - 1)
    shapes = dict(
      sample=(batch, frames, size, size, self.in_channels),
      timestep=(batch,),
      image_tokens=(batch, frames, 1, self.cross_attention_dim),
      adapter_tokens=((batch, frames, 32, self.cross_attention_dim),) * len(self.adapter_scales),
      added_time_ids=(batch, 3),
    )

    def is_shape(node):
      return isinstance(node, tuple) and any(isinstance(size, int) for size in node)

    return jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), shapes, is_leaf=is_shape)

  @nn.compact
  def __call__(
    self,
    sample,
    timestep,
    image_tokens,
    adapter_tokens,
    added_time_ids,
    pose_features=None,
    face_mask=None,
  ):
    batch, channels, levels = sample.shape[0], self.block_out_channels, len(self.block_out_channels)
    factor = 2 ** (levels - 1)
    if sample.shape[2] % factor or sample.shape[3] % factor:
      raise ValueError(f"latents of {sample.shape[2]}×{sample.shape[3]}: both sides must be multiples of {factor}")

    width = 4 * channels[0]
    timestep = jnp.broadcast_to(jnp.asarray(timestep, jnp.float32), (batch,))
    time = sinusoidal_embedding(timestep, channels[0])
    time = TimestepEmbedding(width, width, self.dtype, name="time_embedding")(time)
    ids = sinusoidal_embedding(added_time_ids, self.addition_time_embed_dim).reshape(batch, -1)
    time += TimestepEmbedding(width, width, self.dtype, name="add_embedding")(ids)

    if face_mask is not None:
      face_mask = jnp.broadcast_to(face_mask, (batch, *face_mask.shape[1:]))
    tokens = Tokens(image_tokens.astype(self.dtype), tuple(t.astype(self.dtype) for t in adapter_tokens), face_mask)

    def block(level, layers, epsilon, attention, name, change=None):
      heads = self.num_attention_heads[level] if attention else None
      return Block(
        features=channels[level],
        layers=layers,
        epsilon=epsilon,
        heads=heads,
        transformer_layers=self.transformer_layers_per_block[level],
        adapter_scales=self.adapter_scales,
        change=change,
        remat=self.remat,
        remat_policy=self.remat_policy,
        dtype=self.dtype,
        groups=self.norm_num_groups,
        name=name,
      )

    x = over_frames(conv(channels[0], dtype=self.dtype, name="conv_in"), sample.astype(self.dtype))
    self.sow("intermediates", "after_conv_in", x)
    if pose_features is not None:
      x += pose_features.astype(self.dtype)

    skips = [x]
    for i in range(levels):
      # diffusers' epsilons: down 1e-6 with attention and 1e-5 without, middle 1e-5, up 1e-6.
      epsilon = 1e-6 if self.down_attention[i] else 1e-5
      change = "down" if i < levels - 1 else None
      down = block(i, self.layers_per_block[i], epsilon, self.down_attention[i], f"down_blocks_{i}", change)
      x, states = down(x, time, tokens)
      skips += states
      self.sow("intermediates", f"after_down_{i}", x)

    x = MidBlock(
      self.num_attention_heads[-1],
      self.transformer_layers_per_block[-1],
      self.adapter_scales,
      self.remat,
      self.remat_policy,
      self.dtype,
      self.norm_num_groups,
      name="mid_block",
    )(x, time, tokens)
    self.sow("intermediates", "after_mid", x)

    for i in range(levels):
      level = levels - 1 - i
      layers = self.layers_per_block[level] + 1
      change = "up" if i < levels - 1 else None
      up = block(level, layers, 1e-6, self.up_attention[i], f"up_blocks_{i}", change)
      skips, joined = skips[:-layers], skips[-layers:]
      x, _ = up(x, time, tokens, joined[::-1])
      self.sow("intermediates", f"after_up_{i}", x)

    x = over_frames(GroupNorm(1e-5, self.dtype, self.norm_num_groups, name="conv_norm_out"), x)
    x = over_frames(conv(self.out_channels, dtype=self.dtype, name="conv_out"), nn.silu(x))
    return x.astype(jnp.float32)


class Block(nn.Module):
  """Residual blocks, each with a transformer where `heads` is given, then a change of resolution.

  x (b, f, h, w, c), time_embedding (b, d), joined: states to concatenate before each residual block, or None
  -> (x, the states after each layer and after the change of resolution).
  """

  features: int
  layers: int
  epsilon: float
  heads: int | None
  transformer_layers: int
  adapter_scales: tuple[float, ...]
  change: str | None = None  # "down", "up" or none
  remat: Remat = False
  remat_policy: str | None = None
  dtype: jnp.dtype = jnp.float32
  groups: int = 32

  @nn.compact
  def __call__(self, x, time_embedding, tokens: Tokens, joined=None):
    rematerialised = rematerialiser(self.remat, self.remat_policy)
    states = []
    for j in range(self.layers):
      if joined is not None:
        x = jnp.concatenate([x, joined[j]], axis=-1)
      res_block = rematerialised(SpatioTemporalResBlock)
      x = res_block(self.features, self.epsilon, dtype=self.dtype, groups=self.groups, name=f"resnets_{j}")(
        x, time_embedding
      )
      if self.heads is not None:
        transformer = rematerialised(SpatioTemporalTransformer)(
          self.heads,
          self.transformer_layers,
          self.adapter_scales,
          self.dtype,
          self.remat == "apart",
          self.groups,
          name=f"attentions_{j}",
        )
        x = transformer(x, _at_size(tokens, x))
      states.append(x)
    if self.change:
      # The submodule is named as in PyTorch: downsamplers.0.conv, upsamplers.0.conv.
      change = Downsample if self.change == "down" else Upsample
      x = over_frames(change(dtype=self.dtype, name=f"{self.change}samplers_0"), x)
      states.append(x)
    return x, states


class MidBlock(nn.Module):
  """A residual block, a transformer, a residual block: x (b, f, h, w, c) -> (b, f, h, w, c)."""

  heads: int
  transformer_layers: int
  adapter_scales: tuple[float, ...]
  remat: Remat = False
  remat_policy: str | None = None
  dtype: jnp.dtype = jnp.float32
  groups: int = 32

  @nn.compact
  def __call__(self, x, time_embedding, tokens: Tokens):
    rematerialised = rematerialiser(self.remat, self.remat_policy)
    res_block = rematerialised(SpatioTemporalResBlock)
    kind = dict(dtype=self.dtype, groups=self.groups)
    x = res_block(x.shape[-1], 1e-5, **kind, name="resnets_0")(x, time_embedding)
    x = rematerialised(SpatioTemporalTransformer)(
      self.heads,
      self.transformer_layers,
      self.adapter_scales,
      self.dtype,
      self.remat == "apart",
      self.groups,
      name="attentions_0",
    )(x, _at_size(tokens, x))
    return res_block(x.shape[-1], 1e-5, **kind, name="resnets_1")(x, time_embedding)


def _at_size(tokens: Tokens, x) -> Tokens:
  """The tokens with the face mask (b, H, W) brought to the height and width of x, as (b, h, w, 1)."""
  if tokens.face_mask is None:
    return tokens
  return tokens.replace(face_mask=resize_bicubic(tokens.face_mask, *x.shape[2:4])[..., None])


def resize_bicubic(image, height, width):
  """Bicubic resize without antialias, Keys' a = −0.75, pixel centres aligned: (b, H, W) -> (b, height, width)."""
  rows, columns = _bicubic_weights(image.shape[1], height), _bicubic_weights(image.shape[2], width)
  return jnp.einsum("hH,bHW,wW->bhw", rows, image.astype(jnp.float32), columns, precision="highest")


def _bicubic_weights(size, new_size, a=-0.75):
  """The resize of one axis as a matrix (new_size, size), a constant of the program in float64's accuracy."""
  position = (np.arange(new_size) + 0.5) * size / new_size - 0.5
  taps = np.floor(position)[:, None] + np.arange(-1, 3)
  distance = np.abs(position[:, None] - taps)
  near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
  far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
  columns = np.clip(taps, 0, size - 1)[..., None] == np.arange(size)
  return np.float32((np.where(distance <= 1, near, far)[..., None] * columns).sum(axis=1))
