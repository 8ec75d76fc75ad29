"""Times of phonemes: durations after Klatt (1979), Synthesis by rule of segmental durations in English."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dicetalk_jax.errors import InputError
from dicetalk_jax.vocabulary import FPS, SAMPLE_RATE
from dicetalk_jax.world.phonemes import GLIDE, INDEX, PHONEMES, STOP
from dicetalk_jax.world.speakers import Prosody


class Segment(NamedTuple):
  """A phoneme from start to end, in seconds. stress: 0, 1 (of a word) or 2 (the nucleus of its phrase)."""

  phoneme: str
  start: float
  end: float
  stress: int = 0


def segments(
  phonemes: Sequence[tuple[str, int]],
  rate: float,
  prosody: Prosody,
  rng: np.random.Generator,
  lead: float,
  tail: float,
) -> tuple[Segment, ...]:
  """(phoneme, stress) pairs -> Segments between silences, on whole samples and to a whole number of frames.

  Raises InputError for an unknown phoneme, and when all are silence.
  """
  phonemes = _trimmed(phonemes)
  stresses = _with_nuclei(phonemes)
  lengths = _lengths(phonemes, stresses, rate, prosody, rng)
  names = [name for name, _ in phonemes]
  if lead > 0:
    names, stresses, lengths = ["SIL", *names], [0, *stresses], [lead, *lengths]
  names, stresses = [*names, "SIL"], [*stresses, 0]
  ends = np.round(np.cumsum(lengths) * SAMPLE_RATE) / SAMPLE_RATE
  # The last frame is whole, and the speech always ends with a silence.
  frames = int(np.floor((ends[-1] + tail) * FPS + 1 - 1e-6))
  ends = [*ends.tolist(), frames / FPS]
  if ends[-1] <= ends[-2]:
    ends[-1] += 1 / FPS
  starts = [0.0, *ends[:-1]]
  return tuple(Segment(*row) for row in zip(names, starts, ends, stresses, strict=True))


def _trimmed(phonemes: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
  for name, _ in phonemes:
    if name not in INDEX:
      raise InputError(f"the phoneme {name!r} is not known; give one of {', '.join(INDEX)}")
  voiced = [i for i, (name, _) in enumerate(phonemes) if name != "SIL"]
  if not voiced:
    raise InputError("there is nothing to say; give at least one phoneme that is not SIL")
  return list(phonemes)[voiced[0] : voiced[-1] + 1]


def _with_nuclei(phonemes: list[tuple[str, int]]) -> list[int]:
  """Stress of each phoneme; the last stressed vowel of each phrase has 2."""
  stresses = [int(bool(stress)) for _, stress in phonemes]
  waiting = True
  for i in reversed(range(len(phonemes))):
    if phonemes[i][0] == "SIL":
      waiting = True
    elif waiting and stresses[i]:
      stresses[i], waiting = 2, False
  return stresses


def _lengths(
  phonemes: list[tuple[str, int]], stresses: list[int], rate: float, prosody: Prosody, rng: np.random.Generator
) -> list[float]:
  sounds = [PHONEMES[INDEX[name]] for name, _ in phonemes]
  variation = np.exp(0.06 * rng.standard_normal(len(sounds)).clip(-2, 2))
  final = _is_final(sounds)
  lengths = []
  for i, sound in enumerate(sounds):
    before = sounds[i - 1] if i else PHONEMES[0]
    after = sounds[i + 1] if i + 1 < len(sounds) else PHONEMES[0]
    if sound.name == "SIL":
      lengths.append(max(sound.minimum, sound.duration * prosody.pausing * variation[i] / rate))
      continue
    factor = 1.0
    if sound.is_vowel:
      factor *= (0.55, 1.0, 1.2)[stresses[i]] * (prosody.drawl if stresses[i] else 1.0)
      if after.kind == STOP and not after.is_voiced:
        factor *= 0.85
    elif not (before.is_vowel or after.is_vowel) or (before.kind == sound.kind == STOP):
      factor *= 0.75
    elif before.name != "SIL" and not before.is_vowel and sound.kind == GLIDE:
      factor *= 0.8
    if final[i]:
      factor *= 1.35
    length = sound.minimum + (sound.duration - sound.minimum) * factor
    lengths.append(float(max(0.75 * sound.minimum, length * variation[i] / rate)))
  return lengths


def _is_final(sounds: list) -> list[bool]:
  """True from the last vowel of each phrase to its end."""
  final, waiting = [False] * len(sounds), True
  for i in reversed(range(len(sounds))):
    if sounds[i].name == "SIL":
      waiting = True
    elif waiting:
      final[i] = True
      waiting = not sounds[i].is_vowel
  return final


def phrases(segments: Sequence[Segment]) -> list[list[Segment]]:
  """The runs of segments between silences."""
  groups, run = [], []
  for segment in segments:
    if segment.phoneme != "SIL":
      run.append(segment)
    elif run:
      groups.append(run)
      run = []
  return [*groups, run] if run else groups
