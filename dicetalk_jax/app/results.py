"""The videos of each visitor, on disk so that they survive a reload of the page."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
import secrets
import shutil
import time

import numpy as np
from PIL import Image

from dicetalk_jax.errors import OutputError
from dicetalk_jax.inference.video import Video

# Of one visitor; the oldest go first.
KEPT = 12
_STRIP_FRAMES, _STRIP_HEIGHT = 8, 96
_RECORD = "result.json"


@dataclasses.dataclass(frozen=True)
class Result:
  """A finished video: `file` in `folder`, with its contact strip.

  command: the command line that makes it again. latents: SHA-256 of the latents, float32 in C order. took: seconds.
  made: Unix time. inputs: names of drawn or recorded inputs stored with it, because their owner has no file of them.
  """

  folder: pathlib.Path
  file: str
  command: str
  emotion: str
  seconds: float
  fps: float
  size: tuple[int, int]
  seed: int
  took: float
  made: float
  latents: str
  notes: tuple[str, ...] = ()
  inputs: tuple[str, ...] = ()

  @property
  def video(self) -> pathlib.Path:
    return self.folder / self.file

  @property
  def strip(self) -> pathlib.Path:
    return self.folder / "strip.jpg"


class Results:
  """A folder of visitors' results. A visitor is a secret token of their browser. Thread-safe."""

  def __init__(self, folder: pathlib.Path, kept: int = KEPT):
    self.folder = folder.resolve()
    self.folder.mkdir(parents=True, exist_ok=True)
    self.folder.chmod(0o700)
    self._kept = kept

  def add(self, visitor: str, video: Video, inputs=(), progress=None, **facts) -> Result:
    """Writes a video with its record; inputs: uploads to copy beside it. Raises OutputError where the disk is full."""
    name = f"{time.time_ns():020d}-{secrets.token_hex(8)}"
    folder = self._of(visitor) / name
    try:
      folder.mkdir(parents=True)
      result = Result(
        folder=folder,
        fps=video.fps,
        made=time.time(),
        latents=hashlib.sha256(np.ascontiguousarray(video.latents, np.float32).tobytes()).hexdigest(),
        notes=tuple(video.notes),
        inputs=tuple(upload.name for upload in inputs),
        **facts,
      )
      video.save(result.video, progress=progress)
      contact_strip(video.frames).save(result.strip, quality=88)
      for upload in inputs:
        shutil.copyfile(upload.path, folder / upload.name)
      record = dataclasses.asdict(result)
      del record["folder"]
      (folder / _RECORD).write_text(json.dumps(record))
    except BaseException as error:
      shutil.rmtree(folder, ignore_errors=True)
      if not isinstance(error, OSError | OutputError):
        raise
      # A visitor cannot use the path of the kept frames.
      why = getattr(error.__cause__ or error, "strerror", None) or "it cannot be written"
      raise OutputError(f"the video cannot be kept on the server: {why}") from error
    for old in self._folders(visitor)[self._kept :]:
      shutil.rmtree(old, ignore_errors=True)
    return result

  def of(self, visitor: str) -> list[Result]:
    """A visitor's results, newest first; damaged ones are left out."""
    results = []
    for folder in self._folders(visitor):
      try:
        record = json.loads((folder / _RECORD).read_text())
        results.append(Result(folder=folder, **{k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}))
      except (OSError, ValueError, TypeError):
        continue
    return results

  def remove(self, visitor: str):
    """Removes all results of a visitor."""
    shutil.rmtree(self._of(visitor), ignore_errors=True)

  def sweep(self, seconds: float):
    """Removes results that are older."""
    # Only folders named as `_of` and `add` name them: the user may have given a folder with other files.
    for record in self.folder.glob(f"{'[0-9a-f]' * 32}/{'[0-9]' * 20}-*/{_RECORD}"):
      with contextlib.suppress(FileNotFoundError):
        if time.time() - record.stat().st_mtime > seconds:
          shutil.rmtree(record.parent, ignore_errors=True)

  def _folders(self, visitor):
    return sorted(self._of(visitor).glob("*"), reverse=True)

  def _of(self, visitor: str) -> pathlib.Path:
    # The folder's name is in addresses of videos, the token that lists them is not.
    return self.folder / hashlib.sha256(f"dicetalk visitor {visitor}".encode()).hexdigest()[:32]


def is_token(text) -> bool:
  """Whether a text is a visitor's token, as the page's script makes it."""
  return isinstance(text, str) and re.fullmatch(r"[0-9a-f]{32}", text) is not None


def contact_strip(frames: np.ndarray) -> Image.Image:
  """Frames (n, h, w, 3) in [0, 1] at even intervals, side by side."""
  chosen = frames[np.unique(np.linspace(0, len(frames) - 1, _STRIP_FRAMES).round().astype(int))]
  count, height, width = chosen.shape[:3]
  # (n, h, w, 3) -> (h, n w, 3)
  strip = Image.fromarray(np.rint(np.concatenate(chosen, axis=1) * 255).astype(np.uint8))
  return strip.resize((count * max(1, round(width * _STRIP_HEIGHT / height)), _STRIP_HEIGHT))
