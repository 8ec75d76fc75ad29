"""Semantic parameters of a frame: acting sets them, the renderer draws them."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A parameter: its range, the meaning of its ends, and whether it belongs to the face or the head."""

  name: str
  low: float
  high: float
  meaning: str
  of_head: bool = False


# All are 0 at rest. Left and right are those of the picture.
PARAMETERS = (
  Parameter("jaw", 0, 1, "jaw dropped; the lips part with it unless they are pressed"),
  Parameter("lip_press", 0, 1, "lips held together, thinner, whatever the jaw does (b, p, m)"),
  Parameter("lip_width", -1, 1, "mouth narrowed .. spread"),
  Parameter("lip_round", 0, 1, "lips rounded and pushed forward (w, oo)"),
  Parameter("lip_tuck", 0, 1, "lower lip under the upper teeth (f, v)"),
  Parameter("tongue", 0, 1, "tip of the tongue at the teeth (th, l)"),
  Parameter("upper_lip", 0, 1, "upper lip raised, teeth bared"),
  Parameter("corner_left", -1, 1, "mouth corner down .. up"),
  Parameter("corner_right", -1, 1, "mouth corner down .. up"),
  Parameter("cheek", 0, 1, "cheeks raised, folds beside the nose deepened"),
  Parameter("nose_wrinkle", 0, 1, "nose wrinkled, wings raised"),
  Parameter("brow_inner", -1, 1, "inner ends of the brows lowered and drawn together .. raised"),
  Parameter("brow_outer", -1, 1, "outer ends of the brows lowered .. raised"),
  Parameter("brow_tilt", -1, 1, "left brow higher .. right brow higher"),
  Parameter("lid", -1, 1, "upper lids drooping .. wide open"),
  Parameter("blink", 0, 1, "eyes shut, whatever lid is"),
  Parameter("squint", 0, 1, "lower lids raised and tight"),
  Parameter("gaze_x", -1, 1, "eyes to the left .. right", of_head=True),
  Parameter("gaze_y", -1, 1, "eyes down .. up", of_head=True),
  Parameter("yaw", -0.6, 0.6, "head turned to the left .. right, radians", of_head=True),
  Parameter("pitch", -0.5, 0.5, "head bowed .. thrown back, radians", of_head=True),
  Parameter("roll", -0.4, 0.4, "head tilted to the left shoulder .. right, radians", of_head=True),
  Parameter("shift_x", -0.3, 0.3, "head moved to the left .. right, in face heights", of_head=True),
  Parameter("shift_y", -0.3, 0.3, "head moved down .. up, in face heights", of_head=True),
  Parameter("zoom", -0.3, 0.3, "head farther .. nearer, logarithm of its size", of_head=True),
)
INDEX = {parameter.name: i for i, parameter in enumerate(PARAMETERS)}
# Parameters that expression coefficients depend on: not head pose and gaze.
OF_FACE = tuple(i for i, parameter in enumerate(PARAMETERS) if not parameter.of_head)


def column(parameters: np.ndarray, name: str) -> np.ndarray:
  """A named column of parameters (..., len(PARAMETERS)), as a writable view."""
  return parameters[..., INDEX[name]]


def clipped(parameters: np.ndarray) -> np.ndarray:
  """Parameters (..., len(PARAMETERS)) within their ranges, float32."""
  low = np.array([p.low for p in PARAMETERS], np.float32)
  high = np.array([p.high for p in PARAMETERS], np.float32)
  return np.clip(parameters, low, high).astype(np.float32)
