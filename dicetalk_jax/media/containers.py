"""Opens media files with FFmpeg, which may read that one local file and nothing else; frames -> RGB."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from dicetalk_jax.errors import InputError

# Demuxers that read other files or addresses, those that a text file may name, and one that takes any text for a
# drawing of a terminal. image2 takes `%` in a name for a number.
_REFUSED = {"concat", "dash", "hls", "image2", "lavfi", "rtsp", "sdp", "tty", "vobsub", "webm_dash_manifest"}
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"v=0", b"<?xml", b"<MPD", b"[playlist]")
# Codes of ISO/IEC 23091-2. BT.709's is the one of its matrix, primaries and transfer alike.
_BT709, _UNSPECIFIED, _BT2020, _PQ = 1, 2, 9, 16
_LIMITED_RANGE = 1
# From this height on players take an unnamed colour matrix for that of high definition.
_HIGH_DEFINITION = 720
# Linear BT.2020 -> linear BT.709 (ITU-R BT.2087).
_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)


@contextlib.contextmanager
def open_media(path: Path, what: str):
  """A context with the container of a local file; InputError where FFmpeg cannot read it, also within the block."""
  options = {"protocol_whitelist": "file", "format_whitelist": ",".join(av.formats_available - _REFUSED)}
  try:
    # An absolute path never looks like a protocol. Titles in another encoding than UTF-8 are common, and not needed.
    with av.open(str(path.absolute()), options=options, metadata_errors="ignore") as container:
      yield container
  except (av.FFmpegError, OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    with contextlib.suppress(OSError), path.open("rb") as file:
      if file.read(16).lstrip().startswith(_PLAYLISTS):
        reason = "it is a text file such as a playlist, which names other files: give the file itself"
    article = "a sound" if what == "audio" else f"a {what}"
    raise InputError(f"{what} {path} is not {article} that can be read, or is damaged ({reason})") from error


@contextlib.contextmanager
def open_sound(path: Path, track: int = 0):
  """A context with the container of a file and a sound stream of it; InputError where it has none."""
  with open_media(path, "audio") as container:
    if not container.streams.audio:
      raise InputError(f"audio {path} has no sound stream; give a sound file or a video with sound")
    stream = container.streams.audio[track]
    if stream.codec_context is None:
      raise InputError(f"audio {path} is of a kind that cannot be decoded, or is damaged")
    yield container, stream


@contextlib.contextmanager
def open_video(path: Path):
  """A context with the container of a file that has pictures; InputError where it has none or cannot be read."""
  with open_media(path, "video") as container:
    if not container.streams.video:
      raise InputError(f"video {path} has no pictures; give a video file")
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
      raise InputError(f"video {path} is of a kind that cannot be decoded, or is damaged")
    yield container


def decoded(container, stream):
  """Yields the frames of a stream. Damaged packets are skipped; a file cut short ends early."""
  packets = container.demux(stream)
  while True:
    try:
      packet = next(packets, None)
      frames = [] if packet is None else packet.decode()
    except av.FFmpegError:
      continue
    if packet is None:
      return
    yield from frames


def sound_blocks(frames, one_layout: bool = False) -> Iterator[tuple[float | None, int, np.ndarray]]:
  """Decoded frames of a sound -> (time, rate, (n, channels) float32), the rate that of the first.

  one_layout: all have the channels of the first too.
  """
  rate = layout = kind = converter = None
  for frame in frames:
    rate, layout = rate or frame.sample_rate, layout or frame.layout
    this, blocks = (frame.format.name, frame.layout.name, frame.sample_rate), []
    if this != kind:
      # A stream may change in the middle; a converter serves one kind of frame. Interleaved samples, because PyAV
      # breaks down on planes of more than eight channels.
      blocks += converter.resample(None) if converter else []
      kind = this
      converter = av.AudioResampler(format="flt", layout=layout if one_layout else frame.layout, rate=rate)
    yield from ((frame.time, rate, _samples(block)) for block in [*blocks, *converter.resample(frame)] if block)
  if converter:
    yield from ((None, rate, _samples(block)) for block in converter.resample(None) if block)


def _samples(block: av.AudioFrame) -> np.ndarray:
  return block.to_ndarray().reshape(block.samples, -1)


def put_picture(container, stream, picture: np.ndarray, index: int, pixel_format: str) -> None:
  """Encodes a picture (h, w, 3) uint8 as number `index` of an H.264 stream, in BT.709 colours of limited range."""
  if index == 0:
    stream.height, stream.width = picture.shape[:2]
    stream.pix_fmt = pixel_format
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED_RANGE
  frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixel_format, dst_colorspace="ITU709")
  frame.pts, frame.time_base = index, 1 / stream.codec_context.framerate
  container.mux(stream.encode(frame))


def to_rgb(frame: av.VideoFrame, size: tuple[int, int], grey: bool = False) -> np.ndarray:
  """A frame as displayed -> (height, width, 3) uint8 in BT.709 colours; grey: (height, width), and faster.

  size: (width, height) after turning. Matrix and range of the file are applied; colours of
  BT.2020 are converted, as is HLG, which is made to be shown so. Raises InputError for PQ, which needs a tone mapping.
  """
  turns = round(frame.rotation / 90)
  width, height = size
  stored = (height, width) if turns % 2 else (width, height)
  options = {}
  if frame.colorspace == _UNSPECIFIED and frame.height >= _HIGH_DEFINITION and not frame.format.is_rgb:
    options["src_colorspace"] = "ITU709"
  if stored != (frame.width, frame.height):
    options["interpolation"] = "FAST_BILINEAR" if grey else "AREA"
  try:
    if frame.color_trc == _PQ and not grey:
      raise ValueError("it is HDR (PQ): convert the video to SDR first")
    picture = frame.reformat(*stored, format="gray" if grey else "rgb24", **options).to_ndarray()
  except (av.FFmpegError, ValueError, MemoryError) as error:
    kind = f"{frame.width}x{frame.height} {frame.format.name}"
    raise InputError(f"the picture at {frame.time or 0:.2f} s, {kind}, cannot be converted to RGB ({error})") from error
  if frame.color_primaries == _BT2020 and not grey:
    picture = _to_bt709(picture)
  # Phones store a picture lying down and say by how much to turn it, counterclockwise.
  return np.ascontiguousarray(np.rot90(picture, turns))


def _to_bt709(picture: np.ndarray) -> np.ndarray:
  """uint8 RGB of BT.2020 primaries -> of BT.709, in linear light of a display of gamma 2.4 (ITU-R BT.1886)."""
  linear = (np.arange(256, dtype=np.float32) / 255) ** 2.4
  light = np.clip(linear[picture] @ _TO_BT709.T, 0, 1)
  return np.rint(255 * light ** (1 / 2.4)).astype(np.uint8)
