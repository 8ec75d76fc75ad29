"""What is asked of a model on the drawn world: people, sentences and emotions that no training split has."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from dicetalk_jax.data.build.synthetic import test_person
from dicetalk_jax.errors import InputError
from dicetalk_jax.vocabulary import EMOTIONS, LEVELS, SAMPLES_PER_FRAME
from dicetalk_jax.world.drawing import Performance, draw_clip, perform
from dicetalk_jax.world.renderer import face_box, render
from dicetalk_jax.world.sentences import sentences

# Where portrait, sound and emotion come from; docs/evaluation.md has them in words.
TRIALS = {
  "own clip": "a neutral portrait, a clip's sound, and the emotion of the same clip",
  "label": "a neutral portrait, a neutral clip's sound, and the emotion's label",
  "others' clips": "a portrait with another emotion, another person's sound with that one, a third one's emotion",
}
_STRONGEST, _SECONDS = LEVELS[-1], 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
  """One video to make, and what it is measured against.

  portrait (size, size, 3) uint8 with its face box; neutral: the same person without emotion, which the measuring
  network compares with; audio (n · 640,) at 16 kHz; emotion: what `generate` takes; wanted: the emotion it stands for;
  shown: that of the portrait; opening (n,): how far the mouth is open in the clip that the sound is of.
  """

  name: str
  person: int
  portrait: np.ndarray
  face_box: tuple[int, int, int, int]
  neutral: np.ndarray
  audio: np.ndarray
  emotion: Any
  wanted: str
  shown: str
  opening: np.ndarray
  seed: int


@dataclasses.dataclass(frozen=True)
class World:
  """The part of the drawn world that a model is asked about; everything follows from the seed.

  seed: of the people, as of `dicetalk data build synthetic`: its test split. people: how many of them speak. size: of
  pictures, in pixels. seconds: a sound is cut after so many.
  """

  seed: int = 0
  people: int = 16
  size: int = 128
  seconds: float = _SECONDS

  def __post_init__(self):
    if self.people < 3:
      raise InputError(
        f"people is {self.people}; give at least 3, so that portrait, sound and emotion can be of different ones"
      )

  def clip(self, i: int, emotion: str, pick: int = 0, frames: bool = False) -> Performance:
    """What person i of the test split plays; pick: which sentence."""
    level = LEVELS[0] if emotion == "neutral" else _STRONGEST
    spoken = sentences("test")
    sentence = spoken[(7 * i + 3 * EMOTIONS.index(emotion) + pick) % len(spoken)]
    return (draw_clip if frames else perform)(test_person(self.seed, i), emotion, level, sentence, pick, self.size)

  @functools.cache  # noqa: B019 (worlds are few and live as long as the evaluation)
  def portrait(self, i: int, emotion: str = "neutral") -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A frame from the middle of a clip of theirs, and the face's box in it."""
    clip = self.clip(i, emotion, pick=5)
    chosen = clip.parameters[len(clip.parameters) // 2][None]
    return render(clip.identity, chosen, self.size)[0], face_box(clip.identity, chosen, self.size)

  def sound(self, clip: Performance) -> tuple[np.ndarray, np.ndarray]:
    """(audio, mouth opening) of the first `seconds` of a clip."""
    frames = min(len(clip.truth), round(25 * self.seconds))
    return clip.audio[: frames * SAMPLES_PER_FRAME], clip.truth[:frames, 0]

  def cases(self, trial: str, count: int) -> Iterator[Case]:
    """The first `count` cases of a trial: emotions in turn, people in turn."""
    if trial not in TRIALS:
      raise InputError(f"trial {trial!r} is not known; choose from {', '.join(TRIALS)}")
    for n in range(count):
      i, wanted = n % self.people, EMOTIONS[(n + n // self.people) % len(EMOTIONS)]
      take, shown, emotion = n // self.people, "neutral", wanted
      if trial == "own clip":
        yield self.own(i, wanted, take, n)
        continue
      if trial == "label":
        heard = self.clip(i, "neutral", take)
      else:
        shown = EMOTIONS[(EMOTIONS.index(wanted) + 1 + n % (len(EMOTIONS) - 1)) % len(EMOTIONS)]
        heard = self.clip((i + 1) % self.people, shown, take)
        emotion = self.clip((i + 2) % self.people, wanted, take)
      yield self.case(f"{trial} {n:03d}", i, heard, emotion, wanted, shown, n)

  def own(self, i: int, wanted: str, take: int = 0, seed: int = 0) -> Case:
    """Person i with the sound and the emotion of one of their clips."""
    clip = self.clip(i, wanted, take)
    return self.case(f"own clip {i:03d} {wanted} {take:02d}", i, clip, clip, wanted, "neutral", seed)

  def case(
    self, name: str, i: int, heard: Performance, emotion: Any, wanted: str, shown: str = "neutral", seed: int = 0
  ) -> Case:
    """Person i, whose portrait shows one emotion, with the sound of a clip and an emotion of any kind."""
    audio, opening = self.sound(heard)
    portrait, box = self.portrait(i, shown)
    return Case(
      name=name.replace("'", "").replace(" ", "_"),
      person=i,
      portrait=portrait,
      face_box=box,
      neutral=self.portrait(i)[0],
      audio=audio,
      emotion=emotion,
      wanted=wanted,
      shown=shown,
      opening=opening,
      seed=seed,
    )

  def gallery(self, count: int) -> np.ndarray:
    """Portraits (count, size, size, 3) of the first `count` people, in rest: none is a frame of a case's portrait."""
    from dicetalk_jax.world.identity import draw_identity
    from dicetalk_jax.world.parameters import PARAMETERS

    rest = np.zeros((1, len(PARAMETERS)), np.float32)
    return np.concatenate([render(draw_identity(test_person(self.seed, i)), rest, self.size) for i in range(count)])
