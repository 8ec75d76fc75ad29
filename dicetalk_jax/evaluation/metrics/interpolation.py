"""Smoothness of an interpolation between two emotions: the position of the measured face at each step."""

import numpy as np
from scipy.stats import spearmanr


def positions(faces: np.ndarray, start: np.ndarray, end: np.ndarray, scale: np.ndarray) -> np.ndarray:
  """Projects faces (k, p) on the line from `start` to `end`, both (p,): 0 at the start, 1 at the end.

  scale (p,): standard deviation of each face parameter, which the parameters are divided by.
  """
  way = (end - start) / scale
  return ((faces - start) / scale) @ way / (way @ way)


def monotony(values: np.ndarray) -> float:
  """Spearman's rank correlation between values (k,) and their order: 1 when every value exceeds the one before."""
  return float(spearmanr(np.arange(len(values)), values).statistic)
