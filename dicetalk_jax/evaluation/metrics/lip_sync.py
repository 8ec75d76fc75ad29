"""Lip synchronisation: correlation between measured and true mouth opening, at every delay."""

import numpy as np

OFFSETS = np.arange(-5, 6)


def correlations(measured: np.ndarray, true: np.ndarray, offsets: np.ndarray = OFFSETS) -> np.ndarray:
  """Pearson correlation of measured[t + offset] and true[t], both (n,), for each offset in frames.

  A positive offset means that the mouth is late. NaN where either side is constant or fewer than three frames overlap.
  """
  measured, true = np.asarray(measured, np.float64), np.asarray(true, np.float64)
  values = []
  for offset in offsets:
    late, early = measured[max(offset, 0) :], true[max(-offset, 0) :]
    n = min(len(late), len(early))
    moves = n >= 3 and late[:n].std() > 0 and early[:n].std() > 0
    values.append(np.corrcoef(late[:n], early[:n])[0, 1] if moves else np.nan)
  return np.array(values)


def best_offset(correlations: np.ndarray, offsets: np.ndarray = OFFSETS) -> int:
  """Offset in frames with the highest mean over clips of correlations (clips, offsets)."""
  return int(offsets[np.nanmean(correlations, axis=0).argmax()])
