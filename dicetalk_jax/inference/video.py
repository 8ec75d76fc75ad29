"""The result of a generation."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import numpy as np

from dicetalk_jax.media.video import write_video


@dataclasses.dataclass(frozen=True)
class Video:
  """A generated video.

  frames (n, height, width, 3) float32 in [0, 1]; fps; latents (N, height/8, width/8, 4) float32, including the
  frames of padding, which are not decoded; audio (samples, channels) float32 at `sample_rate`, the sound as given;
  portrait_size (width, height) of the portrait, after cropping; notes: remarks on the inputs for the user.
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
    """Writes H.264 and AAC; the last frame holds until the speech ends. keep_resolution: at the portrait's own size.

    comment: text to store in the file, see `media.video.read_comment`.
    Raises InputError for a file name with an unknown suffix. If writing fails, saves the frames elsewhere and raises
    OutputError.
    """
    size = self.portrait_size if keep_resolution else None
    return write_video(path, self.frames, self.fps, self.audio, self.sample_rate, progress, size, comment)
