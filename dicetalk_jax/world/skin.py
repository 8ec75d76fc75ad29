"""The shaded head: skin, ears, nose, folds of expressions, beard, freckles."""

import numpy as np

from dicetalk_jax.world.head import CENTRES, DEPTHS, LEVELS, Head
from dicetalk_jax.world.identity import Identity
from dicetalk_jax.world.mouth import lips
from dicetalk_jax.world.parameters import column
from dicetalk_jax.world.raster import Mask, fill, paint, smooth, smooth_open, spot, stroke

_TONES = np.array(
  [(252, 224, 204), (240, 198, 166), (224, 172, 128), (194, 136, 95), (152, 100, 70), (116, 75, 54)], np.float32
)
_SIDES = np.array([-1, 1], np.float32)
_S = np.linspace(0, 1, 11, dtype=np.float32)
_TURN = np.linspace(0, 2 * np.pi, 12, endpoint=False, dtype=np.float32)
_SPOTS = np.random.default_rng([0x5F]).uniform(-1, 1, (22, 2)).astype(np.float32)


def skin_colour(identity: Identity) -> np.ndarray:
  """Colour of the skin from tone and undertone: (3,) sRGB in [0, 1]."""
  tone = identity.skin_tone * (len(_TONES) - 1)
  base = np.array([np.interp(tone, np.arange(len(_TONES)), part) for part in _TONES.T]) / 255
  shift = np.array([-0.012, 0.014, -0.03]) if identity.skin_undertone > 0 else np.array([-0.02, 0.022, -0.02])
  return np.clip(base + identity.skin_undertone * shift, 0, 1).astype(np.float32)


def light_colour(identity: Identity) -> np.ndarray:
  """Factor (3,) of the light on colours."""
  warmth = identity.light_warmth
  return np.array([1 + 0.04 * warmth, 1 + 0.005 * warmth, 1 - 0.06 * warmth], np.float32)


class Skin:
  """The head of all frames without eyes, mouth and hair."""

  def __init__(self, head: Head, skin: np.ndarray, light: np.ndarray):
    identity, parameters = head.identity, head.parameters
    self.identity, self.head, self.size = identity, head, head.size
    self.skin, self.light = skin, light
    self.dark = skin * np.array([0.62, 0.48, 0.43], np.float32) * light
    self.outline = smooth(head.outline_points())
    self.middle = head.project(0.0, np.full((1, 1), -0.12), -0.12)[:, 0]
    self.p = {name: column(parameters, name) for name in ("cheek", "nose_wrinkle", "upper_lip", "squint", "yaw")}
    self._place_ears()
    self._place_nose()
    self._place_cheeks()
    self._place_beard()
    if identity.freckles > 0.02:
      x, y = _SPOTS[:, 0] * 0.27, 0.075 + 0.08 * _SPOTS[:, 1] - 0.05 * np.cos(2.5 * _SPOTS[:, 0])
      self.freckles = self._dots(x, y, 0.0075)
    if identity.mole > 0.02:
      sign = -1.0 if identity.mole_x < 0 else 1.0
      x, y = sign * 0.13 + 0.12 * identity.mole_x, 0.07 + 0.14 * identity.mole_y
      self.mole = self._dots(np.array([x]), np.array([y]), 0.013)

  def _dots(self, x, y, radius) -> np.ndarray:
    x = x[None, :, None] + radius * np.cos(_TURN)
    y = self.head.lowered(y[None])[..., None] + radius * np.sin(_TURN)
    return self.head.surface(x, y)

  def _place_ears(self):
    head, identity = self.head, self.identity
    size, stick, edge = identity.ear_size, identity.ear_stick, identity.face_width
    shape = np.array(
      [(-0.03, -0.1), (0.5, -0.125), (1.0, -0.09), (1.05, -0.02), (0.75, 0.06), (0.4, 0.125), (-0.02, 0.1)]
    )
    side = _SIDES[None, :, None]

    def ear(shrink, lean):
      x = side * (edge - 0.012 + (shape[:, 0] * shrink + lean) * stick)
      y = 0.035 + shape[:, 1] * size * shrink
      return smooth(head.project(x, y, -0.04 - 0.13 * size * (shape[:, 0] * shrink + 1.5 * lean)))

    self.ears, self.inner_ears = ear(1.0, 0.0), ear(0.6, 0.22)
    # The nearer ear is in front of the head, the farther one behind it.
    turned = column(head.parameters, "yaw")
    self.ear_before = np.stack((turned > 0.04, turned < -0.04), -1)

  def _place_nose(self):
    head, identity = self.head, self.identity
    wrinkle = self.p["nose_wrinkle"][:, None]
    base, wing = identity.nose_length, identity.nose_width
    lift = 0.02 * wrinkle
    zero = np.zeros((head.n, 1), np.float32)
    risen = 0.5 * lift
    self.tip = head.patch(zero, base - 0.035 - risen, zero + 0.05, base + 0.01 - risen, 0.13)[:, 0]
    self.under = head.patch(zero, base + 0.022 - risen, zero + wing * 1.25, base + 0.065 - risen, 0.05)[:, 0]
    eye = identity.eye_height
    self.bridge = head.patch(zero, (eye + base) / 2 - 0.02, zero + 0.05, base + 0.01, 0.09, 0.12)[:, 0]
    side = _SIDES[None, :, None]
    # A wing of the nose: from the cheek around and under the nostril.
    curve = np.array([(0.86, -0.062), (1.04, -0.03), (0.95, 0.0), (0.62, 0.002), (0.4, 0.012)], np.float32)
    raised = lift[:, :, None]
    wing_x = side * wing * curve[:, 0] * (1 + 0.1 * wrinkle[:, :, None])
    points = head.surface(wing_x, base + curve[:, 1] - raised, 0.05 + 0.05 * (1 - curve[:, 0]))
    self.wings = stroke(smooth_open(points), 0.011 * head.scale[:, :, None] * np.linspace(0.35, 1, 25) ** 0.5)
    hole_x = side * wing * 0.48 + 0.24 * wing * np.cos(_TURN)
    hole_y = base + 0.002 + 0.011 * np.sin(_TURN) - 0.7 * raised
    self.nostrils = head.surface(hole_x, hole_y - 0.08 * np.abs(hole_x), 0.07)
    # The two flanks of the bridge, from the brow to the tip.
    down = np.array([-0.055, 0.0, 0.45, 0.8, 1.0], np.float32)
    y = eye + (base - 0.045 - eye) * down
    x = side * np.array([0.062, 0.036, 0.03, 0.042, 0.058], np.float32) * (0.7 + 4 * wing)
    out = np.array([0.0, 0.04, 0.085, 0.115, 0.1], np.float32) * (0.6 + 0.5 * identity.nose_bridge)
    edge = smooth_open(head.surface(x, y, out))
    foot = smooth_open(head.surface(x * 1.3 + side * 0.018, y, 0.3 * out))
    self.flanks = np.concatenate((edge, foot[:, :, ::-1]), axis=2)
    self.profile = stroke(edge, 0.013 * head.scale[:, :, None] * np.sin(np.pi * np.linspace(0.12, 0.95, edge.shape[2])))
    s = _S[None, None]
    line_y = eye + np.array([0.0, 0.032, 0.064], np.float32)[None, :, None] - 0.014 * np.cos(np.pi * (s - 0.5) * 2)
    line_x = (2 * s - 1) * np.array([0.036, 0.046, 0.04], np.float32)[None, :, None]
    self.wrinkles = stroke(head.surface(line_x, line_y, 0.06), 0.011 * np.sin(np.pi * s) * head.scale[:, :, None])

  def _place_cheeks(self):
    head, identity = self.head, self.identity
    side = _SIDES[None, :]
    cheek = self.p["cheek"][:, None]
    x, y = side * identity.face_width * 0.58, 0.14 - 0.03 * cheek
    self.cheeks = head.patch(x, y, x * 1.32, y + 0.095)
    curves = lips(identity, head.parameters)
    # The fold runs from the wing of the nose around the corner of the mouth, which pushes it.
    corner_x = np.stack((curves.x[:, 0], curves.x[:, -1]), 1)
    corner_y = np.stack((curves.upper_inner[:, 0], curves.upper_inner[:, -1]), 1)
    s = _S[None, None]
    start_x, start_y = side[..., None] * (identity.nose_width + 0.012), identity.nose_length - 0.045
    end_x = corner_x[..., None] + side[..., None] * 0.035
    end_y = corner_y[..., None] + 0.012
    bend = side[..., None] * (0.02 + 0.018 * cheek[..., None]) * np.sin(np.pi * s)
    fold_x = start_x + (end_x - start_x) * s**1.2 + bend
    fold = head.surface(fold_x, start_y + (end_y - start_y) * s, 0.01)
    self.folds = stroke(fold, 0.014 * np.sqrt(np.abs(np.sin(np.pi * s))) * head.scale[:, :, None])
    dent = np.stack((curves.x[:, 0] - 0.014, curves.x[:, -1] + 0.014), 1)
    self.dents = head.patch(dent, corner_y, dent + 0.03, corner_y + 0.034)
    self.smile = np.stack([column(head.parameters, f"corner_{name}") for name in ("left", "right")], 1)
    low = (curves.lower_outer[:, 16:17] + 0.028).astype(np.float32)
    zero = np.zeros_like(low)
    self.below_lip = head.patch(zero, low, zero + 0.1, low + 0.035)[:, 0]

  def _place_beard(self):
    head, identity = self.head, self.identity
    curves = lips(identity, head.parameters)
    grow = 0.006 + 0.05 * identity.beard
    y = np.array([0.02, 0.12, 0.2, 0.315, 0.405, 0.465, 0.495], np.float32)
    full = grow * np.clip((y - 0.02) / 0.25, 0, 1)
    width, centre, depth = (np.interp(y, LEVELS, values) for values in (head.widths, CENTRES, DEPTHS))
    left, right = head.silhouette(head.lowered(y + 0.9 * full * (y > 0.4)), width + full, centre, depth)
    chin = head.project(0.0, head.lowered(np.full((1, 1), 0.5)) + grow, 0.2)
    lower_lip = curves.lower_outer[:, 16:17]
    corner = curves.x[:, -1:], curves.upper_inner[:, -1:]
    width = identity.face_width
    one = np.ones_like(lower_lip)
    x = np.concatenate(
      (0.9 * width * one, 0.8 * width * one, 0.55 * width * one, corner[0] + 0.025, 0.68 * corner[0]), 1
    )
    y = np.concatenate(
      (0.04 * one, 0.17 * one, 0.235 * one, corner[1] + 0.01, 0.7 * lower_lip + 0.3 * corner[1] + 0.02), 1
    )
    inner_right = head.surface(x, y)
    inner_left = head.surface(-x, y)
    dip = head.surface(0 * lower_lip, lower_lip + 0.012)
    loop = (right, chin, left[:, ::-1], inner_left, dip, inner_right[:, ::-1])
    self.beard = smooth(np.concatenate(loop, axis=1), 4)
    t = np.linspace(-1, 1, curves.x.shape[1], dtype=np.float32)[None]
    lip, reach = curves.upper_outer, curves.x * 1.16
    droop = 0.03 * np.abs(t) ** 3
    ends = np.clip(1.02 - t * t, 0, 1) ** 0.5
    bottom = lip + 0.012 + droop
    top = np.maximum(identity.nose_length + 0.03 + 0.02 * np.abs(t), bottom - 0.075 * ends)
    top = np.minimum(top, bottom - 0.004)
    outline = (head.surface(reach, top, 0.015), head.surface(reach, bottom, 0.015)[:, ::-1])
    self.moustache = np.concatenate(outline, axis=1)

  def paint_head(self, canvas, i: int, eyes) -> Mask:
    """Paints the head and the far ear of frame i on canvas; returns the mask of the head."""
    size = self.size
    for side in range(2):
      if not self.ear_before[i, side]:
        self._paint_ear(canvas, i, side)
    head = fill(self.outline[i], size)
    if not head.alpha.size:
      return head
    shade = self._volume(head, i)

    def add(mark: Mask, amount: float) -> None:
      top, left = mark.top - head.top, mark.left - head.left
      h, w = mark.alpha.shape
      y0, x0, y1, x1 = max(0, top), max(0, left), min(shade.shape[0], top + h), min(shade.shape[1], left + w)
      if y1 > y0 and x1 > x0:
        shade[y0:y1, x0:x1] += np.float32(amount) * mark.alpha[y0 - top : y1 - top, x0 - left : x1 - left]

    eyes.paint_sockets(add, i)
    # Highlights show the form of deep skin, shadows that of fair skin.
    strong, shine = self.identity.nose_bridge, 0.02 + 0.14 * self.identity.skin_tone
    add(spot(*self.bridge[i], size), 0.05 + 0.05 * strong + shine)
    add(spot(*self.under[i], size), -0.16)
    add(spot(*self.below_lip[i], size), -0.09)
    cheek = float(self.p["cheek"][i])
    for side in range(2):
      add(spot(*self.cheeks[i, side], size), 0.05 + 0.09 * cheek + shine)
      add(spot(*self.dents[i, side], size), -0.1 - 0.1 * abs(float(self.smile[i, side])))
    # In the shadows of skin, blue and green fade before red.
    drop = shade - 1
    colour = np.empty((3, *shade.shape), np.float32)
    for channel, gain in enumerate((0.88, 1.06, 1.14)):
      colour[channel] = (1 + gain * drop) * (self.skin[channel] * self.light[channel])
    paint(canvas, head, np.minimum(colour, 1))
    return head

  def _volume(self, mask: Mask, i: int) -> np.ndarray:
    """Light on the head as on an ellipsoid; 1 is neither bright nor dark."""
    identity, head = self.identity, self.head
    x, y = mask.grid()
    scale = float(head.scale[i, 0])
    cos, sin = float(head.cos_roll[i, 0]), float(head.sin_roll[i, 0])
    x, y = (x - self.middle[i, 0]) / np.float32(scale), (y - self.middle[i, 1]) / np.float32(scale)
    u = (x * np.float32(cos) + y * np.float32(sin)) / np.float32(identity.face_width * 1.1)
    v = (y * np.float32(cos) - x * np.float32(sin)) / np.float32(0.76)
    across, up = 0.75 * identity.light_x, 0.25 + 0.45 * identity.light_y
    light = np.array([across * cos - up * sin, -(up * cos + across * sin), 0.8])
    light = light / np.linalg.norm(light)
    flat = np.maximum(1 - u * u - v * v, 0.0)
    facing = np.sqrt(flat)
    strength = 0.2 + 0.26 * identity.light_strength
    lit = np.float32(light[0]) * u + np.float32(light[1]) * v + np.float32(light[2]) * facing
    return 1.0 + np.float32(strength) * (lit - np.float32(0.72)) - np.float32(0.1) * (1 - facing)

  def _paint_ear(self, canvas, i: int, side: int):
    away = 1 if (self.identity.light_x < 0) == (side == 0) else 0
    tone = (0.9 if away else 0.78) * self.skin * np.array([1, 0.93, 0.9], np.float32) * self.light
    paint(canvas, fill(self.ears[i, side], self.size), tone)
    paint(canvas, fill(self.inner_ears[i, side], self.size), tone * np.array([0.8, 0.7, 0.68], np.float32))

  def paint_near_ear(self, canvas, i: int) -> None:
    for side in range(2):
      if self.ear_before[i, side]:
        self._paint_ear(canvas, i, side)

  def paint_features(self, canvas, i: int, head: Mask) -> None:
    """Paints cheeks, nose, folds, spots and beard of frame i on canvas."""
    identity, size, dark = self.identity, self.size, self.dark
    cheek, wrinkle, bared = (float(self.p[name][i]) for name in ("cheek", "nose_wrinkle", "upper_lip"))
    rosy = np.array([0.9, 0.4, 0.38], np.float32) * (0.5 + 0.5 * self.skin)
    for side in range(2):
      glow = spot(*self.cheeks[i, side], size).within(head)
      paint(canvas, glow, rosy, 0.1 + 0.35 * identity.blush + 0.1 * cheek)
    if identity.freckles > 0.02:
      paint(canvas, fill(self.freckles[i], size).within(head), self.skin * (0.72, 0.52, 0.4), 0.5 * identity.freckles)
    hair = identity.colour("hair") * (1 - 0.3 * identity.brow_darkness) * self.light
    stubble = 0.34 * identity.stubble * (1 - 0.6 * identity.beard)
    if stubble > 0.01:
      shadow = hair * 0.5 + self.skin * 0.15
      paint(canvas, fill(self.beard[i], size).within(head), shadow, stubble)
      paint(canvas, fill(self.moustache[i], size).within(head), shadow, stubble)
    lean = float(np.sin(self.p["yaw"][i]))
    for side, sign in enumerate((-1.0, 1.0)):
      shadowed = max(0.0, -sign * identity.light_x)
      alpha = (0.1 + 0.16 * shadowed) * (0.5 + 0.7 * identity.nose_bridge) + 0.25 * max(0.0, sign * lean)
      paint(canvas, fill(self.flanks[i, side], size), dark, alpha)
      if sign * lean > 0.02:
        paint(canvas, fill(self.profile[i, side], size), dark, min(0.75, 2.2 * sign * lean))
      fold = min(0.8, 0.06 + 0.28 * identity.age + 0.42 * cheek + 0.4 * bared + 0.2 * wrinkle)
      paint(canvas, fill(self.folds[i, side], size), dark, fold)
    paint(canvas, spot(*self.tip[i], size), np.minimum(self.skin * 1.4, 1), 0.3)
    paint(canvas, fill(self.wings[i], size), dark, 0.62)
    paint(canvas, fill(self.nostrils[i], size), dark * 0.5, 0.7)
    if wrinkle > 0:
      paint(canvas, fill(self.wrinkles[i], size), dark, 0.75 * wrinkle)
    if identity.mole > 0.02:
      paint(canvas, fill(self.mole[i], size).within(head), self.skin * (0.42, 0.28, 0.22), 0.9 * identity.mole)
    if identity.beard > 0.02:
      beard = fill(self.beard[i], size)
      volume = self._volume(beard, i) if beard.alpha.size else 1.0
      paint(canvas, beard, np.clip(hair[:, None, None] * volume, 0, 1), min(1.0, 1.1 * identity.beard))

  def paint_moustache(self, canvas, i: int) -> None:
    if self.identity.moustache > 0.02:
      hair = self.identity.colour("hair") * (1 - 0.3 * self.identity.brow_darkness) * self.light
      paint(canvas, fill(self.moustache[i], self.size), hair, min(1.0, 1.5 * self.identity.moustache))
