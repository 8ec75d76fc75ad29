"""What a video file holds, for assertions."""

import dataclasses
import math

import numpy as np

from dicetalk_jax.errors import InputError
from dicetalk_jax.files import existing_file
from dicetalk_jax.media.containers import open_video
from dicetalk_jax.media.streaming import stream_pictures


@dataclasses.dataclass(frozen=True)
class VideoInfo:
  """What a video file holds: pixels, frames a second, seconds; sound values are None where there is none."""

  width: int
  height: int
  fps: float
  duration: float
  frames: int
  video_codec: str
  pixel_format: str
  has_audio: bool
  audio_duration: float | None
  audio_codec: str | None
  sample_rate: int | None


def probe(source) -> VideoInfo:
  """Sizes, durations and codecs of a video, counted packet by packet."""
  path = existing_file(source, "video")
  with open_video(path) as container:
    streams = [container.streams.video[0], *container.streams.audio[:1]]
    spans = {stream.index: [0, math.inf, -math.inf] for stream in streams}
    for packet in container.demux(streams):
      if packet.pts is not None:
        span, start = spans[packet.stream.index], packet.pts * packet.time_base
        span[:] = span[0] + 1, min(span[1], start), max(span[2], start + (packet.duration or 0) * packet.time_base)
    video, audio = streams[0], streams[1] if len(streams) > 1 else None
    frames, begin, end = spans[video.index]
    if not frames:
      raise InputError(f"video {path} is damaged: it holds no picture")
    _, sound_begin, sound_end = spans[audio.index] if audio else (0, 0, 0)
    return VideoInfo(
      width=video.codec_context.width,
      height=video.codec_context.height,
      fps=float(video.average_rate or 0),
      duration=float(end - begin),
      frames=frames,
      video_codec=video.codec_context.name,
      pixel_format=video.codec_context.pix_fmt,
      has_audio=audio is not None,
      audio_duration=None if audio is None else max(0.0, float(sound_end - max(0, sound_begin))),
      audio_codec=None if audio is None else audio.codec_context.name,
      sample_rate=None if audio is None else audio.codec_context.sample_rate,
    )


def read_video(path) -> np.ndarray:
  """All pictures, (n, h, w, 3) uint8, as they are meant to be seen."""
  return np.stack([picture.pixels for picture in stream_pictures(path)])
