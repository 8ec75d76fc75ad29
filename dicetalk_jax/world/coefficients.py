"""Expression coefficients of the drawn world, like those that a 3D face tracker estimates.

Coefficients of Deep3DFaceRecon for MEAD clips of two people and eight emotions at 25 frames a second (root mean square
over eight columns, starting with the given one):

    column                      0     8    16    24    32    40    48    56
    within a clip             0.29  0.20  0.16  0.12  0.08  0.04  0.015 0.01
    a clip's mean, by emotion 0.37  0.34  0.30  0.15  0.10  0.07  0.02  0.02
    a person's mean           0.31  0.46  0.39  0.28  0.09  0.11  0.03  0.02
    step between frames       0.52  0.59  0.64  0.65  0.66  0.66  0.70  0.72   as a share of the first row

The same for drawn clips of 60 people with eight emotions at the highest level:

    within a clip             0.28  0.27  0.17  0.10  0.08  0.05  0.02  0.01
    a clip's mean, by emotion 0.34  0.36  0.27  0.18  0.11  0.07  0.03  0.01
    a person's mean           0.32  0.31  0.21  0.14  0.09  0.05  0.03  0.01
    step between frames       0.57  0.50  0.54  0.51  0.55  0.55  0.52  0.55

At rest, the coefficients of different people differ as much as emotions change them. An emotion embedder has to ignore
these differences.
"""

import numpy as np

from dicetalk_jax.vocabulary import EXPRESSION_DIM
from dicetalk_jax.world.parameters import OF_FACE, PARAMETERS

_WORLD = 0xC0EF  # of the mix, which is the same for all people
_PERSON = 0xC0F0
# Standard deviations of the effects of a unit parameter, a person's offset and the common mean on the first column, and
# their decay over the columns: exp(−(column / _FALL)^1.5).
_SCALE, _FALL = 0.63, 26.0
OFFSET, MEAN = 0.55, 0.75
GAIN_SPREAD = 0.1
# Share and frequency of the cross terms increase over the columns: late columns change faster.
CROSS, CROSS_RATE = (0.1, 0.4), (0.5, 1.3)
# Unit of each parameter: trackers see the jaw and the width of the lips better than the tongue.
_UNIT = dict(jaw=0.15, lip_press=0.35, lip_width=0.2, lip_round=0.2, lip_tuck=0.3, tongue=0.8, blink=0.4)
_UNIT_OTHER = 0.4


def coefficients(person: int, parameters: np.ndarray) -> np.ndarray:
  """A person's parameters (n, len(PARAMETERS)) -> coefficients (n, 64) float32.

  A fixed mix of the parameters of the face (not of head pose and gaze), with an offset and gains of each person, and
  small smooth cross terms of the parameters.
  """
  face = np.asarray(parameters, np.float64)[:, list(OF_FACE)] / _UNITS
  rng = np.random.default_rng([_PERSON, person])
  offset = OFFSET * _SCALES * rng.standard_normal(EXPRESSION_DIM)
  mix = _MIX * (1 + GAIN_SPREAD * rng.standard_normal(_MIX.shape))
  directions = np.linspace(*CROSS_RATE, EXPRESSION_DIM) * _directions(rng)
  phases = rng.uniform(0, 2 * np.pi, EXPRESSION_DIM)
  cross = np.sin(face @ directions + phases) - np.sin(phases)
  values = _MEAN + offset + _SCALES * (face @ mix + np.linspace(*CROSS, EXPRESSION_DIM) * cross)
  return values.astype(np.float32)


def _directions(rng: np.random.Generator) -> np.ndarray:
  """(len(OF_FACE), 64), each column random on the unit sphere."""
  directions = rng.standard_normal((len(OF_FACE), EXPRESSION_DIM))
  return directions / np.linalg.norm(directions, axis=0)


def _world() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  rng = np.random.default_rng([_WORLD])
  mix = _directions(rng)
  falls = np.exp(-((np.arange(EXPRESSION_DIM) / _FALL) ** 1.5))
  scales = _SCALE * falls * np.exp(0.3 * rng.standard_normal(EXPRESSION_DIM))
  return mix, scales, MEAN * scales * rng.standard_normal(EXPRESSION_DIM)


_UNITS = np.array([_UNIT.get(PARAMETERS[i].name, _UNIT_OTHER) for i in OF_FACE])
_MIX, _SCALES, _MEAN = _world()
