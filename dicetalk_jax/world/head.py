"""The head as a solid: projection of its points and its silhouette to the picture, frame by frame."""

import numpy as np

from dicetalk_jax.world.identity import Identity
from dicetalk_jax.world.parameters import column

# In face heights: x to the right, y down from the middle of the face, z to the viewer. At rest the hairline is at
# y = -0.5 and the chin at 0.5. The face is 0.7 of the picture's height, so that it can be read at 128 pixels.
FACE = 0.7
CENTRE = (0.5, 0.5)
PIVOT = (0.0, 0.22, -0.12)
CHIN_DROP = 0.105
# Sections of the silhouette: height, depth of the centre, half the depth.
LEVELS = np.array([-0.68, -0.6, -0.46, -0.29, -0.1, 0.06, 0.2, 0.315, 0.405, 0.465, 0.495], np.float32)
CENTRES = np.array([-0.12, -0.11, -0.1, -0.08, -0.05, -0.02, 0.03, 0.075, 0.125, 0.17, 0.19], np.float32)
DEPTHS = np.array([0.22, 0.36, 0.46, 0.5, 0.48, 0.45, 0.38, 0.31, 0.2, 0.12, 0.07], np.float32)
CROWN = -0.705


class Head:
  """Pose of a head in n frames, and its shape; projects face coordinates to pixels."""

  def __init__(self, identity: Identity, parameters: np.ndarray, size: int):
    self.identity, self.parameters, self.size = identity, parameters, size
    self.n = len(parameters)

    def angle(name):
      return column(parameters, name)[:, None]

    yaw, pitch, roll = (angle(name) for name in ("yaw", "pitch", "roll"))
    self.sin_yaw, self.cos_yaw = np.sin(yaw), np.cos(yaw)
    self.sin_pitch, self.cos_pitch = np.sin(pitch), np.cos(pitch)
    self.sin_roll, self.cos_roll = np.sin(roll), np.cos(roll)
    self.scale = FACE * size * np.exp(angle("zoom"))
    self.origin_x = size * (CENTRE[0] + FACE * angle("shift_x"))
    self.origin_y = size * (CENTRE[1] - FACE * angle("shift_y"))
    self.drop = CHIN_DROP * angle("jaw")
    self.widths = _widths(identity)

  def project(self, x, y, z) -> np.ndarray:
    """Points of the face, broadcast to (n, ...) -> (n, ..., 2) pixels."""
    x, y, z = np.broadcast_arrays(*(np.asarray(v, np.float32) for v in (x, y, z)))
    x, y, z = (np.broadcast_to(v, (self.n, *v.shape[1:])) for v in (x, y, z))
    shape = x.shape
    x, y, z = (v.reshape(self.n, -1) for v in (x, y, z))
    z = z - np.float32(PIVOT[2])
    turned = x * self.cos_yaw + z * self.sin_yaw
    return self._tilt(turned, y, z * self.cos_yaw - x * self.sin_yaw).reshape(*shape, 2)

  def silhouette(self, y, half_width, centre, depth) -> tuple[np.ndarray, np.ndarray]:
    """Horizontal sections, ellipses around the axis -> their left and right ends in the picture, each (n, k, 2)."""
    y, half_width, centre, depth = np.broadcast_arrays(*(np.atleast_2d(v) for v in (y, half_width, centre, depth)))
    centre = centre - np.float32(PIVOT[2])
    middle = centre * self.sin_yaw
    reach = np.sqrt((half_width * self.cos_yaw) ** 2 + (depth * self.sin_yaw) ** 2)
    z = centre * self.cos_yaw
    y = np.broadcast_to(y, reach.shape)
    return self._tilt(middle - reach, y, z), self._tilt(middle + reach, y, z)

  def _tilt(self, x, y, z) -> np.ndarray:
    y = y - np.float32(PIVOT[1])
    nodded = y * self.cos_pitch - z * self.sin_pitch
    across = x * self.cos_roll - nodded * self.sin_roll
    down = x * self.sin_roll + nodded * self.cos_roll + np.float32(PIVOT[1])
    return np.stack((self.origin_x + self.scale * across, self.origin_y + self.scale * down), -1)

  def front(self, x, y, out=0.0):
    """Depth of the face's surface at x, y, plus `out`."""
    across, down = np.asarray(x) / (1.07 * self.identity.face_width), (np.asarray(y) + 0.1) / 0.92
    inside = 1 - across**2 - down**2
    return 0.37 * np.sqrt(np.maximum(inside, 0.04)) + out

  def surface(self, x, y, out=0.0) -> np.ndarray:
    """Points on the face, x and y broadcast to (n, ...), raised by `out` -> (n, ..., 2) pixels."""
    return self.project(x, y, self.front(x, y, out))

  def patch(self, x, y, right, below, out=0.0, out_below=None) -> np.ndarray:
    """An ellipse on the face (n, ..., 3, 2) as `raster.spot` takes it: centre at x, y, and two half axes in pixels.

    The axes end at `right`, y and x, `below`; out_below: height of the latter end, by default `out`.
    """
    centre = self.surface(x, y, out)
    down = self.surface(x, below, out if out_below is None else out_below)
    return np.stack((centre, self.surface(right, y, out) - centre, down - centre), -2)

  def lowered(self, y):
    """Heights (k,) or (n, k) after the jaw has dropped, which moves the lower face."""
    share = np.clip((np.asarray(y, np.float32) - 0.08) / 0.42, 0, 1)
    return y + self.drop * share * share * (3 - 2 * share)

  def outline_points(self) -> np.ndarray:
    """Control points of the silhouette, clockwise from the crown: (n, k, 2) pixels."""
    cheek = column(self.parameters, "cheek")[:, None]
    puffed = self.widths * (1 + 0.035 * cheek * np.exp(-(((LEVELS - 0.16) / 0.12) ** 2)))
    narrowed = puffed * (1 - 0.6 * self.drop * np.clip((LEVELS - 0.1) / 0.3, 0, 1))
    left, right = self.silhouette(self.lowered(LEVELS), narrowed, CENTRES, DEPTHS)
    crown = self.project(0.0, np.full((1, 1), CROWN), -0.12)
    chin = self.project(0.0, self.lowered(np.full((1, 1), 0.5)), 0.2)
    return np.concatenate((crown, right, chin, left[:, ::-1]), axis=1)

  def face_points(self) -> np.ndarray:
    """The face's silhouette from the forehead down, (n, k, 2) pixels."""
    below = slice(2, None)
    y = self.lowered(LEVELS[below])
    left, right = self.silhouette(y, self.widths[below], CENTRES[below], DEPTHS[below])
    return np.concatenate((left, right, self.project(0.0, self.lowered(np.full((1, 1), 0.5)), 0.2)), axis=1)


def _widths(identity: Identity) -> np.ndarray:
  """Half the width of each section of LEVELS."""
  jaw, chin, forehead = identity.jaw_width, identity.chin_width, identity.forehead_width
  corner = (0.70 + 0.10 * identity.jaw_square) * jaw
  shares = (0.45, 0.76 * forehead, 0.96 * forehead, 0.5 + 0.5 * forehead, 1.0, 1.0, 0.5 + 0.5 * jaw)
  shares += (0.96 * jaw, corner, 0.55 * corner + 0.38 * chin, 0.55 * chin)
  return identity.face_width * np.array(shares, np.float32)
