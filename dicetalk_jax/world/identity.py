"""Identity of a drawn person: about sixty continuous factors, sampled at random."""

import dataclasses

import numpy as np

_STREAM = 0x1D


def _factor(low: float, high: float, meaning: str, rest: float | None = None):
  rest = (low + high) / 2 if rest is None else rest
  return dataclasses.field(default=rest, metadata={"low": low, "high": high, "meaning": meaning})


def _part(of: str) -> float:
  return _factor(0.0, 1.0, f"share of sRGB in the colour of {of}")


@dataclasses.dataclass(frozen=True)
class Identity:
  """A drawn person. Lengths are in face heights (forehead to chin), colours are sRGB in [0, 1]; `FACTORS` has ranges.

  The defaults are an average face. Use `dataclasses.replace` to vary one factor.
  """

  face_width: float = _factor(0.36, 0.445, "half the width at the cheekbones")
  jaw_width: float = _factor(0.74, 0.94, "width at the mouth as a share of the cheekbones'")
  jaw_square: float = _factor(0, 1, "jaw round .. angular")
  chin_width: float = _factor(0.24, 0.5, "width of the chin as a share of the cheekbones'")
  forehead_width: float = _factor(0.86, 1.02, "width at the forehead as a share of the cheekbones'")
  ear_size: float = _factor(0.75, 1.3, "size of the ears")
  ear_stick: float = _factor(0.035, 0.085, "how far the ears stand out")
  neck_width: float = _factor(0.2, 0.29, "half the width of the neck")
  shoulder_width: float = _factor(0.74, 1.04, "half the width of the shoulders")
  age: float = _factor(0, 1, "smooth .. lined", 0.2)
  skin_tone: float = _factor(0, 1, "fair .. deep", 0.25)
  skin_undertone: float = _factor(-1, 1, "rosy .. olive")
  blush: float = _factor(0, 1, "red of the cheeks", 0.3)
  freckles: float = _factor(0, 1, "none .. many", 0)
  mole: float = _factor(0, 1, "none .. dark", 0)
  mole_x: float = _factor(-1, 1, "where the mole is: left .. right cheek")
  mole_y: float = _factor(0, 1, "where the mole is: below the eye .. beside the mouth")
  hair_red: float = _part("the hair")
  hair_green: float = _part("the hair")
  hair_blue: float = _part("the hair")
  hair_cover: float = _factor(0, 1, "bald .. full head of hair", 1)
  hair_length: float = _factor(0, 1, "above the ears .. on the chest", 0.1)
  hair_volume: float = _factor(0.02, 0.2, "thickness of the hair over the skull", 0.07)
  hair_line: float = _factor(-0.06, 0.1, "hairline low .. high", 0)
  hair_parting: float = _factor(-0.7, 0.7, "parted at the left .. right", -0.3)
  fringe: float = _factor(0, 1, "brushed back .. down to the brows", 0.3)
  hair_wave: float = _factor(0, 1, "straight .. curly", 0.2)
  hair_tuck: float = _factor(0, 1, "hair over the ears .. behind them", 0.5)
  hair_bun: float = _factor(0, 1, "none .. a bun on the crown", 0)
  brow_thickness: float = _factor(0.018, 0.05, "thickness of the brows")
  brow_height: float = _factor(0.1, 0.15, "brows above the eyes")
  brow_arch: float = _factor(0, 0.035, "brows straight .. arched")
  brow_tilt: float = _factor(-0.02, 0.02, "outer ends low .. high")
  brow_darkness: float = _factor(0, 1, "brows as the hair .. much darker")
  eye_size: float = _factor(0.086, 0.114, "half the width of an eye")
  eye_spacing: float = _factor(0.166, 0.208, "from the middle to an eye")
  eye_height: float = _factor(-0.06, 0.01, "height of the eyes in the face, down is positive")
  eye_tilt: float = _factor(-0.014, 0.02, "outer corners low .. high")
  eye_openness: float = _factor(0.75, 1.2, "eyes narrow .. wide")
  iris_red: float = _part("the irises")
  iris_green: float = _part("the irises")
  iris_blue: float = _part("the irises")
  lashes: float = _factor(0, 1, "lashes light .. heavy")
  nose_width: float = _factor(0.06, 0.105, "half the width of the nose at its wings")
  nose_length: float = _factor(0.1, 0.17, "height of the nose's base in the face, down is positive")
  nose_bridge: float = _factor(0, 1, "bridge flat .. pronounced")
  mouth_height: float = _factor(0.26, 0.305, "height of the mouth in the face, down is positive")
  lip_fullness: float = _factor(0.6, 1.5, "lips thin .. full")
  lip_width: float = _factor(0.125, 0.17, "half the width of the mouth")
  lip_colour: float = _factor(0, 1, "lips as the skin .. painted", 0.35)
  glasses: float = _factor(0, 1, "none .. worn", 0)
  glasses_thickness: float = _factor(0.008, 0.024, "thickness of the frame")
  glasses_round: float = _factor(0, 1, "lenses square .. round")
  glasses_red: float = _part("the frame")
  glasses_green: float = _part("the frame")
  glasses_blue: float = _part("the frame")
  beard: float = _factor(0, 1, "none .. full beard", 0)
  moustache: float = _factor(0, 1, "none .. full moustache", 0)
  stubble: float = _factor(0, 1, "shaven .. dark stubble", 0)
  clothes_red: float = _part("the clothes")
  clothes_green: float = _part("the clothes")
  clothes_blue: float = _part("the clothes")
  neckline: float = _factor(0, 1, "high and round .. low and pointed")
  collar: float = _factor(0, 1, "none .. shirt collar", 0)
  stripes: float = _factor(0, 1, "plain .. striped clothes", 0)
  top_red: float = _part("the background's top")
  top_green: float = _part("the background's top")
  top_blue: float = _part("the background's top")
  bottom_red: float = _part("the background's bottom")
  bottom_green: float = _part("the background's bottom")
  bottom_blue: float = _part("the background's bottom")
  light_x: float = _factor(-1, 1, "light from the left .. right", -0.5)
  light_y: float = _factor(0, 1, "light level with the face .. from above", 0.5)
  light_warmth: float = _factor(-1, 1, "light cool .. warm")
  light_strength: float = _factor(0, 1, "shading soft .. strong")

  def vector(self) -> np.ndarray:
    """The factors as (len(FACTOR_NAMES),) float32, scaled from their ranges to [-1, 1]."""
    values = np.array([getattr(self, name) for name in FACTOR_NAMES], np.float64)
    low, high = np.array(list(FACTORS.values()), np.float64).T
    return (2 * (values - low) / (high - low) - 1).astype(np.float32)

  def colour(self, of: str) -> np.ndarray:
    """The colour of the fields with a prefix such as "hair" or "top": (3,) float32 sRGB in [0, 1]."""
    return np.array([getattr(self, f"{of}_{part}") for part in ("red", "green", "blue")], np.float32)


FACTORS = {f.name: (f.metadata["low"], f.metadata["high"]) for f in dataclasses.fields(Identity)}
FACTOR_NAMES = tuple(FACTORS)

_HAIR = {
  "black": (0.09, 0.08, 0.09),
  "espresso": (0.18, 0.11, 0.08),
  "brown": (0.34, 0.2, 0.12),
  "chestnut": (0.46, 0.24, 0.13),
  "auburn": (0.52, 0.18, 0.1),
  "ginger": (0.8, 0.4, 0.14),
  "dark blond": (0.62, 0.46, 0.27),
  "blond": (0.86, 0.7, 0.4),
  "platinum": (0.93, 0.87, 0.74),
  "grey": (0.58, 0.58, 0.6),
  "white": (0.88, 0.88, 0.89),
  "pink": (0.88, 0.36, 0.58),
  "blue": (0.2, 0.38, 0.74),
  "teal": (0.1, 0.52, 0.52),
  "violet": (0.46, 0.26, 0.62),
}
_NATURAL_FAIR = (*("black",) * 1, *("espresso",) * 2, *("brown",) * 3, *("chestnut",) * 3, *("auburn",) * 2)
_NATURAL_FAIR += (*("ginger",) * 3, *("dark blond",) * 3, *("blond",) * 3, "platinum")
_NATURAL_DEEP = (*("black",) * 5, *("espresso",) * 3, *("brown",) * 2, "chestnut")
_DYED = ("pink", "blue", "teal", "violet", "platinum")
_IRIS = {
  "dark": (0.2, 0.11, 0.07),
  "brown": (0.38, 0.22, 0.12),
  "hazel": (0.48, 0.38, 0.16),
  "green": (0.28, 0.5, 0.3),
  "blue": (0.25, 0.48, 0.75),
  "grey": (0.45, 0.53, 0.6),
}
_FRAMES = ((0.08, 0.08, 0.09), (0.35, 0.2, 0.1), (0.6, 0.12, 0.14), (0.14, 0.24, 0.5), (0.62, 0.56, 0.5))


def draw_identity(seed: int) -> Identity:
  """A plausible person, different for each seed."""
  rng = np.random.default_rng([_STREAM, seed])
  values = {name: rng.uniform(low, high) for name, (low, high) in FACTORS.items()}
  # Latent build from delicate to rugged: correlates several factors, but is not one itself.
  rugged = rng.uniform()
  old = rng.uniform() ** 2
  for name, share in {
    "jaw_width": rugged,
    "jaw_square": rugged,
    "chin_width": rugged,
    "neck_width": rugged,
    "shoulder_width": rugged,
    "brow_thickness": rugged,
    "lashes": 1 - rugged,
    "eye_size": 1 - rugged,
    "lip_fullness": 1 - rugged,
    "age": old,
    "hair_line": old,
  }.items():
    low, high = FACTORS[name]
    values[name] = low + (high - low) * np.clip(0.6 * share + 0.4 * rng.uniform(), 0, 1)
  values |= _skin_and_hair(rng, rugged, old)
  values |= _extras(rng, rugged)
  values |= _surroundings(rng)
  return Identity(**{name: float(np.clip(values[name], *FACTORS[name])) for name in FACTOR_NAMES})


def _named(prefix: str, colour) -> dict:
  return dict(zip((f"{prefix}_red", f"{prefix}_green", f"{prefix}_blue"), colour, strict=True))


def _skin_and_hair(rng, rugged: float, old: float) -> dict:
  tone = rng.uniform()
  values = {"skin_tone": tone, "blush": rng.uniform(0, 1) * (1 - 0.6 * tone)}
  names = _NATURAL_DEEP if tone > 0.5 else _NATURAL_FAIR
  name = names[rng.integers(len(names))]
  dyed, grey = rng.uniform() < 0.12, old > 0.45 and rng.uniform() < 0.75
  if grey:
    name = "white" if rng.uniform() < 0.35 else "grey"
  elif dyed:
    name = _DYED[rng.integers(len(_DYED))]
  values |= _named("hair", np.array(_HAIR[name]) * rng.uniform(0.88, 1.12) + rng.uniform(-0.03, 0.03, 3))
  values["brow_darkness"] = rng.uniform(0.35, 0.6) if grey else rng.uniform(0.1, 0.7)
  pale_eyes = rng.uniform() < (0.7 if tone < 0.35 else 0.08)
  irises = ("green", "blue", "grey", "hazel") if pale_eyes else ("dark", "brown", "hazel")
  values |= _named("iris", np.array(_IRIS[irises[rng.integers(len(irises))]]) + rng.uniform(-0.04, 0.04, 3))
  # Rugged people mostly have short hair; very full hair is not both long and straight.
  values["hair_length"] = rng.uniform(0, 0.12) if rng.uniform() < 0.25 + 0.55 * rugged else rng.uniform(0.3, 1)
  curly = rng.uniform() < 0.2 + 0.4 * tone
  values["hair_wave"] = rng.uniform(0.6, 1) if curly else rng.uniform(0, 0.45)
  values["hair_volume"] = rng.uniform(0.09, 0.19) if curly else rng.uniform(0.03, 0.11)
  bald = rugged > 0.5 and rng.uniform() < 0.12 + 0.3 * old
  values["hair_cover"] = rng.uniform(0, 0.1) if bald else 1.0
  if bald:
    values["hair_length"], values["hair_volume"], values["fringe"] = 0.0, 0.02, 0.0
  values["fringe"] = 0.0 if bald else rng.uniform() ** 1.3
  values["hair_bun"] = rng.uniform(0.6, 1) if not bald and rugged < 0.6 and rng.uniform() < 0.2 else 0.0
  if values["hair_bun"]:
    values["hair_length"], values["hair_tuck"] = 0.05, 1.0
  return values


def _extras(rng, rugged: float) -> dict:
  bearded = rugged > 0.45 and rng.uniform() < 0.55
  kind = rng.integers(4) if bearded else -1
  painted = rugged < 0.5 and rng.uniform() < 0.5
  return {
    "beard": rng.uniform(0.6, 1) if kind in (0, 1) else 0.0,
    "moustache": rng.uniform(0.6, 1) if kind in (0, 2) else 0.0,
    "stubble": rng.uniform(0.4, 1) if kind in (1, 2, 3) else 0.0,
    "freckles": rng.uniform(0.5, 1) if rng.uniform() < 0.2 else 0.0,
    "mole": rng.uniform(0.6, 1) if rng.uniform() < 0.2 else 0.0,
    "glasses": 1.0 if rng.uniform() < 0.27 else 0.0,
    **_named("glasses", np.array(_FRAMES[rng.integers(len(_FRAMES))]) + rng.uniform(-0.05, 0.05, 3)),
    "lip_colour": rng.uniform(0.6, 1) if painted else rng.uniform(0.1, 0.5),
    "collar": rng.uniform(0.7, 1) if rng.uniform() < 0.35 else 0.0,
    "stripes": rng.uniform(0.5, 1) if rng.uniform() < 0.25 else 0.0,
  }


def _surroundings(rng) -> dict:
  clothes = _hsv(rng.uniform(), rng.uniform(0.1, 0.85), rng.uniform(0.2, 0.92))
  hue, saturation, value = rng.uniform(), rng.uniform(0.06, 0.48), rng.uniform(0.45, 0.95)
  bottom = _hsv(hue + rng.uniform(-0.1, 0.1), saturation * rng.uniform(0.6, 1.2), value * rng.uniform(0.6, 0.95))
  return _named("clothes", clothes) | _named("top", _hsv(hue, saturation, value)) | _named("bottom", bottom)


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
  """Hue in turns -> sRGB (3,)."""
  k = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
  return value * (1 - np.clip(saturation, 0, 1) * np.clip(np.minimum(k, 4 - k), 0, 1))
