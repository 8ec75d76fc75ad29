"""Fréchet distance between Gaussians of features (Heusel et al. 2017), of frames and of short pieces of video."""

import numpy as np
from scipy.linalg import eigh

# Frames of a piece of video.
PIECE = 8


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
  """|m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½) of features (n, d) and (m, d), in float64.

  The trace of the root is taken as that of (C₁^½ C₂ C₁^½)^½, which is symmetric, so that singular covariances do not
  disturb. NaN of fewer than two.
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
  """Of frames' features (n, d) of one clip, those of its pieces (n // piece, 3 · d): mean, deviation, and mean change.

  The change is that from frame to frame, without its sign, which tells trembling and standing still from speaking.
  """
  count = len(features) // piece
  pieces = np.asarray(features[: count * piece]).reshape(count, piece, -1)
  change = np.abs(np.diff(pieces, axis=1)).mean(1)
  return np.concatenate([pieces.mean(1), pieces.std(1), change], axis=-1)
