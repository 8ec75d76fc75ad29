"""Single frames of many drawn people: training data of the measuring network."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from dicetalk_jax.data.batches.sampling import generator
from dicetalk_jax.data.build.synthetic import train_person
from dicetalk_jax.vocabulary import EMOTIONS, LEVELS
from dicetalk_jax.world.acting import act
from dicetalk_jax.world.drawing import truth
from dicetalk_jax.world.expressions import draw_style
from dicetalk_jax.world.identity import draw_identity
from dicetalk_jax.world.renderer import render
from dicetalk_jax.world.sentences import sentences
from dicetalk_jax.world.speakers import draw_voice, prosody
from dicetalk_jax.world.voice import Speech, speak

PORTRAITS, EXPRESSIONS = 2, 6
_NEUTRAL = EMOTIONS.index("neutral")
_SPEECHES = 4  # per emotion and level; synthesis of the sound takes most of the time
_SPEECH, _PERSON = 31, 32  # streams of random numbers
# Mostly strong expressions: those are requested most, and weak ones resemble each other.
_LEVEL_SHARES = (0.2, 0.3, 0.5)


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnFaces:
  """Neutral portraits (people, PORTRAITS, size, size, 3) uint8 and frames (people, EXPRESSIONS, size, size, 3) uint8.

  emotion (people, EXPRESSIONS): index of EMOTIONS, different for each frame of a person; truth (people, EXPRESSIONS,
  len(TRUTH)).
  """

  portraits: np.ndarray
  frames: np.ndarray
  emotion: np.ndarray
  truth: np.ndarray


def draw_faces(
  people: int, size: int, seed: int = 0, progress: Callable[[int, int], None] = lambda done, total: None
) -> DrawnFaces:
  """Draws the first `people` people of the train split while they speak; under 0.1 s each at 128 pixels."""
  rows = []
  for i in range(people):
    progress(i, people)
    rows.append(_draw(train_person(seed, i), size, generator(seed, _PERSON, i), functools.partial(_speech, seed)))
  progress(people, people)
  return DrawnFaces(*(np.stack(column) for column in zip(*rows, strict=True)))


@functools.cache
def _speech(seed, emotion, level, take) -> Speech:
  rng = generator(seed, _SPEECH, (100 * emotion + level) * _SPEECHES + take)
  person = int(rng.integers(1000))
  manner = prosody(EMOTIONS[emotion], level, person)
  return speak(rng.choice(sentences("train")), draw_voice(person), manner, int(rng.integers(2**31)))


def _draw(person, size, rng, speech_of):
  identity, style = draw_identity(person), draw_style(person)

  def moments(emotion, level, count):
    speech = speech_of(int(emotion), int(level), int(rng.integers(_SPEECHES)))
    n = round(25 * speech.duration)
    return act(style, EMOTIONS[emotion], level, speech, n, int(rng.integers(2**31)))[
      rng.choice(n, count, replace=False)
    ]

  emotions = rng.choice(len(EMOTIONS), EXPRESSIONS, replace=False)
  levels = [LEVELS[0] if emotion == _NEUTRAL else rng.choice(LEVELS, p=_LEVEL_SHARES) for emotion in emotions]
  poses = np.concatenate(
    [
      moments(_NEUTRAL, LEVELS[0], PORTRAITS),
      *(moments(emotion, level, 1) for emotion, level in zip(emotions, levels, strict=True)),
    ]
  )
  pictures = render(identity, poses, size)
  labels = truth(identity, poses, np.zeros(len(poses), np.int64))
  return pictures[:PORTRAITS], pictures[PORTRAITS:], emotions, labels[PORTRAITS:]
