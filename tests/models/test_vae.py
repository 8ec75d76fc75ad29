"""The temporal-decoder VAE against the golden outputs."""

import functools

import jax
import numpy as np
import pytest
from conftest import config_json, draw, golden, relative_error, stand_in
from state_dicts import to_flax
from talkers import stand_in_params

from dicetalk_jax.models.vae import VAE
from dicetalk_jax.weights.networks import network_shapes
from dicetalk_jax.weights.release.tables import VAE as TABLE


@functools.cache
def tiny_vae():
  config = config_json("vae")
  return VAE.from_config(config), {"params": to_flax(TABLE, stand_in("vae_tiny"), network_shapes("vae", config))}


def test_encodes_as_released():
  vae, params = tiny_vae()
  images = np.tanh(draw("im", (2, 3, 64, 128))).transpose(0, 2, 3, 1)
  mean, log_variance = jax.jit(functools.partial(vae.apply, method="encode"))(params, images)
  assert relative_error(np.moveaxis(mean, -1, 1), golden("vae_tiny")["mean"]) <= 2e-5
  assert relative_error(np.moveaxis(log_variance, -1, 1), golden("vae_tiny")["logvar"]) <= 2e-5


def test_decodes_as_released():
  vae, params = tiny_vae()
  latents = draw("lat", (5, 4, 8, 16)).transpose(0, 2, 3, 1)[None]
  decoded = jax.jit(functools.partial(vae.apply, method="decode"))(params, latents)
  assert relative_error(np.moveaxis(decoded[0], -1, 1), golden("vae_tiny")["decoded"]) <= 2e-5


def test_frames_of_a_chunk_are_decoded_together_and_batches_apart():
  # Two levels of the tiny VAE's four.
  config = config_json("vae") | {"block_out_channels": [32, 32], "down_block_types": ["DownEncoderBlock2D"] * 2}
  vae, params = VAE.from_config(config), {"params": stand_in_params("vae", config)}
  latents = draw("lat", (2, 3, 8, 8, 4))
  decode = jax.jit(functools.partial(vae.apply, method="decode"))
  both = decode(params, latents)
  np.testing.assert_allclose(both[1], decode(params, latents[1:])[0], atol=1e-4)
  alone = decode(params, latents[1:, :1])[0, 0]
  assert relative_error(alone, both[1, 0]) > 1e-2


def test_a_config_for_another_vae_is_refused_by_name():
  with pytest.raises(ValueError, match="down_block_types"):
    VAE.from_config(config_json("vae") | {"down_block_types": ["AttnDownEncoderBlock2D"] * 4})
