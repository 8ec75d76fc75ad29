"""`make demo`: the whole of `generate` on drawn inputs, with small random weights that are made on the spot.

It shows that everything is installed and works together, from portrait and sound to mp4. Its weights are untrained: the
picture they make is noise, and it says so.
"""

import argparse
import functools
import math
import pathlib
import tempfile
import zlib

import numpy as np
from PIL import Image

from dicetalk_jax.conversion.engine import flatten, unflatten
from dicetalk_jax.conversion.networks import PUBLISHED, network_shapes
from dicetalk_jax.data.records import RATE
from dicetalk_jax.data.world.identity import draw_identity
from dicetalk_jax.data.world.parameters import PARAMETERS
from dicetalk_jax.data.world.renderer import face_box, render
from dicetalk_jax.data.world.speakers import draw_voice
from dicetalk_jax.data.world.voice import speak
from dicetalk_jax.inference.pipeline import DiceTalk
from dicetalk_jax.inference.weights import Weights

PERSON, SENTENCE = 7, "The boats came back before the storm."
EMOTIONS = {"neutral": "neutral", "happy": "happy", "timeline": "0s neutral, 0.8s happy, 1.6s angry"}
_LABELS = ("angry", "contempt", "disgusted", "fear", "happy", "neutral", "sad", "surprised")
_WIDTH = 64  # of tokens
_CONFIG = {
  "networks": {
    "unet": {
      "in_channels": 8,
      "out_channels": 4,
      "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
      "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
      "block_out_channels": [32, 64],
      "addition_time_embed_dim": 32,
      "projection_class_embeddings_input_dim": 96,
      "layers_per_block": 1,
      "cross_attention_dim": _WIDTH,
      "transformer_layers_per_block": 1,
      "num_attention_heads": [2, 4],
      "adapter_scales": [1.0, 1.0],
    },
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
      "projection_dim": _WIDTH,
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
    "audio_projection": {"hidden": 64, "num_tokens": 8, "features": _WIDTH, "window": 10, "states": 3, "d_model": 64},
    "pose_guider": {"features": 32, "block_features": [8, 16, 16, 32]},
    "emotion_model": {
      "hidden": 64,
      "num_tokens": 8,
      "features": _WIDTH,
      "prior_dim": 256,
      "num_codes": 16,
      "num_heads": 4,
      "mid_features": 64,
      "num_classes": 22,
    },
    "frame_interpolator": {"features": 24},
  }
}


def random_weights(folder: pathlib.Path, seed=0) -> Weights:
  """A weights folder of small untrained networks, every tensor drawn from the seed and its own name."""
  networks = {
    name: unflatten(
      {path: _draw(f"{seed}:{name}:{path}", leaf.shape) for path, leaf in flatten(network_shapes(name, config)).items()}
    )
    for name, config in _CONFIG["networks"].items()
  }
  priors = {label: {"mu": 2 * _generator(label).standard_normal(256, np.float32)} for label in _LABELS}
  assert set(networks) == set(PUBLISHED)
  return Weights.save(folder, networks, _CONFIG, priors)


def _generator(name):
  return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def _draw(name, shape):
  drawn = _generator(name).standard_normal(shape, np.float32)
  if len(shape) < 2:
    return np.float32(name.endswith("scale")) + np.float32(0.1) * drawn
  return drawn / np.float32(math.sqrt(math.prod(shape[:-1])))


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("demo"), help="folder for the videos")
  parser.add_argument("--audio", type=pathlib.Path, help="your own sound instead of the made one")
  arguments = parser.parse_args()
  arguments.out.mkdir(parents=True, exist_ok=True)
  print("These weights are random, made on the spot to try the machinery: the pictures they make are noise.")
  print("For a person, fetch and convert the published ones: dicetalk download, dicetalk convert.")
  person, rest = draw_identity(PERSON), np.zeros((1, len(PARAMETERS)), np.float32)
  portrait = Image.fromarray(render(person, rest, 256)[0])
  portrait.save(arguments.out / "portrait.png")
  audio = arguments.audio or (speak(SENTENCE, draw_voice(PERSON)).audio, RATE)
  with tempfile.TemporaryDirectory() as folder:
    talker = DiceTalk.load(random_weights(pathlib.Path(folder) / "weights"))
    generate = functools.partial(
      talker.generate, portrait, audio, face_box=face_box(person, rest, 256), size=128, steps=6
    )
    for name, emotion in EMOTIONS.items():
      video = generate(emotion)
      print(video.save(arguments.out / f"{name}.mp4"))


if __name__ == "__main__":
  main()
