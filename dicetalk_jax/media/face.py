"""Where the face is, and the mask and crop that follow from it."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from dicetalk_jax.errors import InputError
from dicetalk_jax.files import existing_file

Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Face:
  """A face found: `box` (x, y, w, h) in pixels, inside the image; `score`, larger is surer, on its detector's scale."""

  box: Box
  score: float

  @property
  def area(self) -> int:
    return self.box[2] * self.box[3]


# Anything that finds the faces of an image, uint8 RGB (h, w, 3), in any order.
FaceDetector = Callable[[np.ndarray], list[Face]]


class HaarDetector:
  """The frontal-face cascade that comes inside OpenCV: upright faces, about a tenth of a second, no model to fetch.

  Where it finds nothing it looks once more with the contrast equalised.
  """

  _CASCADE = "haarcascade_frontalface_alt2.xml"
  # A cascade's square is wider than the face and ends above the chin; the model's boxes run from ear to ear and from
  # forehead to chin. (x, y, w, h) as shares of the square.
  _FACE_IN_SQUARE = (0.08, 0.0, 0.84, 1.08)
  _SHORTER_SIDE = 320
  # A face of a smaller share of the shorter side is taken for clutter.
  _SMALLEST_FACE = 1 / 12
  _NEIGHBOURS = 4

  def __init__(self):
    self._cascade = cv2.CascadeClassifier(cv2.data.haarcascades + self._CASCADE)

  def __call__(self, image: np.ndarray) -> list[Face]:
    height, width = image.shape[:2]
    scale = min(1.0, self._SHORTER_SIDE / min(height, width))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else grey
    smallest = max(20, round(min(grey.shape) * self._SMALLEST_FACE))
    for pixels in (grey, cv2.equalizeHist(grey)):
      squares, _, scores = self._cascade.detectMultiScale3(
        pixels, 1.1, self._NEIGHBOURS, minSize=(smallest, smallest), outputRejectLevels=True
      )
      if len(squares):
        left, top, wide, tall = self._FACE_IN_SQUARE
        return [
          _face((x + left * w, y + top * h, wide * w, tall * h), score, 1 / scale, width, height)
          for (x, y, w, h), score in zip(squares, np.ravel(scores), strict=True)
        ]
    return []


class DnnDetector:
  """A stronger detector from a model file the user has: YuNet (.onnx), run by OpenCV.

  Raises InputError where the file is missing or not such a model.
  """

  def __init__(self, model, threshold: float = 0.5):
    self.path = existing_file(model, "face model")
    try:
      self._detector = cv2.FaceDetectorYN.create(str(self.path), "", (320, 320), threshold)
    except cv2.error as error:
      raise InputError(f"face model {self.path} is not a model OpenCV can load; give YuNet's .onnx file") from error

  def __call__(self, image: np.ndarray) -> list[Face]:
    height, width = image.shape[:2]
    try:
      self._detector.setInputSize((width, height))
      _, rows = self._detector.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
      raise InputError(f"face model {self.path} does not answer as YuNet does; give YuNet's .onnx file") from error
    # A row is x, y, w, h, five landmarks and the score.
    return [] if rows is None else [_face(row[:4], row[-1], 1.0, width, height) for row in rows]


def _face(box, score, scale, width, height) -> Face:
  """A detector's box, multiplied by scale and cut to the image."""
  x, y, w, h = (float(value) * scale for value in box)
  x1, y1 = max(0, round(x)), max(0, round(y))
  x2, y2 = min(width, round(x + w)), min(height, round(y + h))
  return Face((x1, y1, max(1, x2 - x1), max(1, y2 - y1)), float(score))


def find_face(image: np.ndarray, detector: FaceDetector | None = None) -> tuple[Face, int]:
  """The largest face of an image, uint8 (h, w, 3), and how many there are; InputError where there is none."""
  faces = (detector or HaarDetector())(image)
  if not faces:
    height, width = image.shape[:2]
    raise InputError(
      f"no face was found in the portrait ({width}x{height} pixels): use a frontal photograph, "
      "or say where the face is with --face-box X Y W H"
    )
  return max(faces, key=lambda face: face.area), len(faces)


def check_box(box: Sequence[float], width: int, height: int) -> Box:
  """A face box given by hand -> (x, y, w, h) ints, as it is: it may reach over an edge, as a face may.

  Raises InputError unless it is four finite numbers, of positive size, with its centre inside the image.
  """
  try:
    values = [float(value) for value in box]
  except (TypeError, ValueError):
    values = []
  said = " ".join(f"{value:g}" for value in values) or repr(box)
  if len(values) != 4 or not all(map(math.isfinite, values)):
    raise InputError(f"face box {said} is not four numbers X Y W H (left, top, width, height in pixels)")
  x, y, w, h = (round(value) for value in values)
  if w <= 0 or h <= 0:
    raise InputError(f"face box {said} has width {w} and height {h}; both must be positive (X Y W H, in pixels)")
  if not (0 <= x + w / 2 < width and 0 <= y + h / 2 < height):
    raise InputError(
      f"face box {said} (X Y W H, in pixels) is outside the image of {width}x{height} pixels: "
      f"its centre is at {x + w / 2:g} {y + h / 2:g}"
    )
  return x, y, w, h


def crop_around(image: np.ndarray, box: Sequence[int]) -> tuple[np.ndarray, Box]:
  """The square around a face, and the face's box in it (released: the optional crop).

  The box grows by half its size on each side, cut to the image; the crop is the largest square inside that, its centre
  as near to the face's as it fits.
  """
  height, width = image.shape[:2]
  x, y, w, h = box
  left, top = max(0, int(x - 0.5 * w)), max(0, int(y - 0.5 * h))
  right, bottom = min(width, int(x + 1.5 * w)), min(height, int(y + 1.5 * h))
  side = min(right - left, bottom - top)
  left = min(max((2 * x + w - side) // 2, left), right - side)
  top = min(max((2 * y + h - side) // 2, top), bottom - side)
  return image[top : top + side, left : left + side].copy(), (x - left, y - top, w, h)
