"""The weights folder that a finished run leaves."""

import os
import pathlib
from collections.abc import Mapping

from dicetalk_jax.inference.weights import Weights
from dicetalk_jax.training.foundations import replaced


def write_result(
  folder: str | os.PathLike,
  base: Weights | None,
  networks: Mapping[str, Mapping],
  architectures: Mapping[str, Mapping],
  config: Mapping | None = None,
) -> Weights:
  """A copy of `base` with `networks` ({name: nested parameters}) replaced or added; without one, these alone.

  config: more of config.json's top level. One that an earlier end of the run has left is replaced, once the new one is
  whole. Raises OutputError where it cannot be written.
  """
  with replaced(pathlib.Path(folder).expanduser()) as target:
    if base is None:
      Weights.save(target, networks, {"networks": dict(architectures)} | dict(config or {}))
    else:
      base.derive(target, networks, architectures, config=config or {})
  return Weights.open(folder)
