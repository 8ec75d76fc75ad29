"""Speech of the drawn world: text or phonemes, spoken by a voice in a manner, with the times of all phonemes."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dicetalk_jax.errors import InputError
from dicetalk_jax.vocabulary import SAMPLE_RATE
from dicetalk_jax.world import melody, synthesis, timing
from dicetalk_jax.world.phonemes import LIP_COLUMNS
from dicetalk_jax.world.sentences import pronounce
from dicetalk_jax.world.speakers import NEUTRAL, Prosody, Voice, draw_voice, prosody
from dicetalk_jax.world.timing import Segment
from dicetalk_jax.world.visemes import frame_phonemes, lips

__all__ = [
  "LIP_COLUMNS",
  "NEUTRAL",
  "Prosody",
  "Segment",
  "Speech",
  "Voice",
  "draw_voice",
  "frame_phonemes",
  "lips",
  "prosody",
  "speak",
]

# RMS while speaking in a neutral manner, with full scale 1.
LOUDNESS = -23.0
_TAG = 0x5BEAC


@dataclasses.dataclass(frozen=True)
class Speech:
  """Synthesised speech: audio (samples,) float32 at 16 kHz in [-1, 1], a whole number of frames at 25 a second.

  segments: the phonemes in seconds, from 0 to `duration` without gaps. pitch: Hz at (i + 0.5) · `step` seconds, 0 when
  unvoiced. duration: seconds.
  """

  audio: np.ndarray
  segments: tuple[Segment, ...]
  pitch: np.ndarray
  duration: float
  step: float = synthesis.STEP


def speak(
  text_or_phonemes: str | Sequence[tuple[str, int]],
  voice: Voice,
  prosody: Prosody = NEUTRAL,
  seed: int = 0,
  lead: float = 0.2,
  tail: float = 0.3,
) -> Speech:
  """English text, or (phoneme, stress) pairs as of `pronounce`, -> Speech; the same arguments give the same bytes.

  seed: of the take. lead, tail: seconds of silence before and after; the tail is up to 40 ms longer, to complete the
  last frame. Raises InputError for text without words, an unknown phoneme, and a lead or tail below 0.
  """
  if not (np.isfinite([lead, tail]).all() and min(lead, tail) >= 0):
    raise InputError(f"silence around speech must be 0 s or more; lead is {lead} and tail {tail}")
  asks = isinstance(text_or_phonemes, str) and text_or_phonemes.rstrip(" \"')").endswith("?")
  phonemes = pronounce(text_or_phonemes) if isinstance(text_or_phonemes, str) else text_or_phonemes
  rng = np.random.default_rng([_TAG, seed])
  take = _Take(rng)
  segments = timing.segments(phonemes, voice.rate * prosody.rate * take.rate, prosody, rng, lead, tail)
  duration = segments[-1].end
  n = round(duration * SAMPLE_RATE)
  hertz = melody.pitch(segments, voice, prosody, take.pitch, asks, rng)
  sound, voiced = synthesis.synthesise(segments, n, hertz, voice, prosody, rng)
  level = 10 ** ((LOUDNESS + voice.loudness + prosody.energy + take.energy) / 20)
  audio = _limited(sound * (level / synthesis.speaking_rms(sound, segments)))
  return Speech(audio.astype(np.float32), segments, np.where(voiced, hertz, 0).astype(np.float32), duration)


class _Take:
  """Variation of a take: pitch in semitones, rate as a factor, energy in dB."""

  def __init__(self, rng: np.random.Generator):
    pitch, rate, energy = rng.standard_normal(3).clip(-2, 2)
    self.pitch, self.rate, self.energy = 0.5 * pitch, float(np.exp(0.04 * rate)), 1.0 * energy


def _limited(sound: np.ndarray, knee: float = 0.6, most: float = 0.88) -> np.ndarray:
  """Compresses peaks above the knee to stay below `most`."""
  over = np.maximum(np.abs(sound) - knee, 0) / (most - knee)
  return np.sign(sound) * (np.minimum(np.abs(sound), knee) + (most - knee) * np.tanh(over))
