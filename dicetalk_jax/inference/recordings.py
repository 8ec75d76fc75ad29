"""Files that show or let hear an emotion: videos, sounds and expression coefficients -> what it is told from."""

import dataclasses
import math
import os
import pathlib
import zipfile

import numpy as np

from dicetalk_jax.errors import InputError
from dicetalk_jax.media.audio import SOUND_SUFFIXES, is_silent, read_audio
from dicetalk_jax.media.containers import open_video
from dicetalk_jax.media.expression import COEFFICIENTS, SUFFIXES, coefficients_of, read_expression
from dicetalk_jax.media.streaming import stream_pictures, stream_sound
from dicetalk_jax.media.timing import PictureTimes
from dicetalk_jax.media.video import VIDEO_SUFFIXES
from dicetalk_jax.vocabulary import EXPRESSION_DIM, FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

_VIDEOS, _SOUNDS = (*VIDEO_SUFFIXES, ".gif"), SOUND_SUFFIXES
# These may be a prior or coefficients.
_ARRAYS = (".npy", ".npz")


@dataclasses.dataclass(frozen=True)
class Recording:
  """A clip as the emotion embedder takes it; what it lacks is None.

  expression (n, 64) float32, at 25 frames a second. audio (m,) float32, 16 kHz, of which the first sample is heard with
  the first frame; with both, m = n · 640. note: what a person should know of how it was read.
  """

  expression: np.ndarray | None = None
  audio: np.ndarray | None = None
  note: str = ""


def is_recording(path: str | os.PathLike, prior_size: int = 256) -> bool:
  """Whether a file's name, of `.npy` and `.npz` what is in it, says that it is a clip, a sound or coefficients.

  An `.npy` file holds coefficients where its array is (n, 64) or (n, 257), unless that makes `prior_size` numbers; an
  `.npz` file where it has no mu.
  """
  suffix = pathlib.Path(path).suffix.lower()
  if suffix in _ARRAYS:
    return _holds_coefficients(path, prior_size)
  return suffix in (*_VIDEOS, *_SOUNDS, *SUFFIXES)


def read_recording(path: str | os.PathLike) -> Recording:
  """Reads a video with what lies beside it, a sound, or coefficients alone.

  A video's coefficients are a file of its name beside it, in step as `dicetalk data build` has them; without them, or
  where it is silent, the other modality is left alone. Coefficients alone are taken to be at 25 frames a second.
  Raises InputError for what is missing, damaged, silent without coefficients, or of coefficients that do not fit.
  """
  path = pathlib.Path(path)
  suffix = path.suffix.lower()
  if suffix in SUFFIXES:
    return Recording(expression=read_expression(path))
  if suffix in _SOUNDS:
    return Recording(audio=_heard(path))
  return _read_video(path)


def _heard(path) -> np.ndarray:
  audio = read_audio(path)
  if is_silent(audio):
    raise InputError(f"audio {path} has no sound: it is silent throughout, and no emotion can be told from it")
  return audio


def _read_video(path) -> Recording:
  with open_video(path) as container:
    has_sound = bool(container.streams.audio)
  coefficients = coefficients_of(path)
  if coefficients is None:
    beside = f"coefficients of its name beside it ({', '.join(SUFFIXES)})"
    if not has_sound:
      raise InputError(f"video {path} has neither sound nor {beside}; one of them is needed to tell its emotion")
    note = f"{path.name} has no {beside}: its emotion is taken from its sound alone."
    return Recording(audio=_heard(path), note=note)
  shown = PictureTimes(path)
  for picture in stream_pictures(path):
    shown.add(picture)
  if not shown.times:
    raise InputError(f"video {path} is damaged: no picture in it can be decoded")
  heard, sound = _sound(path) if has_sound else (0.0, np.zeros(0, np.float32))
  if is_silent(sound):
    expression = shown.expression(coefficients, shown.begin + np.arange(shown.frames()) / FPS)
    return Recording(expression, note=f"{path.name} is silent: its emotion is taken from its coefficients alone.")
  begin, count = shown.with_sound(heard, len(sound))
  if count < 1:
    raise InputError(f"the picture and the sound of video {path} share no time; give one of them alone")
  expression = shown.expression(coefficients, begin + np.arange(count) / FPS)
  first = round((begin - heard) * SAMPLE_RATE)
  samples = np.arange(first, first + count * SAMPLES_PER_FRAME)
  # Silent where there is no sound, which is at the ends and short.
  inside = (samples >= 0) & (samples < len(sound))
  return Recording(expression, np.where(inside, sound[np.clip(samples, 0, len(sound) - 1)], np.float32(0)))


def _sound(path) -> tuple[float, np.ndarray]:
  """When the sound begins, on the file's clock, and its samples."""
  blocks = list(stream_sound(path))
  if not blocks:
    return 0.0, np.zeros(0, np.float32)
  # Compressed sound overshoots; records of training are within [-1, 1] too.
  return blocks[0][0], np.concatenate([block for _, block in blocks]).clip(-1, 1)


def _holds_coefficients(path, prior_size) -> bool:
  try:
    if pathlib.Path(path).suffix.lower() == ".npz":
      with zipfile.ZipFile(path) as archive:
        return "mu.npy" not in archive.namelist()
    with open(path, "rb") as file:
      readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
      shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
  except Exception:  # what is missing or damaged is told by whoever reads it as a prior
    return False
  fits = len(shape) == 2 and shape[1] in (COEFFICIENTS, EXPRESSION_DIM)
  return fits and not dtype.hasobject and math.prod(shape) != prior_size
