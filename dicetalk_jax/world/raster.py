"""Antialiased filling of outlines, strokes, curves and soft spots, in NumPy only.

The coverage of each pixel is exact, from signed areas: every edge adds its area to the pixels that it crosses, and a
cumulative sum along each row fills the inside. The cost depends on the length and bounding box of the outline, not on
the size of the picture.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Mask:
  """Coverage of pixels: alpha (h, w) float32 in [0, 1], with its corner at (left, top) of the picture."""

  left: int
  top: int
  alpha: np.ndarray

  def within(self, other: "Mask") -> "Mask":
    """The intersection with another mask."""
    left, top = max(self.left, other.left), max(self.top, other.top)
    right = min(self.left + self.alpha.shape[1], other.left + other.alpha.shape[1])
    bottom = min(self.top + self.alpha.shape[0], other.top + other.alpha.shape[0])
    if right <= left or bottom <= top:
      return Mask(0, 0, np.zeros((0, 0), np.float32))
    a = self.alpha[top - self.top : bottom - self.top, left - self.left : right - self.left]
    b = other.alpha[top - other.top : bottom - other.top, left - other.left : right - other.left]
    return Mask(left, top, a * b)

  def grid(self) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the pixels in picture coordinates: x (1, w), y (h, 1)."""
    h, w = self.alpha.shape
    x = np.arange(w, dtype=np.float32)[None] + np.float32(self.left + 0.5)
    return x, np.arange(h, dtype=np.float32)[:, None] + np.float32(self.top + 0.5)


def fill(contours: np.ndarray, size: int) -> Mask:
  """Closed outlines (m, 2) or (c, m, 2), x and y in pixels -> their mask in a picture of size x size.

  An outline of the opposite direction cuts a hole in the others.
  """
  contours = contours.reshape(-1, *contours.shape[-2:]).astype(np.float32)
  x, y = np.ascontiguousarray(contours[..., 0]), np.ascontiguousarray(contours[..., 1])
  left, top = max(0, math.floor(x.min())), max(0, math.floor(y.min()))
  w, h = min(size, math.ceil(x.max())) - left, min(size, math.ceil(y.max())) - top
  if w <= 0 or h <= 0:
    return Mask(0, 0, np.zeros((0, 0), np.float32))
  x -= np.float32(left)
  y -= np.float32(top)
  dx, dy = _next(x) - x, _next(y) - y
  # Edges of at most one pixel cross at most one row border, so each has at most two pieces.
  pieces = max(1, math.ceil(1.05 * max(float(dx.max()), -float(dx.min()), float(dy.max()), -float(dy.min()))))
  if pieces > 1:
    steps = np.arange(pieces, dtype=np.float32) / np.float32(pieces)
    x = (x[:, :, None] + dx[:, :, None] * steps).reshape(len(x), -1)
    y = (y[:, :, None] + dy[:, :, None] * steps).reshape(len(y), -1)
  x, y = np.minimum(np.maximum(x, 0), np.float32(w)), np.minimum(np.maximum(y, 0), np.float32(h))
  x0, x1, y0, y1 = x.ravel(), _next(x).ravel(), y.ravel(), _next(y).ravel()
  row0, row1 = y0.astype(np.int32), y1.astype(np.int32)
  crossing = row0 != row1
  dy = y1 - y0
  middle_y = np.where(crossing, np.maximum(row0, row1), y1).astype(np.float32)
  middle_x = np.where(crossing, x0 + (x1 - x0) * (middle_y - y0) / np.where(crossing, dy, 1), x1)
  rows = np.concatenate((row0, row1))
  heights = np.concatenate((middle_y - y0, y1 - middle_y))
  centres = 0.5 * np.concatenate((x0 + middle_x, middle_x + x1))
  columns = centres.astype(np.int32)
  beyond = heights * (centres - columns)
  index = rows * (w + 2) + columns
  cells = np.bincount(
    np.concatenate((index, index + 1)), np.concatenate((heights - beyond, beyond)), minlength=(h + 1) * (w + 2)
  )
  area = np.cumsum(cells.reshape(-1, w + 2)[:h, :w], axis=1)
  return Mask(left, top, np.minimum(np.abs(area, out=area), 1, out=area).astype(np.float32))


def _next(values: np.ndarray) -> np.ndarray:
  """The point after each point (c, m) of closed outlines."""
  return np.concatenate((values[:, 1:], values[:, :1]), axis=1)


def spot(centre: np.ndarray, across: np.ndarray, down: np.ndarray, size: int) -> Mask:
  """A soft spot: 1 in the middle, 0 outside the ellipse with half axes across and down, each (2,) in pixels."""
  reach = np.hypot(across, down)
  left, top = (max(0, int(v)) for v in np.floor(centre - reach))
  right, bottom = (min(size, int(v)) for v in np.ceil(centre + reach))
  determinant = float(across[0] * down[1] - across[1] * down[0])
  if right <= left or bottom <= top or abs(determinant) < 1e-6:
    return Mask(0, 0, np.zeros((0, 0), np.float32))
  x = np.arange(left, right, dtype=np.float32)[None] + np.float32(0.5 - centre[0])
  y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - centre[1])
  u = x * np.float32(down[1] / determinant) - y * np.float32(down[0] / determinant)
  v = y * np.float32(across[0] / determinant) - x * np.float32(across[1] / determinant)
  inside = np.maximum(1 - u * u - v * v, 0)
  return Mask(left, top, inside * inside)


def paint(canvas: np.ndarray, mask: Mask, colour, opacity: float = 1.0) -> None:
  """Paints a colour, (3,) or (3, h, w) over the box of the mask, on canvas (3, size, size) in place."""
  h, w = mask.alpha.shape
  if opacity <= 0 or not mask.alpha.size:
    return
  region = canvas[:, mask.top : mask.top + h, mask.left : mask.left + w]
  colour = np.asarray(colour, np.float32)
  colour = colour[:, None, None] if colour.ndim == 1 else colour
  alpha = mask.alpha if opacity == 1 else mask.alpha * np.float32(opacity)
  region += alpha * (colour - region)


def stroke(lines: np.ndarray, widths: np.ndarray) -> np.ndarray:
  """Open lines (..., m, 2) and their widths, broadcast over (..., m) -> closed outlines (..., 2m, 2)."""
  along = np.gradient(lines, axis=-2)
  length = np.maximum(np.sqrt((along**2).sum(-1, keepdims=True)), 1e-6)
  normal = np.stack((-along[..., 1], along[..., 0]), -1) / length
  half = 0.5 * np.broadcast_to(widths, lines.shape[:-1])[..., None] * normal
  return np.concatenate((lines + half, (lines - half)[..., ::-1, :]), axis=-2)


def smooth(points: np.ndarray, samples: int = 6) -> np.ndarray:
  """Closed curve through points (..., k, 2) -> (..., k · samples, 2): uniform Catmull-Rom."""
  return _curve([np.roll(points, 1 - j, axis=-2) for j in range(4)], samples)


def smooth_open(points: np.ndarray, samples: int = 6) -> np.ndarray:
  """Open curve through points (..., k, 2) -> (..., (k - 1) · samples + 1, 2)."""
  before, after = 2 * points[..., :1, :] - points[..., 1:2, :], 2 * points[..., -1:, :] - points[..., -2:-1, :]
  padded = np.concatenate((before, points, after), axis=-2)
  segments = points.shape[-2] - 1
  curve = _curve([padded[..., j : j + segments, :] for j in range(4)], samples)
  return np.concatenate((curve, points[..., -1:, :]), axis=-2)


def _curve(neighbours: list[np.ndarray], samples: int) -> np.ndarray:
  t = (np.arange(samples, dtype=np.float32) / np.float32(samples))[:, None]
  weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
  # Not a matrix product, whose rounding depends on the number of frames: a frame must not depend on the others.
  points = sum(0.5 * w * p[..., :, None, :] for w, p in zip(weights, neighbours, strict=True))
  return points.reshape(*points.shape[:-3], -1, 2)
