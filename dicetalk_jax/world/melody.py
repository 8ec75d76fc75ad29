"""Pitch of a sentence: declination, accents on stressed vowels, fall or rise at the end of a phrase."""

from collections.abc import Sequence

import numpy as np

from dicetalk_jax.world.phonemes import INDEX, PHONEMES
from dicetalk_jax.world.speakers import Prosody, Voice
from dicetalk_jax.world.synthesis import STEP
from dicetalk_jax.world.timing import Segment, phrases


def pitch(
  segments: Sequence[Segment], voice: Voice, prosody: Prosody, offset: float, asks: bool, rng: np.random.Generator
) -> np.ndarray:
  """Pitch in Hz at every step of the sound, silences included. offset: semitones added in this take."""
  n = round(segments[-1].end / STEP)
  t = (np.arange(n) + 0.5) * STEP
  semitones = np.full(n, prosody.pitch + offset)
  span = voice.pitch_range * prosody.pitch_range
  runs = phrases(segments)
  for run in runs:
    start, end = run[0].start, run[-1].end
    x = np.clip((t - start) / max(end - start, 0.2), 0, 1)
    last = np.clip((x - 0.75) / 0.25, 0, 1)
    inside = (t >= start - 0.1) & (t < end + 0.1)
    contour = span * (0.2 - 0.4 * x) + prosody.slope * (x - 0.5)
    if run is runs[-1]:
      contour += span * (0.65 if asks else -0.22) * last * last * (3 - 2 * last)
    for segment in run:
      if segment.stress and PHONEMES[INDEX[segment.phoneme]].is_vowel:
        height = span * (0.38 if segment.stress == 1 else 0.6) * prosody.accent * np.exp(0.2 * rng.standard_normal())
        peak = segment.start + 0.5 * (segment.end - segment.start)
        width = np.where(t < peak, 0.075, 0.1)
        contour += height * np.exp(-0.5 * ((t - peak) / width) ** 2)
    # The accents raise the mean, which must stay that of the voice.
    contour -= 0.12 * span
    semitones[inside] += contour[inside]
  drift = np.convolve(rng.standard_normal(n + 80), np.hanning(82)[1:-1], "valid")[:n]
  semitones += 0.3 * drift / np.sqrt(np.sum(np.hanning(82) ** 2))
  semitones += voice.vibrato * np.sin(2 * np.pi * (5.4 * t + rng.random()))
  shake = 2 * np.pi * (6.3 * t + 0.25 * np.sin(2 * np.pi * 0.7 * t) + rng.random())
  semitones += prosody.tremor * np.sin(shake)
  return np.clip(voice.pitch * 2 ** (semitones / 12), 55.0, 700.0)
