"""Appearance and motion of each emotion: a mix of facial components that emotions share.

The components stand for action units of the Facial Action Coding System (Ekman, Friesen and Hager, 2002), whose numbers
are beside them; the mixes follow its table of prototypes. Related emotions share components and look similar: lowered
brows belong to anger, disgust and a little to contempt, wide eyes to fear and surprise.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from dicetalk_jax.errors import InputError
from dicetalk_jax.vocabulary import EMOTIONS
from dicetalk_jax.world.parameters import INDEX, PARAMETERS

STRENGTH = {1: 0.5, 2: 0.75, 3: 1.0}

# For a right-sided person; `_mirror` gives the left-sided ones. Head angles are in radians.
COMPONENTS = {
  "brow_lower": dict(brow_inner=-0.9, brow_outer=-0.35),  # 4
  "inner_raise": dict(brow_inner=0.9),  # 1
  "outer_raise": dict(brow_outer=0.9),  # 2
  "outer_drop": dict(brow_outer=-0.5),
  "one_brow": dict(brow_tilt=0.7, brow_outer=0.15),  # 2, on one side
  "lid_raise": dict(lid=0.9),  # 5
  "lid_droop": dict(lid=-0.7),  # 43, a part of the way
  "lid_tighten": dict(squint=0.8, lid=-0.1),  # 7
  "cheek_raise": dict(cheek=0.9, squint=0.4),  # 6
  "nose_wrinkle": dict(nose_wrinkle=1.0, upper_lip=0.25, cheek=0.2),  # 9
  "upper_lip_raise": dict(upper_lip=0.7, nose_wrinkle=0.1),  # 10
  "smile": dict(corner_left=0.9, corner_right=0.9, lip_width=0.4),  # 12
  "one_corner": dict(corner_right=0.8, corner_left=-0.1, cheek=0.15),  # 14, on one side
  "corners_down": dict(corner_left=-0.9, corner_right=-0.9, lip_width=-0.1),  # 15
  "lip_stretch": dict(lip_width=0.8, corner_left=-0.3, corner_right=-0.3),  # 20
  "lip_narrow": dict(lip_width=-0.5),  # 18
  "lip_press": dict(lip_press=0.8),  # 24, between words
  "jaw_drop": dict(jaw=0.4),  # 26
  "look_down": dict(gaze_y=-0.5),  # 64
  "look_aside": dict(gaze_x=0.5),  # 62
  "head_down": dict(pitch=-0.2, shift_y=-0.03),  # 54
  "head_up": dict(pitch=0.2, shift_y=0.02),  # 53
  "head_aside": dict(yaw=0.25),  # 52
  "head_tilt": dict(roll=0.15),  # 56
  "lean_in": dict(zoom=0.1, shift_y=-0.02),  # 57
  "lean_back": dict(zoom=-0.08),  # 58
}
_MIRRORED = ("brow_tilt", "gaze_x", "yaw", "roll", "shift_x")


class Manner(NamedTuple):
  """Manner of moving; each field is a number, or an array over frames."""

  onset: float  # seconds that the expression takes to come up
  sway: float  # of the head, as a factor on a calm speaker's
  sway_rate: float  # Hz
  blink: float  # a second
  gaze: float  # movements of the eyes a second
  aside: float  # share of these that leave the onlooker
  accent: float  # how far brows rise on a stressed syllable
  nod: float  # how far the head dips on a stressed syllable, radians
  tremor: float  # amplitude on brows and mouth
  jaw: float  # factor on how far speech opens the mouth
  breathing: float  # how much the expression follows the loudness of the voice
  twitch: float  # short intensifications a second


@dataclasses.dataclass(frozen=True)
class Prototype:
  """An emotion at full strength: amounts of components, those of a twitch, and the manner."""

  mix: dict[str, float]
  twitch: dict[str, float]
  manner: Manner


# The fields of Manner in order: onset, sway, sway_rate, blink, gaze, aside, accent, nod, tremor, jaw, breathing,
# twitch.
PROTOTYPES = {
  "angry": Prototype(
    dict(brow_lower=1.0, lid_raise=0.3, lid_tighten=0.6, upper_lip_raise=0.3, lip_press=0.8, corners_down=0.3)
    | dict(nose_wrinkle=0.2, head_down=0.55, lean_in=0.7),
    dict(brow_lower=0.2, upper_lip_raise=0.5, nose_wrinkle=0.3),
    Manner(0.35, 1.6, 0.9, 0.18, 0.6, 0.08, 0.08, 0.09, 0.015, 1.3, 0.3, 0.5),
  ),
  "contempt": Prototype(
    dict(one_corner=1.0, lid_droop=0.5, lid_tighten=0.25, brow_lower=0.45, one_brow=0.9, upper_lip_raise=0.4)
    | dict(nose_wrinkle=0.3, head_up=0.7, head_aside=0.35, head_tilt=0.6, look_down=0.3, look_aside=0.15)
    | dict(lean_back=0.6),
    dict(one_corner=0.35, nose_wrinkle=0.2),
    Manner(0.7, 0.8, 0.3, 0.25, 0.7, 0.3, 0.16, 0.03, 0.0, 0.85, 0.12, 0.45),
  ),
  "disgusted": Prototype(
    dict(nose_wrinkle=0.9, upper_lip_raise=0.75, brow_lower=0.6, cheek_raise=0.45, lid_tighten=0.45)
    | dict(corners_down=0.4, lip_stretch=0.25, head_up=0.15, head_aside=0.4, lean_back=0.9, look_aside=0.15),
    dict(nose_wrinkle=0.25, upper_lip_raise=0.5),
    Manner(0.45, 1.1, 0.5, 0.35, 0.8, 0.3, 0.06, 0.04, 0.0, 1.0, 0.2, 0.7),
  ),
  "fear": Prototype(
    dict(inner_raise=1.0, outer_raise=0.3, lid_raise=0.9, lid_tighten=0.25, lip_stretch=0.75, jaw_drop=0.35)
    | dict(corners_down=0.2, head_up=0.1, head_aside=0.15, lean_back=0.9),
    dict(lip_stretch=0.3, inner_raise=0.15),
    Manner(0.25, 1.0, 1.0, 0.55, 1.9, 0.4, 0.1, 0.02, 0.05, 1.05, 0.2, 0.5),
  ),
  "happy": Prototype(
    dict(smile=0.95, cheek_raise=0.85, lid_tighten=0.1, outer_raise=0.3, inner_raise=0.15, head_tilt=0.5, head_up=0.2),
    dict(smile=0.15, cheek_raise=0.2, outer_raise=0.2),
    Manner(0.4, 1.6, 0.7, 0.35, 0.9, 0.15, 0.22, 0.05, 0.0, 1.15, 0.25, 0.4),
  ),
  "neutral": Prototype(
    dict(lid_droop=0.1),
    dict(),
    Manner(0.5, 0.6, 0.35, 0.3, 0.7, 0.12, 0.08, 0.025, 0.0, 0.9, 0.05, 0.0),
  ),
  "sad": Prototype(
    dict(inner_raise=0.75, outer_drop=0.6, lid_droop=0.6, corners_down=0.8, look_down=0.7, head_down=0.8)
    | dict(head_tilt=0.5, lid_tighten=0.15),
    dict(corners_down=0.2, inner_raise=0.15),
    Manner(0.9, 0.6, 0.2, 0.4, 0.4, 0.3, 0.05, 0.02, 0.012, 0.7, 0.1, 0.25),
  ),
  "surprised": Prototype(
    dict(inner_raise=0.9, outer_raise=1.0, lid_raise=0.9, jaw_drop=0.9, lip_narrow=0.6, head_up=0.4, lean_in=0.15),
    dict(outer_raise=0.2, jaw_drop=0.3),
    Manner(0.15, 1.1, 0.7, 0.15, 0.6, 0.08, 0.15, 0.05, 0.0, 1.25, 0.25, 0.35),
  ),
}


@dataclasses.dataclass(frozen=True)
class Style:
  """A person's mannerisms.

  side: 1 or -1, the picture's right or left, for one-sided expressions and looks aside. gains (len(EMOTIONS),
  len(COMPONENTS)): factors of each component for each emotion. rest (len(PARAMETERS),): face and head without emotion.
  sides (len(PARAMETERS),): factors, which differ from 1 at the corners of a crooked mouth. manner
  (len(Manner._fields),): factors.
  """

  side: int
  gains: np.ndarray
  rest: np.ndarray
  sides: np.ndarray
  manner: np.ndarray


@dataclasses.dataclass(frozen=True)
class Expression:
  """Target and twitch (len(PARAMETERS),) relative to the face at rest; manner as in `Manner`."""

  target: np.ndarray
  twitch: np.ndarray
  manner: np.ndarray


_REST = dict(corner_left=0.12, corner_right=0.12, lip_width=0.1, lip_press=0.05, jaw=0.02, cheek=0.06, upper_lip=0.05)
_REST |= dict(brow_inner=0.13, brow_outer=0.13, brow_tilt=0.08, lid=0.13, squint=0.1, gaze_x=0.05, gaze_y=0.06)
_REST |= dict(yaw=0.05, pitch=0.04, roll=0.04, shift_x=0.025, shift_y=0.02, zoom=0.04)
_STYLE = 0x57  # separates these random numbers from others of the same person


def draw_style(seed: int) -> Style:
  """The mannerisms of the person with this seed."""
  rng = np.random.default_rng([_STYLE, seed])
  side = 1 if rng.random() < 0.5 else -1
  # A person's gains are mostly common to all emotions, and partly specific to each.
  gains = np.exp(0.22 * rng.standard_normal(len(COMPONENTS)))
  gains = gains * np.exp(0.2 * rng.standard_normal((len(EMOTIONS), len(COMPONENTS))))
  rest = _vector(_REST) * rng.standard_normal(len(PARAMETERS))
  smirk = rest[INDEX["corner_left"]]
  rest[INDEX["corner_right"]] = smirk + 0.4 * (rest[INDEX["corner_right"]] - smirk)
  sides = np.ones(len(PARAMETERS))
  crooked = np.clip(0.1 * rng.standard_normal(), -0.25, 0.25)
  sides[INDEX["corner_left"]], sides[INDEX["corner_right"]] = 1 + crooked, 1 - crooked
  manner = np.exp(0.25 * rng.standard_normal(len(Manner._fields)))
  # Jaws differ less between people than the other fields.
  manner[Manner._fields.index("jaw")] **= 0.4
  return Style(side, gains, rest, sides, manner)


def check_emotion(emotion: str, level: int):
  """Raises InputError for an unknown emotion or level: levels are 1 to 3, for neutral 1."""
  if emotion not in PROTOTYPES:
    raise InputError(f"the emotion {emotion!r} is not known; give one of {', '.join(EMOTIONS)}")
  if level not in STRENGTH or (emotion == "neutral" and level != 1):
    levels = "level 1 only" if emotion == "neutral" else "levels 1, 2 and 3"
    raise InputError(f"{emotion} has {levels}; level {level} was given")


def expression(emotion: str, level: int, style: Style) -> Expression:
  """The expression of an emotion at a level by a person of this style; raises as `check_emotion` does."""
  check_emotion(emotion, level)
  prototype, neutral = PROTOTYPES[emotion], PROTOTYPES["neutral"].manner
  strength = 1.0 if emotion == "neutral" else STRENGTH[level]
  manner = np.array(neutral) + strength * (np.array(prototype.manner) - np.array(neutral))
  gains = style.gains[EMOTIONS.index(emotion)]
  matrix = _MATRIX if style.side > 0 else _mirror(_MATRIX)

  def mixed(amounts: dict[str, float]) -> np.ndarray:
    return strength * style.sides * ((_amounts(amounts) * gains) @ matrix)

  return Expression(mixed(prototype.mix), mixed(prototype.twitch), manner * style.manner)


def _vector(values: dict[str, float]) -> np.ndarray:
  vector = np.zeros(len(PARAMETERS))
  for name, value in values.items():
    vector[INDEX[name]] = value
  return vector


def _amounts(mix: dict[str, float]) -> np.ndarray:
  return np.array([mix.get(name, 0.0) for name in COMPONENTS])


def _mirror(vectors: np.ndarray) -> np.ndarray:
  mirrored = vectors.copy()
  for name in _MIRRORED:
    mirrored[:, INDEX[name]] *= -1
  left, right = INDEX["corner_left"], INDEX["corner_right"]
  mirrored[:, [left, right]] = vectors[:, [right, left]]
  return mirrored


_MATRIX = np.stack([_vector(values) for values in COMPONENTS.values()])
