"""The registry of networks: one row has all that the package knows about a network of a weights folder."""

import dataclasses
import functools
import json
import math
import numbers
import typing
from collections.abc import Callable, Mapping

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
from dicetalk_jax.weights.release import sizes, tables
from dicetalk_jax.weights.release.layouts import SVD, WHISPER, Files
from dicetalk_jax.weights.release.names import Table


def _module(module: type[nn.Module], config: Mapping, dtype) -> nn.Module:
  if hasattr(module, "from_config"):
    return module.from_config(config, dtype=dtype)
  fields = {field.name for field in dataclasses.fields(module)}
  attributes = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if key in fields}
  return module(**attributes, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class Network:
  """One row of the registry.

  module: Flax class with a `dtype` attribute. Without a method `from_config` its attributes are the architecture.
  table: PyTorch names <-> Flax paths.
  inputs: (module, architecture) -> {argument: shape or jax.ShapeDtypeStruct} of the smallest inputs that work.
  files: name of a released layout -> the network's files in it.
  read: reads the architecture from a released checkpoint; by default it is the JSON document `Files.config`.
  write: architecture -> that JSON document, for export; an empty one is not written.
  make: (architecture, dtype) -> module, where neither of the two ways above is right.
  initial: flat parameters as the module draws them -> the flat parameters that training from scratch starts with.
  published: every release in a layout that has the network holds it.
  trains: the adaptation may train it.
  float32: it always computes in float32. It runs once per clip and is small, so float32 costs nothing, while rounding
    errors would reach every frame.
  """

  name: str
  module: type[nn.Module]
  table: Table
  inputs: Callable[[nn.Module, Mapping], Mapping]
  files: Mapping[str, Files] = dataclasses.field(default_factory=dict)
  read: sizes.Reader = dataclasses.field(default=sizes.from_document())
  write: Callable[[Mapping], Mapping] = dict
  make: Callable[[Mapping, typing.Any], nn.Module] | None = None
  initial: Callable[[dict], dict] | None = None
  published: bool = True
  trains: bool = False
  float32: bool = False

  def build(self, config: Mapping, dtype=jnp.float32) -> nn.Module:
    """The module that computes in `dtype`; WeightsError if `config` is not an architecture of this network."""
    try:
      module = self.make(config, dtype) if self.make else _module(self.module, config, dtype)
      _check_numbers(module)
      return module
    except KeyError as error:
      raise WeightsError(f"The {self.name}'s configuration has no {error}.") from None
    except (ValueError, TypeError) as error:
      raise _misfit(self.name, error) from None


# Name -> row, in the order in which a weights folder lists its networks. Rows that read the sizes of others come later.
NETWORKS: dict[str, Network] = {}


def register(network: Network) -> Network:
  """Adds a row: from then on the network can be built, converted, saved, loaded and exported."""
  if network.name in NETWORKS:
    raise ValueError(f"a network named {network.name!r} is already registered")
  NETWORKS[network.name] = network
  return network


def row(name: str) -> Network:
  """The row of a network; WeightsError if there is none."""
  if name not in NETWORKS:
    raise WeightsError(f"{name!r} is not a network of a weights folder; those are {', '.join(NETWORKS)}.")
  return NETWORKS[name]


def build(name: str, config: Mapping, dtype=jnp.float32) -> nn.Module:
  """The module of network `name`, computing in `dtype`.

  config: the network's entry in a weights folder's config.json. WeightsError if it does not describe this network.
  """
  return row(name).build(config, dtype)


def network_inputs(name: str, config: Mapping, module: nn.Module | None = None) -> dict:
  """Abstract inputs of a network, of the smallest size that works, by argument. Raises as `build`.

  module: takes the place of the network's own.
  """
  inputs = row(name).inputs(module or build(name, config), config)
  return {
    argument: jax.ShapeDtypeStruct(shape, jnp.float32)
    if isinstance(shape, tuple) and all(isinstance(side, int) for side in shape)
    else shape
    for argument, shape in inputs.items()
  }


def network_shapes(name: str, config: Mapping, module: nn.Module | None = None) -> dict:
  """The abstract float32 parameters of a network as nested dicts; nothing is computed. Raises as `build`.

  module: takes the place of the network's own.
  """
  try:
    if module is not None:
      return _shapes(module, network_inputs(name, config, module))
    return _network_shapes(name, json.dumps(config))
  except (ArithmeticError, EinopsError, FlaxError, TypeError, ValueError) as error:
    raise _misfit(name, error) from None


@functools.cache
def _network_shapes(name: str, config: str) -> dict:
  # Cached because tracing the U-Net takes seconds.
  config = json.loads(config)
  return _shapes(build(name, config), network_inputs(name, config))


def _shapes(module, inputs):
  return jax.eval_shape(lambda inputs: module.init(jax.random.key(0), **inputs), inputs)["params"]


_MAY_BE_ZERO = ("dropout_rate", "fusion_scale")


def _check_numbers(module: nn.Module) -> None:
  """ValueError if an attribute of type int is not a whole number above 0, or one of type float not a number above 0."""
  for field in dataclasses.fields(module):
    value, types = getattr(module, field.name), (field.type, *typing.get_args(field.type))
    if int not in types and float not in types:
      continue
    several = isinstance(value, tuple | list)
    for number in value if several else (value,):
      is_number = isinstance(number, numbers.Real) and not isinstance(number, bool) and math.isfinite(number)
      if int in types:
        if not (is_number and isinstance(number, numbers.Integral) and number > 0):
          raise ValueError(f"{field.name} is {value!r}; whole numbers above 0 are required")
      elif not is_number or not (several or number > 0 or (number == 0 and field.name in _MAY_BE_ZERO)):
        least = "of at least 0" if field.name in _MAY_BE_ZERO else "above 0"
        raise ValueError(f"{field.name} is {value!r}; a number {least} is required")


def _misfit(name: str, error: Exception) -> WeightsError:
  cause = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .")[:200]
  return WeightsError(f"The {name}'s configuration does not describe this network: {cause}.")


def _unet_initial(flat: dict) -> dict:
  """Adapters start as copies of the keys and values beside them, and the output as 0, the mean of the targets."""
  for path in flat:
    original, adapter, _ = path.partition("_ip_")
    if adapter:
      flat[path] = flat[f"{original}/kernel"]
  return flat | {path: jnp.zeros_like(leaf) for path, leaf in flat.items() if path.startswith("conv_out/")}


def _embedder_inputs(module, config) -> dict:
  mask = jax.ShapeDtypeStruct((1, 2), jnp.bool_)
  return {
    "expression": (1, 2, module.expression_features),
    "expression_mask": mask,
    "speech": (1, 2, module.speech_features),
    "speech_mask": mask,
  }


def _svd(part: str, stem: str = "diffusion_pytorch_model", *stems: str, **others) -> Files:
  """A part of Stable Video Diffusion."""
  folder = f"{SVD}/{part}"
  return Files(f"{folder}/{stem}.safetensors", stems, f"{folder}/config.json", config_required=True, **others)


for _network in (
  Network(
    "unet",
    UNet,
    tables.UNET,
    inputs=lambda module, config: module.example_inputs(),
    files={"dicetalk": _svd("unet", overlay="DICE-Talk/unet.pth", overlay_only="_ip.")},
    read=sizes.unet,
    write=sizes.unet_document,
    make=lambda config, dtype: UNet.from_config(config, adapter_scales=tuple(config["adapter_scales"]), dtype=dtype),
    initial=_unet_initial,
    trains=True,
  ),
  Network(
    "vae",
    VAE,
    tables.VAE,
    inputs=lambda module, config: {
      "images": (1, 2, 2 * module.downscale, 2 * module.downscale, module.in_channels),
    },
    files={"dicetalk": _svd("vae")},
    read=sizes.vae,
  ),
  Network(
    "image_encoder",
    ImageEncoder,
    tables.IMAGE_ENCODER,
    inputs=lambda module, config: {"pixels": (1, module.image_size, module.image_size, 3)},
    files={"dicetalk": _svd("image_encoder", "model", "pytorch_model")},
    read=sizes.image_encoder,
  ),
  Network(
    "audio_encoder",
    AudioEncoder,
    tables.AUDIO_ENCODER,
    inputs=lambda module, config: {"mel": (1, 2, module.num_mel_bins)},
    files={
      "dicetalk": Files(f"{WHISPER}/model.safetensors", ("pytorch_model",), f"{WHISPER}/config.json", True),
    },
    read=sizes.audio_encoder,
    float32=True,
  ),
  Network(
    "audio_projection",
    AudioProjection,
    tables.AUDIO_PROJECTION,
    inputs=lambda module, config: {"windows": (1, config["window"], config["states"], config["d_model"])},
    files={"dicetalk": Files("DICE-Talk/audio_linear.pth")},
    read=sizes.audio_projection,
    trains=True,
    float32=True,
  ),
  Network(
    "pose_guider",
    PoseGuider,
    tables.POSE_GUIDER,
    inputs=lambda module, config: {"mask": (1, 1, 8, 8, 3)},
    files={"dicetalk": Files("DICE-Talk/pose_guider.pth")},
    read=sizes.pose_guider,
    trains=True,
    float32=True,
  ),
  Network(
    "emotion_model",
    EmotionModel,
    tables.EMOTION_MODEL,
    inputs=lambda module, config: {"prior": (1, module.prior_dim)},
    files={"dicetalk": Files("DICE-Talk/emo_model.pth", config="DICE-Talk/emo_model.json")},
    read=sizes.emotion_model,
    write=sizes.emotion_model_document,
    trains=True,
    float32=True,
  ),
  Network(
    "frame_interpolator",
    FrameInterpolator,
    tables.FRAME_INTERPOLATOR,
    inputs=lambda module, config: {"first": (1, 32, 32, 3), "second": (1, 32, 32, 3)},
    files={"dicetalk": Files("RIFE/flownet.pkl")},
    read=sizes.frame_interpolator,
    float32=True,
  ),
  Network(
    "emotion_embedder",
    EmotionEmbedder,
    tables.EMOTION_EMBEDDER,
    inputs=_embedder_inputs,
    files={
      "dicetalk": Files(
        "DICE-Talk/emotion_embedder.pth", config="DICE-Talk/emotion_embedder.json", config_required=True
      ),
    },
    read=sizes.emotion_embedder,
    published=False,
    float32=True,
  ),
):
  register(_network)
