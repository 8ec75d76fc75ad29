"""Whisper's encoder against the golden hidden states and against transformers' own network."""

import functools

import jax
import jax.numpy as jnp
import pytest
import torch
import transformers
from conftest import config_json, draw, golden, relative_error, stand_in
from state_dicts import to_flax

from dicetalk_jax.models.audio_encoder import AudioEncoder
from dicetalk_jax.weights.release.tables import AUDIO_ENCODER


def load(config, state):
  encoder = AudioEncoder.from_config(config)
  mel = jax.ShapeDtypeStruct((1, 2, encoder.num_mel_bins), jnp.float32)
  target = jax.eval_shape(encoder.init, jax.random.key(0), mel)["params"]
  return encoder, {"params": to_flax(AUDIO_ENCODER, state, target)}


@functools.cache
def released():
  return load(config_json("whisper"), stand_in("whisper"))


def test_golden():
  encoder, params = released()
  mel = 0.5 * draw("mel", (1, 80, 3000)).transpose(0, 2, 1)
  states = jax.jit(encoder.apply)(params, mel)
  assert states.shape == (1, 1500, 5, 384)
  assert relative_error(states[:, ::25], golden("whisper_encoder")["hidden_states"]) <= 2e-5


def test_equals_transformers_at_other_sizes():
  torch.manual_seed(2)
  config = transformers.WhisperConfig(
    vocab_size=60,
    num_mel_bins=20,
    d_model=48,
    encoder_layers=3,
    encoder_attention_heads=4,
    encoder_ffn_dim=72,
    decoder_layers=1,
    decoder_attention_heads=4,
    decoder_ffn_dim=72,
    max_source_positions=70,
    pad_token_id=0,
    bos_token_id=0,
    eos_token_id=0,
    decoder_start_token_id=0,
  )
  reference = transformers.WhisperModel(config).eval()
  # Fresh norms and biases are ones and zeros, which hide a mistake.
  with torch.no_grad():
    for parameter in reference.parameters():
      parameter.add_(0.2 * torch.randn_like(parameter))
  encoder, params = load(config.to_dict(), {k: v.numpy() for k, v in reference.state_dict().items()})
  mel = draw("other mel", (2, 20, 140))
  with torch.no_grad():
    hidden_states = reference.encoder(torch.from_numpy(mel), output_hidden_states=True).hidden_states
  expected = torch.stack(hidden_states, dim=2).numpy()
  assert relative_error(encoder.apply(params, mel.transpose(0, 2, 1)), expected) <= 2e-5


def test_refuses_what_it_cannot_compute():
  with pytest.raises(ValueError, match="relu"):
    AudioEncoder.from_config(config_json("whisper") | {"activation_function": "relu"})
  for shape in [(1, 3001, 80), (1, 3002, 80), (1, 3000, 128)]:
    with pytest.raises(ValueError, match="mel is"):
      AudioEncoder().init(jax.random.key(0), jnp.zeros(shape))
