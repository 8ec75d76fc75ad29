"""Voices drawn from a seed, and the effect of emotions on them.

The acoustics of emotion: Banse and Scherer (1996), Acoustic profiles in vocal emotion expression; Juslin and Laukka
(2003), Communication of emotions in vocal expression and music performance.
"""

import dataclasses

import numpy as np

from dicetalk_jax.errors import InputError
from dicetalk_jax.vocabulary import EMOTIONS, LEVELS

_VOICE_TAG, _PROSODY_TAG = 0x701CE, 0x90505


@dataclasses.dataclass(frozen=True)
class Voice:
  """A person's voice.

  pitch: mean in Hz. pitch_range: semitones from the lowest to the highest of a neutral sentence. tract: factor of all
  formants, about 1 for men, 1.17 for women, 1.3 for children. open_quotient: share of a period with the glottis open.
  breathiness: 0 to 1. tilt: dB an octave added to the source above 500 Hz. rate: factor of speed. jitter, shimmer:
  standard deviation of the length and strength of periods. creak: 0 to 1. vibrato: semitones. loudness: dB.
  """

  pitch: float
  pitch_range: float
  tract: float
  open_quotient: float
  breathiness: float
  tilt: float
  rate: float
  jitter: float
  shimmer: float
  creak: float
  vibrato: float
  loudness: float


@dataclasses.dataclass(frozen=True)
class Prosody:
  """Changes of a voice by a manner of speaking.

  pitch: semitones added. pitch_range: factor. energy: dB added. rate: factor of speed. tilt: dB an octave added; above
  0 is brighter. breathiness, creak: added. tremor: semitones at about 6 Hz, which also modulates the strength. pausing:
  factor of pauses. slope: semitones by which a phrase rises from its beginning to its end. accent: factor of accents.
  attack: seconds added to the onset of a sound. drawl: factor of the length of stressed vowels. smile: factor of the
  formants, for spread or rounded lips.
  """

  pitch: float = 0.0
  pitch_range: float = 1.0
  energy: float = 0.0
  rate: float = 1.0
  tilt: float = 0.0
  breathiness: float = 0.0
  creak: float = 0.0
  tremor: float = 0.0
  pausing: float = 1.0
  slope: float = 0.0
  accent: float = 1.0
  attack: float = 0.0
  drawl: float = 1.0
  smile: float = 1.0


NEUTRAL = Prosody()

# Components of emotions, so that related emotions sound similar: arousal, pleasantness, control (potency), surprise
# (novelty) and rejection.
_COMPONENTS = {
  "angry": (1.0, -0.7, 1.0, 0.0, 0.2),
  "contempt": (-0.3, -0.3, 0.7, 0.0, 0.8),
  "disgusted": (-0.35, -0.9, 0.1, 0.0, 1.25),
  "fear": (0.85, -0.6, -1.25, 0.15, 0.0),
  "happy": (0.7, 1.0, 0.3, 0.1, -0.2),
  "neutral": (0.0, 0.0, 0.0, 0.0, 0.0),
  "sad": (-1.0, -0.6, -0.6, 0.0, 0.0),
  "surprised": (0.6, 0.2, -0.1, 1.2, 0.0),
}
# A row for each component: what it adds to each field, or to the logarithm of a field that is a factor.
_FIELDS = tuple(field.name for field in dataclasses.fields(Prosody))
_FACTORS = ("pitch_range", "rate", "pausing", "accent", "drawl", "smile")
_EFFECTS = (
  dict(pitch=3.0, pitch_range=0.3, energy=6.0, rate=0.16, tilt=2.0, breathiness=-0.12, pausing=-0.45, accent=0.15),
  dict(pitch=1.9, pitch_range=0.22, energy=0.2, rate=0.02, tilt=0.2, creak=-0.12, slope=1.2, drawl=-0.04, smile=0.045),
  dict(pitch=-1.9, pitch_range=0.1, energy=2.2, tilt=1.0, breathiness=-0.14, tremor=-0.6, accent=0.25, slope=-1.0),
  dict(pitch=2.6, pitch_range=0.5, energy=0.5, rate=-0.06, breathiness=0.08, slope=4.5, accent=0.2, drawl=0.1),
  dict(pitch=-1.3, pitch_range=-0.3, rate=-0.13, tilt=-0.3, creak=0.5, attack=0.025, drawl=0.22, slope=-1.8),
)
# Spread between people showing the same emotion, for each field.
_PERSONAL = dict(
  **dict(pitch=0.8, pitch_range=0.12, energy=1.3, rate=0.05, tilt=0.5, breathiness=0.05, creak=0.06, tremor=0.06),
  **dict(pausing=0.1, slope=0.8, accent=0.1, attack=0.004, drawl=0.05, smile=0.008),
)
_STRENGTH = {1: 0.5, 2: 0.75, 3: 1.0}


def draw_voice(seed: int) -> Voice:
  """A seed -> Voice of a man, woman or child; voices differ in pitch, vocal tract and quality."""
  rng = np.random.default_rng([_VOICE_TAG, seed])
  kind = rng.choice(3, p=(0.45, 0.43, 0.12))
  pitch, spread = ((115, 0.17), (205, 0.13), (275, 0.1))[kind]
  tract, tract_spread = ((1.0, 0.045), (1.16, 0.04), (1.29, 0.04))[kind]
  normal = rng.standard_normal(8).clip(-2, 2)
  return Voice(
    pitch=float(pitch * np.exp(spread * normal[0])),
    pitch_range=float((6.0, 7.0, 7.5)[kind] * np.exp(0.2 * normal[1])),
    tract=float(tract * np.exp(tract_spread * normal[2])),
    open_quotient=float(np.clip((0.56, 0.66, 0.68)[kind] + 0.06 * normal[3], 0.42, 0.82)),
    breathiness=float(np.clip((0.1, 0.22, 0.22)[kind] + 0.08 * normal[4], 0.02, 0.5)),
    tilt=float((-0.3, -1.2, -0.8)[kind] + 0.8 * normal[5]),
    rate=float(np.exp(0.09 * normal[6]) * (0.93 if kind == 2 else 1.0)),
    jitter=float(rng.uniform(0.004, 0.014)),
    shimmer=float(rng.uniform(0.02, 0.07)),
    creak=float(rng.choice([0.0, rng.uniform(0.1, 0.45)], p=(0.7, 0.3))),
    vibrato=float(rng.choice([0.0, rng.uniform(0.1, 0.3)], p=(0.7, 0.3))),
    loudness=float(0.8 * normal[7]),
  )


def prosody(emotion: str, level: int = 3, seed: int = 0) -> Prosody:
  """An emotion of EMOTIONS at level 1 to 3 (0.5, 0.75 and 1 of it) -> Prosody.

  seed: the person; people show an emotion differently, with the same habits at every level. Raises InputError for an
  unknown emotion or level.
  """
  if emotion not in EMOTIONS:
    raise InputError(f"the emotion {emotion!r} is not known; give one of {', '.join(EMOTIONS)}")
  if level not in LEVELS:
    raise InputError(f"the level {level!r} is not known; give one of {', '.join(map(str, LEVELS))}")
  strength = _STRENGTH[level]
  rng = np.random.default_rng([_PROSODY_TAG, seed, EMOTIONS.index(emotion)])
  habit = rng.standard_normal(len(_FIELDS)).clip(-2, 2)
  expressive = np.exp(0.15 * np.random.default_rng([_PROSODY_TAG, seed]).standard_normal())
  weights = np.array(_COMPONENTS[emotion]) * np.exp(0.15 * rng.standard_normal(len(_EFFECTS)))
  values = {}
  for name, own in zip(_FIELDS, habit, strict=True):
    effect = strength * expressive * sum(w * e.get(name, 0.0) for w, e in zip(weights, _EFFECTS, strict=True))
    # A neutral manner differs little between people.
    own = own * _PERSONAL[name] * (0.5 if emotion == "neutral" else strength)
    values[name] = float(np.exp(effect + own)) if name in _FACTORS else float(effect + own)
  for name in ("tremor", "attack"):
    values[name] = max(0.0, values[name])
  return Prosody(**values)
