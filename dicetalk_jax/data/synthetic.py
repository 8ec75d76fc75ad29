"""The drawn world as a set: people who exist in no photograph, each saying sentences with every emotion and level."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from dicetalk_jax.data.building import Job
from dicetalk_jax.data.layout import Listing
from dicetalk_jax.data.records import EMOTIONS, LEVELS, Clip, encode_frames
from dicetalk_jax.errors import InputError

_LARGEST = 1024
# People of a seed are numbered from here; those of the test split from further up, so that no size of a set mixes them.
_PEOPLE_PER_SEED, _FIRST_TEST = 1_000_000, 500_000


def train_person(seed: int, i: int) -> int:
  """The i-th person of the train split of a seed."""
  return seed * _PEOPLE_PER_SEED + i


def test_person(seed: int, i: int) -> int:
  """The i-th person of the test split of a seed."""
  return seed * _PEOPLE_PER_SEED + _FIRST_TEST + i


@dataclasses.dataclass(frozen=True)
class Scene:
  """One clip to draw: who says what, how."""

  clip: str
  person: int
  emotion: str
  level: int
  sentence: str
  take: int


@dataclasses.dataclass(frozen=True)
class SyntheticLayout:
  """The drawn world: no files are read."""

  name: ClassVar[str] = "synthetic"
  description: ClassVar[str] = "Drawn people speaking with eight emotions at three levels; every factor is known."

  people: int = 40
  """Of the train split."""

  test_people: int = 8
  """Of the test split: other people, who say other sentences."""

  takes: int = 2
  """Sentences of each person with each emotion and level (22 of these: neutral has one level)."""

  size: int = 128
  """Width and height in pixels."""

  labelled: bool = True
  """Write emotion and level; without them the set stands for the regular videos of training."""

  seed: int = 0
  """Another seed draws other people."""

  crf: float = 10.0
  """Quality of the H.264 frames; less is better and larger."""

  def listing(self, root: Path | None = None) -> Listing:
    """Raises InputError for numbers that make no set."""
    del root
    for name, low, high in (("people", 1, _FIRST_TEST), ("test_people", 0, _FIRST_TEST), ("takes", 1, 10_000)):
      value = getattr(self, name)
      if not low <= value <= high:
        raise InputError(f"{name} is {value}; it must be from {low} to {high}")
    if self.size % 2 or not 64 <= self.size <= _LARGEST:
      raise InputError(f"size {self.size} cannot be drawn: give an even number from 64 to {_LARGEST}")
    if not 0 <= self.seed < 1000:
      raise InputError(f"seed {self.seed} is not from 0 to 999")
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
    from dicetalk_jax.data.world.sentences import sentences

    spoken = sentences(split)
    for emotion in EMOTIONS:
      for level in LEVELS[:1] if emotion == "neutral" else LEVELS:
        choice = np.random.default_rng([self.seed, person, EMOTIONS.index(emotion), level])
        chosen = choice.permutation(len(spoken))
        for take in range(self.takes):
          clip = f"p{person:07d}/{emotion}/level_{level}/{take:03d}"
          yield Scene(clip, person, emotion, level, spoken[chosen[take % len(spoken)]], take)

  def check(self, root, jobs) -> None:
    """Nothing outside is read that could be wrong."""

  def make(self) -> Callable:
    return functools.partial(_draw, self.size, self.crf, self.labelled)

  def settings(self) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(self)))


def _draw(size, crf, labelled, scene: Scene) -> Iterator[Clip]:
  from dicetalk_jax.data.world.drawing import draw_clip

  drawn = draw_clip(scene.person, scene.emotion, scene.level, scene.sentence, scene.take, size)
  frames, count = encode_frames(drawn.frames, crf)
  yield Clip(
    clip=scene.clip,
    source=SyntheticLayout.name,
    identity=f"synthetic/p{scene.person:07d}",
    video=scene.clip.rpartition("/")[0],
    frames=frames,
    num_frames=count,
    height=size,
    width=size,
    face_box=tuple(drawn.face_box),
    audio=drawn.audio,
    emotion=scene.emotion if labelled else None,
    level=scene.level if labelled else 0,
    expression=drawn.expression,
    truth=drawn.truth,
    sentence=scene.sentence,
  )
