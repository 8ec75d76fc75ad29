"""Whisper's audio encoder (Radford et al. 2022), which returns all hidden states."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from dicetalk_jax.models.layers import LayerNorm
from dicetalk_jax.models.self_attention import SelfAttention


class AudioEncoderLayer(nn.Module):
  """A pre-norm transformer layer: (b, n, c) -> (b, n, c)."""

  encoder_attention_heads: int
  encoder_ffn_dim: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    h = LayerNorm(self.dtype, name="self_attn_layer_norm")(x)
    x += SelfAttention(self.encoder_attention_heads, key_bias=False, dtype=self.dtype, name="self_attn")(h)
    h = LayerNorm(self.dtype, name="final_layer_norm")(x)
    h = nn.gelu(nn.Dense(self.encoder_ffn_dim, dtype=self.dtype, name="fc1")(h), approximate=False)
    return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(h)


class AudioEncoder(nn.Module):
  """Encodes a log-mel spectrogram: mel (b, frames, num_mel_bins) -> (b, frames // 2, encoder_layers + 1, d_model).

  The states are those after the embedding and after each layer, the last one normalised. frames is even and at most
  2 · max_source_positions, otherwise ValueError; released features pad each 30 s chunk to 3000 frames of 10 ms, so
  positions come at 50 Hz. The defaults are Whisper-tiny.
  """

  num_mel_bins: int = 80
  d_model: int = 384
  encoder_layers: int = 4
  encoder_attention_heads: int = 6
  encoder_ffn_dim: int = 1536
  max_source_positions: int = 1500
  dtype: jnp.dtype = jnp.float32

  @classmethod
  def from_config(cls, config: Mapping, dtype=jnp.float32) -> "AudioEncoder":
    """The encoder of a transformers `WhisperConfig`.

    Raises KeyError for a config without a size, ValueError for an activation that no Whisper release has.
    """
    if config["activation_function"] != "gelu":
      raise ValueError(f"activation_function '{config['activation_function']}' is not gelu")
    return cls(
      num_mel_bins=config["num_mel_bins"],
      d_model=config["d_model"],
      encoder_layers=config["encoder_layers"],
      encoder_attention_heads=config["encoder_attention_heads"],
      encoder_ffn_dim=config["encoder_ffn_dim"],
      max_source_positions=config["max_source_positions"],
      dtype=dtype,
    )

  @nn.compact
  def __call__(self, mel):
    frames, bins = mel.shape[1:]
    if frames % 2 or frames > 2 * self.max_source_positions or bins != self.num_mel_bins:
      raise ValueError(
        f"mel is {frames}×{bins}, wanted an even number of at most {2 * self.max_source_positions} frames "
        f"of {self.num_mel_bins} bins"
      )
    x = nn.Conv(self.d_model, (3,), padding=1, dtype=self.dtype, name="conv1")(mel)
    x = nn.Conv(self.d_model, (3,), (2,), padding=1, dtype=self.dtype, name="conv2")(nn.gelu(x, approximate=False))
    x = nn.gelu(x, approximate=False)
    embed_positions = nn.Embed(self.max_source_positions, self.d_model, dtype=self.dtype, name="embed_positions")
    x += embed_positions(jnp.arange(frames // 2))

    states = [x]
    for i in range(self.encoder_layers):
      x = AudioEncoderLayer(self.encoder_attention_heads, self.encoder_ffn_dim, self.dtype, name=f"layers_{i}")(x)
      states.append(x)
    states[-1] = LayerNorm(self.dtype, name="layer_norm")(x)
    return jnp.stack(states, axis=2)
