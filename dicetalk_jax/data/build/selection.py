"""The part of a clip that can be used: between cuts, with the whole face of one person in it."""

import array
import collections
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from dicetalk_jax.data.build.tracking import link, main_chain
from dicetalk_jax.media.face import Box, Face
from dicetalk_jax.media.streaming import Picture
from dicetalk_jax.media.timing import STAMP_TOLERANCE
from dicetalk_jax.vocabulary import FPS

# The shorter side of the pictures that are compared to find cuts.
_SIDE = 48
# A cut changes the pictures by more than _CUT_RATIO times the changes around it plus _CUT_CHANGE, in grey levels of 255
# on average. Cuts between any two clips of MEAD exceed this; changes within a clip stay 2 below it.
_CUT_RATIO, _CUT_CHANGE = 3, 5
# A face that is not found for longer, in seconds, has gone; detectors miss one that turns for a moment.
_LONGEST_MISS = 1.0
# A face within this share of the picture's side from an edge is cut off there.
_EDGE = 0.01


@dataclasses.dataclass(frozen=True)
class Look:
  """The faces of one picture, at a time in seconds."""

  time: float
  faces: list[Face]


@dataclasses.dataclass
class Span:
  """A part of a clip, from `begin` up to `end` in seconds; `reason` says why it cannot be used."""

  begin: float
  end: float
  reason: str = ""


class Cuts:
  """Finds cuts among pictures that are added one by one, in memory of a few bytes for each.

  A cut changes the whole picture or the surroundings of the face, which may be a small part of it.
  """

  def __init__(self):
    self._times = array.array("d")
    # For the whole picture and for the face: the change from the picture before, and from the third before.
    self._changes = [(array.array("f"), array.array("f")) for _ in range(2)]
    self._recent = collections.deque(maxlen=3)

  def add(self, picture: Picture, faces: Sequence[Face]) -> None:
    """faces: those that were last found, in pixels of the picture."""
    grey = picture.reduced(_SIDE, grey=True).astype(np.int16)
    if self._recent:
      self._times.append(picture.time)
      for area, (near, far) in zip((..., _around(picture, faces, grey.shape)), self._changes, strict=True):
        near.append(np.abs(grey - self._recent[-1])[area].mean())
        far.append(np.abs(grey - self._recent[0])[area].mean())
    self._recent.append(grey)

  def times(self) -> list[float]:
    """The times of pictures that begin another scene."""
    if len(self._times) < 4:
      return []
    cuts = np.logical_or(*(_are_cuts(np.array(near), np.array(far)) for near, far in self._changes))
    return np.array(self._times)[cuts].tolist()


def _around(picture: Picture, faces: Sequence[Face], shape: tuple[int, int]):
  """The index of the largest face and its surroundings in a reduced picture; everything if there is no face."""
  if not faces:
    return ...
  x, y, w, h = max(faces, key=lambda face: face.area).box
  down, across = shape[0] / picture.height, shape[1] / picture.width
  rows = slice(max(0, int((y - h / 2) * down)), int((y + 1.5 * h) * down) + 1)
  return rows, slice(max(0, int((x - w / 2) * across)), int((x + 1.5 * w) * across) + 1)


def _are_cuts(near: np.ndarray, far: np.ndarray) -> np.ndarray:
  """Changes from one picture to the next, and over three -> whether each is a cut.

  A change counts against the third largest of those up to three pictures away, so that one spread over two pictures is
  found too. After a flash the pictures are as before it, which the changes over three pictures show.
  """
  padded = np.pad(near, 3)
  around = np.stack([padded[i : i + len(near)] for i in (0, 1, 2, 4, 5, 6)])
  usual = np.sort(around, axis=0)[-3]
  lasting = np.stack([np.concatenate([far[i:], np.full(i, np.inf)]) for i in range(3)]).min(axis=0)
  return (near > _CUT_RATIO * usual + _CUT_CHANGE) & (lasting > near / 2)


def spans(
  looks: Sequence[Look], cuts: Sequence[float], begin: float, end: float, width: int, height: int
) -> list[Span]:
  """Divides a clip from `begin` to `end` at its cuts, and where its face appears or disappears.

  width, height: of the pictures, in pixels.
  """
  bounds = [begin, *(cut for cut in cuts if begin + STAMP_TOLERANCE < cut < end - STAMP_TOLERANCE), end]
  return [span for a, b in itertools.pairwise(bounds) for span in _scene_spans(looks, a, b, width, height)]


def looks_in(looks: Sequence[Look], begin: float, end: float) -> list[Look]:
  return [look for look in looks if begin - STAMP_TOLERANCE <= look.time < end - STAMP_TOLERANCE]


def _scene_spans(looks, begin, end, width, height) -> list[Span]:
  """The spans of a scene: runs of looks that show its main face, and what lies between them."""
  inside = looks_in(looks, begin, end)
  chains = link([look.faces for look in inside])
  if not chains:
    return [Span(begin, end, f"no face was found in any of {len(inside)} frames")]
  chain = main_chain(chains)
  whole = [i for i, box in chain.items() if not _is_cut_off(box, width, height)]
  # A face that fills the picture touches its edges all the time.
  present = sorted(whole if 2 * len(whole) > len(chain) else chain)
  gaps = np.diff([inside[i].time for i in present])
  pieces, at = [], begin
  for run in np.split(present, 1 + np.flatnonzero(gaps > _LONGEST_MISS)):
    first = begin if run[0] == 0 else inside[run[0]].time
    last = end if run[-1] == len(inside) - 1 else inside[run[-1]].time + 1 / FPS
    if first > at + STAMP_TOLERANCE:
      pieces.append(Span(at, first, "the face is not there, or not wholly in the picture"))
    pieces.append(Span(first, last))
    at = last
  if end > at + STAMP_TOLERANCE:
    pieces.append(Span(at, end, "the face is not there, or not wholly in the picture"))
  return pieces


def _is_cut_off(box: Box, width: int, height: int) -> bool:
  x, y, w, h = box
  return min(x, width - x - w) <= _EDGE * width or height - y - h <= _EDGE * height
