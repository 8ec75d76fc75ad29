"""A visitor's portrait, speech and clip, read by the command line's readers within the server's limits."""

import base64
import contextlib
import dataclasses
import io
import warnings

import av
import numpy as np
import soundfile
from PIL import Image

from dicetalk_jax.app.limits import MEGA, Limits
from dicetalk_jax.app.uploads import Upload
from dicetalk_jax.errors import InputError
from dicetalk_jax.files import existing_file
from dicetalk_jax.inference.recordings import is_recording
from dicetalk_jax.media.audio import is_silent, read_audio
from dicetalk_jax.media.containers import decoded, open_sound
from dicetalk_jax.media.expression import SUFFIXES as COEFFICIENTS
from dicetalk_jax.media.face import FaceDetector, HaarDetector
from dicetalk_jax.media.image import read_image, resize
from dicetalk_jax.vocabulary import SAMPLE_RATE
from dicetalk_jax.weights.priors import SUFFIXES as PRIORS
from dicetalk_jax.weights.priors import read_prior

# Of the picture that the page draws boxes on.
_PREVIEW_SIDE = 640
# Bars of the waveform.
PEAKS = 240


@dataclasses.dataclass(frozen=True)
class PortraitView:
  """A portrait as the page shows it: size as displayed, faces (x, y, w, h) with the largest first, a small JPEG."""

  width: int
  height: int
  faces: list[tuple[int, int, int, int]]
  preview: str


@dataclasses.dataclass(frozen=True)
class SpeechView:
  """A sound as the page shows it: seconds, peaks (PEAKS,) in [0, 1], and whether it is silent."""

  seconds: float
  peaks: list[float]
  silent: bool


def read_portrait(upload: Upload, limits: Limits, detector: FaceDetector | None = None) -> PortraitView:
  """Reads a portrait and finds its faces, which may be none. Raises InputError where it cannot be used."""
  with _checked(upload, "portrait", limits):
    _check_pixels(upload, limits)
    pixels = read_image(upload.path)
  faces = sorted((detector or HaarDetector())(pixels), key=lambda face: -face.area)
  height, width = pixels.shape[:2]
  return PortraitView(width, height, [face.box for face in faces], thumbnail(pixels, _PREVIEW_SIDE))


def read_speech(upload: Upload, limits: Limits) -> SpeechView:
  """Reads a sound; InputError where it cannot be used or is too long."""
  with _checked(upload, "audio", limits):
    _check_length(upload, limits)
    sound = read_audio(upload.path)
  seconds = len(sound) / SAMPLE_RATE
  _check_seconds(upload, seconds, limits)
  return SpeechView(seconds, _peaks(sound), is_silent(sound))


def check_clip(upload: Upload, limits: Limits, prior_size: int, embeds: bool):
  """Raises InputError for a file without an emotion: priors are read, of clips the length is checked.

  embeds: whether the weights have an emotion embedder.
  """
  with _checked(upload, "clip", limits):
    if not is_recording(upload.path, prior_size):
      if upload.path.suffix.lower() not in PRIORS:
        raise InputError(
          f"the file {upload.name} is not a clip: give a video, a sound, expression coefficients or a prior file"
        )
      read_prior(upload.path, prior_size)
    elif not embeds:
      raise InputError("taking an emotion from a clip needs weights with an emotion embedder; these have none")
    elif upload.path.suffix.lower() not in (*COEFFICIENTS, *PRIORS):
      _check_length(upload, limits)


def thumbnail(pixels: np.ndarray, side: int, quality=85) -> str:
  """uint8 (h, w, 3) -> a data URL of a JPEG with sides of at most `side` pixels."""
  height, width = pixels.shape[:2]
  if (scale := side / max(height, width)) < 1:
    pixels = resize(pixels, (max(1, round(width * scale)), max(1, round(height * scale))))
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG", quality=quality)
  return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def with_own_name(text: str, upload: Upload) -> str:
  """An error's text as a sentence, with the visitor's name of a file instead of the server's path."""
  text = text.replace(str(upload.path), upload.name)
  return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


@contextlib.contextmanager
def _checked(upload, what, limits):
  """Checks that the file can be read and is not too large; names it as its visitor does in the errors of the block."""
  try:
    size = existing_file(upload.path, what).stat().st_size
    if size > limits.upload_bytes:
      raise InputError(
        f"the file {upload.name} has {size / MEGA:.1f} MB; this server takes up to {limits.max_upload_mb:g} MB "
        "(--max-upload-mb)"
      )
    yield
  except InputError as error:
    raise InputError(with_own_name(str(error), upload)) from error


def _check_pixels(upload, limits):
  width = height = 0
  # `read_image` reports what Pillow cannot open.
  with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"), Image.open(upload.path) as image:
    width, height = image.size
  if width * height > limits.max_pixels * MEGA:
    raise InputError(
      f"portrait {upload.name} is {width}x{height}, {width * height / MEGA:.0f} million pixels; this server takes up "
      f"to {limits.max_pixels:g} million (--max-pixels); make it smaller"
    )


def _check_seconds(upload, seconds, limits):
  if seconds > limits.max_seconds:
    raise InputError(
      f"audio {upload.name} lasts {seconds:.3g} s; this server takes up to {limits.max_seconds:g} s (--max-seconds); "
      "cut it shorter"
    )


def _check_length(upload, limits):
  """Refuses a long sound before all of it is decoded."""
  seconds = 0.0
  try:
    # libsndfile reads as much as the header says.
    seconds = soundfile.info(upload.path).duration
  except soundfile.LibsndfileError:
    # `read_audio` reports what cannot be decoded.
    with contextlib.suppress(InputError), open_sound(upload.path) as (container, stream):
      for frame in decoded(container, stream):
        seconds += frame.samples / frame.sample_rate
        if seconds > limits.max_seconds:
          seconds = max(float(container.duration or 0) / av.time_base, seconds)
          break
  _check_seconds(upload, seconds, limits)


def _peaks(sound) -> list[float]:
  bars = np.array_split(np.abs(sound), PEAKS)
  peaks = np.array([bar.max(initial=0) for bar in bars])
  return [round(float(peak), 3) for peak in peaks / max(peaks.max(), 1e-3)]
