"""The networks of a weights folder: their names, tables, modules and abstract parameters."""

import dataclasses
import functools
import json
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from dicetalk_jax.conversion.engine import Table
from dicetalk_jax.conversion.small_networks import (
  AUDIO_ENCODER,
  AUDIO_PROJECTION,
  EMOTION_MODEL,
  FRAME_INTERPOLATOR,
  IMAGE_ENCODER,
  POSE_GUIDER,
)
from dicetalk_jax.conversion.unet import UNET
from dicetalk_jax.conversion.vae import VAE as VAE_TABLE
from dicetalk_jax.errors import WeightsError
from dicetalk_jax.models.audio_encoder import AudioEncoder
from dicetalk_jax.models.audio_projection import AudioProjection
from dicetalk_jax.models.emotion_bank import EmotionModel
from dicetalk_jax.models.frame_interpolator import FrameInterpolator
from dicetalk_jax.models.image_encoder import ImageEncoder
from dicetalk_jax.models.pose_guider import PoseGuider
from dicetalk_jax.models.unet import UNet
from dicetalk_jax.models.vae import VAE

TABLES: dict[str, Table] = {
  "unet": UNET,
  "vae": VAE_TABLE,
  "image_encoder": IMAGE_ENCODER,
  "audio_encoder": AUDIO_ENCODER,
  "audio_projection": AUDIO_PROJECTION,
  "pose_guider": POSE_GUIDER,
  "emotion_model": EMOTION_MODEL,
  "frame_interpolator": FRAME_INTERPOLATOR,
}
NETWORKS = tuple(TABLES)
_CLASSES = {
  "vae": VAE,
  "image_encoder": ImageEncoder,
  "audio_encoder": AudioEncoder,
  "audio_projection": AudioProjection,
  "pose_guider": PoseGuider,
  "emotion_model": EmotionModel,
  "frame_interpolator": FrameInterpolator,
}
_WITH_CONFIG_JSON = ("vae", "image_encoder", "audio_encoder")


def build(name: str, config: Mapping, dtype=jnp.float32) -> nn.Module:
  """The module of network `name`, of NETWORKS, that computes in `dtype`.

  config: the published config.json where the network has one, with the U-Net's `adapter_scales`; otherwise the module's
  attributes. Raises WeightsError where it asks for what the network does not do, or leaves something out.
  """
  try:
    if name == "unet":
      return UNet.from_config(config, adapter_scales=tuple(config["adapter_scales"]), dtype=dtype)
    if name in _WITH_CONFIG_JSON:
      return _CLASSES[name].from_config(config, dtype=dtype)
    fields = {field.name for field in dataclasses.fields(_CLASSES[name])}
    attributes = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if key in fields}
    return _CLASSES[name](**attributes, dtype=dtype)
  except KeyError as error:
    raise WeightsError(f"The {name}'s configuration has no {error}.") from None
  except (ValueError, TypeError) as error:
    raise WeightsError(f"The {name}'s configuration is not one of this network: {error}.") from None


def network_shapes(name: str, config: Mapping) -> dict:
  """The abstract float32 parameters of a network as nested dicts; nothing is computed. Errors as in `build`."""
  return _network_shapes(name, json.dumps(config))


@functools.cache
def _network_shapes(name: str, config: str) -> dict:
  # Tracing the U-Net takes seconds.
  config = json.loads(config)
  module = build(name, config)
  inputs = _example_inputs(name, module, config)
  shapes = jax.eval_shape(lambda inputs: module.init(jax.random.key(0), **inputs), inputs)
  return shapes["params"]


def _example_inputs(name: str, module: nn.Module, config: Mapping) -> dict:
  if name == "unet":
    return module.example_inputs()
  shape = {
    "vae": lambda: {"images": (1, 2, 2 * module.downscale, 2 * module.downscale, module.in_channels)},
    "image_encoder": lambda: {"pixels": (1, module.image_size, module.image_size, 3)},
    "audio_encoder": lambda: {"mel": (1, 2, module.num_mel_bins)},
    "audio_projection": lambda: {"windows": (1, config["window"], config["states"], config["d_model"])},
    "pose_guider": lambda: {"mask": (1, 1, 8, 8, 3)},
    "emotion_model": lambda: {"prior": (1, module.prior_dim)},
    "frame_interpolator": lambda: {"first": (1, 32, 32, 3), "second": (1, 32, 32, 3)},
  }[name]()
  return {argument: jax.ShapeDtypeStruct(sides, jnp.float32) for argument, sides in shape.items()}
