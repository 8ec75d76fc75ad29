"""Whether a face is still the portrait's: likeness to it, and whom among many people it is taken for."""

import numpy as np


def similarity(made: np.ndarray, portrait: np.ndarray) -> float:
  """Cosine of a clip's mean identity features, of frames (n, d), and a portrait's (d,)."""
  mean = np.asarray(made, np.float64).mean(0)
  return float(mean @ portrait / (np.linalg.norm(mean) * np.linalg.norm(portrait)))


def nearest(made: np.ndarray, gallery: np.ndarray) -> int:
  """Which of a gallery's people (k, d), of length 1, a clip of frames (n, d) is taken for."""
  return int((np.asarray(gallery) @ np.asarray(made).mean(0)).argmax())
