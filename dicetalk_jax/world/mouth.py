"""The mouth: curves of the lips from speech and emotion, and how they are painted."""

import dataclasses

import numpy as np

from dicetalk_jax.world.head import Head
from dicetalk_jax.world.identity import Identity
from dicetalk_jax.world.parameters import column
from dicetalk_jax.world.raster import fill, paint, spot, stroke

_T = np.linspace(-1, 1, 33, dtype=np.float32)
_MIDDLE = len(_T) // 2
_CAVITY = np.array([0.24, 0.06, 0.07], np.float32)
_TEETH = np.array([0.95, 0.93, 0.89], np.float32)
_TONGUE = np.array([0.78, 0.36, 0.38], np.float32)


@dataclasses.dataclass(frozen=True)
class Lips:
  """Curves of the lips in face heights, each (n, m) from the left corner to the right: x, and y of four borders."""

  x: np.ndarray
  upper_outer: np.ndarray
  upper_inner: np.ndarray
  lower_inner: np.ndarray
  lower_outer: np.ndarray

  def opening(self) -> np.ndarray:
    return (self.lower_inner - self.upper_inner)[:, _MIDDLE]

  def width(self) -> np.ndarray:
    return np.hypot(self.x[:, -1] - self.x[:, 0], self.upper_inner[:, -1] - self.upper_inner[:, 0])


def lips(identity: Identity, parameters: np.ndarray) -> Lips:
  """Lips of parameters (n, len(PARAMETERS)), without head pose."""

  def p(name):
    return column(parameters, name)[:, None]

  jaw, press, rounding, tuck, bared = p("jaw"), p("lip_press"), p("lip_round"), p("lip_tuck"), p("upper_lip")
  left, right = p("corner_left"), p("corner_right")
  parted = 1 - press
  # A small drop must be visible at 128 pixels.
  dropped = 0.225 * jaw**0.85 * (1 - 0.7 * tuck)
  raised = 0.05 * bared * (1 - 0.6 * tuck)
  upper = parted * (0.14 * dropped + raised + 0.008 * rounding + 0.022 * tuck + 0.01 * p("tongue"))
  lower = parted * (0.86 * dropped + 0.012 * rounding + 0.012 * tuck + 0.022 * p("tongue") + 0.008 * bared)
  half = identity.lip_width * (1 + 0.26 * p("lip_width")) * (1 - 0.42 * rounding) * (1 + 0.04 * press)
  half = half * (1 - 0.16 * jaw * parted)
  t = _T[None]
  side = np.where(t < 0, left, right)
  bow = 1 - t * t
  x = half * t * (1 + 0.16 * np.maximum(side, 0) * np.abs(t) ** 3)
  height = identity.mouth_height + 0.35 * 0.105 * jaw * press - 0.012 * bared
  pull = (0.012 + 0.058 * side - 0.012 * bared) * np.abs(t) ** 2
  smile = np.clip(left + right, 0, 2) / 2
  # The line between closed, relaxed lips dips in the middle.
  dip = 0.004 * (1 - smile) * (1 - rounding) * np.exp(-(upper + lower) / 0.015)
  rest = height - pull + dip * np.cos(2 * np.pi * t) * bow + 0.006 * (left + right) * bow
  open_shape = bow ** (0.74 - 0.3 * np.maximum(np.sqrt(jaw), rounding))
  upper_inner = rest - upper * open_shape
  lower_inner = rest + lower * open_shape
  full = identity.lip_fullness * (1 - 0.55 * press) * (1 + 0.3 * rounding)
  cupid = 1 - 0.2 * np.exp(-((t / 0.17) ** 2)) + 0.08 * np.exp(-(((np.abs(t) - 0.26) / 0.15) ** 2))
  stretched = 1 - 0.2 * smile
  upper_outer = upper_inner - 0.034 * full * stretched * (1 - 0.25 * bared) * bow ** (0.8 - 0.3 * rounding) * cupid
  lower_outer = lower_inner + 0.046 * full * stretched * (1 - 0.55 * tuck) * bow ** (0.7 - 0.25 * rounding)
  curves = (x, upper_outer, upper_inner, lower_inner, lower_outer)
  return Lips(*(np.asarray(np.broadcast_to(c, (len(parameters), len(_T))), np.float32) for c in curves))


class Mouth:
  """Mouth of all frames, projected to pixels; `paint` draws that of one frame."""

  def __init__(self, head: Head, skin: np.ndarray, light: np.ndarray):
    identity, parameters = head.identity, head.parameters
    curves = lips(identity, parameters)
    painted = np.array([0.70, 0.18, 0.24], np.float32)
    natural = skin * np.array([0.88, 0.62, 0.62], np.float32) + np.array([0.04, 0, 0.01], np.float32)
    share = identity.lip_colour
    self.upper_colour = (0.9 * ((1 - share) * natural + share * (0.45 * natural + 0.55 * painted))).astype(np.float32)
    self.lower_colour = self.upper_colour * 1.13 + 0.02
    self.line_colour = self.upper_colour * np.array([0.42, 0.3, 0.32], np.float32)
    self.light = light
    self.size = head.size
    rounding, press = (column(parameters, name)[:, None] for name in ("lip_round", "lip_press"))
    bulge = (0.02 + 0.045 * rounding) * (1 - _T * _T)

    def at(y, out=bulge):
      return head.surface(curves.x, y, out)

    upper_inner, lower_inner = at(curves.upper_inner), at(curves.lower_inner)
    upper_outer, lower_outer = at(curves.upper_outer), at(curves.lower_outer)
    self.all = _between(upper_outer, lower_outer)
    self.lower = _between(lower_inner, lower_outer)
    self.inside = _between(upper_inner, lower_inner)
    taper = np.clip(1.4 * (1 - _T * _T) ** 0.5, 0.35, 1)
    self.line = stroke(at(curves.upper_inner), (0.011 + 0.005 * press) * taper * head.scale)
    self.opening = curves.opening()
    rest = curves.upper_inner[:, :1] * 0 + identity.mouth_height
    bared = column(parameters, "upper_lip")[:, None]
    # The upper teeth belong to the skull: a raised lip shows them, and a dropped jaw does not move them.
    arc = 1 - 0.35 * _T * _T
    edge = rest - 0.012 * bared + 0.026 * arc - 0.03 * (1 - arc)
    edge = np.maximum(edge, curves.upper_inner + 0.005)
    back = np.zeros_like(bulge) - 0.01
    top = head.surface(curves.x * 0.93, curves.upper_inner - 0.03, back)
    self.upper_teeth = _between(top, head.surface(curves.x * 0.93, edge, back))
    floor = curves.lower_inner[:, _MIDDLE : _MIDDLE + 1]
    lower_edge = floor - 0.012 - 0.1 * np.maximum(floor - rest - 0.08, 0) + 0.03 * _T * _T
    below = head.surface(curves.x * 0.8, np.broadcast_to(floor + 0.05, curves.x.shape), back)
    self.lower_teeth = _between(head.surface(curves.x * 0.8, lower_edge, back), below)
    tongue = column(parameters, "tongue")[:, None]
    round_x, round_y = np.cos(np.pi * _T), np.sin(np.pi * _T)
    half = curves.width()[:, None] / 2
    resting = floor - 0.012
    lifted = np.minimum(rest + 0.026, floor - 0.004)
    centre = (1 - tongue) * resting + tongue * lifted
    tall = 0.006 + 0.2 * self.opening[:, None] * (1 - 0.3 * tongue) + 0.012 * tongue
    self.tongue_share = tongue[:, 0]
    self.tongue = head.surface((0.6 - 0.15 * tongue) * half * round_x, centre + tall * round_y, back)
    self.shine = head.surface(np.zeros((1, 1)), (0.55 * curves.lower_inner + 0.45 * curves.lower_outer)[:, [_MIDDLE]])
    self.across = head.surface(0.4 * half, curves.lower_inner[:, [_MIDDLE]]) - head.surface(
      0.0 * half, curves.lower_inner[:, [_MIDDLE]]
    )
    self.down = 0.35 * (lower_outer - lower_inner)[:, [_MIDDLE]] + np.array([0, 1e-3], np.float32)

  def paint(self, canvas: np.ndarray, i: int) -> None:
    """Paints the mouth of frame i on canvas (3, size, size)."""
    size, light = self.size, self.light
    paint(canvas, fill(self.all[i], size), self.upper_colour * light)
    paint(canvas, fill(self.lower[i], size), self.lower_colour * light)
    paint(canvas, spot(self.shine[i, 0], self.across[i, 0], self.down[i, 0], size), (1, 0.93, 0.9), 0.28)
    if self.opening[i] > 0.002:
      inside = fill(self.inside[i], size)
      paint(canvas, inside, _CAVITY)
      tongue = fill(self.tongue[i], size).within(inside)
      if self.opening[i] > 0.03:
        paint(canvas, tongue, _TONGUE * (0.62 + 0.38 * self.tongue_share[i]))
        paint(canvas, fill(self.lower_teeth[i], size).within(inside), _TEETH * 0.82)
      paint(canvas, fill(self.upper_teeth[i], size).within(inside), _TEETH)
      if self.tongue_share[i] > 0:
        paint(canvas, tongue, _TONGUE, min(1.0, 1.6 * float(self.tongue_share[i])))
    paint(canvas, fill(self.line[i], size), self.line_colour, 0.85)


def _between(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
  """Two curves (n, m, 2) in the same direction -> the outline of the area between them."""
  return np.concatenate((upper, lower[:, ::-1]), axis=1)
