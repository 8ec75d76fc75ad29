"""Long videos in short windows: the position of each step's windows, and how their results are joined.

Each step denoises a circle of N frames in independent windows. The windows move between steps, so that no seams remain.
"""

import jax
import jax.numpy as jnp
import numpy as np


def check(window, shift, overlap):
  """Raises ValueError for settings of windows that cannot be used."""
  if window < 1:
    raise ValueError(f"window {window}: at least 1 frame is needed")
  if not 0 <= overlap < window:
    raise ValueError(
      f"overlap {overlap} with a window of {window} frames: it must be at least 0 and less than the window"
    )
  if shift < 0:
    raise ValueError(f"shift {shift}: it must not be negative")


def shift_at(step, shift, window):
  """Frames by which the windows of a step are moved back: step · shift, modulo the window."""
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
  """Splits windows into groups of one size: (windows, window) -> [(indices (size, window), weights (size,))].

  A short last group is filled with the first window at weight 0, so that all groups have the same shape.
  """
  for first in range(0, len(indices), size):
    part = indices[first : first + size]
    missing = size - len(part)
    weights = np.append(np.ones(len(part)), np.zeros(missing)).astype(np.float32)
    yield np.concatenate([part, np.repeat(indices[:1], missing, axis=0)]), weights


def scatter(total, count, indices, weights, results):
  """Adds the results of windows to their frames.

  results: a tree of arrays (g, w, ...), total: of (N, ...); indices (g, w), count (N,), weights (g,) -> new total and
  count. The frames after a step are total / count, the average where windows overlap.
  """

  def add(total, results):
    return total.at[indices].add(results * weights.reshape(-1, *[1] * (results.ndim - 1)))

  count = count.at[indices].add(jnp.broadcast_to(weights[:, None], indices.shape))
  return jax.tree.map(add, total, results), count
