"""Emotion accuracy with confidence intervals, and the confusion matrix."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from dicetalk_jax.vocabulary import EMOTIONS

TABLE_5_EMOTIONS = ("angry", "contempt", "disgusted", "happy")


class Share(NamedTuple):
  """`right` of `count`, with Wilson's 95 % interval."""

  right: int
  count: int

  @classmethod
  def of(cls, flags: Sequence[bool]) -> "Share":
    return cls(int(np.sum(flags)), len(flags))

  @property
  def value(self) -> float:
    return self.right / self.count if self.count else float("nan")

  @property
  def interval(self) -> tuple[float, float]:
    """Wilson's score interval (1927); (0, 1) when `count` is 0."""
    return tuple(binomtest(self.right, self.count).proportion_ci(method="wilson")) if self.count else (0.0, 1.0)

  def __str__(self):
    if not self.count:
      return "none"
    low, high = self.interval
    return f"{self.value:.3f} ({low:.3f} to {high:.3f}; {self.right} of {self.count})"


def shares(wanted: Sequence[str], measured: Sequence[str]) -> dict[str, Share]:
  """Share of clips with the wanted emotion: over all clips, the four of Table 5, neutral, and not neutral."""
  wanted, right = np.asarray(wanted, str), np.asarray(wanted, str) == np.asarray(measured, str)
  groups = {
    "all eight": np.ones(len(wanted), bool),
    "the paper's four": np.isin(wanted, TABLE_5_EMOTIONS),
    "neutral": wanted == "neutral",
    "not neutral": wanted != "neutral",
  }
  return {name: Share.of(right[members]) for name, members in groups.items()}


def confusion(wanted: Sequence[str], measured: Sequence[str]) -> np.ndarray:
  """Confusion counts (8, 8): rows are wanted, columns measured, both in the order of EMOTIONS."""
  table = np.zeros((len(EMOTIONS), len(EMOTIONS)), int)
  np.add.at(table, ([EMOTIONS.index(name) for name in wanted], [EMOTIONS.index(name) for name in measured]), 1)
  return table
