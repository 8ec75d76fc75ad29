"""What a generation returns."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import numpy as np

from dicetalk_jax.media.video import write_video


@dataclasses.dataclass(frozen=True)
class Video:
  """A generated video.

  frames (n, height, width, 3) float32 in [0, 1]; fps; latents (N, height/8, width/8, 4) float32, with the frames of
  padding that are not decoded; audio (samples, channels) float32 at `sample_rate`, the sound as it was given;
  portrait_size (width, height) of the portrait (cropped, if asked); notes: what a user should know of the inputs.
  """

  frames: np.ndarray
  fps: float
  latents: np.ndarray
  audio: np.ndarray
  sample_rate: int
  portrait_size: tuple[int, int]
  notes: tuple[str, ...] = ()

  def save(
    self,
    path: str | os.PathLike,
    keep_resolution: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
    comment: str = "",
  ) -> pathlib.Path:
    """Writes H.264 and AAC, the last frame held until the speech ends; `keep_resolution`: at the portrait's own size.

    comment: text that the file carries, see `media.video.read_comment`.
    Raises InputError for a name that no video can have, OutputError where writing fails, after keeping the frames.
    """
    size = self.portrait_size if keep_resolution else None
    return write_video(path, self.frames, self.fps, self.audio, self.sample_rate, progress, size, comment)
