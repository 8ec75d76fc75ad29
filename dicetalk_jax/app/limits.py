"""How much one visitor may ask of the page's server."""

import dataclasses

MEGA = 1_000_000


@dataclasses.dataclass(frozen=True)
class Limits:
  """What is refused, in a message that names the limit and the option that moves it."""

  max_upload_mb: float = 50.0
  """Largest file taken, in megabytes (millions of bytes)."""

  max_pixels: float = 40.0
  """Largest portrait taken, in millions of pixels."""

  max_seconds: float = 120.0
  """Longest speech, and longest clip of an emotion, in seconds."""

  max_size: int = 1024
  """Largest size of a video: its shorter side, in pixels."""

  max_steps: int = 100
  """Most denoising steps."""

  max_waiting: int = 20
  """Most generations that may wait, of all visitors together."""

  @property
  def upload_bytes(self) -> int:
    return int(self.max_upload_mb * MEGA)
