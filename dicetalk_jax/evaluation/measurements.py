"""Measurements of videos, one file per video, so that an evaluation can be resumed."""

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping

import numpy as np

from dicetalk_jax.errors import InputError, OutputError
from dicetalk_jax.files import expanded, new_file, write_json


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
  """What the measuring network outputs for a video of n frames at 25 a second.

  emotion (8,): mean logits; identity (n, d), unit length; face (n, len(MEASURED)); features (n, f); strip
  (h, k · w, 3) uint8: k of the frames side by side; seconds: time it took to generate.
  """

  emotion: np.ndarray
  identity: np.ndarray
  face: np.ndarray
  features: np.ndarray
  strip: np.ndarray
  seconds: float = 0.0


class Store:
  """Folder with the measurements of one evaluation and its settings (JSON values).

  Raises InputError when the folder has other settings, OutputError when it cannot be written.
  """

  def __init__(self, folder: str | os.PathLike, settings: Mapping):
    self.folder = expanded(folder, "folder of the report")
    settings = json.loads(json.dumps(settings))
    path = self.folder / "settings.json"
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      if not path.is_file():
        write_json(settings, path)
      stored = json.loads(path.read_text())
    except (OSError, ValueError) as error:
      raise OutputError(f"{path} cannot be written or read ({error}); give another folder with --out") from error
    if differing := [name for name in settings | stored if settings.get(name) != stored.get(name)]:
      name = differing[0]
      raise InputError(
        f"{self.folder} holds an evaluation with {name} {stored.get(name)}, but {name} is now {settings.get(name)}; "
        "give another --out"
      )

  def get(self, name: str) -> Measurement | None:
    """None when there is no measurement of this name, or its file is incomplete."""
    try:
      with np.load(self._path(name), allow_pickle=False) as stored:
        fields = {key: stored[key] for key in stored.files}
      return Measurement(**fields | {"seconds": float(fields["seconds"])})
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
      return None

  def put(self, name: str, measurement: Measurement) -> None:
    path = self._path(name)
    try:
      path.parent.mkdir(exist_ok=True)
      with new_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **dataclasses.asdict(measurement))
    except OSError as error:
      raise OutputError(f"{path} cannot be written ({error}); earlier measurements are kept") from error

  def _path(self, name):
    return self.folder / "measured" / f"{name}.npz"
