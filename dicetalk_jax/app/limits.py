"""Limits of the page's server."""

import dataclasses

MEGA = 1_000_000


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of uploads and generations; messages name the option that changes a limit."""

  max_upload_mb: float = 50.0
  """Maximum size of an uploaded file, in megabytes."""

  max_pixels: float = 40.0
  """Maximum size of a portrait, in megapixels."""

  max_seconds: float = 120.0
  """Maximum length of the speech and of an emotion clip, in seconds."""

  max_size: int = 1024
  """Maximum shorter side of a video, in pixels."""

  max_steps: int = 100
  """Maximum number of denoising steps."""

  max_waiting: int = 20
  """Maximum length of the queue."""

  @property
  def upload_bytes(self) -> int:
    return int(self.max_upload_mb * MEGA)
