"""Cases from the drawn world: people and sentences of its test split, which no training split contains."""

import dataclasses
import functools
from typing import Any

import numpy as np

from dicetalk_jax.data.build.synthetic import test_person
from dicetalk_jax.errors import InputError
from dicetalk_jax.evaluation.cases import Case, Cases, Lazy, Way
from dicetalk_jax.vocabulary import EMOTIONS, FPS, LEVELS, SAMPLES_PER_FRAME
from dicetalk_jax.world.drawing import Performance, draw_clip, perform
from dicetalk_jax.world.identity import draw_identity
from dicetalk_jax.world.parameters import PARAMETERS
from dicetalk_jax.world.renderer import face_box, render
from dicetalk_jax.world.sentences import sentences

TRIALS = {
  "own clip": "a neutral portrait, the sound of a clip, and the emotion of the same clip",
  "label": "a neutral portrait, the sound of a neutral clip, and an emotion label",
  "others' clips": "a portrait that shows another emotion, a second person's speech with that emotion, and the emotion "
  "of a third person's clip",
}
WAY = ("angry", "happy")
_GALLERY = 100
_WAY_STEPS = 9
_CLIPS_PER_WAY = 16
_PRIOR_TAKES = 3


@dataclasses.dataclass(frozen=True)
class World:
  """The drawn people of an evaluation; the same arguments give the same cases.

  seed: as of `dicetalk data build synthetic`, whose test split the people are. people: number of speakers. size: of
  pictures, in pixels. seconds: length at which sounds are cut. Raises InputError for fewer than three people.
  """

  seed: int = 0
  people: int = 16
  size: int = 128
  seconds: float = 2.0

  def __post_init__(self):
    if self.people < 3:
      raise InputError(
        f"people is {self.people}; give at least 3: portrait, sound and emotion of a case come from different people"
      )

  def clip(self, i: int, emotion: str, take: int = 0, frames: bool = False) -> Performance:
    """A clip of person i at the highest level; take: another sentence and performance; frames: render it."""
    level = LEVELS[0] if emotion == "neutral" else LEVELS[-1]
    spoken = sentences("test")
    sentence = spoken[(7 * i + 3 * EMOTIONS.index(emotion) + take) % len(spoken)]
    return (draw_clip if frames else perform)(test_person(self.seed, i), emotion, level, sentence, take, self.size)

  @functools.cache  # noqa: B019 (a process makes few worlds and keeps them)
  def portrait(self, i: int, emotion: str = "neutral") -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """(picture, face box) from the middle of a clip of person i."""
    clip = self.clip(i, emotion, take=5)
    middle = clip.parameters[len(clip.parameters) // 2][None]
    return render(clip.identity, middle, self.size)[0], face_box(clip.identity, middle, self.size)

  def sound(self, clip: Performance) -> tuple[np.ndarray, np.ndarray]:
    """(audio, mouth opening) of the first `seconds` of a clip."""
    frames = min(len(clip.truth), round(FPS * self.seconds))
    return clip.audio[: frames * SAMPLES_PER_FRAME], clip.truth[:frames, 0]

  def case(
    self,
    name: str,
    i: int,
    speech: Performance,
    emotion: Any,
    wanted: str,
    shown: str = "neutral",
    seed: int = 0,
  ) -> Case:
    """Person i with a portrait of emotion `shown`, the sound of a clip, and an emotion of any kind."""
    audio, opening = self.sound(speech)
    portrait, box = self.portrait(i, shown)

    def true_frames():
      return render(speech.identity, speech.parameters[: len(opening)], self.size)

    return Case(
      name=name.replace("'", "").replace(" ", "_"),
      portrait=portrait,
      audio=audio,
      emotion=emotion,
      rest=self.portrait(i)[0],
      face_box=box,
      seed=seed,
      person=i,
      wanted=wanted,
      shown=shown,
      opening=opening,
      true_frames=true_frames if emotion is speech else None,
    )

  def own(self, i: int, wanted: str, take: int = 0, seed: int = 0) -> Case:
    """Person i with the sound and the emotion of one of their clips."""
    clip = self.clip(i, wanted, take)
    return self.case(f"own clip {i:03d} {wanted} {take:02d}", i, clip, clip, wanted, seed=seed)

  def trial_case(self, trial: str, n: int) -> Case:
    """Case n of one of TRIALS: people and emotions take turns."""
    i, wanted = n % self.people, EMOTIONS[(n + n // self.people) % len(EMOTIONS)]
    take, shown, emotion = n // self.people, "neutral", wanted
    if trial == "own clip":
      return self.own(i, wanted, take, n)
    if trial == "label":
      speech = self.clip(i, "neutral", take)
    else:
      shown = EMOTIONS[(EMOTIONS.index(wanted) + 1 + n % (len(EMOTIONS) - 1)) % len(EMOTIONS)]
      speech = self.clip((i + 1) % self.people, shown, take)
      emotion = self.clip((i + 2) % self.people, wanted, take)
    return self.case(f"{trial} {n:03d}", i, speech, emotion, wanted, shown, n)

  def way(self, i: int) -> Way:
    """Person i from one label of WAY to the other."""
    speech = self.clip(i, "neutral")
    steps = [
      self.case(f"way {i} {step} of {_WAY_STEPS}", i, speech, f"{WAY[0]}:{1 - x:.4f}+{WAY[1]}:{x:.4f}", WAY[1], seed=i)
      for step, x in enumerate(np.linspace(0, 1, _WAY_STEPS))
    ]
    return Way(self.own(i, WAY[0]), self.own(i, WAY[1]), steps)

  def face_at_rest(self, i: int) -> np.ndarray:
    """Portrait (size, size, 3) of person i with all face parameters 0."""
    return render(draw_identity(test_person(self.seed, i)), np.zeros((1, len(PARAMETERS)), np.float32), self.size)[0]


def drawn_cases(world: World, count: int = 64) -> Cases:
  """`count` cases for each of TRIALS, one way from angry to happy for every 16 of them, and 24 clips of each person."""

  def prior_clip(n):
    i, emotion, take = np.unravel_index(n, (world.people, len(EMOTIONS), _PRIOR_TAKES))
    return int(i), int(emotion), world.clip(int(i), EMOTIONS[emotion], 10 + int(take))

  return Cases(
    trials={trial: Lazy(count, functools.partial(world.trial_case, trial)) for trial in TRIALS},
    descriptions=TRIALS,
    gallery=Lazy(max(_GALLERY, world.people), world.face_at_rest),
    ways=Lazy(min(world.people, -(-count // _CLIPS_PER_WAY)), world.way),
    clips=Lazy(world.people * len(EMOTIONS) * _PRIOR_TAKES, prior_clip),
    description=f"{count} videos per trial, {world.people} people of the test split of seed {world.seed}, at most "
    f"{world.seconds:g} s each",
    settings={"cases": "drawn"} | dataclasses.asdict(world),
  )
