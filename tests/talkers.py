"""DiceTalk with stand-in weights: the golden ones, and ones with a U-Net that compiles in seconds."""

import functools

import jax
import numpy as np
import weights
from conftest import config_json
from flax.traverse_util import flatten_dict, unflatten_dict
from release import small_weights, write_release

from dicetalk_jax.inference.pipeline import DiceTalk
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import build, network_shapes
from dicetalk_jax.weights.release.convert import convert

# One level of the released U-Net's four, with the middle's transformer as the only one. With 32 channels each would be
# a group of its own, and group normalisation would take the noise level out again.
CHANNELS = 64
MINUTE_UNET = config_json("unet") | {
  "down_block_types": ["DownBlockSpatioTemporal"],
  "up_block_types": ["UpBlockSpatioTemporal"],
  "block_out_channels": [CHANNELS],
  "num_attention_heads": 2,
  "layers_per_block": 1,
  "adapter_scales": [1.0, 1.0],
}


@functools.cache
def minute_unet():
  """The module and its stand-in parameters."""
  return build("unet", MINUTE_UNET), stand_in_params("unet", MINUTE_UNET)


def stand_in_params(network, config):
  """Stand-in parameters of any configuration, nested."""
  return unflatten_dict(
    {path: _draw(path, leaf.shape) for path, leaf in flatten_dict(network_shapes(network, config), sep="/").items()},
    sep="/",
  )


def _draw(path, shape):
  # Kernels are (..., in, out): drawn as (out, ..., in), so that outputs have about the inputs' variance.
  if len(shape) >= 2:
    return np.moveaxis(weights.tensor(path, (shape[-1], *shape[:-1])), 0, -1)
  return weights.tensor(path.replace("scale", "weight"), shape)


def golden_talker(tmp_path_factory):
  """The weights of the golden pipeline: written as a release, converted and opened once a test run."""
  folder = tmp_path_factory.getbasetemp() / "golden_weights"
  if not folder.exists():
    convert(write_release(tmp_path_factory.mktemp("golden") / "release"), folder)
  return _open(folder)


def minute_talker(tmp_path_factory):
  """Small weights with the minute U-Net, and a frame interpolator as tame as the golden one."""
  folder = tmp_path_factory.getbasetemp() / "minute_weights"
  if not folder.exists():
    small = Weights.open(small_weights(tmp_path_factory))
    changed = {"unet": MINUTE_UNET, "pose_guider": small.config["networks"]["pose_guider"] | {"features": CHANNELS}}
    networks = {name: small.load(name) for name in small.config["networks"] if name not in changed}
    networks |= {name: stand_in_params(name, config) for name, config in changed.items()}
    networks["frame_interpolator"] = jax.tree.map_with_path(
      lambda path, x: 0.25 * x if path[-1].key == "negative_slope" else x, networks["frame_interpolator"]
    )
    config = small.config | {"networks": small.config["networks"] | changed}
    Weights.save(folder, networks, config, small.priors())
  return _open(folder)


@functools.cache
def _open(folder):
  return DiceTalk.load(folder, dtype="float32")


# The embedder of `with_embedder`: Whisper's width is that of `small_weights`.
EMBEDDER = {
  "features": 256,
  "expression_features": 64,
  "speech_features": 384,
  "num_layers": 1,
  "num_fusion_layers": 2,
  "num_heads": 4,
  "mlp": 32,
  "dropout_rate": 0.0,
  "fusion_scale": 0.5,
  "inputs": "both",
}


def embedder_params(inputs="both"):
  """Stand-in parameters of an embedder, the vectors that initialise to zero included."""
  return stand_in_params("emotion_embedder", EMBEDDER | {"inputs": inputs})


def embedding_weights(tmp_path_factory):
  """`small_weights` with the stand-in embedder, made once a test run."""
  folder = tmp_path_factory.getbasetemp() / "embedding_weights"
  if folder.exists():
    return Weights.open(folder)
  return with_embedder(Weights.open(small_weights(tmp_path_factory)), folder)


def with_embedder(weights, folder, **changes):
  """Other weights with a stand-in embedder; changes: of its architecture."""
  config = EMBEDDER | changes
  networks = {"emotion_embedder": stand_in_params("emotion_embedder", config)}
  return weights.derive(folder, networks, {"emotion_embedder": config}, config={"emotion_embedder": {"frames": 20}})
