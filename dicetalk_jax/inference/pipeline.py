"""DiceTalk: generates videos with the networks of a weights folder."""

import copy
import functools
import os
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dicetalk_jax.config import GenerationConfig, resolve
from dicetalk_jax.diffusion import guidance, windows
from dicetalk_jax.diffusion.samplers import Sampler, euler
from dicetalk_jax.errors import InputError, WeightsError
from dicetalk_jax.inference.clips import ClipEmbedder, has_embedder
from dicetalk_jax.inference.conditions import EMOTION, conditions_of, frame_count, token_table
from dicetalk_jax.inference.decoding import decode_frames, interpolate_frames
from dicetalk_jax.inference.denoising import denoise
from dicetalk_jax.inference.emotion import Emotion, resolve_emotion
from dicetalk_jax.inference.portrait import portrait_conditions, prepare_portrait
from dicetalk_jax.inference.video import Video
from dicetalk_jax.media.audio import is_silent, read_audio, read_sound, sound_name
from dicetalk_jax.media.face import FaceDetector
from dicetalk_jax.parallel.mesh import MeshConfig, make_mesh
from dicetalk_jax.parallel.rules import shardings
from dicetalk_jax.vocabulary import DTYPES, MODEL_FPS, SAMPLE_RATE
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import row

BANKS = ("all", "nearest")


class DiceTalk:
  """Generates talking portraits with the networks of a weights folder.

  weights: an opened folder. dtype: of the U-Net, the VAE and the image encoder; default: bfloat16 on an accelerator,
  float32 on a CPU. mesh: windows and decoding run side by side over its devices, which also hold the parameters of
  U-Net and VAE. If it spans several processes, all of them make the same calls.
  networks: Flax modules that replace those of the weights, by name. params: their parameters, nested; a network that is
  not in `params` takes the parameters in the weights. What an emotion model must have: `models.emotion_bank`.

  Parameters are read when first needed. Not safe to share between threads.
  """

  def __init__(
    self,
    weights: Weights,
    dtype=None,
    mesh: Mesh | None = None,
    networks: Mapping[str, nn.Module] | None = None,
    params: Mapping[str, Mapping] | None = None,
  ):
    self.weights = weights
    self.dtype = _dtype(dtype)
    self.mesh = mesh
    self.networks = dict(networks or {})
    self._given = dict(params or {})
    self._params = {}

  @classmethod
  def load(
    cls,
    weights: str | os.PathLike | Weights | None = None,
    dtype=None,
    mesh: str | MeshConfig | Mesh | None = None,
    **options,
  ) -> "DiceTalk":
    """Opens a weights folder made by `dicetalk convert`. Default: the small weights inside the package.

    mesh: all devices of all processes, such as "data=8" (see `MeshConfig.parse`); None: this process's first device.
    options: as for `DiceTalk`. Raises WeightsError for a folder that is missing, incomplete, damaged or of a newer
    format, and InputError for a mesh that does not fit the devices.
    """
    if isinstance(mesh, str):
      mesh = MeshConfig.parse(mesh)
    if isinstance(mesh, MeshConfig):
      mesh = make_mesh(mesh)
    if not isinstance(weights, Weights):
      weights = Weights.open(weights or Weights.bundled())
    return cls(weights, dtype, mesh, **options)

  @property
  def emotions(self) -> list[str]:
    """The emotion labels that `generate` knows."""
    return sorted(self.weights.priors())

  def settings(self, **settings) -> GenerationConfig:
    """The settings that `generate` uses with these weights; None: the weights' own value, else the release's.

    Raises InputError for a value that cannot be used, and TypeError for a name that is not a setting.
    """
    config = resolve(self.weights.generation, **settings)
    _check(config)
    return config

  def generate(
    self,
    image,
    audio,
    emotion=None,
    *,
    inputs: Mapping | None = None,
    noise: np.ndarray | None = None,
    detector: FaceDetector | None = None,
    sampler: Sampler = euler,
    progress: Callable[[str, int, int], None] | None = None,
    show: Callable[[int, np.ndarray], None] | None = None,
    **settings,
  ) -> Video:
    """Generates a video of the person in `image` saying `audio` with `emotion`.

    image: a path, PIL image or array. audio: a path, 16 kHz array or (array, rate). emotion: see `resolve_emotion`.
    settings: fields of `GenerationConfig` (face_box, crop, size, steps, window, shift, overlap, identity_scale,
    audio_scale, emotion_scale, bank, interpolate, seed, dtype, decode_chunk, …). A setting that is None or left out
    takes the weights' own value, else the release's; `settings()` shows it. dtype: of this call; the parameters in both
    types stay in memory.
    inputs: of further conditions of the weights, by name (see `inference.conditions`).
    noise (N, h/8, w/8, c) of unit variance replaces `seed`. sampler: see `diffusion.samplers`.
    progress(stage, done, total) is called along the way, while denoising after each group of windows; an exception
    in it ends the call. show(first, frames) receives frames (n, height, width, 3) as they are decoded, and the
    index of the first.
    Raises InputError for inputs and settings that cannot be used, and WeightsError for weights that lack a network,
    before the slow part starts.
    """
    config = self.settings(**settings)
    talker = copy.copy(self)  # with the same cache of parameters
    talker.dtype = _dtype(settings.get("dtype") or self.dtype)
    return talker._generate(
      config, image, audio, {"emotion": emotion} | dict(inputs or {}), noise, detector, sampler, progress, show
    )

  def _generate(self, config, image, audio, inputs, noise, detector, sampler, progress, show):
    if config.interpolate:
      self._check_interpolator()
    conditions, notes = conditions_of(self.weights.config), []
    _check_inputs(inputs, conditions)
    if EMOTION in conditions:
      inputs["emotion"], notes = self._resolve_emotion(inputs["emotion"])
    portrait = prepare_portrait(image, config.size, config.face_box, config.crop, detector)
    if isinstance(audio, np.ndarray | jax.Array | list):
      audio = np.asarray(audio), SAMPLE_RATE
    sound, rate = read_sound(audio)
    inputs["audio"] = speech = read_audio((sound, rate), name=sound_name(audio), notes=notes)
    frames, vae = frame_count(len(speech)), self.module("vae")
    height, width = (side // vae.downscale for side in portrait.mask.shape)
    noise = _noise(noise, config.seed, (frames + config.window, height, width, vae.latent_channels))
    report = progress or (lambda stage, done, total: None)

    with jax.default_matmul_precision("highest" if self.dtype == jnp.float32 else "default"):
      parts = 2 + len(conditions)
      report("encoding", 0, parts)
      constants = portrait_conditions(self, portrait, lambda done: report("encoding", done, parts))
      tables = []
      for done, condition in enumerate(conditions, start=3):
        tables.append(token_table(self, condition, inputs[condition.name], frames, config).padded(config.window))
        report("encoding", done, parts)
      latents = denoise(
        self.module("unet"),
        self.params("unet", self.mesh),
        noise,
        tables,
        constants,
        config,
        guidance.of_settings(config, conditions),
        vae.scaling_factor,
        sampler,
        functools.partial(report, "denoising"),
        self.mesh,
      )
      decoding, params = functools.partial(report, "decoding"), self.params("vae", self.mesh)
      pictures = decode_frames(vae, params, latents, frames, config.decode_chunk, decoding, self.mesh, show)
      if config.interpolate:
        interpolator, params = self.module("frame_interpolator"), self.params("frame_interpolator")
        pictures = interpolate_frames(interpolator, params, pictures, functools.partial(report, "interpolating"))
    return Video(
      frames=pictures,
      fps=2 * MODEL_FPS if config.interpolate else MODEL_FPS,
      latents=np.asarray(latents),
      audio=sound,
      sample_rate=rate,
      portrait_size=portrait.original_size,
      notes=(*notes, *_notes(portrait, speech)),
    )

  def resolve_emotion(self, emotion) -> Emotion:
    """What `generate` takes as an emotion -> `Emotion`, with the label priors and the embedder of these weights."""
    return self._resolve_emotion(emotion)[0]

  def _resolve_emotion(self, emotion) -> tuple[Emotion, list[str]]:
    clips = ClipEmbedder(self.weights, self.params) if has_embedder(self.weights) else None
    size = self.module("emotion_model").prior_dim
    emotion = resolve_emotion(emotion, self.weights.priors(), size, clips.prior if clips else None)
    return emotion, clips.notes if clips else []

  def architecture(self, name: str) -> Mapping:
    """A network's sizes, as config.json has them."""
    return self.weights.config["networks"][name]

  def module(self, name: str) -> nn.Module:
    """A network's module."""
    return self.networks.get(name) or self.weights.module(name, self._dtype_of(name))

  def params(self, name: str, mesh: Mesh | None = None) -> dict:
    """A network's parameters, read once per data type, on this process's first device or over `mesh`."""
    if name in self._given:
      return self._given[name]
    key = name, self._dtype_of(name), mesh
    if key not in self._params:
      sharding = (lambda shapes: shardings({name: shapes}, mesh)[name]) if mesh else None
      self._params[key] = self.weights.load(name, self._dtype_of(name), sharding)
    return self._params[key]

  def _dtype_of(self, name):
    return jnp.dtype(jnp.float32) if row(name).float32 else self.dtype

  def _check_interpolator(self):
    if "frame_interpolator" not in self.weights.config["networks"]:
      raise WeightsError(
        f"{self.weights.folder} has no frame_interpolator, which 25 frames per second need. Give weights with one, "
        "or generate 12.5 frames per second with --no-interpolate (interpolate=False)."
      )


def _check(config: GenerationConfig):
  for name, least in (("steps", 1), ("window", 1), ("shift", 0), ("overlap", 0), ("windows_at_once", 0)):
    _whole(name, getattr(config, name), least)
  try:
    windows.check(config.window, config.shift, config.overlap)
  except ValueError as error:
    raise InputError(f"{error}.") from None
  if not _finite(config.sigma_min) or config.sigma_min <= 0:
    raise InputError(f"sigma_min {config.sigma_min} cannot be used: give a noise level above 0, such as 0.002 or 0.1.")
  if not _finite(config.sigma_max) or config.sigma_max <= config.sigma_min:
    raise InputError(
      f"sigma_max {config.sigma_max} cannot be used: give a noise level above {config.sigma_min}, such as 30 or 700."
    )
  _whole("decode_chunk", config.decode_chunk, 1)
  # Beyond 32 bits jax.random.key would wrap around silently.
  _whole("seed", config.seed, 0, 2**32 - 1)
  if config.bank not in BANKS:
    raise InputError(f"bank {config.bank!r} is not known; choose one of {', '.join(BANKS)}.")
  for name in ("identity_scale", "audio_scale", "emotion_scale"):
    scale = getattr(config, name)
    if not (scale is None and name == "audio_scale") and not _finite(scale):
      raise InputError(f"{name} {scale} is not a finite number; give one such as 3 or 6.")


def _check_inputs(inputs: Mapping, conditions):
  """InputError for an input that no condition takes, and for a condition of one's own without its input."""
  names = [condition.name for condition in conditions]
  for name, value in inputs.items():
    if value is not None and (name not in names or name == "audio"):
      raise InputError(f"These weights take no input {name!r}; their conditions are {', '.join(names)}.")
  for name in names:
    if name not in ("audio", "emotion") and inputs.get(name) is None:
      raise InputError(f"These weights need an input {name!r}; give inputs={{{name!r}: …}}.")


def _notes(portrait, speech) -> tuple[str, ...]:
  notes = []
  if portrait.faces and portrait.faces > 1:
    box = " ".join(map(str, portrait.box))
    notes.append(f"{portrait.faces} faces were detected; the largest, at {box}, is used (another: --face-box X Y W H).")
  if is_silent(speech):
    notes.append("The audio is silent: the mouth has nothing to follow.")
  return tuple(notes)


def _noise(noise, seed, shape):
  if noise is None:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)
  noise = np.asarray(noise)
  if noise.shape != shape or noise.dtype.kind != "f" or not np.isfinite(noise).all():
    raise InputError(
      f"noise {noise.shape} {noise.dtype} cannot be used: this video needs finite floats of shape {shape} "
      "(frames and one window of padding, height/8, width/8, channels)."
    )
  return jnp.asarray(noise, jnp.float32)


def _dtype(dtype):
  if dtype is None:
    return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
  try:
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
  except TypeError:
    name = repr(dtype)
  if name not in DTYPES:
    raise InputError(f"dtype {name} is not supported; choose one of {', '.join(DTYPES)}.")
  return jnp.dtype(name)


def _whole(name, value, least, most=None):
  if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
    raise InputError(f"{name} {value} cannot be used: it must be a whole number of at least {least}.")
  if most is not None and value > most:
    raise InputError(f"{name} {value} cannot be used: it must be at most {most}.")


def _finite(value):
  return isinstance(value, int | float | np.number) and bool(np.isfinite(value))
