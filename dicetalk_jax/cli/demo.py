"""`make demo`: a drawn person who is in no training set says a sentence that is in none, with emotions of your choice.

It takes the small weights inside the package. Where a version has none, small random ones are made on the spot: they
show that everything is installed and works together, and the picture they make is noise.
"""

import argparse
import math
import pathlib
import re
import sys
import tempfile
import zlib
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image, ImageDraw

from dicetalk_jax.cli.terminal import use_fast_convolutions
from dicetalk_jax.data.build.synthetic import test_person
from dicetalk_jax.errors import DiceTalkError, WeightsError
from dicetalk_jax.inference.pipeline import DiceTalk
from dicetalk_jax.parallel.compilation import keep_compiled_programs
from dicetalk_jax.vocabulary import SAMPLE_RATE
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import network_shapes
from dicetalk_jax.world.identity import draw_identity
from dicetalk_jax.world.parameters import PARAMETERS
from dicetalk_jax.world.renderer import face_box, render
from dicetalk_jax.world.speakers import draw_voice
from dicetalk_jax.world.voice import speak

# None of the people and sentences of training.
PERSON, SENTENCE = 7, "The boats came back before the storm."
SIZE = 128
KNOWS_DRAWN = "The small model of the package has seen drawn people alone, and this is a drawn person."
KNOWS_NOTHING = "These weights are random, made on the spot to try the machinery: the pictures they make are noise."
EMOTIONS = {"neutral": "neutral", "happy": "happy", "angry": "angry", "timeline": "0s neutral, 0.8s happy, 1.6s angry"}
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
    name: unflatten_dict(
      {
        path: _draw(f"{seed}:{name}:{path}", leaf.shape)
        for path, leaf in flatten_dict(network_shapes(name, config), sep="/").items()
      },
      sep="/",
    )
    for name, config in _CONFIG["networks"].items()
  }
  priors = {label: {"mu": 2 * _generator(label).standard_normal(256, np.float32)} for label in _LABELS}
  return Weights.save(folder, networks, _CONFIG, priors)


def _generator(name):
  return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def _draw(name, shape):
  drawn = _generator(name).standard_normal(shape, np.float32)
  if len(shape) < 2:
    return np.float32(name.endswith("scale")) + np.float32(0.1) * drawn
  return drawn / np.float32(math.sqrt(math.prod(shape[:-1])))


def talker_of_demo(folder: pathlib.Path) -> tuple[DiceTalk, bool]:
  """The small model of the package, or one of random weights, made in `folder`; and whether it has been trained."""
  try:
    return DiceTalk.load(), True
  except WeightsError:
    return DiceTalk.load(random_weights(folder / "weights")), False


def contact_sheet(videos: Mapping[str, np.ndarray], portrait: Image.Image, columns: int = 8) -> Image.Image:
  """A row for each video, its name on the left above the portrait, frames spread over its whole length beside it.

  videos: name -> frames (n, h, w, 3) in [0, 1].
  """
  height, width = next(iter(videos.values())).shape[1:3]
  line = 14
  sheet = Image.new("RGB", ((columns + 1) * width, len(videos) * (height + line)), "white")
  draw = ImageDraw.Draw(sheet)
  for row, (name, frames) in enumerate(videos.items()):
    top = row * (height + line)
    draw.text((4, top + 1), name, fill="black")
    sheet.paste(portrait.resize((width, height)), (0, top + line))
    for column, n in enumerate(np.linspace(0, len(frames) - 1, columns).astype(int)):
      picture = Image.fromarray(np.rint(255 * frames[n]).astype(np.uint8))
      sheet.paste(picture, ((column + 1) * width, top + line))
  return sheet


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("demo"), help="folder for the videos")
  parser.add_argument("--audio", type=pathlib.Path, help="your own sound instead of the made one")
  parser.add_argument("--person", type=int, default=PERSON, help="another number draws somebody else")
  parser.add_argument("--emotion", action="append", help="instead of the demo's; as often as wanted")
  arguments = parser.parse_args()
  try:
    run(arguments)
  except DiceTalkError as error:
    sys.exit(f"error: {error}")


def run(arguments):
  use_fast_convolutions()
  keep_compiled_programs()
  arguments.out.mkdir(parents=True, exist_ok=True)
  number = test_person(0, arguments.person)
  person, rest = draw_identity(number), np.zeros((1, len(PARAMETERS)), np.float32)
  portrait = Image.fromarray(render(person, rest, 2 * SIZE)[0])
  portrait.save(arguments.out / "portrait.png")
  audio = arguments.audio or (speak(SENTENCE, draw_voice(number)).audio, SAMPLE_RATE)
  emotions = {name: name for name in arguments.emotion or ()} or EMOTIONS
  with tempfile.TemporaryDirectory() as folder:
    talker, is_trained = talker_of_demo(pathlib.Path(folder))
    print(KNOWS_DRAWN if is_trained else KNOWS_NOTHING)
    print("For portraits of real people, fetch and convert the published weights: dicetalk download, dicetalk convert.")
    videos = {}
    for name, emotion in emotions.items():
      options = dict(face_box=face_box(person, rest, 2 * SIZE), size=SIZE)
      if not is_trained:
        options["steps"] = 6
      video = talker.generate(portrait, audio, emotion, **options)
      videos[name] = video.frames
      print(video.save(arguments.out / f"{re.sub('[^a-z0-9.]+', '_', name.lower())}.mp4"), flush=True)
  sheet = arguments.out / "sheet.png"
  contact_sheet(videos, portrait).save(sheet)
  print(sheet)


if __name__ == "__main__":
  main()
