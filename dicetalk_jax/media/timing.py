"""Times of the pictures of a video, and its sound and coefficients at the same times."""

import array
import math
from pathlib import Path

import numpy as np

from dicetalk_jax.errors import InputError
from dicetalk_jax.media.expression import expression_at, matched, near, read_expression
from dicetalk_jax.media.streaming import Picture
from dicetalk_jax.vocabulary import FPS, SAMPLE_RATE

# Matroska rounds time stamps to milliseconds.
STAMP_TOLERANCE = 1e-3
# Sound that begins later or ends earlier than the picture by up to so much is filled up with silence.
_FILLED_SECONDS = 0.2
# A picture that stands still for longer means a broken file.
_LONGEST_HOLD = 1.0


class PictureTimes:
  """Start times of pictures that are added one by one, and the end of the last one, in seconds."""

  def __init__(self, path: Path):
    self.path, self.times, self.end = path, array.array("d"), 0.0

  @property
  def begin(self) -> float:
    return self.times[0]

  def add(self, picture: Picture) -> None:
    """Raises InputError when the picture before stood still for too long."""
    if self.times and picture.time - self.times[-1] > _LONGEST_HOLD:
      raise InputError(
        f"video {self.path} stands still from {self.times[-1] - self.begin:.2f} s to {picture.time - self.begin:.2f} s"
      )
    # Some files give their last picture, or all, no duration.
    least = min(1 / FPS, picture.time - self.times[-1]) if self.times else 0.0
    self.times.append(picture.time)
    self.end = picture.time + min(max(picture.duration, least), _LONGEST_HOLD)

  def frames(self, begin: float | None = None) -> int:
    """Number of frames at 25 a second from `begin` (default: the first picture) to the end."""
    return math.ceil((self.end - (self.begin if begin is None else begin) - STAMP_TOLERANCE) * FPS)

  def with_sound(self, heard: float, samples: int) -> tuple[float, int]:
    """(time at which pictures and sound have both begun, frames at 25 a second until one ends; 0 or fewer if none).

    heard: start time of the sound; samples: its length at 16 kHz.
    """
    begin = self.begin
    if heard > begin + _FILLED_SECONDS:
      # On the grid of the pictures, so that the frames of a video at 25 a second are its own.
      begin += math.ceil((heard - begin - STAMP_TOLERANCE) * FPS) / FPS
    total, heard_end = self.frames(begin), heard + samples / SAMPLE_RATE
    if heard_end < self.end - _FILLED_SECONDS:
      total = min(total, math.floor((heard_end - begin + STAMP_TOLERANCE) * FPS))
    return begin, total

  def expression(self, path: Path, wanted: np.ndarray) -> np.ndarray:
    """The coefficients in a file at times `wanted` (n,) -> (n, 64) float32.

    The file has a row for each picture, or for each frame of a copy at 25 a second. Raises InputError as
    `read_expression` does, and for any other number of rows.
    """
    rows, shown = read_expression(path), len(self.times)
    if near(rows, shown):
      return expression_at(matched(rows, shown), np.frombuffer(self.times), wanted)
    # Coefficients are often fitted to a copy of the video at 25 frames a second.
    at_25 = self.frames()
    if near(rows, at_25):
      return expression_at(matched(rows, at_25), self.begin + np.arange(at_25) / FPS, wanted)
    copy = "" if abs(at_25 - shown) <= 2 else f" ({at_25} at 25 a second)"
    raise InputError(
      f"expression {path} has {len(rows)} rows and its video {shown} frames{copy}; they must be of the same recording"
    )
