"""Pictures and sound one piece at a time, with their times: in memory that does not grow with the file."""

import functools
from collections.abc import Iterator

import av
import numpy as np
import soxr

from dicetalk_jax.errors import InputError
from dicetalk_jax.files import existing_file
from dicetalk_jax.media.channels import Mono
from dicetalk_jax.media.containers import decoded, open_media, open_sound, open_video, sound_blocks, to_rgb
from dicetalk_jax.vocabulary import SAMPLE_RATE

# A gap or overlap between two blocks of sound of less is the rounding of their time stamps.
_STAMP_TOLERANCE = 0.015
# A longer gap is a broken clock; what follows is left out.
_LONGEST_GAP = 10.0


class Picture:
  """A frame of a video: `time` and `duration` in seconds on the file's clock, `width` and `height` as displayed."""

  def __init__(self, frame: av.VideoFrame, time: float, duration: float, width: int, height: int):
    self.time, self.duration, self.width, self.height = time, duration, width, height
    self._frame = frame

  @functools.cached_property
  def pixels(self) -> np.ndarray:
    """(height, width, 3) uint8 RGB, turned and of square pixels."""
    return to_rgb(self._frame, (self.width, self.height))

  def reduced(self, shorter_side: int, grey: bool = False) -> np.ndarray:
    """`pixels` with the shorter side at most so long; grey: (height, width), and quicker."""
    scale = min(1.0, shorter_side / min(self.width, self.height))
    return to_rgb(self._frame, (max(1, round(self.width * scale)), max(1, round(self.height * scale))), grey)


def stream_pictures(source) -> Iterator[Picture]:
  """The pictures of a video file in the order shown, their times rising; all have the first one's size.

  Damaged ones are left out; a file cut short ends early. One thread decodes, so that the same file gives the same
  pictures. Raises InputError for a file that is missing, not decodable or without pictures;
  one whose pictures are all damaged gives none.
  """
  path = existing_file(source, "video")
  with open_video(path) as container:
    stream = container.streams.best("video")
    stream.codec_context.thread_count = 1
    spacing = float(1 / (stream.average_rate or 25))
    aspect = float(stream.sample_aspect_ratio or 1)
    size, time = None, None
    for frame in decoded(container, stream):
      if frame.is_corrupt:
        continue
      if size is None:
        size = _displayed(frame, aspect)
      now = frame.time
      if now is None:
        now = 0.0 if time is None else time + spacing
      if time is not None and now <= time:
        continue
      time = now
      lasts = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else spacing
      yield Picture(frame, time, lasts, *size)


def _displayed(frame, aspect) -> tuple[int, int]:
  width = max(1, round(frame.width * aspect)) if 0.2 < aspect < 5 else frame.width
  return (frame.height, width) if round(frame.rotation / 90) % 2 else (width, frame.height)


def sound_tracks(source) -> int:
  """Number of sound streams of a file; 0 where it cannot be read, which `stream_sound` reports."""
  try:
    with open_media(existing_file(source, "audio"), "audio") as container:
      return len(container.streams.audio)
  except InputError:
    return 0


def stream_sound(source, rate: int = SAMPLE_RATE, track: int = 0) -> Iterator[tuple[float, np.ndarray]]:
  """The sound of any file as mono float32 blocks without gaps at `rate`, each with the time of its first sample.

  Times are in seconds on the file's clock. As `read_audio`: channels are mixed by `Mono`, for which a sound of several
  is decoded twice, and resampled by soxr's HQ filter. What the time stamps leave out is silent. Raises InputError for
  what is missing, not decodable or without a sound stream, and for samples that are not finite.
  """
  path = existing_file(source, "audio")
  with open_sound(path, track) as (container, stream):
    names = tuple(channel.name for channel in stream.layout.channels)
    mixer = Mono(len(names), names)
    if len(names) > 1:
      for *_, block in _blocks(container, stream, path):
        if block.shape[1] == len(names):
          mixer.measure(block)
  with open_sound(path, track) as (container, stream):
    yield from _resampled(_contiguous(_blocks(container, stream, path), mixer), rate)


def _resampled(blocks, rate):
  begin, done, resampler = None, 0, None
  for time, found, samples in blocks:
    if begin is None:
      begin = time
      resampler = soxr.ResampleStream(found, rate, 1, dtype="float32", quality="HQ") if found != rate else None
    samples = samples if resampler is None else resampler.resample_chunk(samples)
    if len(samples):
      yield begin + done / rate, samples
      done += len(samples)
  if resampler is not None and len(samples := resampler.resample_chunk(np.zeros(0, np.float32), last=True)):
    yield begin + done / rate, samples


def _blocks(container, stream, path) -> Iterator[tuple[float | None, int, np.ndarray]]:
  for time, rate, samples in sound_blocks(decoded(container, stream)):
    if not np.isfinite(samples).all():
      raise InputError(f"audio {path} has samples that are NaN or infinite")
    yield time, rate, samples


def _contiguous(blocks, mixer: Mono) -> Iterator[tuple[float, int, np.ndarray]]:
  """Blocks -> (time, rate, (n,) float32) with no gap or overlap."""
  begin, done = None, 0
  for time, rate, block in blocks:
    begin = (time or 0.0) if begin is None else begin
    late = 0.0 if time is None else time - begin - done / rate
    samples = mixer.mix(block) if block.shape[1] == mixer.channels else block.mean(axis=1)
    if late > _LONGEST_GAP:
      return
    if late > _STAMP_TOLERANCE:
      samples = np.concatenate([np.zeros(round(late * rate), np.float32), samples])
    elif late < -_STAMP_TOLERANCE:
      samples = samples[round(-late * rate) :]
    yield begin + done / rate, rate, samples.astype(np.float32)
    done += len(samples)
