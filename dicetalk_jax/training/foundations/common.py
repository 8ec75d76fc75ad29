"""What the stages of the release's networks share."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

# Decoded frames or spectrograms to keep in memory, in GB.
MEMORY_GB = 1.0
# Clips of a validation, at most, spread over all of the split.
VALIDATION_CLIPS = 64


def valid_rows(measure: Callable[[dict], Mapping], batches: Iterable[dict]) -> dict[str, np.ndarray]:
  """measure(batch) -> {name: (b, ...)} of finite batches, joined, without the rows outside batch["valid"]."""
  rows = [{name: np.asarray(of)[batch["valid"]] for name, of in measure(batch).items()} for batch in batches]
  return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
