"""The drawn world as a set: drawn people who say sentences with every emotion and level."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from dicetalk_jax.data.build.layout import Listing
from dicetalk_jax.data.build.runner import Job
from dicetalk_jax.data.records import Clip, encode_frames
from dicetalk_jax.errors import InputError
from dicetalk_jax.vocabulary import EMOTIONS, LEVELS, SAMPLES_PER_FRAME

_LARGEST = 1024
# Quality of the H.264 frames: lower is better and larger.
_CRF = 10.0
# Numbers of people for each seed, and the first of the test split, so that no size of a set mixes the two.
_PEOPLE_PER_SEED, _FIRST_TEST = 1_000_000, 500_000
# Neutral has one level.
_SCENES_IN_ALL = 1 + (len(EMOTIONS) - 1) * len(LEVELS)
# Keys of the random numbers.
_SCENES, _CUT, _VOICES = 101, 102, 103


def train_person(seed: int, i: int) -> int:
  """The i-th person of the train split of a seed."""
  return seed * _PEOPLE_PER_SEED + i


def test_person(seed: int, i: int) -> int:
  """The i-th person of the test split of a seed."""
  return seed * _PEOPLE_PER_SEED + _FIRST_TEST + i


@dataclasses.dataclass(frozen=True)
class Scene:
  """One clip to draw."""

  clip: str
  person: int
  emotion: str
  level: int
  sentence: str
  take: int
  voice: tuple[str, int]


@dataclasses.dataclass(frozen=True)
class SyntheticLayout:
  """The drawn world: no files are read."""

  name = "synthetic"
  description = "Drawn people speaking with eight emotions at three levels; every factor is known."

  people: int = 40
  """People in the train split."""

  test_people: int = 8
  """People in the test split, who say other sentences."""

  takes: int = 2
  """Sentences per person, emotion and level. There are 22 pairs of emotion and level, since neutral has one level."""

  scenes: int | None = None
  """Number of the 22 pairs to draw for each person. Every emotion is drawn once before one is drawn twice. Default:
  all. Many people with few clips teach how faces differ; few people with all clips are soon memorised."""

  min_level: int = LEVELS[0]
  """Draw emotions at this level and higher; 3 is the highest. Neutral has one level and is always drawn."""

  longest: int | None = None
  """Maximum number of frames of a clip; a random part of the sentence is drawn. Default: all."""

  voices: Literal["own", "any"] = "own"
  """own: the voice has the emotion of the face, as in most recordings. any: the voice of each clip has a random emotion
  and level, so that the face's emotion cannot be learnt from the sound."""

  size: int = 128
  """Width and height in pixels."""

  labelled: bool = True
  """Write emotion and level. A set without them serves as regular videos in training."""

  seed: int = 0
  """Seed of the people: another seed draws other people."""

  def listing(self, root: Path | None = None) -> Listing:
    """The scenes as jobs; InputError for settings out of range. Nothing is read from `root`."""
    if self.voices not in ("own", "any"):
      raise InputError(f"voices is '{self.voices}'; choose own or any")
    limits = {
      **dict(people=(1, _FIRST_TEST), test_people=(0, _FIRST_TEST), takes=(1, 10_000), scenes=(1, _SCENES_IN_ALL)),
      **dict(min_level=(LEVELS[0], LEVELS[-1]), longest=(2, 1_000_000), size=(64, _LARGEST), seed=(0, 999)),
    }
    for name, (low, high) in limits.items():
      value = getattr(self, name)
      if value is not None and not low <= value <= high:
        raise InputError(f"{name} is {value}; it must be from {low} to {high}")
    if self.size % 2:
      raise InputError(f"size is {self.size}; it must be even")
    train = [train_person(self.seed, i) for i in range(self.people)]
    test = [test_person(self.seed, i) for i in range(self.test_people)]
    return Listing(
      [
        Job(scene.clip, split, scene)
        for split, people in (("train", train), ("test", test))
        for person in people
        for scene in self._scenes(person, split)
      ]
    )

  def _scenes(self, person, split) -> Iterator[Scene]:
    from dicetalk_jax.world.sentences import sentences

    texts = sentences(split)
    for emotion, level in self._pairs(person):
      choice = np.random.default_rng([self.seed, person, EMOTIONS.index(emotion), level])
      chosen = choice.permutation(len(texts))
      for take in range(self.takes):
        clip = f"p{person:07d}/{emotion}/level_{level}/{take:03d}"
        voice = (emotion, level) if self.voices == "own" else self._voice(person, emotion, level, take)
        yield Scene(clip, person, emotion, level, texts[chosen[take % len(texts)]], take, voice)

  def _voice(self, person, emotion, level, take) -> tuple[str, int]:
    rng = np.random.default_rng([self.seed, person, EMOTIONS.index(emotion), level, take, _VOICES])
    voice = EMOTIONS[rng.integers(len(EMOTIONS))]
    return voice, LEVELS[0] if voice == "neutral" else int(rng.choice(LEVELS))

  def _pairs(self, person) -> list[tuple[str, int]]:
    """The emotions and levels of a person's clips."""
    strong = tuple(level for level in LEVELS if level >= self.min_level)
    levels = {emotion: LEVELS[:1] if emotion == "neutral" else strong for emotion in EMOTIONS}
    every = [(emotion, level) for emotion in EMOTIONS for level in levels[emotion]]
    if self.scenes is None:
      return every
    rng = np.random.default_rng([self.seed, person, _SCENES])
    # Rounds in which each emotion comes once, at a new level.
    orders = {emotion: rng.permutation(levels[emotion]) for emotion in EMOTIONS}
    rounds = [
      (EMOTIONS[i], int(orders[EMOTIONS[i]][turn]))
      for turn in range(len(LEVELS))
      for i in rng.permutation(len(EMOTIONS))
      if turn < len(orders[EMOTIONS[i]])
    ]
    return sorted(rounds[: self.scenes], key=every.index)

  def make(self) -> Callable:
    """The function of a job's work."""
    return functools.partial(_draw, self.size, self.labelled, self.longest)


def _draw(size, labelled, longest, scene: Scene) -> Iterator[Clip]:
  from dicetalk_jax.world.drawing import perform
  from dicetalk_jax.world.renderer import render

  clip = perform(scene.person, scene.emotion, scene.level, scene.sentence, scene.take, size, scene.voice)
  span = _shown(scene, len(clip.parameters), longest)
  frames, count = encode_frames(render(clip.identity, clip.parameters[span], size), _CRF)
  yield Clip(
    clip=scene.clip,
    source=SyntheticLayout.name,
    identity=f"synthetic/p{scene.person:07d}",
    video=scene.clip.rpartition("/")[0],
    frames=frames,
    num_frames=count,
    height=size,
    width=size,
    face_box=clip.face_box,
    audio=clip.audio[SAMPLES_PER_FRAME * span.start : SAMPLES_PER_FRAME * span.stop],
    emotion=scene.emotion if labelled else None,
    level=scene.level if labelled else 0,
    expression=clip.expression[span],
    truth=clip.truth[span],
    sentence=scene.sentence,
  )


def _shown(scene: Scene, frames: int, longest: int | None) -> slice:
  """The frames of a clip that are drawn."""
  if longest is None or frames <= longest:
    return slice(0, frames)
  rng = np.random.default_rng([*scene.clip.encode(), _CUT])
  start = int(rng.integers(frames - longest + 1))
  return slice(start, start + longest)
