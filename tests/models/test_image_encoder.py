"""CLIP vision against the golden embedding and against transformers' own network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from conftest import config_json, draw, golden, relative_error, stand_in
from state_dicts import to_flax

from dicetalk_jax.models.image_encoder import ImageEncoder
from dicetalk_jax.weights.release.tables import IMAGE_ENCODER


def load(config, state):
  encoder = ImageEncoder.from_config(config)
  pixels = jax.ShapeDtypeStruct((1, encoder.image_size, encoder.image_size, 3), jnp.float32)
  target = jax.eval_shape(encoder.init, jax.random.key(0), pixels)["params"]
  return encoder, {"params": to_flax(IMAGE_ENCODER, state, target)}


def test_golden():
  encoder, params = load(config_json("image_encoder"), stand_in("image_encoder_tiny"))
  pixels = draw("px", (2, 3, 224, 224)).transpose(0, 2, 3, 1)
  embeds = jax.jit(encoder.apply)(params, pixels)
  assert relative_error(embeds, golden("image_encoder_tiny")["image_embeds"]) <= 2e-5


@pytest.mark.parametrize("hidden_act", ["gelu", "quick_gelu"])
def test_equals_transformers_at_other_sizes(hidden_act):
  torch.manual_seed(1)
  config = transformers.CLIPVisionConfig(
    hidden_size=48,
    intermediate_size=80,
    projection_dim=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=40,
    patch_size=8,
    hidden_act=hidden_act,
    layer_norm_eps=1e-3,
  )
  reference = transformers.CLIPVisionModelWithProjection(config).eval()
  # Fresh norms and biases are ones and zeros, which hide a mistake.
  with torch.no_grad():
    for parameter in reference.parameters():
      parameter.add_(0.2 * torch.randn_like(parameter))
  encoder, params = load(config.to_dict(), {k: v.numpy() for k, v in reference.state_dict().items()})
  pixels = draw("other pixels", (3, 3, 40, 40))
  with torch.no_grad():
    expected = reference(torch.from_numpy(pixels)).image_embeds.numpy()
  embeds = encoder.apply(params, pixels.transpose(0, 2, 3, 1))
  assert relative_error(embeds, expected) <= 2e-5


def test_bfloat16_stays_close():
  config = config_json("image_encoder")
  _, params = load(config, stand_in("image_encoder_tiny"))
  pixels = draw("px", (2, 3, 224, 224)).transpose(0, 2, 3, 1)
  embeds = ImageEncoder.from_config(config, dtype=jnp.bfloat16).apply(params, pixels)
  assert embeds.dtype == jnp.bfloat16
  # bfloat16 keeps 8 bits: 4e-3 a rounding, a few dozen of which add up here.
  assert relative_error(np.asarray(embeds, np.float32), golden("image_encoder_tiny")["image_embeds"]) <= 3e-2


def test_refuses_what_it_cannot_compute():
  with pytest.raises(ValueError, match="relu6"):
    ImageEncoder.from_config(config_json("image_encoder") | {"hidden_act": "relu6"})
  encoder = ImageEncoder.from_config(config_json("image_encoder"))
  with pytest.raises(ValueError, match="224×336"):
    encoder.init(jax.random.key(0), jnp.zeros((1, 224, 336, 3)))
