"""Draws a person: parameters -> pictures, at any size."""

import math

import numpy as np

from dicetalk_jax.world.body import Body, backdrop
from dicetalk_jax.world.eyes import Eyes
from dicetalk_jax.world.hair import Hair
from dicetalk_jax.world.head import Head
from dicetalk_jax.world.identity import Identity
from dicetalk_jax.world.mouth import Mouth, lips
from dicetalk_jax.world.parameters import PARAMETERS, clipped
from dicetalk_jax.world.skin import Skin, light_colour, skin_colour

SMALLEST = 32


def render(identity: Identity, parameters: np.ndarray, size: int = 128) -> np.ndarray:
  """Frames of a person as (n, size, size, 3) uint8 sRGB.

  parameters (n, len(PARAMETERS)) are clipped to their ranges. A frame does not depend on the others. size: even, at
  least 32 pixels. Raises ValueError for another shape or size, and for values that are not finite.
  """
  parameters, size = _checked(parameters), _checked_size(size)
  frames = np.empty((len(parameters), size, size, 3), np.uint8)
  if not len(parameters):
    return frames
  skin, light = skin_colour(identity), light_colour(identity)
  head = Head(identity, parameters, size)
  body, hair, face = (part(head, skin, light) for part in (Body, Hair, Skin))
  eyes, mouth = Eyes(head, skin, light), Mouth(head, skin, light)
  still = backdrop(identity, size)
  for i in range(len(parameters)):
    canvas = still.copy()
    hair.paint_back(canvas, i)
    body.paint(canvas, i)
    covered = face.paint_head(canvas, i, eyes)
    face.paint_features(canvas, i, covered)
    mouth.paint(canvas, i)
    face.paint_moustache(canvas, i)
    eyes.paint_folds(canvas, i)
    eyes.paint(canvas, i)
    face.paint_near_ear(canvas, i)
    hair.paint_front(canvas, i)
    eyes.paint_brows(canvas, i)
    eyes.paint_glasses(canvas, i)
    np.clip(canvas, 0, 1, out=canvas)
    canvas *= 255
    canvas += 0.5
    frames[i] = canvas.transpose(1, 2, 0)
  return frames


def face_box(identity: Identity, parameters: np.ndarray, size: int = 128) -> tuple[int, int, int, int]:
  """Face box in frames of `render`: (x, y, w, h) in pixels, ear to ear and forehead to chin, over all frames.

  It is clipped to the picture. Raises ValueError as `render` does, and for no frames.
  """
  parameters, size = _checked(parameters), _checked_size(size)
  if not len(parameters):
    raise ValueError("there are no frames to find a face in; give parameters of at least one")
  head = Head(identity, parameters, size)
  skin = Skin(head, skin_colour(identity), light_colour(identity))
  # The outline starts at the crown, the face at the forehead.
  forehead = head.project(0.0, np.full((1, 1), -0.5), 0.3)
  points = np.concatenate((head.face_points(), forehead, skin.ears.reshape(len(parameters), -1, 2)), axis=1)
  low, high = points.reshape(-1, 2).min(0), points.reshape(-1, 2).max(0)
  left, top = (min(max(0, math.floor(v)), size - 1) for v in low)
  right, bottom = (max(min(size, math.ceil(v)), edge + 1) for v, edge in zip(high, (left, top), strict=True))
  return left, top, right - left, bottom - top


def mouth_geometry(identity: Identity, parameters: np.ndarray) -> np.ndarray:
  """Opening of the mouth in the middle between the inner lips, and its width from corner to corner.

  parameters (n, len(PARAMETERS)) -> (n, 2) float32 in face heights, as `render` draws them without head pose.
  """
  curves = lips(identity, _checked(parameters))
  return np.stack((curves.opening(), curves.width()), -1).astype(np.float32)


def _checked(parameters) -> np.ndarray:
  parameters = np.asarray(parameters)
  if parameters.ndim != 2 or parameters.shape[1] != len(PARAMETERS):
    raise ValueError(f"parameters have the shape {parameters.shape}; give (n, {len(PARAMETERS)}), a row for each frame")
  if parameters.dtype.kind not in "fiub" or not np.isfinite(parameters).all():
    raise ValueError("parameters hold values that are not finite numbers; every value must be one")
  return clipped(parameters)


def _checked_size(size) -> int:
  if int(size) != size or size < SMALLEST or size % 2:
    raise ValueError(f"size is {size}; give an even number of pixels, at least {SMALLEST}")
  return int(size)
