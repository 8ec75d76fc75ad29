"""Networks of the adaptation: modules, initial parameters, and checks that they fit each other and the data."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.data.encode.networks import check_encoded_with
from dicetalk_jax.errors import InputError, WeightsError
from dicetalk_jax.inference.conditions import AUDIO, EMOTION, Condition, conditions_of
from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.training.adaptation_loss import drops
from dicetalk_jax.training.config import TRAINABLE, AdaptationConfig, check_least
from dicetalk_jax.training.state import split
from dicetalk_jax.vocabulary import DTYPES, EMOTIONS, LEVELS
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.initial import init_params, network_key
from dicetalk_jax.weights.networks import build, network_shapes, row


@dataclasses.dataclass(frozen=True)
class Setup:
  """The networks of an adaptation run. `weights` is None if there are only architectures.

  modules: {network: module}. conditions: in the order of the U-Net's adapters. architectures: of `modules` and the VAE,
  as in a weights folder's config.json. dtype: of the U-Net's computation, and of its parameters if they are frozen; the
  other networks are small and compute in float32, as in inference.
  missing: networks, or single parameters "network/path", that start untrained. replaced: networks whose module is a
  caller's own.
  """

  modules: Mapping[str, nn.Module]
  conditions: tuple[Condition, ...]
  architectures: Mapping[str, Mapping]
  scaling_factor: float
  downscale: int
  dtype: jnp.dtype
  weights: Weights | None
  missing: tuple[str, ...]
  replaced: tuple[str, ...] = ()

  @property
  def shapes(self) -> dict[str, dict]:
    """Abstract float32 parameters: {network: nested}."""
    return {
      name: network_shapes(name, self.architectures[name], module if name in self.replaced else None)
      for name, module in self.modules.items()
    }

  def is_standard(self, name: str) -> bool:
    """Whether a module has the parameters of the network's architecture."""
    architecture = self.architectures[name]
    return network_shapes(name, architecture, self.modules[name]) == network_shapes(name, architecture)

  def with_remat(self, remat: bool | str) -> "Setup":
    """The same networks with another `remat` of the U-Net."""
    return dataclasses.replace(self, modules=self.modules | {"unet": self.modules["unet"].clone(remat=remat)})

  @property
  def learning(self) -> tuple[str, ...]:
    """The networks that may train."""
    return tuple(name for name in self.modules if row(name).trains)


def set_up(
  config: AdaptationConfig, needs_weights: bool = True, networks: Mapping[str, nn.Module] | None = None
) -> Setup:
  """Reads the architectures of an adaptation run, but no parameters.

  needs_weights=False: the weights may be absent if `config.networks` has every architecture. networks: modules that
  replace those of the weights; a module with other parameters starts untrained. Raises InputError for settings that
  cannot be used, and WeightsError for weights that are not a weights folder, lack a network, or have networks whose
  sizes do not fit each other.
  """
  _check(config, (AUDIO, EMOTION))
  weights, held = None, {}
  try:
    if not config.weights:
      raise WeightsError("weights is empty; give the weights folder that the data was encoded with.")
    weights = Weights.open(config.weights)
    held = dict(weights.config["networks"])
  except WeightsError:
    if needs_weights or not config.networks or (config.weights and pathlib.Path(config.weights).expanduser().exists()):
      raise
  architectures = dict(config.networks) | held
  if "unet" not in architectures:
    raise WeightsError(_advice("unet", config.weights))
  conditions = conditions_of((weights.config if weights else {}) | {"networks": architectures})
  _check(config, conditions)
  tokens, frozen = [each.network for each in conditions], [name for each in conditions for name in each.needs]
  names = ("unet", *tokens, "pose_guider", *frozen)
  learning = [name for name in names if row(name).trains]
  if unknown := sorted(set(networks or ()) - set(names)):
    raise InputError(f"networks has {unknown[0]!r}; the names are {', '.join(names)}")
  for name in (*names, "vae"):
    if name not in (architectures if name in learning or not needs_weights else held):
      raise WeightsError(_advice(name, config.weights))
  missing = [name for name in learning if name not in held]
  if EMOTION in conditions:
    emotion_model = architectures[EMOTION.network]
    architectures[EMOTION.network] = dict(emotion_model) | {"conditioning": config.conditioning}
    has_query = emotion_model.get("conditioning") == "learnable"
    if config.conditioning == "learnable" and EMOTION.network in held and not has_query:
      missing.append("emotion_model/query")

  on_cpu = jax.default_backend() == "cpu"
  dtype = jnp.dtype(config.dtype or ("float32" if on_cpu else "bfloat16"))
  modules = {name: build(name, architectures[name], dtype if name == "unet" else jnp.float32) for name in names}
  for name, module in (networks or {}).items():
    modules[name] = module
    if network_shapes(name, architectures[name], module) != network_shapes(name, architectures[name]):
      missing = [*(other for other in missing if other.split("/")[0] != name), name]
  modules["unet"] = modules["unet"].clone(remat=config.remat)
  vae = build("vae", architectures["vae"])
  _check_sizes(modules, conditions, vae)
  architectures = {name: architectures[name] for name in (*names, "vae")}
  return Setup(
    modules,
    conditions,
    architectures,
    vae.scaling_factor,
    vae.downscale,
    dtype,
    weights,
    tuple(missing),
    tuple(networks or ()),
  )


def _check(config: AdaptationConfig, conditions: Sequence[Condition]) -> None:
  """InputError for settings that would fail only during training, or never."""
  objective, settings = config.objective, config.samples.generation
  shares = drops(conditions, objective) | {"all": objective.drop_all}
  # Shares such as 0.85 and three times 0.05 may not add up to exactly 1.
  if min(shares.values()) < 0 or sum(shares.values()) > 1 + 1e-9:
    text = ", ".join(f"drop_{name} {share}" for name, share in shares.items())
    raise InputError(f"{text} cannot be used: they are shares of the samples, and may sum to at most 1")
  zero = ("objective.emotion_weight", "objective.sigma_std", "samples.clips")
  one = ("steps", "sigma_max", "decode_chunk")
  check_least(config, dict.fromkeys(zero, 0) | {"validation_batches": 1})
  check_least(settings, dict.fromkeys(one, 1), "samples.generation.")
  if not 0 < settings.sigma_min < settings.sigma_max:
    raise InputError(f"samples.generation.sigma_min is {settings.sigma_min}; give a number above 0 and below sigma_max")
  if config.dtype not in (None, *DTYPES):
    raise InputError(f"dtype '{config.dtype}' is unknown; choose one of {', '.join(DTYPES)}, or none")


def _check_sizes(modules: Mapping[str, nn.Module], conditions: Sequence[Condition], vae) -> None:
  """WeightsError where the output of one network does not fit another. A module may lack the attributes."""
  unet = modules["unet"]
  width, classes = unet.cross_attention_dim, len(LEVELS) * (len(EMOTIONS) - 1) + 1
  wanted = [(each.network, "features", width, "the U-Net's cross_attention_dim") for each in conditions]
  wanted += [
    ("pose_guider", "features", unet.block_out_channels[0], "the U-Net's first of block_out_channels"),
    ("unet", "in_channels", 2 * vae.latent_channels, "latents of the VAE and of the portrait"),
    ("unet", "out_channels", vae.latent_channels, "latents of the VAE"),
  ]
  if EMOTION in conditions:
    wanted += [
      (EMOTION.network, "prior_dim", modules["emotion_embedder"].features, "the emotion embedder's features"),
      (EMOTION.network, "mid_features", unet.block_out_channels[-1], "the U-Net's last of block_out_channels"),
      (EMOTION.network, "num_classes", classes, "neutral and each other emotion at every level"),
    ]
  for name, field, right, why in wanted:
    if (size := getattr(modules[name], field, right)) != right:
      raise WeightsError(f"networks do not fit each other: {name}'s {field} is {size}, wanted {right}, {why}.")
  halvings = len(modules["pose_guider"].block_features) - 1
  if 2**halvings != vae.downscale:
    raise WeightsError(
      f"networks do not fit each other: the pose_guider's block_features halve the size {halvings} times, and the VAE "
      f"makes a latent of {vae.downscale} pixels."
    )


def _advice(name: str, folder: str) -> str:
  if name == "emotion_embedder":
    advice = "train one with `dicetalk train embedder`, and use the weights folder that it writes"
  elif name == "vae":
    advice = "convert the release, or train one with `dicetalk train autoencoder`"
  else:
    advice = f"use weights that have it, or give its architecture in the configuration's networks['{name}']"
  return f"{folder} has no {name.replace('_', ' ')}; {advice}."


def split_trained(setup: Setup, config: AdaptationConfig, params: Mapping) -> tuple[dict, dict]:
  """`split` of {network: nested parameters} by `config.trainable`.

  Raises InputError where that matches nothing, or a network that is frozen in this stage, such as the emotion embedder.
  """
  patterns = [pattern for name in config.trainable for pattern in TRAINABLE.get(name, (name,))]
  trained, frozen = split(params, patterns)
  if wrong := [name for name in trained if name not in setup.learning]:
    raise InputError(
      f"the {wrong[0].replace('_', ' ')} does not train in this stage, and `trainable` matches it; begin each regular "
      f"expression with one of {', '.join(setup.learning)}"
    )
  return trained, frozen


def load_params(setup: Setup, seed: int, placement: Placement) -> dict[str, dict]:
  """{network: nested parameters}, placed: those of the weights; initial ones, from `seed`, for what is missing."""
  params = {}

  def draw(name):
    key = network_key(name, seed)
    module = setup.modules[name] if name in setup.replaced else None
    return init_params(name, setup.architectures[name], key, lambda shapes: where(name, shapes), module)

  def where(name, shapes):
    return placement.parameters({name: shapes})[name]

  for name in setup.modules:
    if name in setup.missing:
      params[name] = draw(name)
    else:
      params[name] = setup.weights.load(name, sharding=functools.partial(where, name))
  if "emotion_model/query" in setup.missing:
    drawn = draw("emotion_model")
    params["emotion_model"]["query"] = drawn["query"]
  if setup.architectures.get("emotion_model", {}).get("conditioning") != "learnable":
    params.get("emotion_model", {}).pop("query", None)
  return params


def check_batch(setup: Setup, batch: Mapping[str, np.ndarray], config: AdaptationConfig) -> None:
  """Raises InputError for data that was encoded with other networks, or at another size."""
  unet, projection = setup.modules["unet"], setup.architectures["audio_projection"]
  embedder = setup.modules["emotion_embedder"]
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
      f"the data has {size[1]}x{size[0]} pixels, and the configuration has size {config.size}; set size, or use other "
      "data"
    )
  factor = 2 ** (len(unet.block_out_channels) - 1)
  if latents[2] % factor:
    raise InputError(
      f"latents of {latents[2]}x{latents[3]} do not fit the U-Net; give a size whose latents divide by {factor}"
    )


def batch_shapes(setup: Setup, config: AdaptationConfig) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of `diffusion_batches` for a configuration, without data."""
  b, f, n = config.batches.batch, config.batches.frames, config.batches.prior_frames
  side, unet = config.size // setup.downscale, setup.modules["unet"]
  projection, embedder = setup.architectures["audio_projection"], setup.modules["emotion_embedder"]
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
