"""A user's portrait, made ready for the networks. The recipe is the release's, step by step."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from dicetalk_jax.diffusion.conditioning import Conditions, face_mask, pose_input
from dicetalk_jax.errors import InputError
from dicetalk_jax.inference.conditions import Networks, run
from dicetalk_jax.media.face import FaceDetector, check_box, crop_around, find_face
from dicetalk_jax.media.image import clip_pixels, read_image, resize, to_signed, working_size

# A narrower picture is a mistake, and would take all memory.
_LARGEST_RATIO = 4


@dataclasses.dataclass(frozen=True)
class Portrait:
  """A portrait ready to be animated.

  image (h, w, 3) uint8 at working size; mask (h, w) uint8 over the face; box (x, y, w, h) of the face in the original
  image, after cropping if asked, of `original_size` (width, height); faces: how many were detected, None with a box
  given by hand.
  """

  image: np.ndarray
  mask: np.ndarray
  box: tuple[int, int, int, int]
  original_size: tuple[int, int]
  faces: int | None

  @property
  def signed(self) -> np.ndarray:
    """(h, w, 3) float32 in [-1, 1]: the VAE's input."""
    return to_signed(self.image)

  @property
  def clip_pixels(self) -> np.ndarray:
    """(224, 224, 3) float32: CLIP's input."""
    return clip_pixels(self.image)

  @property
  def face_mask(self) -> np.ndarray:
    """(h, w) float32 in [0, 1]."""
    return self.mask.astype(np.float32) / 255


def prepare_portrait(
  image, size: float, face_box: Sequence[float] | None = None, crop=False, detector: FaceDetector | None = None
) -> Portrait:
  """Reads a portrait, detects its face unless `face_box` (x, y, w, h) is given, crops around it if asked, and resizes.

  size: the shorter side in pixels. Raises InputError for an image that cannot be used or is too narrow, no face, a box
  outside the image or a size under 32.
  """
  pixels = read_image(image)
  height, width = pixels.shape[:2]
  faces = None
  if face_box is None:
    face, faces = find_face(pixels, detector)
    box = face.box
  else:
    box = check_box(face_box, width, height)
  if crop:
    pixels, box = crop_around(pixels, box)
    height, width = pixels.shape[:2]
  if max(width, height) > _LARGEST_RATIO * min(width, height):
    raise InputError(
      f"The portrait of {width}x{height} pixels has one side more than {_LARGEST_RATIO} times the other: "
      "give a less narrow picture, or crop it around the face with --crop."
    )
  working = working_size(width, height, size)
  mask = (255 * face_mask(np.asarray(box), height, width)).astype(np.uint8)
  return Portrait(resize(pixels, working), resize(mask, working), box, (width, height), faces)


def portrait_conditions(networks: Networks, portrait: Portrait, report=lambda done: None) -> Conditions:
  """The conditions that all frames share, one window of one frame, without adapter tokens.

  Image latents are the VAE's mean, unscaled. report(done) is called after each of the two parts.
  """

  def apply(name, x, **options):
    return run(networks.module(name), networks.params(name), x, **options)

  mean, _ = apply("vae", portrait.signed[None], method="encode")
  embedding = apply("image_encoder", portrait.clip_pixels[None]).astype(jnp.float32)
  report(1)
  mask = portrait.face_mask[None]
  pose = apply("pose_guider", np.asarray(pose_input(mask))).astype(networks.dtype)
  report(2)
  return Conditions(mean, embedding[None], (), pose, jnp.asarray(mask))
