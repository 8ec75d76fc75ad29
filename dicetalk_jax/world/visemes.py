"""Visible speech: lips, jaw and tongue of each frame, from the segments of the sound.

Coarticulation by dominance functions: Cohen and Massaro (1993), Modeling coarticulation in synthetic visual speech.
"""

from collections.abc import Sequence

import numpy as np

from dicetalk_jax.vocabulary import FPS
from dicetalk_jax.world.phonemes import INDEX, LIP_COLUMNS, PHONEMES
from dicetalk_jax.world.timing import Segment

# Seconds over which the influence of a sound on the mouth fades, before and after it.
_BEFORE, _AFTER = 0.038, 0.028
# Closed lips are held for so long around the middle, and open or close in so long.
_HELD, _CLOSING = 0.024, 0.045
_JAW, _PRESS, _WIDTH, _ROUND = map(LIP_COLUMNS.index, ("jaw", "lip_press", "lip_width", "lip_round"))
# A sound that neither spreads nor rounds the lips has little weight on them.
_INDIFFERENT = 0.25
# Unstressed vowels have less weight.
_STRESSED_JAW = (0.72, 1.0, 1.12)


def lips(segments: Sequence[Segment], n_frames: int, fps: float = FPS, strength: float = 1.0) -> np.ndarray:
  """Segments -> (n_frames, 6) float32, LIP_COLUMNS at the frames' middles (i + 0.5) / fps, in parameters.py's ranges.

  strength: factor of jaw, width and rounding. Lips that must close do so at any strength.
  """
  t = ((np.arange(n_frames) + 0.5) / fps)[:, None]
  start = np.array([segment.start for segment in segments])
  end = np.array([segment.end for segment in segments])
  sounds = [PHONEMES[INDEX[segment.phoneme]] for segment in segments]
  first = np.array([sound.mouth for sound in sounds])
  last = np.array([sound.mouth_end or sound.mouth for sound in sounds])
  vowel = np.array([sound.is_vowel for sound in sounds])
  stressed = np.where(vowel, np.array(_STRESSED_JAW)[[segment.stress for segment in segments]], 1.0)
  first[:, _JAW] *= stressed
  last[:, _JAW] *= stressed

  x = np.clip(((t - start) / (end - start) - 0.25) / 0.55, 0, 1)[..., None]
  target = first + (last - first) * x * x * (3 - 2 * x)  # (frame, segment, column)
  away = np.maximum(start - t, 0) / _BEFORE + np.maximum(t - end, 0) / _AFTER
  hold = np.array([sound.dominance for sound in sounds]) * np.exp(-away)
  insists = np.ones_like(first)
  plain = np.array([sound.name != "SIL" and not (sound.mouth.lip_width or sound.mouth.lip_round) for sound in sounds])
  insists[np.ix_(plain, [_WIDTH, _ROUND])] = _INDIFFERENT
  weight = hold[..., None] * insists
  result = (weight * target).sum(1) / weight.sum(1)
  result[:, [_JAW, _WIDTH, _ROUND]] *= strength
  result[:, _PRESS] = _pressed(t, start, end, first[:, _PRESS]).max(1)
  return np.clip(result, [0, 0, -1, 0, 0, 0], 1).astype(np.float32)


def _pressed(t: np.ndarray, start: np.ndarray, end: np.ndarray, press: np.ndarray) -> np.ndarray:
  """Times (frames, 1), segments (segments,) -> closure (frames, segments), also for sounds shorter than a frame."""
  held = np.maximum((end - start) / 2 - 0.01, _HELD)
  x = np.clip((np.abs(t - (start + end) / 2) - held) / _CLOSING, 0, 1)
  return press * (1 - x * x * (3 - 2 * x))


def frame_phonemes(segments: Sequence[Segment], n_frames: int, fps: float = FPS) -> np.ndarray:
  """Segments -> (n_frames,) int: index into PHONEMES at the middle of each frame, 0 after the end."""
  t = (np.arange(n_frames) + 0.5) / fps
  i = np.searchsorted([segment.end for segment in segments], t, side="right")
  ids = np.array([*(INDEX[segment.phoneme] for segment in segments), 0])
  return ids[i]
