"""The weights folder that a finished run leaves."""

import os
from collections.abc import Mapping

from dicetalk_jax.errors import OutputError
from dicetalk_jax.files import expanded, replaced_folder
from dicetalk_jax.parallel import hosts
from dicetalk_jax.weights.folder import Weights


def write_result(
  folder: str | os.PathLike,
  base: Weights | None,
  networks: Mapping[str, Mapping],
  architectures: Mapping[str, Mapping],
  config: Mapping | None = None,
) -> Weights:
  """A copy of `base` with `networks` ({name: nested parameters}) replaced or added; without one, these alone.

  config: more of config.json's top level. One that an earlier end of the run has left is replaced, once the new one is
  whole. Of several processes all have to call this. Raises OutputError where it cannot be written.
  """
  try:
    with replaced_folder(expanded(folder), hosts) as target:
      if base is None:
        Weights.save(target, networks, {"networks": dict(architectures)} | dict(config or {}))
      else:
        base.derive(target, networks, architectures, config=config or {})
  except (OutputError, OSError) as error:
    said = str(error) if isinstance(error, OutputError) else f"{folder} could not be written: {error.strerror}."
    raise OutputError(
      f"{said} Training has ended and its last checkpoint is whole: mend this, and the same command writes the weights."
    ) from error
  return Weights.open(folder)
