"""One face through a clip: detections -> a track -> one steady square crop, and the face's box in it."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dicetalk_jax.errors import InputError
from dicetalk_jax.media.face import Box, Face, FaceDetector
from dicetalk_jax.media.streaming import Picture

# Shorter side of the picture in which faces are searched: at first, and again when none is found.
_DETECTION_SIDES = (192, 320)
# Two detections a fraction of a second apart are of one face if they overlap so much.
_LINKED = 0.3
# A face is there if it is found in this share of the frames; false detections come and go.
_PERSISTENT = 0.4
# A second face counts from this share of the first one's height, if they overlap by less than this share of it.
_NOT_TINY = 0.4
_SEPARATE = 0.3
# A detection is false if its width or height differs by this factor from those around it.
_SAME_SIZE = 1.35
# Height of the crop in heights of the face (forehead to chin), for hair and neck.
_CROP_HEIGHTS = 2.0
# Room around all places of the face, and the part of it that the head takes, in heights of the face.
_MARGIN, _HEAD = 0.3, 0.15
# A larger crop, in heights of the face, shows the face too small.
_LARGEST_CROP = 4.0


@dataclasses.dataclass(frozen=True)
class Track:
  """One face through a clip: `boxes` (m, 4), x, y, w, h in pixels.

  In `seen` of the frames the face was found; in the others its box is interpolated.
  """

  boxes: np.ndarray
  seen: int

  @property
  def extent(self) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of all boxes together."""
    x, y, w, h = self.boxes.T
    return float(x.min()), float(y.min()), float((x + w).max()), float((y + h).max())

  @property
  def size(self) -> tuple[float, float]:
    """Median width and height of the face."""
    return float(np.median(self.boxes[:, 2])), float(np.median(self.boxes[:, 3]))

  def at(self, times: Sequence[float], others: Sequence[float]) -> "Track":
    """The track, whose boxes are of rising `times`, at `others`; outside of `times` the box is held."""
    columns = [np.interp(others, times, column) for column in self.boxes.T]
    return Track(np.stack(columns, axis=1), self.seen)


def detect(picture: Picture, detector: FaceDetector) -> list[Face]:
  """The faces of a picture, in its pixels. They are searched in a smaller copy, which is quick and finds as many."""
  quick, thorough = _DETECTION_SIDES
  for side in (quick, thorough) if min(picture.width, picture.height) > quick else (thorough,):
    small = picture.reduced(side)
    across, down = picture.width / small.shape[1], picture.height / small.shape[0]
    if faces := detector(small):
      return [Face(_scaled(face.box, across, down), face.score) for face in faces]
  return []


def _scaled(box, across, down) -> Box:
  x, y, w, h = box
  return round(x * across), round(y * down), round(w * across), round(h * down)


def track(detections: Sequence[Sequence[Face]]) -> Track:
  """The faces of frames in order -> the track of the main face.

  Raises InputError, whose text is the reason to reject the clip, when there is no face, it is found too seldom, a
  second face stays, or the face jumps as at a cut.
  """
  frames = len(detections)
  if not frames or not any(detections):
    raise InputError(f"no face was found in any of {frames} frames")
  chains = link(detections)
  main = main_chain(chains)
  needed = _PERSISTENT * frames
  others = [chain for chain in chains if chain is not main and len(chain) > needed / 2 and _rivals(main, chain)]
  for other in others:
    together = len(other.keys() & main.keys())
    # A face that is only there without the main one comes after a cut. One that passes by is accepted.
    if together > len(other) / 2 and len(other) > needed:
      raise InputError(f"more than one face stays in the picture: a second is in {len(other)} of {frames} frames")
    if together == 0 or len(other) > needed:
      raise InputError("the face jumps to another place, as at a cut")
  if len(main) < needed:
    raise InputError(f"a face was found in only {len(main)} of {frames} frames")
  seen = np.array(sorted(main))
  boxes = np.array([main[i] for i in seen], np.float64)
  # SciPy takes a while to import, which `--help` should not pay for.
  from scipy.ndimage import median_filter

  # Places are kept as they are: the crop has to hold the face at all of them.
  ratio = boxes[:, 2:] / median_filter(boxes[:, 2:], size=(5, 1), mode="nearest")
  right = (np.maximum(ratio, 1 / ratio) < _SAME_SIZE).all(axis=1)
  boxes = np.stack([np.interp(np.arange(frames), seen[right], column) for column in boxes[right].T], axis=1)
  return Track(boxes, len(seen))


def main_chain(chains: Sequence[dict[int, Box]]) -> dict[int, Box]:
  """The face that is largest and longest in the picture."""
  return max(chains, key=lambda chain: sum(math.sqrt(w * h) for _, _, w, h in chain.values()))


def link(detections: Sequence[Sequence[Face]]) -> list[dict[int, Box]]:
  """Chains of detections, frame -> box; each follows one face by the overlap with its last box."""
  chains: list[dict[int, Box]] = []
  for index, faces in enumerate(detections):
    boxes = [face.box for face in faces]
    pairs = [
      (_overlap(chain[max(chain)], box), -c, -b) for c, chain in enumerate(chains) for b, box in enumerate(boxes)
    ]
    taken, placed = set(), set()
    for overlap, c, b in sorted(pairs, reverse=True):
      if overlap >= _LINKED and c not in taken and b not in placed:
        chains[-c][index] = boxes[-b]
        taken.add(c)
        placed.add(b)
    chains += [{index: box} for b, box in enumerate(boxes) if -b not in placed]
  return chains


def _rivals(main, other) -> bool:
  """Whether another chain is a second face: not tiny compared with the main one, and not a part of it."""
  tall, taller = (np.median([box[3] for box in chain.values()]) for chain in (other, main))
  first, second = (np.median(list(chain.values()), axis=0) for chain in (main, other))
  return tall >= _NOT_TINY * taller and _common(first, second) < _SEPARATE * second[2] * second[3]


def _common(a, b) -> float:
  width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
  height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
  return max(width, 0) * max(height, 0)


def _overlap(a, b) -> float:
  """Intersection over union."""
  common = _common(a, b)
  return common / (a[2] * a[3] + b[2] * b[3] - common)


def steady_crop(track: Track, width: int, height: int) -> tuple[int, int, int]:
  """One square (x, y, side) in pixels for the whole clip: the head in all frames, the face half as high as the square.

  The square is shifted into the picture of width × height. If it is larger than the picture, as in sets that were
  cropped to faces, it is the largest square of the picture that holds the head, or, if there is none, a square that
  reaches over an edge. Raises InputError when the face moves so far that the crop would show it too small.
  """
  left, top, right, bottom = track.extent
  _, tall = track.size
  # The head, as far as it is in the picture.
  across = max(0, left - _HEAD * tall), min(width, right + _HEAD * tall)
  down = max(0, top - _HEAD * tall), min(height, bottom + _HEAD * tall)
  room, largest = 2 * _MARGIN * tall, min(width, height)
  side = max(_CROP_HEIGHTS * tall, right - left + room, bottom - top + room)
  if side > largest:
    side = max(largest, across[1] - across[0], down[1] - down[0])
  if side > _LARGEST_CROP * tall:
    raise InputError(
      f"the face, {round(tall)} pixels high, moves over {round(right - left)}x{round(bottom - top)} pixels"
    )
  side = math.ceil(side)
  return _place((left + right) / 2, across, side, width), _place((top + bottom) / 2, down, side, height), side


def _place(centre: float, head: tuple[float, float], side: int, length: int) -> int:
  """Where a square of `side` begins: about the centre, but so that it holds the head, inside the picture if it fits."""
  if side > length:
    return (length - side) // 2
  start = min(max(round(centre - side / 2), math.ceil(head[1]) - side), math.floor(head[0]))
  return min(max(start, 0), length - side)


def face_box(track: Track, crop: tuple[int, int, int], size: int) -> Box:
  """The box of the face in all frames of a clip, in pixels of its crop resized to size × size."""
  x, y, side = crop
  left, top, right, bottom = track.extent
  scale = size / side
  x1, y1 = max(0, math.floor((left - x) * scale)), max(0, math.floor((top - y) * scale))
  x2, y2 = min(size, math.ceil((right - x) * scale)), min(size, math.ceil((bottom - y) * scale))
  return x1, y1, x2 - x1, y2 - y1


def cut(picture: np.ndarray, crop: tuple[int, int, int], size: int) -> np.ndarray:
  """Crops a picture (h, w, 3) uint8 and resizes it to (size, size, 3) by Lanczos; edges are repeated outside."""
  height, width = picture.shape[:2]
  x, y, side = crop
  rows = np.clip(np.arange(y, y + side), 0, height - 1)
  columns = np.clip(np.arange(x, x + side), 0, width - 1)
  inside = x >= 0 and y >= 0 and x + side <= width and y + side <= height
  square = picture[y : y + side, x : x + side] if inside else picture[np.ix_(rows, columns)]
  square = np.ascontiguousarray(square)
  return square if side == size else np.array(Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS))
