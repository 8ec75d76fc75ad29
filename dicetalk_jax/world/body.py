"""Background, shoulders and clothes, which do not move, and the neck that connects them to the head."""

import numpy as np

from dicetalk_jax.world.head import CENTRE, FACE, Head
from dicetalk_jax.world.identity import Identity
from dicetalk_jax.world.raster import Mask, fill, paint, smooth, smooth_open, spot

_COLLAR_Y = 0.765


def backdrop(identity: Identity, size: int) -> np.ndarray:
  """Background (3, size, size) float32 in [0, 1]: a vertical gradient, brighter towards the light."""
  place = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
  top, bottom = identity.colour("top")[:, None, None], identity.colour("bottom")[:, None, None]
  share = place[None, :, None] ** np.float32(1.2)
  x, y = place[None, None, :] - np.float32(0.5 + 0.28 * identity.light_x), place[None, :, None] - np.float32(0.3)
  glow = np.float32(0.1) * np.maximum(1 - 2.2 * (x * x + y * y), 0)
  return np.clip(top + (bottom - top) * share + glow - np.float32(0.03), 0, 1).astype(np.float32)


class Body:
  """Shoulders and clothes, the same in all frames, and the neck of each frame."""

  def __init__(self, head: Head, skin: np.ndarray, light: np.ndarray):
    identity = head.identity
    self.identity, self.size, self.skin, self.light = identity, head.size, skin, light
    neck = identity.neck_width
    self.low = _COLLAR_Y + 0.16 * identity.neckline
    jaw = head.project(np.array([[-neck, neck]]) * 0.97, np.full((1, 2), 0.22), -0.1)
    jaw_mid = head.project(np.array([[-neck, neck]]) * 0.97, np.full((1, 2), 0.42), -0.12)
    base = self._still([(neck * 1.0, 0.62), (neck * 1.12, 0.71), (neck * 1.6, 0.79), (neck * 1.2, 0.98), (0.1, 1.04)])
    base = np.broadcast_to(base, (head.n, *base.shape))
    mirrored = self._still(
      [(-0.1, 1.04), (-neck * 1.2, 0.98), (-neck * 1.6, 0.79), (-neck * 1.12, 0.71), (-neck * 1.0, 0.62)]
    )
    mirrored = np.broadcast_to(mirrored, (head.n, *mirrored.shape))
    loop = (jaw[:, 1:], jaw_mid[:, 1:], base, mirrored, jaw_mid[:, :1], jaw[:, :1])
    self.neck = smooth(np.concatenate(loop, axis=1), 5)
    chin = head.lowered(np.full((1, 1), 0.5))
    self.shadow = head.project(0.0 * chin, chin - 0.02, 0.0)[:, 0]
    self.shadow[:, 0] += np.float32(-0.03 * identity.light_x * head.size)
    self.across = np.array([0.2 * head.size, 0], np.float32)
    self.down = np.array([0, 0.125 * head.size], np.float32)
    self.clothes = self._clothes()
    self.opening, self.collar = fill(self._neckline(), head.size), fill(self._collar(), head.size)

  def _still(self, points) -> np.ndarray:
    """Face coordinates of things that do not move -> pixels."""
    return ((np.asarray(points, np.float32) * FACE + CENTRE) * self.size).astype(np.float32)

  def _clothes(self) -> tuple[Mask, np.ndarray]:
    """Mask of shoulders and clothes, and their colours (3, h, w)."""
    identity, size = self.identity, self.size
    wide, neck = identity.shoulder_width, identity.neck_width
    right = [
      (neck * 0.9, 0.68),
      (neck * 1.2, 0.722),
      (wide * 0.55, 0.775),
      (wide * 0.84, 0.835),
      (wide * 1.0, 0.95),
      (wide * 1.06, 1.2),
      (wide, 1.6),
    ]
    left = [(-x, y) for x, y in right[::-1]]
    mask = fill(smooth(self._still(right + left)), size)
    x, y = mask.grid()
    u, v = (x / size - CENTRE[0]) / FACE, (y / size - CENTRE[1]) / FACE
    shade = 1 + np.float32(0.16 * identity.light_x) * u - np.float32(0.35) * (v - np.float32(0.9)) * np.abs(u)
    colour = identity.colour("clothes") * self.light
    if identity.stripes > 0.02:
      bands = np.clip(np.sin((v + 0.25 * u * u) * 62) * 1.5 * size / 128, -0.5, 0.5) + 0.5
      shade = shade * (1 + np.float32(0.4 * identity.stripes * (1 if colour.mean() < 0.5 else -1)) * bands)
    return mask, np.clip(colour[:, None, None] * shade, 0, 1).astype(np.float32)

  def paint(self, canvas: np.ndarray, i: int) -> None:
    """Paints the clothes, the neck of frame i and the shadow of the chin on canvas (3, size, size)."""
    size, identity = self.size, self.identity
    paint(canvas, *self.clothes)
    neck = fill(self.neck[i], size)
    if not neck.alpha.size:
      return
    visible = neck.within(self.opening)
    paint(canvas, visible, self.skin * self.light * np.array([0.9, 0.87, 0.85], np.float32))
    shadow = spot(self.shadow[i], self.across, self.down, size).within(visible)
    deep = self.skin * np.array([0.55, 0.42, 0.38], np.float32) * self.light
    paint(canvas, Mask(shadow.left, shadow.top, np.minimum(shadow.alpha * 1.3, 1)), deep, 0.75)
    if identity.collar > 0.02:
      colour = identity.colour("clothes")
      colour = colour * 0.8 + 0.2 if colour.mean() < 0.6 else colour * 0.88
      paint(canvas, self.collar, colour * self.light, min(1.0, 1.6 * identity.collar))

  def _neckline(self) -> np.ndarray:
    neck = self.identity.neck_width
    point = 0.35 + 0.65 * (1 - self.identity.neckline)
    depth = self.low
    right = [(3.0, 0.5), (neck * 1.2, 0.705), (neck * 0.9 * point + 0.02, 0.55 * depth + 0.32), (0.0, depth)]
    left = [(-x, y) for x, y in right[-2:0:-1]]
    curve = smooth_open(self._still(right[1:] + left))
    return np.concatenate((self._still([(-3.0, 0.705), (-3.0, -3.0), (3.0, -3.0), (3.0, 0.705)]), curve))

  def _collar(self) -> np.ndarray:
    neck, low = self.identity.neck_width, self.low
    flap = [
      (neck * 1.08, 0.64),
      (neck * 1.42, 0.71),
      (neck * 1.15, 0.93),
      (0.05, low + 0.03),
      (0.0, low - 0.02),
      (neck * 0.75, 0.5 * low + 0.36),
    ]
    right = self._still(flap)
    return np.stack((right, self._still([(-x, y) for x, y in flap])[::-1]))
