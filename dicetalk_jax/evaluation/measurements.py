"""What is measured of each video, kept in a file each, so that an evaluation goes on where it was stopped."""

import dataclasses
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np

from dicetalk_jax.errors import InputError, OutputError


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """Of one video of n frames at 25 a second: what the measuring network says, and a few of its pictures.

  emotion (8,): mean logits; identity (n, d), of length 1; face (n, len(MEASURED)); features (n, f); strip: some frames
  side by side (h, k · w, 3) uint8; seconds: that it took to make.
  """

  emotion: np.ndarray
  identity: np.ndarray
  face: np.ndarray
  features: np.ndarray
  strip: np.ndarray
  seconds: float = 0.0


class Store:
  """A folder of measurements of one evaluation, whose settings it remembers.

  Raises InputError for a folder of other settings, and OutputError where nothing can be written.
  """

  def __init__(self, folder: str | os.PathLike, settings: Mapping):
    self.folder = pathlib.Path(folder).expanduser()
    settings = json.loads(json.dumps(settings))
    path = self.folder / "settings.json"
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      if not path.is_file():
        path.write_text(json.dumps(settings, indent=2) + "\n")
      known = json.loads(path.read_text())
    except (OSError, ValueError) as error:
      raise OutputError(f"{path} cannot be written or read ({error}); give another folder with --out") from error
    differing = [name for name in settings | known if settings.get(name) != known.get(name)]
    if differing:
      name = differing[0]
      raise InputError(
        f"{self.folder} holds an evaluation with {name} {known.get(name)}, and now it is {settings.get(name)}; give "
        "another --out"
      )

  def get(self, name: str) -> Measured | None:
    """None for what has not been measured, and for a file that was not written to its end."""
    try:
      with np.load(self._path(name), allow_pickle=False) as stored:
        fields = {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
      return None
    return Measured(**fields | {"seconds": float(fields["seconds"])})

  def put(self, name: str, measured: Measured) -> None:
    path = self._path(name)
    partial = path.with_suffix(".unfinished")
    try:
      path.parent.mkdir(exist_ok=True)
      with partial.open("wb") as file:
        np.savez_compressed(file, **dataclasses.asdict(measured))
      os.replace(partial, path)
    except OSError as error:
      raise OutputError(f"{path} cannot be written ({error}); what was measured before is kept") from error

  def _path(self, name):
    return self.folder / "measured" / f"{name}.npz"
