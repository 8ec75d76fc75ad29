"""Whether a face shows the emotion that was asked for: shares of clips, with intervals, and who is taken for whom."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dicetalk_jax.vocabulary import EMOTIONS

_NORMAL_95 = 1.959964
# The paper's four, of Table 5.
PAPERS_FOUR = ("angry", "contempt", "disgusted", "happy")


class Share(NamedTuple):
  """right of count, with Wilson's 95 % interval."""

  right: int
  count: int

  @property
  def value(self) -> float:
    return self.right / self.count if self.count else float("nan")

  @property
  def interval(self) -> tuple[float, float]:
    """Wilson (1927); (0, 1) of nothing."""
    if not self.count:
      return 0.0, 1.0
    n, p, z = self.count, self.value, _NORMAL_95
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)

  def __str__(self):
    if not self.count:
      return "none"
    low, high = self.interval
    return f"{self.value:.3f} ({low:.3f} to {high:.3f}; {self.right} of {self.count})"


def shares(wanted: Sequence[str], found: Sequence[str]) -> dict[str, Share]:
  """Share of clips whose measured emotion is the one wanted: of all, the paper's four, neutral, and not neutral."""
  wanted, right = np.asarray(wanted), np.asarray(wanted) == np.asarray(found)
  groups = {
    "all eight": np.ones(len(wanted), bool),
    "the paper's four": np.isin(wanted, PAPERS_FOUR),
    "neutral": wanted == "neutral",
    "not neutral": wanted != "neutral",
  }
  return {name: Share(int(right[chosen].sum()), int(chosen.sum())) for name, chosen in groups.items()}


def confusion(wanted: Sequence[str], found: Sequence[str]) -> np.ndarray:
  """Counts (8, 8): rows wanted, columns found, in EMOTIONS' order."""
  table = np.zeros((len(EMOTIONS), len(EMOTIONS)), int)
  np.add.at(table, ([EMOTIONS.index(name) for name in wanted], [EMOTIONS.index(name) for name in found]), 1)
  return table
