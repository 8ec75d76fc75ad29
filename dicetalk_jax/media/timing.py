"""When the pictures of a video are shown, and what else stands beside them in time: its sound, its coefficients."""

import array
import math
from pathlib import Path

import numpy as np

from dicetalk_jax.errors import InputError
from dicetalk_jax.media.expression import expression_at, matched, near, read_expression
from dicetalk_jax.media.streaming import Picture
from dicetalk_jax.vocabulary import FPS, SAMPLE_RATE

# Matroska counts in milliseconds: a frame that is due is there up to one later.
STAMP_TOLERANCE = 1e-3
# Sound that begins later or ends earlier than the picture by no more is filled up with silence.
_FILLED_SECONDS = 0.2
# A picture that stands still for longer is a broken file, not a face that speaks.
_LONGEST_HOLD = 1.0


class PictureTimes:
  """Of a video whose pictures are added one by one: when each begins, and when the last one ends, in seconds."""

  def __init__(self, path: Path):
    self.path, self.times, self.end = path, array.array("d"), 0.0

  @property
  def begin(self) -> float:
    return self.times[0]

  def add(self, picture: Picture) -> None:
    """Raises InputError where the one before stood for longer than a speaking face can."""
    if self.times and picture.time - self.times[-1] > _LONGEST_HOLD:
      raise InputError(
        f"video {self.path} stands still from {self.times[-1] - self.begin:.2f} s to {picture.time - self.begin:.2f} s"
      )
    # Some files say of their last picture, or of each, that it lasts no time.
    least = min(1 / FPS, picture.time - self.times[-1]) if self.times else 0.0
    self.times.append(picture.time)
    self.end = picture.time + min(max(picture.duration, least), _LONGEST_HOLD)

  def frames(self, begin: float | None = None) -> int:
    """How many frames at 25 a second there are from `begin`, by default the first picture, to the end."""
    return math.ceil((self.end - (self.begin if begin is None else begin) - STAMP_TOLERANCE) * FPS)

  def with_sound(self, heard: float, samples: int) -> tuple[float, int]:
    """(when pictures and sound begin together, frames at 25 a second until one ends), less than one where never.

    heard: when the sound begins; samples: of it at 16 kHz.
    """
    begin = heard if heard > self.begin + _FILLED_SECONDS else self.begin
    total, heard_end = self.frames(begin), heard + samples / SAMPLE_RATE
    if heard_end < self.end - _FILLED_SECONDS:
      total = min(total, math.floor((heard_end - begin + STAMP_TOLERANCE) * FPS))
    return begin, total

  def expression(self, path: Path, wanted: np.ndarray) -> np.ndarray:
    """The video's coefficients at times `wanted` (n,) -> (n, 64) float32.

    path: a row for each picture, or for each frame of a copy at 25 a second. Raises InputError as `read_expression`
    does, and for a number of rows that is neither.
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
