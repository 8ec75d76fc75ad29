"""One video file -> the records of its clips, and reasons for what is left out. Two passes, in constant memory."""

import contextlib
import dataclasses
import functools
import itertools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dicetalk_jax.data.build.selection import Cuts, Look, Span, looks_in, spans
from dicetalk_jax.data.build.tracking import cut, detect, face_box, steady_crop, track
from dicetalk_jax.data.records import Clip, Rejected, Source, encode_frames
from dicetalk_jax.errors import InputError, OutputError
from dicetalk_jax.files import existing_file
from dicetalk_jax.media.audio import SILENCE
from dicetalk_jax.media.containers import open_video
from dicetalk_jax.media.face import Box, FaceDetector, HaarDetector
from dicetalk_jax.media.streaming import Picture, sound_tracks, stream_pictures, stream_sound
from dicetalk_jax.media.timing import STAMP_TOLERANCE, PictureTimes
from dicetalk_jax.vocabulary import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

_SMALLEST_SIZE = 32
# Frames at 25 a second from one search for faces to the next.
DETECT_EVERY = 5


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
  """How clips are made from videos."""

  size: int = 512
  """Width and height of the clips in pixels, even."""

  longest: float = 10.0
  """Longest clip in seconds. A longer video is divided into clips of equal length."""

  shortest: float = 1.0
  """Shortest clip in seconds."""

  smallest_face: int = 64
  """Smallest width and height of a face, in pixels of the file."""

  def __post_init__(self):
    if self.size < _SMALLEST_SIZE or self.size % 2:
      raise InputError(f"a clip's size must be even and at least {_SMALLEST_SIZE} pixels; this is {self.size}")
    if not (self.shortest * FPS >= 1 and self.longest >= 2 * self.shortest):
      raise InputError(
        f"clips of {self.shortest:g} to {self.longest:g} s cannot be cut: the shortest must last a frame "
        "and the longest at least twice the shortest"
      )


def prepare(
  source: Source, source_name: str, config: PrepareConfig | None = None, detector: FaceDetector | None = None
) -> Iterator[Clip | Rejected]:
  """Yields the clips of a file in order, and a Rejected for each part that cannot be used, or for the file.

  Frame i of a clip is what the file shows at i / 25 s, cropped to one steady square about the face. The sound is in
  step by the file's time stamps; a separate sound file starts with the first picture. A file of more than
  config.longest seconds gives <clip>/000, <clip>/001 and so on. Of each, the longest part is used that has no cut and
  shows the face throughout. source_name: mead, hdtf and so on. detector: Haar by default. Raises OutputError when the
  temporary folder is full; a file that cannot be used raises nothing.
  """
  config = config or PrepareConfig()
  with contextlib.ExitStack() as stack:
    try:
      with open_video(existing_file(source.path, "video")) as container:
        if source.audio is None and not container.streams.audio:
          raise InputError(f"video {source.path} has no sound, and there is no sound file for it")
      sound = stack.enter_context(_spooled(source.audio or source.path))
      view = _look(source, detector or _haar())
      begin, parts = _plan(source, config, view, sound)
    except InputError as error:
      yield Rejected(source.clip, str(error))
      return
    offset = begin - (view.times.begin if source.audio else sound.begin)
    shown = _shown(source, view, begin, max(part.first + part.count for part in parts))
    position = 0
    for index, part in enumerate(parts):
      yield from (Rejected(part.clip, reason) for reason in part.rejected)
      if not part.count:
        continue
      pictures = itertools.islice(shown, part.first - position, part.first - position + part.count)
      try:
        frames, _ = encode_frames(cut(picture.pixels, part.crop, config.size) for picture in pictures)
      except InputError as error:
        # The rest of the file cannot be read either.
        yield from (Rejected(later.clip, str(error)) for later in parts[index:] if later.count)
        return
      position = part.first + part.count
      yield Clip(
        clip=part.clip,
        source=source_name,
        identity=source.identity,
        video=source.video,
        frames=frames,
        num_frames=part.count,
        height=config.size,
        width=config.size,
        face_box=part.face_box,
        crop=part.crop,
        audio=sound.between(offset + part.first / FPS, part.count * SAMPLES_PER_FRAME),
        emotion=source.emotion,
        level=source.level,
        expression=part.expression,
      )


_haar = functools.cache(HaarDetector)


@dataclasses.dataclass
class _Sound:
  """16 kHz mono in a temporary file; `begin` is in seconds on the clock of the source."""

  file: BinaryIO
  begin: float = 0.0
  samples: int = 0
  peak: float = 0.0

  def between(self, begin: float, count: int) -> np.ndarray:
    """`count` samples from `begin` seconds after the start of the sound, within [-1, 1]; silence outside of it."""
    first = round(begin * SAMPLE_RATE)
    start, end = min(max(first, 0), self.samples), min(max(first + count, 0), self.samples)
    self.file.seek(4 * start)
    samples = np.zeros(count, np.float32)
    # Compressed sound overshoots.
    samples[start - first : end - first] = np.frombuffer(self.file.read(4 * (end - start)), np.float32).clip(-1, 1)
    return samples


def _spool(file: BinaryIO, block: np.ndarray) -> None:
  left = block.tobytes()
  try:
    while left:
      left = left[file.write(left) :]
  except OSError as error:
    raise OutputError(
      f"the temporary folder {tempfile.gettempdir()} cannot be written ({error.strerror or error}); make space there, "
      "or set TMPDIR to another folder, and run the same command again"
    ) from error


@contextlib.contextmanager
def _spooled(path: Path):
  """The sound of a file: its first track that is not silent."""
  for number in range(max(1, sound_tracks(path))):
    # Unbuffered: a buffer would write once more at its end when the disk is full.
    with tempfile.TemporaryFile(buffering=0) as file:
      sound = _Sound(file)
      for time, block in stream_sound(path, track=number):
        sound.begin = sound.begin if sound.samples else time
        sound.samples += len(block)
        sound.peak = max(sound.peak, float(np.max(np.abs(block), initial=0)))
        _spool(file, block)
      if sound.peak >= SILENCE:
        yield sound
        return
  if not sound.samples:
    raise InputError(f"audio {path} holds no sound (0 samples)")
  raise InputError(f"audio {path} has no sound: it is silent throughout")


@dataclasses.dataclass
class _View:
  """Result of the first pass: picture size, times of the pictures, times of cuts, and faces every so often."""

  width: int
  height: int
  times: PictureTimes
  looks: list[Look]
  cuts: list[float]


def _look(source: Source, detector: FaceDetector) -> _View:
  times, looks, cuts, due, picture = PictureTimes(source.path), [], Cuts(), 0.0, None
  for picture in stream_pictures(source.path):
    due = due if looks else picture.time
    times.add(picture)
    cuts.add(picture, looks[-1].faces if looks else [])
    if picture.time >= due - STAMP_TOLERANCE:
      looks.append(Look(picture.time, detect(picture, detector)))
      due = max(due, picture.time - STAMP_TOLERANCE) + DETECT_EVERY / FPS
  if picture is None:
    raise InputError(f"video {source.path} is damaged: no picture in it can be decoded")
  if looks[-1].time < picture.time:
    looks.append(Look(picture.time, detect(picture, detector)))
  return _View(picture.width, picture.height, times, looks, cuts.times())


@dataclasses.dataclass
class _Part:
  """A clip to make of `count` frames from `first` on, and the reasons for what is left out of it."""

  clip: str
  first: int
  count: int
  crop: tuple[int, int, int] = (0, 0, 0)
  face_box: Box = (0, 0, 0, 0)
  expression: np.ndarray | None = None
  rejected: list[str] = dataclasses.field(default_factory=list)


def _plan(source: Source, config: PrepareConfig, view: _View, sound: _Sound) -> tuple[float, list[_Part]]:
  """The start of frame 0 on the clock of the pictures, and all clips."""
  sound_begin = view.times.begin if source.audio else sound.begin
  begin, total = view.times.with_sound(sound_begin, sound.samples)
  if total < config.shortest * FPS:
    raise InputError(
      f"picture and sound last {max(0, total) / FPS:g} s together; at least {config.shortest:g} s are needed"
    )
  expression = None
  if source.expression is not None:
    expression = view.times.expression(source.expression, begin + np.arange(total) / FPS)
  number = math.ceil(total / math.floor(config.longest * FPS))
  bounds = [total * i // number for i in range(number + 1)]
  parts = []
  for index, (first, after) in enumerate(itertools.pairwise(bounds)):
    clip = source.clip if number == 1 else f"{source.clip}/{index:03d}"
    part = _best_part(clip, view, config, begin, first, after)
    if expression is not None:
      part.expression = expression[part.first : part.first + part.count]
    parts.append(part)
  return begin, parts


def _best_part(clip: str, view: _View, config: PrepareConfig, begin: float, first: int, after: int) -> _Part:
  """The longest part that can be used of frames `first` up to `after`."""
  start, end = begin + first / FPS, begin + after / FPS
  pieces = spans(view.looks, view.cuts, start, end, view.width, view.height)
  part = _Part(clip, first, 0)
  for span in sorted(pieces, key=lambda span: span.begin - span.end):
    low, high = (math.ceil((time - begin - STAMP_TOLERANCE) * FPS) for time in (span.begin, span.end))
    if span.reason or part.count:
      span.reason = span.reason or "a cut or a gap divides the clip, and another part is longer"
    elif high - low < config.shortest * FPS:
      span.reason = f"between cuts or gaps it lasts {(high - low) / FPS:g} s; at least {config.shortest:g} s are needed"
    else:
      try:
        part.crop, part.face_box = _frame_face(view, config, span, span.begin > start, span.end < end)
        part.first, part.count = low, high - low
      except InputError as error:
        span.reason = str(error)
  if not part.count:
    part.rejected = [max(pieces, key=lambda span: span.end - span.begin).reason]
    return part
  origin = view.times.begin
  part.rejected = [
    f"left out from {span.begin - origin:.2f} s to {span.end - origin:.2f} s: {span.reason}"
    for span in pieces
    if span.reason
  ]
  return part


def _frame_face(
  view: _View, config: PrepareConfig, span: Span, starts: bool, ends: bool
) -> tuple[tuple[int, int, int], Box]:
  """The crop for a span, and the face's box in it. starts, ends: whether the face appears and disappears there."""
  # The looks before and after, up to the next cut, tell how the face moves at the ends.
  reach, edge = DETECT_EVERY / FPS + 2 * STAMP_TOLERANCE, STAMP_TOLERANCE
  first = max([span.begin - reach * (not starts), *(cut for cut in view.cuts if cut <= span.begin + edge)])
  last = min([span.end + reach * (not ends), *(cut for cut in view.cuts if cut >= span.end - edge)])
  looks = looks_in(view.looks, first, last)
  face = track([look.faces for look in looks])
  width, height = face.size
  if min(width, height) < config.smallest_face:
    raise InputError(f"the face is {round(width)}x{round(height)} pixels; at least {config.smallest_face} are needed")
  inside = [look.time for look in looks_in(looks, span.begin, span.end)]
  times = np.sort([*inside, *np.arange(span.begin, span.end, 1 / FPS)])
  face = face.at([look.time for look in looks], times)
  crop = steady_crop(face, view.width, view.height)
  return crop, face_box(face, crop, config.size)


def _shown(source: Source, view: _View, begin: float, total: int) -> Iterator[Picture]:
  """The second pass: the picture on screen at begin + k / 25 s, for each k below `total`."""
  k, last = 0, None
  for picture in stream_pictures(source.path):
    while last is not None and k < total and begin + k / FPS < picture.time - STAMP_TOLERANCE:
      yield last
      k += 1
    last = picture
  if last is None or last.time != view.times.times[-1]:
    raise InputError(f"video {source.path} gives other pictures when it is read again; is it being written to?")
  for _ in range(k, total):
    yield last
