"""A weights folder of small networks with random parameters: for tests that need networks and no particular values."""

import math
import zlib

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.vocabulary import EMOTIONS
from dicetalk_jax.weights.architectures import small_conditioning, small_unet
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import network_shapes

WIDTH = 64  # of tokens
_CONDITIONING = small_conditioning(
  32, 64, WIDTH, tokens=8, codes=16, states=3, d_model=64, pose_features=(8, 16, 16, 32)
)
NETWORKS = {
  "unet": small_unet((32, 64), width=WIDTH),
  "vae": {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "block_out_channels": [32, 32, 32, 64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
  },
  "image_encoder": {
    "hidden_size": 64,
    "intermediate_size": 128,
    "projection_dim": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 224,
    "patch_size": 28,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
  },
  "audio_encoder": {
    "num_mel_bins": 80,
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "max_source_positions": 1500,
    "activation_function": "gelu",
    "scale_embedding": False,
  },
  "audio_projection": _CONDITIONING["audio_projection"] | {"hidden": 64},
  "pose_guider": _CONDITIONING["pose_guider"],
  "emotion_model": _CONDITIONING["emotion_model"] | {"hidden": 64},
  "frame_interpolator": {"features": 24},
}


def random_weights(folder, seed=0):
  """Writes the folder, every tensor drawn from the seed and its own name, with a prior for each emotion."""
  networks = {
    name: unflatten_dict(
      {
        path: _draw(f"{seed}:{name}:{path}", leaf.shape)
        for path, leaf in flatten_dict(network_shapes(name, config), sep="/").items()
      },
      sep="/",
    )
    for name, config in NETWORKS.items()
  }
  priors = {label: {"mu": 2 * _generator(label).standard_normal(256, np.float32)} for label in EMOTIONS}
  return Weights.save(folder, networks, {"networks": NETWORKS}, priors)


def _generator(name):
  return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def _draw(name, shape):
  normal = _generator(name).standard_normal(shape, np.float32)
  if len(shape) < 2:
    return np.float32(name.endswith("scale")) + np.float32(0.1) * normal
  return normal / np.float32(math.sqrt(math.prod(shape[:-1])))
