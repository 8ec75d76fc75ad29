"""Video files <-> arrays: H.264 and AAC out, anything FFmpeg knows in."""

import itertools
import math
import tempfile
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soxr

from dicetalk_jax.errors import InputError, OutputError
from dicetalk_jax.files import check_file, expanded, fitting_name, new_file
from dicetalk_jax.media.channels import stereo
from dicetalk_jax.media.containers import open_media, put_picture
from dicetalk_jax.media.image import resize

# Suffixes of videos.
VIDEO_SUFFIXES = (
  *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv"),
  *(".3gp", ".3g2", ".vob", ".asf", ".mxf"),
)
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
CRF = "18"
# AAC has blocks of 1024 samples: at a lower rate the last one would end more than a frame after the video.
AAC_RATES = (32000, 44100, 48000)
AAC_BITS_PER_SECOND = 128_000  # for each channel


def check_target(path) -> Path:
  """Checks that a video can be written at `path`, and makes its folder; returns the path.

  Raises InputError for a folder or an unknown suffix, OutputError where the file cannot be written.
  """
  path = expanded(path, "video")
  if path.suffix.lower() not in CONTAINERS:
    ending = f"ends in '{path.suffix}'" if path.suffix else "has no ending"
    raise InputError(f"video {path} {ending}; give a name that ends in {', '.join(CONTAINERS)}")
  check_file(path, "video")
  return path


def write_video(
  path,
  frames: Iterable[np.ndarray],
  fps: float,
  audio: np.ndarray | None = None,
  sample_rate: int = 16000,
  progress: Callable[[int, int | None], None] | None = None,
  size: tuple[int, int] | None = None,
  comment: str = "",
) -> Path:
  """Writes H.264 (crf 18, yuv420p) and AAC; the file appears at `path` only when it is whole.

  frames: (n, h, w, 3), or an iterator of (h, w, 3), float in [0, 1] or uint8; `size` (width, height) resizes them. An
  odd width or height gets its last column or row twice, because yuv420p needs even ones. audio: (samples,) or
  (samples, channels) float in [-1, 1]; it is never cut: the last frame is held until the video lasts as long, to within
  one frame. progress(done, total) is called after each frame, total None for an iterator. comment: what `read_comment`
  is to find in the file. Raises InputError for a target or frames that no video can be made of, and OutputError where
  writing fails: what was computed is then kept by `keep_frames`, and the text says where.
  """
  if not (isinstance(fps, int | float | Fraction | np.number) and math.isfinite(fps) and fps > 0):
    raise InputError(f"a video's frames a second must be positive; this is {fps}")
  total = len(frames) if hasattr(frames, "__len__") else None
  frames = map(_to_uint8, frames)
  first = next(frames, None)
  if first is None:
    raise InputError("a video needs at least one frame; there is none")
  # Frames of an iterator exist nowhere else should writing fail.
  written: list[np.ndarray] = []
  path = expanded(path, "video")
  try:
    check_target(path)
    stream = _remember(itertools.chain([first], frames), written)
    with new_file(path) as temporary:
      container = CONTAINERS[path.suffix.lower()]
      _encode(temporary, container, stream, total, fps, audio, sample_rate, progress, size, comment)
  except (OSError, av.FFmpegError, OutputError) as error:
    rest = frames if written else itertools.chain([first], frames)
    kept = keep_frames(np.stack([*written, *rest]), path, fps, audio, sample_rate)
    where = f"the frames are kept in {kept}" if kept else "the frames could not be kept anywhere either"
    reason = error if isinstance(error, OutputError) else f"video {path} cannot be written: {error.strerror or error}"
    raise OutputError(f"{reason}; {where}") from error
  return path


def read_comment(path: Path) -> str | None:
  """The comment that a video was written with; None where it has none, or there is no video that can be read."""
  try:
    with open_media(path, "video") as container:
      tags = {name.lower(): text for name, text in container.metadata.items()}
  except InputError:
    return None
  return tags.get("comment")


def keep_frames(frames: np.ndarray, target, fps: float, audio=None, sample_rate: int = 16000) -> Path | None:
  """Saves frames as `<target>-frames.npz` next to the target, else in the current or the temporary folder.

  The file holds the arguments of `write_video`: frames (uint8), fps, and audio and sample_rate where there is sound.
  Returns its path, None where no folder can be written. Long names are shortened.
  """
  target = Path(target)
  sound = {} if audio is None else {"audio": np.asarray(audio, np.float32), "sample_rate": sample_rate}
  for folder in (target.parent, Path.cwd(), Path(tempfile.gettempdir())):
    for number in itertools.count(1):
      path = folder / fitting_name(folder, target.stem, f"-frames{'' if number == 1 else f'-{number}'}.npz")
      try:
        with path.open("xb") as file:
          try:
            np.savez(file, frames=frames, fps=float(fps), **sound)
          except BaseException:
            path.unlink()
            raise
      except FileExistsError:
        continue
      except OSError:
        break
      return path.resolve()
  return None


def _remember(frames, written):
  for frame in frames:
    written.append(frame)
    yield frame


def _to_uint8(frame) -> np.ndarray:
  frame = np.asarray(frame)
  if frame.ndim != 3 or frame.shape[-1] != 3 or (frame.dtype != np.uint8 and frame.dtype.kind != "f"):
    raise InputError(f"a frame must be (h, w, 3), uint8 or float in [0, 1]; this one is {frame.shape} {frame.dtype}")
  if frame.dtype == np.uint8:
    return frame
  return np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)


def _encode(path, container_format, frames, total, fps, audio, sample_rate, progress, size, comment):
  # The index goes to the front, so that a browser plays the file while it loads.
  options = {} if container_format == "matroska" else {"movflags": "+faststart"}
  fps = Fraction(fps).limit_denominator(1001)
  with av.open(str(path), "w", format=container_format, options=options) as container:
    if comment:
      container.metadata["comment"] = comment
    video = container.add_stream("libx264", rate=fps, options={"crf": CRF})
    sound = None if audio is None else _Sound(container, audio, sample_rate)
    wanted = 0 if sound is None else math.ceil(sound.seconds * fps)
    done = 0
    for frame in frames:
      picture = _even(frame if size is None else resize(frame, size))
      put_picture(container, video, picture, done, "yuv420p")
      done += 1
      if sound:
        sound.put(done / fps)
      if progress:
        progress(done, total)
    for index in range(done, wanted):
      put_picture(container, video, picture, index, "yuv420p")
      sound.put((index + 1) / fps)
    container.mux(video.encode(None))
    if sound:
      sound.finish()


def _even(picture):
  height, width = picture.shape[:2]
  return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


class _Sound:
  """An AAC stream that is written along with the frames, so that the file interleaves them."""

  def __init__(self, container, audio, sample_rate):
    audio = np.asarray(audio, np.float32)
    audio = audio[:, None] if audio.ndim == 1 else audio
    if audio.ndim != 2 or not len(audio) or not np.isfinite(audio).all():
      raise InputError(f"a video's sound must be finite, (samples,) or (samples, channels); this one is {audio.shape}")
    audio = stereo(audio)
    self.seconds = Fraction(len(audio), int(sample_rate))
    if sample_rate not in AAC_RATES:
      audio = soxr.resample(audio, sample_rate, AAC_RATES[-1])
      sample_rate = AAC_RATES[-1]
    # Turned down, not clipped.
    self._audio, self._rate, self._done = audio / max(1.0, np.abs(audio).max()), int(sample_rate), 0
    channels = audio.shape[1]
    self._layout = "mono" if channels == 1 else "stereo"
    self._container = container
    self._stream = container.add_stream("aac", rate=self._rate, layout=self._layout)
    self._stream.bit_rate = channels * AAC_BITS_PER_SECOND

  def put(self, until):
    """Encodes the samples up to a time in seconds."""
    end = min(len(self._audio), math.ceil(until * self._rate))
    if end > self._done:
      block = np.ascontiguousarray(self._audio[self._done : end].T)  # (sample, channel) -> (channel, sample)
      frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=self._layout)
      frame.sample_rate, frame.pts, frame.time_base = self._rate, self._done, Fraction(1, self._rate)
      self._container.mux(self._stream.encode(frame))
      self._done = end

  def finish(self):
    self.put(self.seconds + 1)
    self._container.mux(self._stream.encode(None))
