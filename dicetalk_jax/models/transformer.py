"""The U-Net's transformer: spatial attention within a frame, temporal attention along a position, adapters in both."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from flax import struct

from dicetalk_jax.models.attention import attention
from dicetalk_jax.models.layers import GroupNorm, LayerNorm, TimeMixer, TimestepEmbedding, sinusoidal_embedding
from dicetalk_jax.models.remat import rematerialiser


@struct.dataclass
class Tokens:
  """The keys and values of cross-attention. Spatial attention sees each frame's tokens, temporal attention their mean.

  text (b, f, m, d): the image embedding, as in Stable Video Diffusion. adapters: (b, f, n, d) for each condition.
  face_mask (b, h, w, 1) or None: multiplies what the adapters add in spatial attention.
  """

  text: jnp.ndarray
  adapters: tuple[jnp.ndarray, ...]
  face_mask: jnp.ndarray | None = None


class FeedForward(nn.Module):
  """GEGLU with a hidden width of 4c: (..., c) -> (..., c)."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    x = GEGLU(4 * c, self.dtype, name="net_0")(x)
    return nn.Dense(c, dtype=self.dtype, name="net_2")(x)


class GEGLU(nn.Module):
  """x W₁ · gelu(x W₂): (..., c) -> (..., features)."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    x, gate = jnp.split(nn.Dense(2 * self.features, dtype=self.dtype, name="proj")(x), 2, axis=-1)
    return x * nn.gelu(gate, approximate=False)


class CrossAttention(nn.Module):
  """Multi-head attention to a context (default: to itself) and, by their own keys and values, to adapters' tokens.

  x (b, n, c), context (b, m, d), adapters: (b, m_i, d) each, mask (b, n, 1) or None -> (b, n, c). Each adapter's
  result, times its scale and the mask, is added to the context's before the output projection.
  """

  heads: int
  adapter_scales: tuple[float, ...] = ()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, context=None, adapters=(), mask=None):
    if len(adapters) != len(self.adapter_scales):
      raise ValueError(f"{len(adapters)} sets of adapter tokens for {len(self.adapter_scales)} adapters")
    c = x.shape[-1]

    def project(name, tokens):
      tokens = nn.Dense(c, use_bias=False, dtype=self.dtype, name=name)(tokens)
      return rearrange(tokens, "b n (k d) -> b n k d", k=self.heads)

    context = x if context is None else context
    query = project("to_q", x)
    out = attention(query, project("to_k", context), project("to_v", context))
    for i, (tokens, scale) in enumerate(zip(adapters, self.adapter_scales, strict=True)):
      added = attention(query, project(f"to_k_ip_{i}", tokens), project(f"to_v_ip_{i}", tokens))
      if mask is not None:
        added *= mask[..., None].astype(added.dtype)
      out += scale * added
    return nn.Dense(c, dtype=self.dtype, name="to_out_0")(rearrange(out, "b n k d -> b n (k d)"))


class SpatialBlock(nn.Module):
  """Self-attention, cross-attention and feed-forward within a frame: x (b, n, c) -> (b, n, c)."""

  heads: int
  adapter_scales: tuple[float, ...]
  dtype: jnp.dtype = jnp.float32
  apart: bool = False  # the feed-forward is rematerialised by itself

  @nn.compact
  def __call__(self, x, text, adapters, mask):
    feed_forward = rematerialiser("apart" if self.apart else False)(FeedForward)
    x += CrossAttention(self.heads, dtype=self.dtype, name="attn1")(LayerNorm(self.dtype, name="norm1")(x))
    x += CrossAttention(self.heads, self.adapter_scales, self.dtype, name="attn2")(
      LayerNorm(self.dtype, name="norm2")(x), text, adapters, mask
    )
    return x + feed_forward(self.dtype, name="ff")(LayerNorm(self.dtype, name="norm3")(x))


class TemporalBlock(nn.Module):
  """A feed-forward, then `SpatialBlock` along frames: x (b, f, n, c) -> (b, f, n, c).

  text (b, m, d) and adapters (b, m_i, d) are one set of tokens for the whole window.
  """

  heads: int
  adapter_scales: tuple[float, ...]
  dtype: jnp.dtype = jnp.float32
  apart: bool = False  # the feed-forwards are rematerialised by themselves

  @nn.compact
  def __call__(self, x, text, adapters):
    feed_forward = rematerialiser("apart" if self.apart else False)(FeedForward)
    b, f = x.shape[:2]
    x += feed_forward(self.dtype, name="ff_in")(LayerNorm(self.dtype, name="norm_in")(x))
    along = rearrange(LayerNorm(self.dtype, name="norm1")(x), "b f n c -> (b n) f c")
    along = CrossAttention(self.heads, dtype=self.dtype, name="attn1")(along)
    x += rearrange(along, "(b n) f c -> b f n c", b=b)
    # All positions and frames attend to the same tokens, so they are one long query.
    across = rearrange(LayerNorm(self.dtype, name="norm2")(x), "b f n c -> b (f n) c")
    across = CrossAttention(self.heads, self.adapter_scales, self.dtype, name="attn2")(across, text, adapters)
    x += rearrange(across, "b (f n) c -> b f n c", f=f)
    return x + feed_forward(self.dtype, name="ff")(LayerNorm(self.dtype, name="norm3")(x))


class SpatioTemporalTransformer(nn.Module):
  """Spatial and temporal blocks in turn, mixed, around a shortcut: x (b, f, h, w, c) -> (b, f, h, w, c)."""

  heads: int
  layers: int
  adapter_scales: tuple[float, ...]
  dtype: jnp.dtype = jnp.float32
  apart: bool = False  # its two blocks are rematerialised one by one
  groups: int = 32

  @nn.compact
  def __call__(self, x, tokens: Tokens):
    rematerialised = rematerialiser("apart" if self.apart else False)
    b, f, h, w, c = x.shape
    sets = (tokens.text, *tokens.adapters)
    text, *adapters = (rearrange(t, "b f m d -> (b f) m d") for t in sets)
    window_text, *window_adapters = (t.astype(jnp.float32).mean(1).astype(self.dtype) for t in sets)
    mask = None
    if tokens.face_mask is not None:
      mask = jnp.repeat(rearrange(tokens.face_mask, "b h w 1 -> b (h w) 1"), f, axis=0)

    residual = x
    x = GroupNorm(1e-6, self.dtype, self.groups, name="norm")(rearrange(x, "b f h w c -> (b f) h w c"))
    x = nn.Dense(c, dtype=self.dtype, name="proj_in")(rearrange(x, "g h w c -> g (h w) c"))
    frame = sinusoidal_embedding(jnp.arange(f), c)
    frame = TimestepEmbedding(4 * c, c, self.dtype, name="time_pos_embed")(frame)
    mixer = TimeMixer(name="time_mixer")  # one for all layers, as the checkpoint has it
    for i in range(self.layers):
      spatial = rematerialised(SpatialBlock)(
        self.heads, self.adapter_scales, self.dtype, self.apart, name=f"transformer_blocks_{i}"
      )(x, text, adapters, mask)
      spatial = rearrange(spatial, "(b f) n c -> b f n c", b=b)
      temporal = rematerialised(TemporalBlock)(
        self.heads, self.adapter_scales, self.dtype, self.apart, name=f"temporal_transformer_blocks_{i}"
      )(spatial + frame[:, None], window_text, window_adapters)
      x = rearrange(mixer(spatial, temporal), "b f n c -> (b f) n c")
    x = nn.Dense(c, dtype=self.dtype, name="proj_out")(x)
    return residual + rearrange(x, "(b f) (h w) c -> b f h w c", b=b, h=h)
