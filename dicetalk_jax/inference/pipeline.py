"""DiceTalk: a weights folder made into something that talks."""

import functools
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dicetalk_jax.diffusion import guidance, windows
from dicetalk_jax.diffusion.edm import SIGMA_MAX, SIGMA_MIN
from dicetalk_jax.errors import InputError, WeightsError
from dicetalk_jax.inference import conditions
from dicetalk_jax.inference.clips import ClipEmbedder, has_embedder
from dicetalk_jax.inference.decoding import decode_frames, interpolate_frames
from dicetalk_jax.inference.denoising import Constants, Plan, denoise
from dicetalk_jax.inference.emotion import Emotion, resolve_emotion
from dicetalk_jax.inference.video import Video
from dicetalk_jax.media.audio import is_silent, read_audio, read_sound, sound_name
from dicetalk_jax.media.face import FaceDetector
from dicetalk_jax.parallel.mesh import MeshConfig, make_mesh
from dicetalk_jax.parallel.rules import shardings
from dicetalk_jax.vocabulary import DTYPES, MODEL_FPS, SAMPLE_RATE
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import row

BANKS = ("all", "nearest")


class _Released(float):
  """A default of the release, told from the same number that a caller gives."""


class DiceTalk:
  """Makes talking portraits with the networks of a weights folder.

  Networks are read when first needed. `dtype` is what U-Net, VAE and image encoder compute in: bfloat16 on an
  accelerator and float32 on a CPU unless given. With a `mesh` windows and decoding go side by side over its devices,
  and the U-Net's and the VAE's parameters lie on it; where it spans several processes, all of them make the same calls.
  Not safe to share between threads.
  """

  def __init__(self, weights: Weights, dtype=None, mesh: Mesh | None = None):
    self.weights = weights
    self.dtype = _dtype(dtype)
    self.mesh = mesh
    self._params = {}

  @classmethod
  def load(
    cls,
    weights: str | os.PathLike | Weights | None = None,
    dtype=None,
    mesh: str | MeshConfig | Mesh | None = None,
  ) -> "DiceTalk":
    """Opens a weights folder that `dicetalk convert` made; without one, the small weights inside the package.

    mesh: such as "data=8" (see `MeshConfig.parse`), of all devices of all processes; None: this process's first one.
    Raises WeightsError for a folder that is missing, incomplete, damaged or of a newer format, and InputError for a
    mesh that does not fit the devices.
    """
    if isinstance(mesh, str):
      mesh = MeshConfig.parse(mesh)
    if isinstance(mesh, MeshConfig):
      mesh = make_mesh(mesh)
    return cls(weights if isinstance(weights, Weights) else Weights.open(weights or Weights.bundled()), dtype, mesh)

  @property
  def emotions(self) -> list[str]:
    """The labels that `generate` knows."""
    return sorted(self.weights.priors())

  def generate(
    self,
    image,
    audio,
    emotion,
    *,
    face_box: Sequence[float] | None = None,
    crop: bool = False,
    size: float = _Released(512),
    steps: int = _Released(25),
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    window: int = _Released(25),
    shift: int = _Released(7),
    overlap: int = 0,
    identity_scale: float = _Released(3.0),
    audio_scale: float | None = None,
    emotion_scale: float = _Released(6.0),
    bank: str = "all",
    interpolate: bool = True,
    seed: int = 0,
    noise: np.ndarray | None = None,
    dtype=None,
    decode_chunk: int = _Released(10),
    windows_at_once: int = 1,
    detector: FaceDetector | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    show: Callable[[int, np.ndarray], None] | None = None,
  ) -> Video:
    """A video of the person in `image` saying `audio` with `emotion`.

    image: a path, PIL image or array. audio: a path, 16 kHz array or (array, rate). emotion: see `resolve_emotion`.
    face_box: (x, y, w, h) in pixels of the image as it is shown; without it the largest face found.
    crop: to a square around the face first. size: of the shorter side, in pixels. steps: of denoising, from noise of
    sigma_max (the weights', else 700) on; the last one is from sigma_min (the weights', else 0.002) to none.
    window, shift, overlap: frames denoised together, how far windows move each step, frames two windows share.
    identity_scale, audio_scale, emotion_scale: guidance; without an audio_scale speech and emotion share the last.
    Of all these but overlap and audio_scale, and of decode_chunk, what the weights were made for
    (`Weights.generation`) goes before the defaults.
    bank: attend to "all" codes of the emotion bank or to the "nearest". interpolate: 25 frames a second, else 12.5.
    noise (N, h/8, w/8, c) of unit variance replaces `seed`. dtype: for this and later calls. decode_chunk: frames the
    VAE decodes together. windows_at_once: windows side by side on a device, 0 for all; changes memory and speed only.
    progress(stage, done, total) is called along the way, while denoising after each group of windows; what it raises
    ends the call. show(first, frames) is given frames (n, height, width, 3) as they are decoded, and the first's place.
    Raises InputError for what cannot be used, and WeightsError for weights that cannot make it, before anything slow
    has begun.
    """
    given = dict(size=size, steps=steps, window=window, shift=shift, decode_chunk=decode_chunk)
    given |= dict(identity_scale=identity_scale, emotion_scale=emotion_scale)
    own = self.weights.generation
    size, steps, window, shift, decode_chunk, identity_scale, emotion_scale = (
      getattr(own, name) if isinstance(value, _Released) else value for name, value in given.items()
    )
    sigma_max = own.sigma_max if sigma_max is None else sigma_max
    sigma_min = own.sigma_min if sigma_min is None else sigma_min
    plan = self.plan(steps, window, shift, overlap, windows_at_once, sigma_max, sigma_min)
    self._check(bank, decode_chunk, identity_scale, audio_scale, emotion_scale, seed)
    if interpolate:
      self._check_interpolator()
    if dtype is not None and (dtype := _dtype(dtype)) != self.dtype:
      self.dtype, self._params = dtype, {}
    resolved, notes = self._resolve_emotion(emotion)
    portrait = conditions.prepare_portrait(image, size, face_box, crop, detector)
    if isinstance(audio, np.ndarray | jax.Array | list):
      audio = np.asarray(audio), SAMPLE_RATE
    sound, rate = read_sound(audio)
    heard = []
    speech = read_audio((sound, rate), name=sound_name(audio), notes=heard)
    frames = conditions.frame_count(len(speech))
    noise = _noise(noise, seed, self._latent_shape(frames + window, portrait))
    report = progress or (lambda stage, done, total: None)
    branches, scales = guidance.needed(
      guidance.branches(audio_scale), guidance.scales(identity_scale, emotion_scale, audio_scale)
    )

    with jax.default_matmul_precision("highest" if self.dtype == jnp.float32 else "default"):
      report("encoding", 0, 4)
      constants, audio_table, emotion_table = self._conditions(portrait, speech, resolved, frames, bank, report)
      latents = denoise(
        self.weights.module("unet", self.dtype),
        self._load("unet", self.mesh),
        noise,
        audio_table.padded(window),
        emotion_table.padded(window),
        constants,
        plan,
        scales,
        branches,
        self._vae.scaling_factor,
        functools.partial(report, "denoising"),
        self.mesh,
      )
      decoding = functools.partial(report, "decoding")
      pictures = decode_frames(
        self._vae, self._load("vae", self.mesh), latents, frames, decode_chunk, decoding, self.mesh, show
      )
      if interpolate:
        pictures = interpolate_frames(
          self.weights.module("frame_interpolator"),
          self._load("frame_interpolator"),
          pictures,
          functools.partial(report, "interpolating"),
        )
    return Video(
      frames=pictures,
      fps=2 * MODEL_FPS if interpolate else MODEL_FPS,
      latents=np.asarray(latents),
      audio=sound,
      sample_rate=rate,
      portrait_size=portrait.original_size,
      notes=(*notes, *heard, *_notes(portrait, speech)),
    )

  def resolve_emotion(self, emotion) -> Emotion:
    """Whatever may be given as an emotion, with these weights' label priors and their embedder, if they have one."""
    return self._resolve_emotion(emotion)[0]

  def _resolve_emotion(self, emotion) -> tuple[Emotion, list[str]]:
    clips = ClipEmbedder(self.weights, self._load) if has_embedder(self.weights) else None
    size = self.weights.module("emotion_model").prior_dim
    resolved = resolve_emotion(emotion, self.weights.priors(), size, clips.prior if clips else None)
    return resolved, clips.notes if clips else []

  def _conditions(self, portrait, speech, emotion, frames, bank, report):
    # The image's and the face's conditions are the same for all frames, padding included.
    vae, encoder = self._vae, self.weights.module("image_encoder", self.dtype)
    image_latents, image_token = conditions.image_conditions(
      vae, self._load("vae"), encoder, self._load("image_encoder"), portrait
    )
    report("encoding", 1, 4)
    pose = conditions.pose_features(self.weights.module("pose_guider"), self._load("pose_guider"), portrait)
    report("encoding", 2, 4)
    audio_table = conditions.audio_tokens(
      self.weights.module("audio_encoder"),
      self._load("audio_encoder"),
      self.weights.module("audio_projection"),
      self._load("audio_projection"),
      speech,
      self.weights.config["networks"]["audio_projection"]["window"],
      self.dtype,
    )
    report("encoding", 3, 4)
    emotion_table = conditions.emotion_tokens(
      self.weights.module("emotion_model"), self._load("emotion_model"), emotion, frames, bank, self.dtype
    )
    constants = Constants(
      image_latents=image_latents,
      image_token=image_token,
      audio=audio_table.unconditional,
      emotion=emotion_table.unconditional,
      pose_features=pose.astype(self.dtype),
      face_mask=jnp.asarray(portrait.face_mask)[None],
    )
    report("encoding", 4, 4)
    return constants, audio_table, emotion_table

  def _latent_shape(self, frames, portrait):
    height, width = portrait.mask.shape
    return frames, height // self._vae.downscale, width // self._vae.downscale, self._vae.latent_channels

  @property
  def _vae(self):
    return self.weights.module("vae", self.dtype)

  def _load(self, network, mesh=None):
    if (network, mesh) not in self._params:
      dtype = jnp.float32 if row(network).float32 else self.dtype
      sharding = (lambda shapes: shardings({network: shapes}, mesh)[network]) if mesh else None
      self._params[network, mesh] = self.weights.load(network, dtype, sharding)
    return self._params[network, mesh]

  def plan(self, steps=25, window=25, shift=7, overlap=0, group=1, sigma_max=None, sigma_min=None) -> Plan:
    """How a video is denoised with these weights; InputError for numbers that cannot be used."""
    _whole("steps", steps, 1)
    _whole("window", window, 1)
    _whole("shift", shift, 0)
    _whole("overlap", overlap, 0)
    _whole("windows_at_once", group, 0)
    try:
      windows.check(window, shift, overlap)
    except ValueError as error:
      raise InputError(f"{error}.") from None
    sampler = self.weights.config.get("sampler", {})
    noise_levels = {name: sampler[name] for name in ("sigma_min", "sigma_max") if sampler.get(name) is not None}
    noise_levels |= {
      name: value for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)) if value is not None
    }
    least, most = noise_levels.get("sigma_min", SIGMA_MIN), noise_levels.get("sigma_max", SIGMA_MAX)
    if sigma_min is not None and (not _finite(sigma_min) or sigma_min <= 0):
      raise InputError(f"sigma_min {sigma_min} cannot be used: give a noise level above 0, such as 0.002 or 0.1.")
    if (sigma_min, sigma_max) != (None, None) and (not _finite(most) or most <= least):
      raise InputError(f"sigma_max {most} cannot be used: give a noise level above {least}, such as 30 or 700.")
    return Plan(steps, window, shift, overlap, group, **noise_levels)

  def _check_interpolator(self):
    if "frame_interpolator" not in self.weights.config["networks"]:
      raise WeightsError(
        f"{self.weights.folder} has no frame_interpolator, which 25 frames a second need; give weights with one, "
        "or make 12.5 a second with --no-interpolate (interpolate=False)."
      )

  @staticmethod
  def _check(bank, decode_chunk, identity_scale, audio_scale, emotion_scale, seed):
    _whole("decode_chunk", decode_chunk, 1)
    # Beyond 32 bits jax.random.key would silently begin again at 0.
    _whole("seed", seed, 0, 2**32 - 1)
    if bank not in BANKS:
      raise InputError(f"bank {bank!r} is not known; choose one of {', '.join(BANKS)}.")
    scales = {"identity_scale": identity_scale, "audio_scale": audio_scale, "emotion_scale": emotion_scale}
    for name, scale in scales.items():
      if not (scale is None and name == "audio_scale") and not _finite(scale):
        raise InputError(f"{name} {scale} is not a finite number; give one such as 3 or 6.")


def _notes(portrait, speech) -> tuple[str, ...]:
  notes = []
  if portrait.faces and portrait.faces > 1:
    box = " ".join(map(str, portrait.box))
    notes.append(f"{portrait.faces} faces were found; the largest, at {box}, speaks (another: --face-box X Y W H).")
  if is_silent(speech):
    notes.append("The audio is silent: the mouth will have nothing to follow.")
  return tuple(notes)


def _noise(noise, seed, shape):
  if noise is None:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)
  noise = np.asarray(noise)
  if noise.shape != shape or noise.dtype.kind != "f" or not np.isfinite(noise).all():
    raise InputError(
      f"noise {noise.shape} {noise.dtype} cannot be used: this video wants finite floats of shape {shape}, "
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
