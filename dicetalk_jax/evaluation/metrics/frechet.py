"""Fréchet distance between Gaussians of features (Heusel et al. 2017), for frames and for pieces of video."""

import numpy as np
from scipy.linalg import eigh

PIECE = 8  # frames in a piece of video


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
  """|m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½) of features (n, d) and (m, d), in float64.

  The trace of the root is that of (C₁^½ C₂ C₁^½)^½, which is symmetric, so singular covariances are no problem.
  NaN when either side has fewer than two rows.
  """
  if min(len(first), len(second)) < 2:
    return float("nan")
  first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
  difference = first.mean(0) - second.mean(0)
  covariances = [np.atleast_2d(np.cov(features, rowvar=False)) for features in (first, second)]
  values, vectors = eigh(covariances[0])
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  values = eigh(root @ covariances[1] @ root, eigvals_only=True)
  shared = np.sqrt(np.maximum(values, 0)).sum()
  return float(difference @ difference + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * shared)


def video_features(features: np.ndarray, piece: int = PIECE) -> np.ndarray:
  """Frame features (n, d) of one clip -> features of its pieces (n // piece, 3 · d).

  Per piece: mean, standard deviation and mean absolute change between frames. The change separates jitter and frozen
  frames from speech.
  """
  count = len(features) // piece
  pieces = np.asarray(features[: count * piece]).reshape(count, piece, -1)
  change = np.abs(np.diff(pieces, axis=1)).mean(1)
  return np.concatenate([pieces.mean(1), pieces.std(1), change], axis=-1)
