"""From a user's inputs to what the U-Net is conditioned on. The recipe is the release's, step by step."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.errors import InputError
from dicetalk_jax.inference.emotion import Emotion
from dicetalk_jax.media.audio import log_mel
from dicetalk_jax.media.face import FaceDetector, check_box, crop_around, face_mask, find_face
from dicetalk_jax.media.image import clip_pixels, read_image, resize, to_signed, working_size
from dicetalk_jax.vocabulary import MODEL_FPS, SAMPLE_RATE

# Whisper's hidden states come at 50 Hz: one a 320 samples, four a video frame.
_STATES_PER_FRAME = 4
# Frame j sees positions [4j, 4j + 10) of the states with these zeros before and after.
_ZEROS_BEFORE, _ZEROS_AFTER = 4, 6
# Frames are projected to tokens so many at a time: one compilation for every length. Each emotion attends to thousands
# of tokens, and most clips have a single one.
_AUDIO_BATCH, _EMOTION_BATCH = 64, 4
# A strip would be animated at its full length: nobody means that, and it takes all memory.
_LARGEST_RATIO = 4


@dataclasses.dataclass(frozen=True)
class Portrait:
  """A portrait ready to be animated.

  image (h, w, 3) uint8 at working size, mask (h, w) uint8 over the face, box (x, y, w, h) of the face in the original
  (cropped, if asked) image of `original_size` (width, height); faces: how many were found, None where a box was given.
  """

  image: np.ndarray
  mask: np.ndarray
  box: tuple[int, int, int, int]
  original_size: tuple[int, int]
  faces: int | None

  @property
  def signed(self) -> np.ndarray:
    """(h, w, 3) float32 in [-1, 1]: the VAE's input."""
    return to_signed(self.image)

  @property
  def clip_pixels(self) -> np.ndarray:
    """(224, 224, 3) float32: CLIP's input."""
    return clip_pixels(self.image)

  @property
  def face_mask(self) -> np.ndarray:
    """(h, w) float32 in [0, 1]."""
    return self.mask.astype(np.float32) / 255


def prepare_portrait(
  image, size: float = 512, face_box: Sequence[float] | None = None, crop=False, detector: FaceDetector | None = None
) -> Portrait:
  """Reads a portrait, finds its face unless `face_box` (x, y, w, h) is given, crops around it if asked, and resizes.

  Raises InputError for an image that cannot be used or is a strip, no face, a box outside it or a size under 32.
  """
  pixels = read_image(image)
  height, width = pixels.shape[:2]
  faces = None
  if face_box is None:
    face, faces = find_face(pixels, detector)
    box = face.box
  else:
    box = check_box(face_box, width, height)
  if crop:
    pixels, box = crop_around(pixels, box)
    height, width = pixels.shape[:2]
  if max(width, height) > _LARGEST_RATIO * min(width, height):
    raise InputError(
      f"The portrait of {width}x{height} pixels has one side more than {_LARGEST_RATIO} times the other: "
      "give a less narrow picture, or crop it around the face with --crop."
    )
  working = working_size(width, height, size)
  mask = resize(face_mask(height, width, box), working)
  return Portrait(resize(pixels, working), mask, box, (width, height), faces)


def frame_count(samples: int) -> int:
  """Frames at 12.5 a second of a 16 kHz sound (released: the last frame or two of sound get no frame of their own)."""
  return samples // (SAMPLE_RATE // 25) // 2


@functools.partial(jax.jit, static_argnames=("module", "method"))
def _apply(module, params, *inputs, method=None):
  return module.apply({"params": params}, *inputs, method=method)


def whisper_states(module, params, audio: np.ndarray) -> np.ndarray:
  """16 kHz sound (samples,) -> all of Whisper's hidden states at 50 Hz (positions, layers + 1, d).

  Each chunk of 30 s is encoded alone; positions = 2 · (samples // 640).
  """
  mel = log_mel(audio, {"num_mel_bins": module.num_mel_bins})
  states = np.concatenate([np.asarray(_apply(module, params, chunk[None])[0]) for chunk in mel])
  return states[: 2 * (len(audio) // (SAMPLE_RATE // 25))]


def frame_windows(states: np.ndarray, positions: int) -> np.ndarray:
  """Hidden states (n, layers + 1, d) -> each frame's window of them (frames, positions, layers + 1, d)."""
  padded = np.pad(states, ((_ZEROS_BEFORE, _ZEROS_AFTER), (0, 0), (0, 0)))
  starts = _STATES_PER_FRAME * np.arange(len(states) // _STATES_PER_FRAME)
  return padded[starts[:, None] + np.arange(positions)]


def in_batches(function: Callable, rows: np.ndarray, batch: int, dtype) -> jnp.ndarray:
  """function over rows (n, ...) in batches of one shape, joined as `dtype` on the device."""
  results = []
  for first in range(0, len(rows), batch):
    part = rows[first : first + batch]
    padded = np.pad(part, [(0, batch - len(part))] + [(0, 0)] * (part.ndim - 1))
    # Cut and joined on the host, where nothing is compiled anew for each length.
    results.append(np.asarray(function(padded))[: len(part)])
  return jnp.asarray(np.concatenate(results), dtype)


@jax.jit
def _rows(table, index):
  return table[index]


@dataclasses.dataclass(frozen=True)
class TokenTable:
  """Tokens of frames: rows (k, n, d), of which the last is the unconditional one, and each frame's row (N,)."""

  rows: jnp.ndarray
  index: np.ndarray

  @property
  def unconditional(self) -> jnp.ndarray:
    return self.rows[-1]

  def __getitem__(self, frames: np.ndarray) -> jnp.ndarray:
    """Tokens of some frames: indices (...) -> (..., n, d)."""
    return _rows(self.rows, self.index[frames])

  def padded(self, frames: int) -> "TokenTable":
    """The same with unconditional frames after."""
    return TokenTable(self.rows, np.append(self.index, np.full(frames, len(self.rows) - 1)))


def audio_tokens(encoder, encoder_params, projection, projection_params, audio, positions=10, dtype=jnp.float32):
  """16 kHz sound (samples,) -> `TokenTable` of its frames; the unconditional tokens are the projection of zeros."""
  windows = frame_windows(whisper_states(encoder, encoder_params, audio), positions)
  frames = frame_count(len(audio))
  rows = np.concatenate([windows[:frames], np.zeros_like(windows[:1])])
  project = functools.partial(_apply, projection, projection_params)
  return TokenTable(in_batches(project, rows, _AUDIO_BATCH, dtype), np.arange(frames))


@functools.partial(jax.jit, static_argnames=("module", "bank"))
def _emotion_tokens(module, params, priors, bank):
  return module.apply({"params": params}, priors, bank=bank)


def emotion_tokens(module, params, emotion: Emotion, frames: int, bank="all", dtype=jnp.float32) -> TokenTable:
  """`TokenTable` of an emotion at each of `frames`; the unconditional tokens are those of a prior of zeros."""
  priors = emotion.at(np.arange(frames) / MODEL_FPS)
  # An emotion that holds is computed once.
  distinct, index = np.unique(priors, axis=0, return_inverse=True)
  rows = np.concatenate([distinct, np.zeros_like(distinct[:1])])
  project = functools.partial(_emotion_tokens, module, params, bank=bank)
  return TokenTable(in_batches(project, rows, _EMOTION_BATCH, dtype), index.reshape(-1))


def image_conditions(vae, vae_params, encoder, encoder_params, portrait: Portrait):
  """(image latents (h/8, w/8, 4), the VAE's mean, unscaled; CLIP's embedding (1, d)), float32."""
  mean, _ = _apply(vae, vae_params, portrait.signed[None], method="encode")
  embedding = _apply(encoder, encoder_params, portrait.clip_pixels[None])
  return mean[0], embedding.astype(jnp.float32)


def pose_features(module, params, portrait: Portrait) -> jnp.ndarray:
  """The face mask as features at latent size (1, 1, h/8, w/8, c): the same for every frame."""
  mask = np.repeat(portrait.face_mask[None, None, :, :, None], 3, axis=-1)
  return _apply(module, params, mask)
