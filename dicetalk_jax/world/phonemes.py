"""Phonemes of English in the drawn world: sound and visible mouth shape.

Vowel formants after Peterson and Barney (1952), for a man's vocal tract of 17.5 cm; loci of consonants and durations
after Klatt (1980, 1979).
"""

import dataclasses
from typing import NamedTuple

VOWEL, DIPHTHONG, GLIDE, NASAL = "vowel", "diphthong", "glide", "nasal"
FRICATIVE, STOP, AFFRICATE, SILENCE = "fricative", "stop", "affricate", "silence"


class Mouth(NamedTuple):
  """Visible targets, with the names and ranges of parameters.py."""

  jaw: float = 0.0
  lip_press: float = 0.0
  lip_width: float = 0.0
  lip_round: float = 0.0
  lip_tuck: float = 0.0
  tongue: float = 0.0


LIP_COLUMNS = Mouth._fields


@dataclasses.dataclass(frozen=True)
class Phoneme:
  """One sound.

  formants, bandwidths: F1 to F4 in Hz; end: the final formants of a diphthong; pull: weight of the formants against
  those of the neighbours. voicing: amplitude of the voice, 1 for a vowel. noise: resonances of frication or burst as
  (Hz, width in Hz, weight); noise_level: its amplitude, with 1 for a vowel. aspiration: amplitude of breath. nasal: 1
  with the velum open. closure: the share of a stop or affricate before its burst. duration, minimum: seconds. mouth,
  mouth_end: visible targets; dominance: their weight against those of the neighbours.
  """

  name: str
  kind: str
  formants: tuple[float, float, float, float]
  duration: float
  minimum: float
  mouth: Mouth
  dominance: float = 1.0
  bandwidths: tuple[float, float, float, float] = (70.0, 90.0, 140.0, 220.0)
  end: tuple[float, float, float, float] | None = None
  mouth_end: Mouth | None = None
  pull: float = 1.0
  voicing: float = 1.0
  noise: tuple[tuple[float, float, float], ...] = ()
  noise_level: float = 0.0
  aspiration: float = 0.0
  nasal: float = 0.0
  closure: float = 0.0

  @property
  def is_vowel(self) -> bool:
    return self.kind in (VOWEL, DIPHTHONG)

  @property
  def is_voiced(self) -> bool:
    return self.voicing > 0


def _vowel(name, formants, duration, minimum, mouth):
  return Phoneme(name, VOWEL, formants, duration, minimum, mouth)


def _diphthong(name, formants, end, duration, mouth, mouth_end):
  return Phoneme(name, DIPHTHONG, formants, duration, 0.1, mouth, end=end, mouth_end=mouth_end)


def _glide(name, formants, duration, mouth, dominance, pull=1.2):
  shape = {"bandwidths": (60.0, 100.0, 160.0, 260.0), "voicing": 0.62}
  return Phoneme(name, GLIDE, formants, duration, 0.035, mouth, dominance, pull=pull, **shape)


def _nasal(name, formants, mouth, dominance, pull):
  shape = {"bandwidths": (90.0, 220.0, 280.0, 350.0), "voicing": 0.6, "nasal": 1.0}
  return Phoneme(name, NASAL, formants, 0.07, 0.05, mouth, dominance, pull=pull, **shape)


def _fricative(name, formants, duration, noise, noise_level, mouth, dominance, voicing=0.0):
  shape = {"bandwidths": (120.0, 140.0, 200.0, 300.0), "noise": noise, "noise_level": noise_level, "voicing": voicing}
  return Phoneme(name, FRICATIVE, formants, duration, min(0.05, 0.6 * duration), mouth, dominance, pull=1.3, **shape)


def _stop(name, formants, noise, noise_level, mouth, dominance, voiced, pull):
  shape = {"noise": noise, "noise_level": noise_level, "pull": pull}
  if voiced:
    return Phoneme(name, STOP, formants, 0.065, 0.045, mouth, dominance, voicing=0.14, closure=0.75, **shape)
  return Phoneme(
    name, STOP, formants, 0.09, 0.055, mouth, dominance, voicing=0.0, aspiration=0.16, closure=0.6, **shape
  )


def _affricate(name, voicing, noise_level, duration):
  mouth = Mouth(jaw=0.1, lip_round=0.45, lip_width=-0.2, tongue=0.1)
  shape = {"noise": _HUSH, "noise_level": noise_level, "voicing": voicing, "closure": 0.45, "pull": 1.3}
  return Phoneme(name, AFFRICATE, _PALATAL, duration, 0.07, mouth, 1.6, **shape)


_LABIAL, _LABIODENTAL, _DENTAL = (250, 900, 2150, 3300), (300, 1050, 2250, 3300), (320, 1350, 2550, 3400)
_ALVEOLAR, _PALATAL, _VELAR = (280, 1750, 2650, 3500), (280, 1900, 2500, 3400), (270, 1900, 2350, 3300)
_HISS = ((4900, 1500, 1.0), (6600, 1800, 0.9))
_HUSH = ((2700, 800, 1.0), (4300, 1800, 0.6))
_PUFF = ((1500, 3000, 0.5), (6500, 5000, 1.0))
_LISP = ((1800, 3000, 0.3), (7000, 3000, 1.0))

# The lips close, whatever comes before and after; the rest of the mouth is free.
_CLOSED = Mouth(jaw=0.1, lip_press=1.0)
_TUCKED = Mouth(jaw=0.1, lip_tuck=1.0)
_AT_TEETH = Mouth(jaw=0.18, tongue=1.0)
_BEHIND_TEETH = Mouth(jaw=0.14, tongue=0.3)
_SPREAD_TEETH = Mouth(jaw=0.07, lip_width=0.3)
_BACK = Mouth(jaw=0.22)

# The index is the id of the phoneme in the truth of a record.
PHONEMES = (
  Phoneme("SIL", SILENCE, (500, 1500, 2500, 3500), 0.25, 0.08, Mouth(), 0.8, pull=0.05, voicing=0.0),
  _vowel("AA", (730, 1090, 2440, 3400), 0.17, 0.08, Mouth(jaw=0.9, lip_width=0.05)),
  _vowel("AE", (660, 1720, 2410, 3500), 0.17, 0.08, Mouth(jaw=0.85, lip_width=0.4)),
  _vowel("AH", (620, 1200, 2450, 3400), 0.12, 0.05, Mouth(jaw=0.6, lip_width=0.1)),
  _vowel("AO", (570, 860, 2410, 3300), 0.18, 0.09, Mouth(jaw=0.72, lip_width=-0.3, lip_round=0.45)),
  _vowel("EH", (540, 1820, 2480, 3500), 0.13, 0.07, Mouth(jaw=0.62, lip_width=0.35)),
  _vowel("ER", (490, 1350, 1690, 3250), 0.16, 0.07, Mouth(jaw=0.4, lip_width=-0.15, lip_round=0.3)),
  _vowel("IH", (400, 1960, 2550, 3500), 0.11, 0.045, Mouth(jaw=0.42, lip_width=0.4)),
  _vowel("IY", (280, 2270, 3000, 3600), 0.14, 0.06, Mouth(jaw=0.34, lip_width=0.75)),
  _vowel("UH", (440, 1030, 2250, 3300), 0.12, 0.06, Mouth(jaw=0.4, lip_width=-0.35, lip_round=0.5)),
  _vowel("UW", (310, 900, 2240, 3250), 0.15, 0.07, Mouth(jaw=0.28, lip_width=-0.7, lip_round=0.95)),
  _diphthong(
    *("AW", (720, 1220, 2480, 3400), (430, 950, 2300, 3300), 0.2),
    *(Mouth(jaw=0.9, lip_width=0.15), Mouth(jaw=0.38, lip_width=-0.5, lip_round=0.75)),
  ),
  _diphthong(
    *("AY", (720, 1200, 2500, 3400), (390, 2000, 2600, 3500), 0.19),
    *(Mouth(jaw=0.9, lip_width=0.15), Mouth(jaw=0.4, lip_width=0.5)),
  ),
  _diphthong(
    *("EY", (480, 1920, 2550, 3500), (320, 2220, 2850, 3600), 0.17),
    *(Mouth(jaw=0.58, lip_width=0.45), Mouth(jaw=0.36, lip_width=0.65)),
  ),
  _diphthong(
    *("OW", (510, 980, 2350, 3300), (350, 850, 2250, 3250), 0.17),
    *(Mouth(jaw=0.6, lip_width=-0.35, lip_round=0.55), Mouth(jaw=0.32, lip_width=-0.65, lip_round=0.9)),
  ),
  _diphthong(
    *("OY", (550, 870, 2400, 3300), (390, 1950, 2550, 3450), 0.21),
    *(Mouth(jaw=0.68, lip_width=-0.4, lip_round=0.65), Mouth(jaw=0.38, lip_width=0.45)),
  ),
  _glide("W", (300, 680, 2200, 3250), 0.065, Mouth(jaw=0.15, lip_width=-0.7, lip_round=1.0), 2.0),
  _glide("Y", (280, 2230, 2950, 3550), 0.06, Mouth(jaw=0.2, lip_width=0.5), 1.0),
  _glide("L", (370, 1100, 2700, 3500), 0.065, Mouth(jaw=0.26, tongue=0.75), 0.9),
  _glide("R", (330, 1180, 1580, 3200), 0.065, Mouth(jaw=0.2, lip_width=-0.3, lip_round=0.5), 1.2),
  _nasal("M", (270, 1000, 2200, 3300), _CLOSED, 2.5, 1.2),
  _nasal("N", (270, 1650, 2600, 3500), _BEHIND_TEETH, 0.9, 1.1),
  _nasal("NG", (270, 1950, 2450, 3300), _BACK, 0.6, 0.7),
  _fricative("F", _LABIODENTAL, 0.1, _PUFF, 0.07, _TUCKED, 2.5),
  _fricative("V", _LABIODENTAL, 0.065, _PUFF, 0.05, _TUCKED, 2.5, voicing=0.3),
  _fricative("TH", _DENTAL, 0.1, _LISP, 0.06, _AT_TEETH, 2.0),
  _fricative("DH", _DENTAL, 0.05, _LISP, 0.04, _AT_TEETH, 1.6, voicing=0.35),
  _fricative("S", _ALVEOLAR, 0.11, _HISS, 0.24, _SPREAD_TEETH, 2.0),
  _fricative("Z", _ALVEOLAR, 0.075, _HISS, 0.14, _SPREAD_TEETH, 2.0, voicing=0.22),
  _fricative(
    *("SH", _PALATAL, 0.11, _HUSH, 0.3, Mouth(jaw=0.1, lip_width=-0.25, lip_round=0.55), 1.8),
  ),
  _fricative(
    *("ZH", _PALATAL, 0.075, _HUSH, 0.17, Mouth(jaw=0.1, lip_width=-0.25, lip_round=0.55), 1.8),
    voicing=0.22,
  ),
  Phoneme(
    *("HH", FRICATIVE, (500, 1500, 2500, 3500), 0.065, 0.04, Mouth(jaw=0.3), 0.3),
    **{"bandwidths": (200.0, 150.0, 200.0, 300.0), "pull": 0.05, "voicing": 0.0, "aspiration": 0.2},
  ),
  _stop("P", _LABIAL, ((900, 1800, 1.0),), 0.16, _CLOSED, 2.5, False, 1.2),
  _stop("B", _LABIAL, ((800, 1600, 1.0),), 0.12, _CLOSED, 2.5, True, 1.2),
  _stop("T", _ALVEOLAR, ((4200, 2500, 1.0),), 0.32, _BEHIND_TEETH, 0.9, False, 1.1),
  _stop("D", _ALVEOLAR, ((3800, 2500, 1.0),), 0.2, _BEHIND_TEETH, 0.9, True, 1.1),
  _stop("K", _VELAR, ((1900, 900, 1.0), (4500, 2500, 0.3)), 0.3, _BACK, 0.6, False, 0.6),
  _stop("G", _VELAR, ((1900, 900, 1.0), (4500, 2500, 0.25)), 0.2, _BACK, 0.6, True, 0.6),
  _affricate("CH", 0.0, 0.32, 0.12),
  _affricate("JH", 0.14, 0.2, 0.09),
)
INDEX = {phoneme.name: i for i, phoneme in enumerate(PHONEMES)}
