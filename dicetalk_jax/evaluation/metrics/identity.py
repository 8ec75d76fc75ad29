"""Identity preservation: similarity to the portrait, and the nearest person of a gallery."""

import numpy as np


def similarity(frames: np.ndarray, portrait: np.ndarray) -> float:
  """Cosine between the mean of a clip's identity features (n, d) and a portrait's (d,)."""
  mean = np.asarray(frames, np.float64).mean(0)
  return float(mean @ portrait / (np.linalg.norm(mean) * np.linalg.norm(portrait)))


def nearest(frames: np.ndarray, gallery: np.ndarray) -> int:
  """Index of the person in `gallery` (k, d), unit length, that a clip's identity features (n, d) are nearest to."""
  return int((np.asarray(gallery) @ np.asarray(frames).mean(0)).argmax())
