"""Whether the mouth follows the sound: how far it is open, beside how far the truth opens it, at every delay."""

import numpy as np

OFFSETS = np.arange(-5, 6)


def correlations(measured: np.ndarray, true: np.ndarray, offsets: np.ndarray = OFFSETS) -> np.ndarray:
  """Pearson's correlation at each offset, in frames: measured[t + offset] beside true[t]; both (n,).

  A positive offset is a mouth that comes late. NaN where a side does not move, or fewer than three frames meet.
  """
  measured, true = np.asarray(measured, np.float64), np.asarray(true, np.float64)
  found = []
  for offset in offsets:
    late, early = measured[max(offset, 0) :], true[max(-offset, 0) :]
    n = min(len(late), len(early))
    moves = n >= 3 and late[:n].std() > 0 and early[:n].std() > 0
    found.append(np.corrcoef(late[:n], early[:n])[0, 1] if moves else np.nan)
  return np.array(found)


def best_offset(of_clips: np.ndarray, offsets: np.ndarray = OFFSETS) -> int:
  """The offset, in frames, of the highest mean correlation over clips (clips, offsets)."""
  return int(offsets[np.nanmean(of_clips, axis=0).argmax()])
