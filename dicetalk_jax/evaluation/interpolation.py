"""Whether a way between two emotions goes steadily: what is measured of the face, step by step."""

import numpy as np
from scipy.stats import spearmanr


def positions(measured: np.ndarray, start: np.ndarray, end: np.ndarray, scale: np.ndarray) -> np.ndarray:
  """Where on the way from `start` to `end` faces lie: 0 at the one, 1 at the other.

  measured (k, p), start, end (p,): parameters of the face; scale (p,): the deviation of each, in which they are
  compared.
  """
  way = (end - start) / scale
  return ((measured - start) / scale) @ way / (way @ way)


def monotony(values: np.ndarray) -> float:
  """Spearman's rank correlation of values (k,) with their order: 1 where each is larger than the one before."""
  return float(spearmanr(np.arange(len(values)), values).statistic)
