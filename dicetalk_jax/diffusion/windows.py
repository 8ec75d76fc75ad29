"""Long videos in short windows: where the windows of each step stand, and how their results are joined.

Every step denoises the whole circle of N frames in windows that do not see one another; the windows start somewhere
else at each step, so that no seam stays.
"""

import jax.numpy as jnp
import numpy as np


def check(window, shift, overlap):
  """Raises ValueError for a window plan that cannot be run."""
  if window < 1:
    raise ValueError(f"window {window}: at least 1 frame is needed")
  if not 0 <= overlap < window:
    raise ValueError(
      f"overlap {overlap} with a window of {window} frames: it must be at least 0 and less than the window"
    )
  if shift < 0:
    raise ValueError(f"shift {shift}: it must not be negative")


def shift_at(step, shift, window):
  """How far the windows stand back at a step: 0 at first, then `shift` frames more each step, modulo the window."""
  return step * shift % window


def plan(frames, window, overlap=0, shifted=0):
  """The frames of each window of one step: (windows, window) int32, indices modulo `frames`.

  Windows start at 0, window − overlap, … below `frames`, each moved back by `shifted`.
  """
  check(window, shifted, overlap)
  if frames < 1:
    raise ValueError(f"{frames} frames: at least 1 is needed")
  starts = np.arange(0, frames, window - overlap) - shifted
  return ((starts[:, None] + np.arange(window)) % frames).astype(np.int32)


def groups(indices, size):
  """Windows in groups of one size: (windows, window) -> [(indices (size, window), weights (size,))].

  A last group that is short repeats the first window with weight 0, so that every group has the same shape.
  """
  for first in range(0, len(indices), size):
    part = indices[first : first + size]
    missing = size - len(part)
    weights = np.append(np.ones(len(part)), np.zeros(missing)).astype(np.float32)
    yield np.concatenate([part, np.repeat(indices[:1], missing, axis=0)]), weights


def scatter(total, count, indices, weights, results):
  """Adds windows' results to their frames.

  total (N, ...), count (N,), indices (g, w), weights (g,), results (g, w, ...) -> new total and count; the frames of
  the step are total / count, the average where windows overlap.
  """
  extra = (1,) * (results.ndim - 2)
  total = total.at[indices].add(results * weights.reshape(-1, 1, *extra))
  count = count.at[indices].add(jnp.broadcast_to(weights[:, None], indices.shape))
  return total, count
