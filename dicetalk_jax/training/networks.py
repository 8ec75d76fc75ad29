"""The networks of the adaptation: which modules, with which parameters, on which data."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.data.encode.networks import check_encoded_with
from dicetalk_jax.errors import InputError, WeightsError
from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.training.adaptation_loss import Networks
from dicetalk_jax.training.config import TRAINABLE, AdaptationConfig
from dicetalk_jax.vocabulary import DTYPES, EMOTIONS, LEVELS
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.initial import initial_params, network_key
from dicetalk_jax.weights.networks import NETWORKS, build, network_shapes

# Networks that the adaptation may train.
LEARNING = tuple(network.name for network in NETWORKS.values() if network.trains)
# The policies of jax.checkpoint_policies that are none of names or of other policies.
_REMAT_POLICIES = (
  *("everything_saveable", "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable"),
  *("checkpoint_dots", "checkpoint_dots_with_no_batch_dims"),
)


@dataclasses.dataclass(frozen=True)
class Setup:
  """What a run of the adaptation is made of; `weights` None where nothing but architectures was given.

  architectures: of every network in `modules`, as a weights folder's config.json has them, and the VAE's. dtype: what
  the U-Net computes in, and is kept in where it is frozen; the others are small and compute in float32, as they do in
  inference.
  missing: networks, or single parameters "network/path", that begin untrained.
  """

  modules: Networks
  architectures: Mapping[str, Mapping]
  scaling_factor: float
  downscale: int
  dtype: jnp.dtype
  weights: Weights | None
  missing: tuple[str, ...]

  @property
  def shapes(self) -> dict[str, dict]:
    """Abstract float32 parameters: {network: nested}."""
    return {name: network_shapes(name, self.architectures[name]) for name in Networks._fields}


def set_up(config: AdaptationConfig, needs_weights: bool = True) -> Setup:
  """Reads architectures, and no parameters. Raises WeightsError for weights that are none or lack what is needed.

  needs_weights=False: weights that do not exist are passed over if `config.networks` has every architecture. Raises
  InputError for settings that make no sense, and WeightsError for networks whose sizes do not fit each other.
  """
  _check(config)
  weights, held = None, {}
  try:
    weights = Weights.open(config.weights)
    held = dict(weights.config["networks"])
  except WeightsError:
    if needs_weights or not config.networks or pathlib.Path(config.weights).expanduser().exists():
      raise
  architectures = dict(config.networks) | held
  for name in (*Networks._fields, "vae"):
    if name not in architectures:
      raise WeightsError(_advice(name, config.weights))
  if needs_weights:
    for name in ("vae", "emotion_embedder"):
      if name not in held:
        raise WeightsError(_advice(name, config.weights))
  architectures["emotion_model"] = dict(architectures["emotion_model"]) | {"conditioning": config.conditioning}
  missing = [name for name in LEARNING if name not in held]
  has_query = held.get("emotion_model", {}).get("conditioning") == "learnable"
  if config.conditioning == "learnable" and "emotion_model" in held and not has_query:
    missing.append("emotion_model/query")

  on_cpu = jax.default_backend() == "cpu"
  dtype = jnp.dtype(config.dtype or ("float32" if on_cpu else "bfloat16"))

  def module(name):
    return build(name, architectures[name], dtype if name == "unet" else jnp.float32)

  modules = Networks(**{name: module(name) for name in Networks._fields})
  unet = modules.unet.clone(remat=config.remat, remat_policy=config.remat_policy)
  vae = build("vae", architectures["vae"])
  _check_sizes(modules, vae)
  kept = {name: architectures[name] for name in (*Networks._fields, "vae")}
  return Setup(modules._replace(unet=unet), kept, vae.scaling_factor, vae.downscale, dtype, weights, tuple(missing))


def _check(config: AdaptationConfig) -> None:
  """InputError for settings that would only fail once training has begun, or not at all."""
  objective = config.objective
  drops = {name: getattr(objective, name) for name in ("drop_audio", "drop_image", "drop_emotion", "drop_all")}
  # Shares such as 0.85 and three of 0.05 need not be 1 to the last bit.
  if min(drops.values()) < 0 or sum(drops.values()) > 1 + 1e-9:
    said = ", ".join(f"{name} {share}" for name, share in drops.items())
    raise InputError(f"{said} cannot be used: they are shares of the samples, of 1 together at most")
  least = {
    "objective.emotion_weight": (objective.emotion_weight, 0),
    "objective.sigma_std": (objective.sigma_std, 0),
    "samples.clips": (config.samples.clips, 0),
    "samples.steps": (config.samples.steps, 1),
    "samples.sigma_max": (config.samples.sigma_max, 1),
    "samples.decode_chunk": (config.samples.decode_chunk, 1),
    "validation_batches": (config.validation_batches, 1),
  }
  for name, (value, smallest) in least.items():
    if value < smallest:
      raise InputError(f"{name} is {value}, wanted a number of at least {smallest}")
  if not 0 < config.samples.sigma_min < config.samples.sigma_max:
    raise InputError(f"samples.sigma_min is {config.samples.sigma_min}, wanted a number above 0 and below sigma_max")
  known = {"dtype": (config.dtype, DTYPES), "remat_policy": (config.remat_policy, _REMAT_POLICIES)}
  for name, (value, choices) in known.items():
    if value is not None and value not in choices:
      raise InputError(f"{name} '{value}' is not known; choose one of {', '.join(choices)}, or none")


def _check_sizes(modules: Networks, vae) -> None:
  """WeightsError where one network gives what another does not take."""
  unet, width = modules.unet, modules.unet.cross_attention_dim
  classes = len(LEVELS) * (len(EMOTIONS) - 1) + 1
  wanted = (
    ("emotion_model", "prior_dim", modules.emotion_embedder.features, "the emotion embedder's features"),
    ("emotion_model", "features", width, "the U-Net's cross_attention_dim"),
    ("emotion_model", "mid_features", unet.block_out_channels[-1], "the U-Net's last of block_out_channels"),
    ("emotion_model", "num_classes", classes, "neutral and each other emotion at every level"),
    ("audio_projection", "features", width, "the U-Net's cross_attention_dim"),
    ("pose_guider", "features", unet.block_out_channels[0], "the U-Net's first of block_out_channels"),
    ("unet", "in_channels", 2 * vae.latent_channels, "latents of the VAE and of the portrait"),
    ("unet", "out_channels", vae.latent_channels, "latents of the VAE"),
  )
  for name, field, right, why in wanted:
    if (found := getattr(getattr(modules, name), field)) != right:
      raise WeightsError(f"networks do not fit each other: {name}'s {field} is {found}, wanted {right}, {why}.")
  halvings = len(modules.pose_guider.block_features) - 1
  if 2**halvings != vae.downscale:
    raise WeightsError(
      f"networks do not fit each other: the pose_guider's block_features halve the size {halvings} times, and the VAE "
      f"makes a latent of {vae.downscale} pixels."
    )
  if len(unet.adapter_scales) != 2:
    raise WeightsError(f"the U-Net has {len(unet.adapter_scales)} adapters, wanted 2, for speech and emotion.")


def _advice(name: str, folder: str) -> str:
  if name == "emotion_embedder":
    how = "train one with `dicetalk train embedder`, and give the weights folder that it ends with"
  elif name == "vae":
    how = "convert the release, or train one with `dicetalk train autoencoder`"
  else:
    how = f"give weights that have it, or its architecture in the configuration's networks['{name}']"
  return f"{folder} has no {name.replace('_', ' ')}; {how}."


def trainable_patterns(config: AdaptationConfig) -> list[str]:
  """The regular expressions of `config.trainable`, names spelt out."""
  return [pattern for name in config.trainable for pattern in TRAINABLE.get(name, (name,))]


def check_trained(params: Mapping) -> None:
  """InputError where what trains has the emotion embedder, which gives the priors and stays as it is."""
  if "emotion_embedder" in params:
    raise InputError(
      "the emotion embedder does not train in this stage, and what is to train names it; begin each regular expression "
      f"with one of {', '.join(LEARNING)}"
    )


def load_params(setup: Setup, seed: int, placement: Placement) -> dict[str, dict]:
  """{network: nested parameters}, each where it belongs: those of the weights, and of what is missing, from `seed`."""
  params = {}

  def draw(name):
    key = network_key(name, seed)
    return initial_params(name, setup.architectures[name], key, lambda shapes: where(name, shapes))

  def where(name, shapes):
    return placement.parameters({name: shapes})[name]

  for name in Networks._fields:
    if name in setup.missing:
      params[name] = draw(name)
    else:
      params[name] = setup.weights.load(name, sharding=functools.partial(where, name))
  if "emotion_model/query" in setup.missing:
    drawn = draw("emotion_model")
    params["emotion_model"]["query"] = drawn["query"]
  if setup.architectures["emotion_model"]["conditioning"] != "learnable":
    params["emotion_model"].pop("query", None)
  return params


def check_batch(setup: Setup, batch: Mapping[str, np.ndarray], config: AdaptationConfig) -> None:
  """Raises InputError where the data was encoded with other networks, or at another size."""
  unet, projection = setup.modules.unet, setup.architectures["audio_projection"]
  embedder = setup.modules.emotion_embedder
  latents, windows = batch["latents_mean"].shape, batch["audio"].shape
  found = {
    "latent channels": (latents[-1], unet.out_channels),
    "values in an image embedding": (batch["image_embedding"].shape[-1], unet.cross_attention_dim),
    "Whisper positions a frame": (windows[2], projection["window"]),
    "Whisper states": (windows[3], projection["states"]),
    "values in a Whisper state": (windows[4], projection["d_model"]),
    "values of speech in the embedder": (batch["speech"].shape[-1], embedder.speech_features),
  }
  for what, (ours, wanted) in found.items():
    if ours != wanted:
      raise InputError(
        f"the data has {ours} {what}, and the weights in {config.weights} want {wanted}; encode the data with these "
        "weights"
      )
  if setup.weights is not None:
    check_encoded_with(setup.weights, (*config.emotional, *config.regular))
  size = tuple(setup.downscale * side for side in latents[2:4])
  if size != (config.size, config.size):
    raise InputError(
      f"the data shows {size[1]}x{size[0]} pixels, and the configuration says size {config.size}; set size, or use "
      "other data"
    )
  factor = 2 ** (len(unet.block_out_channels) - 1)
  if latents[2] % factor:
    raise InputError(
      f"latents of {latents[2]}x{latents[3]} do not fit the U-Net, which halves them {factor.bit_length() - 1} times"
    )


def batch_shapes(setup: Setup, config: AdaptationConfig) -> dict[str, jax.ShapeDtypeStruct]:
  """What `diffusion_batches` would give for a configuration, without data."""
  b, f, n = config.batches.batch, config.batches.frames, config.batches.prior_frames
  side, unet = config.size // setup.downscale, setup.modules.unet
  projection, embedder = setup.architectures["audio_projection"], setup.modules.emotion_embedder
  latents = (side, side, unet.out_channels)
  shapes = {
    "latents_mean": ((b, f, *latents), np.float16),
    "latents_logvar": ((b, f, *latents), np.float16),
    "image_latents": ((b, *latents), np.float16),
    "image_embedding": ((b, unet.cross_attention_dim), np.float16),
    "audio": ((b, f, projection["window"], projection["states"], projection["d_model"]), np.float16),
    "mask_box": ((b, 4), np.float32),
    "image_size": ((b, 2), np.int32),
    "expression": ((b, n, embedder.expression_features), np.float32),
    "expression_mask": ((b, n), np.bool_),
    "speech": ((b, n, embedder.speech_features), np.float32),
    "speech_mask": ((b, n), np.bool_),
    **dict.fromkeys(("emotion", "level", "identity", "clip", "start"), ((b,), np.int32)),
    "valid": ((b,), np.bool_),
  }
  return {name: jax.ShapeDtypeStruct(*of) for name, of in shapes.items()}
