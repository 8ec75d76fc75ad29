"""Hair behind the head, and the cap, fringe and locks in front of it."""

import numpy as np

from dicetalk_jax.world.head import CENTRES, CROWN, DEPTHS, LEVELS, Head
from dicetalk_jax.world.raster import Mask, fill, paint, smooth

_TURN = np.linspace(0, 2 * np.pi, 24, endpoint=False, dtype=np.float32)


class Hair:
  """Hair of all frames, projected to pixels. The parts behind and in front of the head are painted separately."""

  def __init__(self, head: Head, skin: np.ndarray, light: np.ndarray):
    identity = head.identity
    self.head, self.identity, self.size = head, identity, head.size
    colour = identity.colour("hair") * light
    # White hair needs headroom for its sheen; on black hair the sheen is added.
    self.bright = float(colour.mean())
    self.colour = colour * (1 - 0.13 * self.bright)
    self.opacity = float(np.clip((identity.hair_cover - 0.1) / 0.9, 0, 1))
    length, volume, width = identity.hair_length, identity.hair_volume, identity.face_width
    self.middle = head.project(0.0, np.full((1, 1), -0.3), -0.12)[:, 0]
    upper = slice(0, 6)
    level, centre, depth = LEVELS[upper], CENTRES[upper], DEPTHS[upper] + volume
    rise = np.clip((-level - 0.1) / 0.6, 0, 1)
    cap_y = level - 0.8 * volume * rise**2
    side = volume * np.array([0.9, 1.0, 1.0, 0.95, 0.85, 0.75], np.float32)
    # Cropped hair is close to the head at the ears; longer hair keeps its volume.
    close = min(1.0, 4 * length + 2.5 * volume)
    side = side * np.array([1, 1, 1, 0.9, 0.55 + 0.45 * close, 0.1 + 0.9 * close], np.float32)
    cap = head.silhouette(cap_y, head.widths[upper] + side, centre, depth)
    crown = head.project(0.0, np.full((1, 1), CROWN - volume), -0.12)
    end = 0.12 + 0.95 * length
    fall_y = np.linspace(0.14, 1, 5) * end if length > 0.2 else np.array([0.05, 0.09])
    flare = volume * (0.9 + 0.35 * identity.hair_wave * length)
    fall_w = (width + flare) * (np.array([1.0, 1.02, 1.02, 0.97, 0.78]) if length > 0.2 else np.array([0.8, 0.5]))
    fall = head.silhouette(fall_y, fall_w, -0.1 + 0 * fall_y, 0.42 + volume)
    back = (crown, cap[1], fall[1], fall[0][:, ::-1], cap[0][:, ::-1])
    self.back = self._ruffled(smooth(np.concatenate(back, axis=1)), 2.6 + 4 * volume + 2 * length)
    self._place_front(crown, cap)
    radius = 0.1 + 0.07 * identity.hair_bun
    bun_x, bun_y = radius * 1.1 * np.cos(_TURN)[None], CROWN - volume - 0.05 + radius * np.sin(_TURN)[None]
    self.bun = self._ruffled(head.project(bun_x, bun_y, -0.2), 6.3 * radius)

  def _place_front(self, crown, cap):
    head, identity = self.head, self.identity
    length, width, volume = identity.hair_length, identity.face_width, identity.hair_volume
    # Locks hang in front of the shoulders unless they are tucked behind the ears.
    hang = max(0.0, length - 0.2) / 0.8 * (1 - identity.hair_tuck) ** 0.5 if length > 0.2 else 0.0
    end = 0.0 + 0.95 * hang
    share = np.array([0.4, 0.75, 1.0])
    lock_y = 0.06 + share * max(end - 0.06, 0.02)
    outer = (width + volume * 0.9 * min(1.0, 5 * hang)) * np.array([1.01, 1.02, 0.93 if hang > 0.05 else 1.0])
    locks = head.silhouette(lock_y, outer, -0.05 + 0 * lock_y, 0.42 + volume)
    thin = 0.03 + 0.07 * min(1.0, 4 * hang)
    inner_y = np.array([0.85, 0.5, 0.12]) * (lock_y[-1] - 0.02)
    inner_x = (width + 0.012) - thin * np.array([0.7, 1.0, 0.9])
    depth = np.array([0.0, 0.02, 0.06])

    # When the head turns, the face hides the locks on the far side.
    level = np.minimum(inner_y, 0.25)
    section = (np.interp(level, LEVELS, values) for values in (head.widths, CENTRES, DEPTHS))
    edges = head.silhouette(inner_y, *section)

    def inner(sign):
      points = head.project(sign * inner_x[None], inner_y[None], depth[None])
      hidden = np.clip(2.4 * sign * head.sin_yaw, 0, 1)[..., None]
      return points + hidden * (edges[(sign + 1) // 2] - points)

    line = -0.5 + identity.hair_line
    t = np.linspace(-0.92, 0.92, 13)[None]
    temple = np.abs(t) ** (2.2 + 1.4 * identity.fringe)
    parted = np.exp(-(((t - identity.hair_parting) / 0.22) ** 2))
    down = 0.2 * identity.fringe
    sweep = down * (1 - 0.75 * parted * (1 - 0.6 * (identity.fringe > 0.75)))
    strands = 0.012 * np.sin(t * 21 + 5 * identity.hair_parting) * min(1.0, 2 * identity.fringe)
    y = line + (sweep + strands) * (1 - temple) + 0.27 * temple
    brows = identity.eye_height - identity.brow_height - 0.045
    y = np.minimum(y, brows + 0.35 * np.abs(t) ** 3)
    hairline = head.surface(width * 0.97 * t, y, 0.01)
    loop = (
      crown,
      cap[1],
      locks[1],
      inner(1),
      hairline[:, ::-1],
      inner(-1)[:, ::-1],
      locks[0][:, ::-1],
      cap[0][:, ::-1],
    )
    self.front = self._ruffled(smooth(np.concatenate(loop, axis=1), 5), 4.2 + 6 * volume + 4 * hang, 0.6)

  def _ruffled(self, contour: np.ndarray, around: float, share: float = 1.0) -> np.ndarray:
    """Adds curls to an outline (n, m, 2) of about `around` face heights."""
    size = share * 0.3 * self.identity.hair_wave**2 * self.identity.hair_volume
    if size < 1e-3:
      return contour
    along = np.diff(contour, axis=1, append=contour[:, :1])
    length = np.maximum(np.hypot(along[..., 0], along[..., 1]), 1e-6)
    travelled = np.cumsum(length, axis=1)
    waves = round(around / 0.13)
    phase = waves * 2 * np.pi * travelled / travelled[:, -1:]
    normal = np.stack((along[..., 1], -along[..., 0]), -1) / length[..., None]
    return contour + normal * ((size * self.head.scale) * np.abs(np.sin(phase / 2)))[..., None]

  def paint_back(self, canvas, i: int) -> None:
    if self.opacity > 0.02:
      if self.identity.hair_bun > 0.02:
        self._paint(canvas, fill(self.bun[i], self.size), i, 0.92)
      self._paint(canvas, fill(self.back[i], self.size), i, 0.78)

  def paint_front(self, canvas, i: int) -> None:
    if self.opacity > 0.02:
      self._paint(canvas, fill(self.front[i], self.size), i, 1.0)

  def _paint(self, canvas, mask: Mask, i: int, tone: float) -> None:
    """Paints hair over a mask: lit from one side, with a sheen over the crown and strands that run down from it."""
    if not mask.alpha.size:
      return
    identity, head = self.identity, self.head
    x, y = mask.grid()
    scale = np.float32(head.scale[i, 0])
    cos, sin = np.float32(head.cos_roll[i, 0]), np.float32(head.sin_roll[i, 0])
    x, y = (x - self.middle[i, 0]) / scale, (y - self.middle[i, 1]) / scale
    u, v = x * cos + y * sin, y * cos - x * sin
    u = u - np.float32(0.3 * head.sin_yaw[i, 0])
    spread = u / (np.maximum(v + np.float32(0.6), 0) * np.float32(0.55) + np.float32(0.32))
    wave = np.float32(1.5 + 3 * identity.hair_wave)
    strands = np.sin(spread * 17 + wave * np.sin(v * np.float32(5 + 9 * identity.hair_wave)))
    lift = v + np.float32(0.26) + np.float32(0.45) * (u + np.float32(0.12 * identity.light_x)) ** 2
    sheen = np.maximum(1 - (lift / np.float32(0.14)) ** 2, 0)
    lit = np.float32(0.22 * identity.light_x) * u - np.float32(0.16) * v
    value = np.float32(tone) * (
      1 + lit + np.float32(0.07 - 0.035 * identity.hair_wave) * strands + np.float32(0.2 - 0.14 * self.bright) * sheen
    )
    add = np.float32(0.05 * (1 - self.bright)) * sheen + np.float32(0.015) * strands
    base = self.colour[:, None, None]
    paint(canvas, mask, np.clip(base * value + add * np.float32(tone), 0, 1), self.opacity)
