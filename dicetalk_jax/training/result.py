"""The weights folder that a finished run leaves."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Mapping

from dicetalk_jax.errors import OutputError
from dicetalk_jax.parallel.hosts import is_first, wait_for_all
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
    with replaced(pathlib.Path(folder).expanduser()) as target:
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


@contextlib.contextmanager
def replaced(folder: pathlib.Path):
  """A path beside `folder` at which a block makes a folder that then takes the place of `folder`, whole."""
  new, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
  if not is_first():
    wait_for_all(f"{folder} may be written")
    yield new
    wait_for_all(f"{folder} is written")
    wait_for_all(f"{folder} has its name")
    return
  if old.exists() and not folder.exists():
    # A process was killed between the two names.
    old.rename(folder)
  for left in (new, old):
    shutil.rmtree(left, ignore_errors=True)
  wait_for_all(f"{folder} may be written")
  yield new
  # The others may still look at it under the name that it goes by so far.
  wait_for_all(f"{folder} is written")
  if folder.exists():
    folder.rename(old)
  new.rename(folder)
  shutil.rmtree(old, ignore_errors=True)
  wait_for_all(f"{folder} has its name")
