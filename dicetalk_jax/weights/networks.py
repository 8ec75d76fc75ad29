"""The networks of a weights folder: their names, tables, modules and abstract parameters."""

import dataclasses
import functools
import json
import math
import numbers
import typing
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import EinopsError
from flax.errors import FlaxError

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.models.audio_encoder import AudioEncoder
from dicetalk_jax.models.audio_projection import AudioProjection
from dicetalk_jax.models.emotion_bank import EmotionModel
from dicetalk_jax.models.emotion_embedder import EmotionEmbedder
from dicetalk_jax.models.frame_interpolator import FrameInterpolator
from dicetalk_jax.models.image_encoder import ImageEncoder
from dicetalk_jax.models.pose_guider import PoseGuider
from dicetalk_jax.models.unet import UNet
from dicetalk_jax.models.vae import VAE
from dicetalk_jax.weights.release.engine import Table
from dicetalk_jax.weights.release.tables import (
  AUDIO_ENCODER,
  AUDIO_PROJECTION,
  EMOTION_EMBEDDER,
  EMOTION_MODEL,
  FRAME_INTERPOLATOR,
  IMAGE_ENCODER,
  POSE_GUIDER,
  UNET,
)
from dicetalk_jax.weights.release.tables import VAE as VAE_TABLE

TABLES: dict[str, Table] = {
  "unet": UNET,
  "vae": VAE_TABLE,
  "image_encoder": IMAGE_ENCODER,
  "audio_encoder": AUDIO_ENCODER,
  "audio_projection": AUDIO_PROJECTION,
  "pose_guider": POSE_GUIDER,
  "emotion_model": EMOTION_MODEL,
  "frame_interpolator": FRAME_INTERPOLATOR,
  "emotion_embedder": EMOTION_EMBEDDER,
}
NETWORKS = tuple(TABLES)
# What the authors published, so what every weights folder made of their files holds.
PUBLISHED = tuple(name for name in NETWORKS if name != "emotion_embedder")
_CLASSES = {
  "vae": VAE,
  "image_encoder": ImageEncoder,
  "audio_encoder": AudioEncoder,
  "audio_projection": AudioProjection,
  "pose_guider": PoseGuider,
  "emotion_model": EmotionModel,
  "frame_interpolator": FrameInterpolator,
  "emotion_embedder": EmotionEmbedder,
}
_WITH_CONFIG_JSON = ("vae", "image_encoder", "audio_encoder")
_MAY_BE_ZERO = ("dropout_rate", "fusion_scale")


def build(name: str, config: Mapping, dtype=jnp.float32) -> nn.Module:
  """The module of network `name`, of NETWORKS, that computes in `dtype`.

  config: the published config.json where the network has one, with the U-Net's `adapter_scales`; otherwise the module's
  attributes. Raises WeightsError where it asks for what the network does not do, or leaves something out.
  """
  try:
    if name == "unet":
      module = UNet.from_config(config, adapter_scales=tuple(config["adapter_scales"]), dtype=dtype)
    elif name in _WITH_CONFIG_JSON:
      module = _CLASSES[name].from_config(config, dtype=dtype)
    else:
      fields = {field.name for field in dataclasses.fields(_CLASSES[name])}
      attributes = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if key in fields}
      module = _CLASSES[name](**attributes, dtype=dtype)
    _check_numbers(module)
    return module
  except KeyError as error:
    raise WeightsError(f"The {name}'s configuration has no {error}.") from None
  except (ValueError, TypeError) as error:
    raise _unfit(name, error) from None


def _check_numbers(module: nn.Module) -> None:
  """Raises ValueError for an attribute that is no size (a whole number above 0) or no number where it is to be one."""
  for field in dataclasses.fields(module):
    value, types = getattr(module, field.name), (field.type, *typing.get_args(field.type))
    several = isinstance(value, tuple | list)
    for number in value if several else (value,):
      is_number = isinstance(number, numbers.Real) and not isinstance(number, bool) and math.isfinite(number)
      if int in types and not (is_number and isinstance(number, numbers.Integral) and number > 0):
        raise ValueError(f"{field.name} is {value!r}, wanted whole numbers above 0")
      if field.name in _MAY_BE_ZERO:
        if not (is_number and number >= 0):
          raise ValueError(f"{field.name} is {value!r}, wanted a number of at least 0")
      elif float in types and not (is_number and (several or number > 0)):
        raise ValueError(f"{field.name} is {value!r}, wanted a number above 0")


def _unfit(name: str, error: Exception) -> WeightsError:
  cause = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .")[:200]
  return WeightsError(f"The {name}'s configuration is not one of this network: {cause}.")


def network_shapes(name: str, config: Mapping) -> dict:
  """The abstract float32 parameters of a network as nested dicts; nothing is computed. Errors as in `build`."""
  try:
    return _network_shapes(name, json.dumps(config))
  except (ArithmeticError, EinopsError, FlaxError, TypeError, ValueError) as error:
    raise _unfit(name, error) from None


@functools.cache
def _network_shapes(name: str, config: str) -> dict:
  # Tracing the U-Net takes seconds.
  config = json.loads(config)
  module = build(name, config)
  inputs = network_inputs(name, config)
  shapes = jax.eval_shape(lambda inputs: module.init(jax.random.key(0), **inputs), inputs)
  return shapes["params"]


def network_inputs(name: str, config: Mapping) -> dict:
  """Abstract inputs of a network, of the smallest size that runs, by argument. Errors as in `build`."""
  module = build(name, config)
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
    "emotion_embedder": lambda: {
      "expression": (1, 2, module.expression_features),
      "expression_mask": (1, 2),
      "speech": (1, 2, module.speech_features),
      "speech_mask": (1, 2),
    },
  }[name]()
  dtypes = {"expression_mask": jnp.bool_, "speech_mask": jnp.bool_}
  return {name: jax.ShapeDtypeStruct(sides, dtypes.get(name, jnp.float32)) for name, sides in shape.items()}
