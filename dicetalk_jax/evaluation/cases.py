"""Evaluation cases: the videos to generate, and what is known about each.

Any source of cases will do: `drawn_cases.drawn_cases` is one, a folder of videos can be another.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
  """One video to generate. Fields that are None are not known: the metrics that need them leave the case out.

  name: unique, used as a file name. portrait, audio, emotion, face_box, seed: arguments of `DiceTalk.generate`. A case
  whose emotion is not a string (a clip) needs weights with an emotion embedder. rest (h, w, 3): the same person with a
  neutral face, which the measuring network compares frames with. person: index in `Cases.gallery`. wanted: label of the
  emotion that the video should show; shown: label of the portrait's. opening (n,): true mouth opening in the clip that
  the audio comes from, at 25 frames a second. true_frames: returns frames (n, h, w, 3) of the clip that both audio and
  emotion come from, at 25 frames a second.
  """

  name: str
  portrait: np.ndarray | str | os.PathLike
  audio: np.ndarray | str | os.PathLike
  emotion: Any
  rest: np.ndarray
  face_box: tuple[float, float, float, float] | None = None
  seed: int = 0
  person: int | None = None
  wanted: str | None = None
  shown: str | None = None
  opening: np.ndarray | None = None
  true_frames: Callable[[], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Way:
  """Videos of one person from one emotion to another. start and end have `true_frames`; steps lie between them."""

  start: Case
  end: Case
  steps: Sequence[Case]


@dataclasses.dataclass(frozen=True, eq=False)
class Cases:
  """All cases of an evaluation.

  trials: name -> cases, one column of the report each; descriptions: trial -> where portrait, sound and emotion come
  from. gallery: one portrait (h, w, 3) per person, among whom a face is looked up. ways: interpolations between two
  emotions. clips: (person, emotion as an index of EMOTIONS, clip that `ClipEmbedder.prior` takes), for the clustering
  of priors. description: one line for the report. settings: what identifies these cases as JSON values, so that an
  evaluation resumes only with the same ones; the number of cases is not part of it, since more may be added.
  """

  trials: Mapping[str, Sequence[Case]]
  descriptions: Mapping[str, str]
  gallery: Sequence[np.ndarray]
  ways: Sequence[Way] = ()
  clips: Sequence[tuple[int, int, Any]] = ()
  description: str = ""
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Lazy(Sequence):
  """A sequence of `length` items; item i is `make(i)`, computed on every access."""

  length: int
  make: Callable[[int], Any]

  def __len__(self):
    return self.length

  def __getitem__(self, i: int):
    if not 0 <= i < self.length:
      raise IndexError(i)
    return self.make(i)
