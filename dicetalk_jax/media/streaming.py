"""Pictures and sound one piece at a time, with their times: in memory that does not grow with the file."""

import functools
from collections.abc import Iterator

import av
import numpy as np
import soxr

from dicetalk_jax.errors import InputError
from dicetalk_jax.files import existing_file
from dicetalk_jax.media.packets import decoded
from dicetalk_jax.media.video import open_video
from dicetalk_jax.vocabulary import SAMPLE_RATE

_UNSPECIFIED, _BT709 = 2, 1  # codes of a colour matrix (ISO/IEC 23091-2)
# From this height on players take an unnamed colour matrix for that of high definition.
_HIGH_DEFINITION = 720
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
    return self._converted(self.width, self.height)

  def reduced(self, shorter_side: int, grey: bool = False) -> np.ndarray:
    """`pixels` with the shorter side at most so long; grey: (height, width), and quicker."""
    scale = min(1.0, shorter_side / min(self.width, self.height))
    return self._converted(max(1, round(self.width * scale)), max(1, round(self.height * scale)), grey)

  def _converted(self, width, height, grey=False):
    turns = round(self._frame.rotation / 90)
    stored = (height, width) if turns % 2 else (width, height)
    unnamed = self._frame.colorspace == _UNSPECIFIED and self._frame.height >= _HIGH_DEFINITION
    options = {"src_colorspace": "ITU709"} if unnamed and not self._frame.format.is_rgb else {}
    if stored != (self._frame.width, self._frame.height):
      options["interpolation"] = "FAST_BILINEAR" if grey else "AREA"
    try:
      picture = self._frame.reformat(*stored, format="gray" if grey else "rgb24", **options).to_ndarray()
    except (av.FFmpegError, ValueError, MemoryError) as error:
      kind = f"{self._frame.width}x{self._frame.height} {self._frame.format.name}"
      raise InputError(f"the picture at {self.time:.2f} s, {kind}, cannot be converted to RGB ({error})") from error
    return np.ascontiguousarray(np.rot90(picture, turns))


def stream_pictures(source) -> Iterator[Picture]:
  """The pictures of a video file in the order shown, their times rising; all have the first one's size.

  Damaged ones are left out; a file cut short ends early. One thread decodes, so that the same file gives the same
  pictures. Raises InputError as `read_video` does, but where there is no picture simply ends.
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
  """How many sound streams a file has; 0 if it cannot be read, which `stream_sound` reports."""
  try:
    with av.open(str(source), metadata_errors="ignore") as container:
      return len(container.streams.audio)
  except (av.FFmpegError, OSError, ValueError):
    return 0


def stream_sound(source, rate: int = SAMPLE_RATE, track: int = 0) -> Iterator[tuple[float, np.ndarray]]:
  """The sound of any file as mono float32 blocks without gaps at `rate`, each with the time of its first sample.

  Times are in seconds on the file's clock. As `read_audio`: the mean of the channels, soxr's HQ filter; what its time
  stamps leave out is silent. Raises InputError for what is missing, not decodable or without a sound stream, and for
  samples that are not finite.
  """
  path = existing_file(source, "audio")
  try:
    with av.open(str(path), metadata_errors="ignore") as container:
      if not container.streams.audio:
        raise InputError(f"audio {path} has no sound stream; give a sound file or a video with sound")
      stream = container.streams.audio[track]
      if stream.codec_context is None:
        raise InputError(f"audio {path} is of a kind that cannot be decoded, or is damaged")
      yield from _resampled(_contiguous(decoded(container, stream), path), rate)
  except (av.FFmpegError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    raise InputError(f"audio {path} is not a sound that can be read, or is damaged ({reason})") from error


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


def _contiguous(frames, path):
  """Decoded frames -> (time, rate, (n,) float32) with no gap or overlap, the rate that of the first."""
  rate, kind, converter, begin, done = None, None, None, 0.0, 0
  for frame in frames:
    this = frame.format.name, frame.layout.name, frame.sample_rate
    if kind is None:
      rate, begin = frame.sample_rate, frame.time or 0.0
    if this != kind:
      # A stream may change in the middle; a converter serves one kind of frame. Interleaved samples, because PyAV
      # does not see more than eight channels that lie apart.
      kind, converter = this, av.AudioResampler(format="flt", layout=frame.layout, rate=rate)
    late = 0.0 if frame.time is None else frame.time - begin - done / rate
    blocks = [block.to_ndarray().reshape(block.samples, -1).mean(axis=1) for block in converter.resample(frame)]
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not np.isfinite(samples).all():
      raise InputError(f"audio {path} has samples that are NaN or infinite")
    if late > _LONGEST_GAP:
      return
    if late > _STAMP_TOLERANCE:
      samples = np.concatenate([np.zeros(round(late * rate), np.float32), samples])
    elif late < -_STAMP_TOLERANCE:
      samples = samples[round(-late * rate) :]
    yield begin + done / rate, rate, samples.astype(np.float32)
    done += len(samples)
