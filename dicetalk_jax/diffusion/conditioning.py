"""What the U-Net is conditioned on: one function each, shared by training and generation.

The functions take NumPy or JAX arrays and touch neither files nor devices.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import struct

from dicetalk_jax.diffusion.edm import precondition

# Frames per second, motion bucket and noise augmentation that the released U-Net was trained with.
ADDED_TIME_IDS = (12.5, 8.0, 16.0)
# Whisper's states come at 50 Hz, two per frame at 25 fps. A frame's window starts four states before its own.
_STATES_BEFORE = 4


@struct.dataclass
class Conditions:
  """What the U-Net sees of b windows of f frames besides their noisy latents.

  image_latents (b, h, w, c): the VAE's mean of the portrait, unscaled. image_tokens (b, m, d): its CLIP embedding.
  adapter_tokens: (b, f, n, d) for each adapter of the U-Net, in order. pose_features (b, 1, h, w, c₀).
  face_mask (b, H, W) in [0, 1]. Axes b and f may have length 1 where all windows or frames share the value.
  """

  image_latents: jnp.ndarray
  image_tokens: jnp.ndarray
  adapter_tokens: tuple[jnp.ndarray, ...]
  pose_features: jnp.ndarray
  face_mask: jnp.ndarray


def hide(conditions: Conditions, unconditional: Sequence, visible) -> Conditions:
  """Replaces the conditions that are not visible: the image by zeros, adapter tokens by the unconditional ones.

  unconditional: (1, 1, n, d) for each adapter. visible (b or 1, 1 + adapters): 1 or true where a window sees the image,
  then each adapter's condition. Guidance hides conditions per branch, training hides them at random.
  """
  visible = jnp.asarray(visible, jnp.float32)
  image, tokens = visible[:, 0], visible[:, 1:, None, None, None]
  return conditions.replace(
    image_latents=image[:, None, None, None] * conditions.image_latents,
    image_tokens=image[:, None, None] * conditions.image_tokens,
    adapter_tokens=tuple(
      jnp.where(tokens[:, i] > 0, own, none)
      for i, (own, none) in enumerate(zip(conditions.adapter_tokens, unconditional, strict=True))
    ),
  )


def unet_inputs(x, sigma, conditions: Conditions) -> dict:
  """The U-Net's arguments for noisy latents x (b, f, h, w, c) at noise level sigma, () or (b,)."""
  b, f = x.shape[:2]
  c = precondition(sigma)
  c_in = c.c_in.reshape(*c.c_in.shape, *[1] * (x.ndim - c.c_in.ndim))

  def every_frame(array):
    return jnp.broadcast_to(array, (b, f, *array.shape[2:]))

  return dict(
    sample=jnp.concatenate([c_in * x, every_frame(conditions.image_latents[:, None])], axis=-1),
    timestep=c.c_noise,
    image_tokens=every_frame(conditions.image_tokens[:, None]),
    adapter_tokens=tuple(map(every_frame, conditions.adapter_tokens)),
    added_time_ids=jnp.broadcast_to(jnp.array(ADDED_TIME_IDS), (b, 3)),
    pose_features=conditions.pose_features,
    face_mask=conditions.face_mask,
  )


def face_mask(box, height: int, width: int, scale: float = 1.1):
  """1 inside each box scaled about its centre, 0 outside: box (..., 4) x, y, w, h in pixels -> (..., height, width).

  float32. As in the release, centre and half sizes are rounded down to whole pixels, so the edges are too.
  """
  x, y, w, h = (box[..., i, None] for i in range(4))

  def inside(length, start, size):
    centre, half = (2 * start + size) // 2, size * scale // 2
    return (np.arange(length) >= centre - half) & (np.arange(length) < centre + half)

  rows, columns = inside(height, y, h), inside(width, x, w)
  return (rows[..., :, None] & columns[..., None, :]).astype(np.float32)


def pose_input(mask):
  """The pose guider's input: face masks (b, H, W) -> (b, 1, H, W, 3), one for all frames of a window."""
  return jnp.broadcast_to(mask[:, None, ..., None], (mask.shape[0], 1, *mask.shape[1:], 3))


def speech_windows(states: np.ndarray, frames: np.ndarray, positions: int) -> np.ndarray:
  """The Whisper states around each frame: states (2n, layers + 1, d) at 50 Hz -> (f, positions, layers + 1, d).

  frames (f,): indices at 25 fps. Frame i sees positions 2i − 4 up to 2i − 4 + `positions`; zeros outside the clip. The
  diffusion model's frame j, at 12.5 fps, is i = 2j: the release's windows [4j − 4, 4j + 6).
  """
  index = 2 * frames[:, None] - _STATES_BEFORE + np.arange(positions)
  windows = states[np.clip(index, 0, len(states) - 1)]
  windows[(index < 0) | (index >= len(states))] = 0
  return windows


def speech_at_25(states: np.ndarray) -> np.ndarray:
  """The emotion embedder's speech: last states averaged in pairs, (2n, layers + 1, d) at 50 Hz -> (n, d) float32."""
  last = states[:, -1].astype(np.float32)
  return last.reshape(-1, 2, last.shape[-1]).mean(axis=1)  # (2n, d) -> (n, 2, d) -> (n, d)
