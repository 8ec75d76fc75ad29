"""The CLIP vision transformer with its projection (Radford et al. 2021), which embeds the portrait's appearance."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from dicetalk_jax.models.self_attention import SelfAttention

ACTIVATIONS = {
  "gelu": functools.partial(nn.gelu, approximate=False),
  "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


class Mlp(nn.Module):
  """Two linear layers: (..., c) -> (..., intermediate_size) -> (..., c)."""

  intermediate_size: int
  hidden_act: str
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    hidden = nn.Dense(self.intermediate_size, dtype=self.dtype, name="fc1")(x)
    return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(ACTIVATIONS[self.hidden_act](hidden))


class ImageEncoderLayer(nn.Module):
  """A pre-norm transformer layer: (b, n, c) -> (b, n, c)."""

  num_attention_heads: int
  intermediate_size: int
  hidden_act: str
  layer_norm_eps: float
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    norm = functools.partial(nn.LayerNorm, epsilon=self.layer_norm_eps, use_fast_variance=False, dtype=self.dtype)
    x += SelfAttention(self.num_attention_heads, dtype=self.dtype, name="self_attn")(norm(name="layer_norm1")(x))
    return x + Mlp(self.intermediate_size, self.hidden_act, self.dtype, name="mlp")(norm(name="layer_norm2")(x))


class ImageEncoder(nn.Module):
  """Embeds an image: pixels (b, image_size, image_size, 3), normalised by CLIP's mean and std -> (b, projection_dim).

  The defaults are ViT-H/14, which Stable Video Diffusion uses. ImageEncoder.__call__ raises ValueError for another
  image size, since the position embeddings belong to one.
  """

  hidden_size: int = 1280
  intermediate_size: int = 5120
  projection_dim: int = 1024
  num_hidden_layers: int = 32
  num_attention_heads: int = 16
  image_size: int = 224
  patch_size: int = 14
  hidden_act: str = "gelu"
  layer_norm_eps: float = 1e-5
  dtype: jnp.dtype = jnp.float32

  @classmethod
  def from_config(cls, config: Mapping, dtype=jnp.float32) -> "ImageEncoder":
    """The encoder of a transformers `CLIPVisionConfig`.

    Raises KeyError for a config without a size, ValueError for an activation that no CLIP release has.
    """
    if config["hidden_act"] not in ACTIVATIONS:
      raise ValueError(f"hidden_act '{config['hidden_act']}' is not one of {', '.join(ACTIVATIONS)}")
    return cls(
      hidden_size=config["hidden_size"],
      intermediate_size=config["intermediate_size"],
      projection_dim=config["projection_dim"],
      num_hidden_layers=config["num_hidden_layers"],
      num_attention_heads=config["num_attention_heads"],
      image_size=config["image_size"],
      patch_size=config["patch_size"],
      hidden_act=config["hidden_act"],
      layer_norm_eps=config["layer_norm_eps"],
      dtype=dtype,
    )

  @nn.compact
  def __call__(self, pixels):
    b, height, width, _ = pixels.shape
    if (height, width) != (self.image_size, self.image_size):
      raise ValueError(f"pixels are {height}×{width}, the position embeddings want {self.image_size}×{self.image_size}")
    norm = functools.partial(nn.LayerNorm, epsilon=self.layer_norm_eps, use_fast_variance=False, dtype=self.dtype)

    patch = (self.patch_size, self.patch_size)
    patches = nn.Conv(
      self.hidden_size, patch, patch, padding="VALID", use_bias=False, dtype=self.dtype, name="patch_embedding"
    )(pixels)
    patches = rearrange(patches, "b h w c -> b (h w) c")
    class_embedding = self.param("class_embedding", nn.initializers.normal(0.02), (self.hidden_size,))
    class_token = jnp.broadcast_to(class_embedding.astype(self.dtype), (b, 1, self.hidden_size))
    x = jnp.concatenate([class_token, patches], axis=1)
    positions = x.shape[1]
    x += nn.Embed(positions, self.hidden_size, dtype=self.dtype, name="position_embedding")(jnp.arange(positions))

    # The published name carries this misspelling.
    x = norm(name="pre_layrnorm")(x)
    for i in range(self.num_hidden_layers):
      x = ImageEncoderLayer(
        self.num_attention_heads,
        self.intermediate_size,
        self.hidden_act,
        self.layer_norm_eps,
        self.dtype,
        name=f"layers_{i}",
      )(x)
    pooled = norm(name="post_layernorm")(x[:, 0])
    return nn.Dense(self.projection_dim, use_bias=False, dtype=self.dtype, name="visual_projection")(pooled)
