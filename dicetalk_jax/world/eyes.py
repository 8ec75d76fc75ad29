"""Eyes, lids, brows and glasses."""

import numpy as np

from dicetalk_jax.world.head import Head
from dicetalk_jax.world.parameters import column
from dicetalk_jax.world.raster import fill, paint, spot, stroke

_T = np.linspace(-1, 1, 21, dtype=np.float32)
_S = np.linspace(0, 1, 13, dtype=np.float32)
_TURN = np.linspace(0, 2 * np.pi, 28, endpoint=False, dtype=np.float32)
_SIDES = np.array([-1, 1], np.float32)
_WHITE = np.array([0.96, 0.95, 0.94], np.float32)


class Eyes:
  """Eyes and brows of all frames, projected to pixels; `paint` draws those of one frame."""

  def __init__(self, head: Head, skin: np.ndarray, light: np.ndarray):
    identity, parameters = head.identity, head.parameters
    self.size, self.skin, self.light = head.size, skin, light
    self.iris_colour = identity.colour("iris")
    self.brow_colour = _brow_colour(identity, skin) * light
    self.tone = identity.skin_tone

    def p(name):
      return column(parameters, name)[:, None, None]

    # (n, side, m); along an eye -1 is the inner corner and 1 the outer one.
    t, side = _T[None, None], _SIDES[None, :, None]
    self.p = {
      name: column(parameters, name) for name in ("lid", "blink", "squint", "brow_inner", "brow_outer", "cheek")
    }
    lid, blink, squint, gaze_x, gaze_y = p("lid"), p("blink"), p("squint"), p("gaze_x"), p("gaze_y")
    half = identity.eye_size
    x = side * (identity.eye_spacing + half * t)
    middle = identity.eye_height - identity.eye_tilt * t
    above = 0.05 * (half / 0.092) * identity.eye_openness
    above = above * (1 + np.where(lid > 0, 0.5, 0.55) * lid) * (1 + 0.16 * gaze_y) * (1 - 0.14 * squint)
    below = 0.03 * (half / 0.092) * (1 + 0.12 * np.maximum(lid, 0)) * (1 - 0.95 * squint) * (1 - 0.3 * p("cheek"))
    lower = middle + below * (1 - np.abs(t) ** 2.2)
    shut = lower + 0.004
    opened = middle - above * (1 - np.abs(t + 0.08 * (1 - t * t)) ** 2.1)
    upper = np.minimum(opened, lower)
    upper = (1 - blink) * upper + blink * shut
    lower = (1 - blink) * lower + blink * (shut + 0.001)
    self.open = (lower - upper).max(axis=(1, 2))

    def at(x, y, out=0.0):
      return head.surface(x, y, out)

    top, bottom = at(x, upper), at(x, lower)
    self.whites = np.concatenate((top, bottom[:, :, ::-1]), axis=2)
    thick = (0.009 + 0.009 * identity.lashes) * np.clip(0.75 + 0.45 * t, 0.3, 1.1)
    scale = head.scale[:, :, None]
    tail = 1 + 0.05 * (t > 0.9)
    self.lash = stroke(at(side * (identity.eye_spacing + half * t * tail), upper - 0.3 * thick, 0.005), thick * scale)
    self.shade = stroke(at(x, upper + 0.008), 0.02 * scale)
    self.lower_line = stroke(at(x, lower), 0.006 * scale * np.clip(0.5 + 0.7 * t, 0.15, 1))
    fold = np.minimum(upper - 0.016, opened - 0.02 + 0.006 * lid)
    self.crease = stroke(at(x * (1 + 0.02 * t), fold), 0.009 * scale * np.sqrt(np.maximum(1.02 - t * t, 0.05)))
    bag = lower + 0.032 - 0.01 * squint
    self.bag = stroke(at(x * 0.98, bag + 0.012 * (1 - t * t)), 0.012 * scale * (1 - t * t))
    radius = 0.047 * (half / 0.092)
    iris_x = side * identity.eye_spacing + 0.036 * gaze_x
    iris_y = identity.eye_height - 0.004 - 0.025 * gaze_y
    circle_x, circle_y = np.cos(_TURN), np.sin(_TURN)
    self.iris = at(iris_x + radius * circle_x, iris_y + radius * circle_y)
    self.ring = at(iris_x + 0.86 * radius * circle_x, iris_y + 0.86 * radius * circle_y)
    self.pupil = at(iris_x + 0.45 * radius * circle_x, iris_y + 0.45 * radius * circle_y)
    glint = 0.26 * radius
    toward = 0.4 * radius * np.sign(identity.light_x + 1e-9)
    self.glint = at(iris_x + toward + glint * circle_x, iris_y - 0.4 * radius + glint * circle_y)
    x, y = side * identity.eye_spacing, middle[..., :1]
    self.socket = head.patch(x, y - 0.02, side * (identity.eye_spacing + 0.14), y + 0.09)[:, :, 0]
    self.brows = self._brows(head, p, side)
    self.frown = self._frown(head, p)
    self.forehead = self._forehead(head)
    self.glasses = _Glasses(head) if identity.glasses > 0.02 else None

  def _brows(self, head, p, side):
    identity, s = head.identity, _S[None, None]
    inner, outer, tilt = p("brow_inner"), p("brow_outer"), p("brow_tilt")
    narrowed = 0.03 * np.maximum(-inner, 0) + 0.012 * np.maximum(inner, 0)
    x = side * (identity.eye_spacing - 0.092 - narrowed * (1 - s) ** 1.2 + 0.2 * s)
    y = identity.eye_height - identity.brow_height - identity.brow_arch * 4 * s * (1 - s) + 0.026 * s**3
    y = y - identity.brow_tilt * (2 * s - 1)
    y = y - 0.062 * inner * (1 - s) ** 1.4 - 0.06 * outer * s**0.8 * (1.15 - 0.25 * s) - 0.036 * tilt * side
    profile = np.clip(0.62 + 1.5 * s - 2.0 * s * s, 0.14, 1)
    return stroke(head.surface(x, y, 0.015), identity.brow_thickness * profile * head.scale[:, :, None])

  def _frown(self, head, p):
    identity = head.identity
    inner = p("brow_inner")
    sign = _SIDES[None, :, None]
    top = identity.eye_height - identity.brow_height - 0.03
    y = top + 0.085 * _S[None, None] - 0.03 * inner
    x = sign * (0.026 - 0.008 * np.sin(np.pi * _S)[None, None]) + 0 * inner
    return stroke(head.surface(x, y, 0.01), 0.012 * np.sin(np.pi * _S) * head.scale[:, :, None])

  def _forehead(self, head):
    """Lines on the forehead above raised brows."""
    t = _T[None, None]
    y = head.identity.eye_height - head.identity.brow_height - np.array([0.105, 0.15], np.float32)[None, :, None]
    y = y - 0.012 * (1 - t * t) - 0.03 * np.maximum(column(head.parameters, "brow_inner"), 0)[:, None, None]
    return stroke(head.surface(0.17 * t, y, 0.0), 0.009 * (1 - t * t) * head.scale[:, :, None])

  def paint_sockets(self, shade, i: int) -> None:
    """Darkens the skin around the eyes with `shade(spot, amount)`."""
    for side in range(2):
      shade(spot(*self.socket[i, side], self.size), -0.2 - 0.05 * self.tone)

  def paint_folds(self, canvas, i: int) -> None:
    """Paints the creases around eyes and brows of frame i on canvas."""
    dark, size = self.skin * np.array([0.6, 0.47, 0.42], np.float32) * self.light, self.size
    squint, cheek = float(self.p["squint"][i]), float(self.p["cheek"][i])
    paint(canvas, fill(self.crease[i], size), dark, 0.6)
    if squint + cheek > 0:
      paint(canvas, fill(self.bag[i], size), dark, min(0.65, 0.4 * (squint + cheek)))
    inner, outer = float(self.p["brow_inner"][i]), float(self.p["brow_outer"][i])
    if inner < 0:
      paint(canvas, fill(self.frown[i], size), dark, -0.8 * inner)
    raised = max(0.0, inner) + 0.6 * max(0.0, outer)
    if raised > 0:
      paint(canvas, fill(self.forehead[i], size), dark, min(0.5, 0.32 * raised))

  def paint(self, canvas, i: int) -> None:
    """Paints the eyes of frame i on canvas (3, size, size)."""
    size = self.size
    lash_colour = np.array([0.12, 0.07, 0.06], np.float32)
    if self.open[i] > 0.003:
      whites = fill(self.whites[i], size)
      # Eyes are shaded by their sockets; pure white would look unnatural in deep skin.
      paint(canvas, whites, _WHITE * (0.88 - 0.12 * self.tone))
      iris = fill(self.iris[i], size).within(whites)
      paint(canvas, iris, self.iris_colour * 0.45)
      paint(canvas, fill(self.ring[i], size).within(whites), self.iris_colour * 0.95 + 0.03)
      paint(canvas, fill(self.pupil[i], size).within(whites), (0.03, 0.03, 0.04))
      paint(canvas, fill(self.shade[i], size).within(whites), (0.15, 0.1, 0.12), 0.32)
      paint(canvas, fill(self.glint[i], size).within(whites), (1, 1, 1), 0.92)
    paint(canvas, fill(self.lower_line[i], size), self.skin * 0.42, 0.6)
    paint(canvas, fill(self.lash[i], size), lash_colour, 0.9)

  def paint_brows(self, canvas, i: int) -> None:
    paint(canvas, fill(self.brows[i], self.size), self.brow_colour, 0.92)

  def paint_glasses(self, canvas, i: int) -> None:
    if self.glasses:
      self.glasses.paint(canvas, i)


def _brow_colour(identity, skin: np.ndarray) -> np.ndarray:
  """Colour of the hair, darkened until the brows differ from the skin: they show much of an emotion."""
  colour = 0.7 * identity.colour("hair") * (1 - 0.75 * identity.brow_darkness) + 0.1 * skin
  return colour * min(1.0, 0.52 * float(skin.mean()) / max(float(colour.mean()), 1e-6))


class _Glasses:
  def __init__(self, head: Head):
    identity = head.identity
    self.size, self.opacity = head.size, float(min(1.0, identity.glasses))
    self.colour = identity.colour("glasses")
    power = 2 / (4.4 - 2.3 * identity.glasses_round)
    cos, sin = np.cos(_TURN), np.sin(_TURN)
    x, y = np.sign(cos) * np.abs(cos) ** power, np.sign(sin) * np.abs(sin) ** power
    side = _SIDES[None, :, None]
    middle_x = identity.eye_spacing + 0.006
    wide = min(0.128, middle_x - 0.03)
    tall = 0.088 + 0.026 * identity.glasses_round
    middle_y = identity.eye_height + 0.012
    depth = head.front(identity.eye_spacing * 0.9, identity.eye_height, 0.06)
    thick = identity.glasses_thickness

    def ring(grow):
      return head.project(
        side * middle_x + (wide + grow) * x,
        middle_y + (tall + grow) * y,
        depth - 0.12 * np.abs(side * middle_x + wide * x),
      )

    self.lens = ring(-thick / 2)
    self.frame = np.concatenate((ring(thick / 2), ring(-thick / 2)[:, :, ::-1]), axis=1)
    gap = middle_x - wide
    bridge_x = np.linspace(-gap, gap, 9, dtype=np.float32)[None]
    bridge = head.project(bridge_x, middle_y - 0.02 - 0.015 * np.cos(bridge_x / gap * 1.5), depth)
    self.bridge = stroke(bridge, 1.1 * thick * head.scale)
    along = np.linspace(0, 1, 9, dtype=np.float32)[None, None]
    out = middle_x + wide
    temple_x = side * (out + (identity.face_width * 1.02 - out) * along)
    temple = head.project(temple_x, middle_y - 0.03 + 0 * along, (depth - 0.12 * out) * (1 - along) + 0.05 * along)
    self.temples = stroke(temple, 0.9 * thick * head.scale[:, :, None])
    self.near = np.stack((head.sin_yaw[:, 0] > -0.12, head.sin_yaw[:, 0] < 0.12), -1)
    glare = np.array([[-0.75, -0.2], [-0.3, -0.75], [0.0, -0.75], [-0.62, 0.1]], np.float32)
    self.glare = head.project(side * middle_x + wide * glare[:, 0], middle_y + tall * glare[:, 1], depth)

  def paint(self, canvas, i: int) -> None:
    size, opacity = self.size, self.opacity
    paint(canvas, fill(self.lens[i], size), (0.93, 0.97, 1.0), 0.1 * opacity)
    paint(canvas, fill(self.glare[i], size), (1, 1, 1), 0.16 * opacity)
    for side in range(2):
      if self.near[i, side]:
        paint(canvas, fill(self.temples[i, side], size), self.colour * 0.8, opacity)
    paint(canvas, fill(self.frame[i], size), self.colour, opacity)
    paint(canvas, fill(self.bridge[i], size), self.colour, opacity)
