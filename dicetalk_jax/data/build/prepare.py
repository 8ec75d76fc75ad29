"""One video file -> the records of its clips, or why there are none. Two passes; memory does not grow with the file."""

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

from dicetalk_jax.data.build.tracking import cut, detect, face_box, steady_crop, track
from dicetalk_jax.data.records import Clip, Rejected, Source, encode_frames
from dicetalk_jax.errors import InputError, OutputError
from dicetalk_jax.files import existing_file
from dicetalk_jax.media.audio import SILENCE
from dicetalk_jax.media.face import Box, Face, FaceDetector, HaarDetector
from dicetalk_jax.media.streaming import Picture, stream_pictures, stream_sound
from dicetalk_jax.media.timing import STAMP_TOLERANCE, PictureTimes
from dicetalk_jax.media.video import open_video
from dicetalk_jax.vocabulary import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

_SMALLEST_SIZE = 32
# Frames at 25 a second from one search for faces to the next.
DETECT_EVERY = 5


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
  """How clips are made of videos."""

  size: int = 512
  """Width and height of the clips in pixels, even."""

  longest: float = 10.0
  """Seconds; a longer video is cut into clips of equal length."""

  shortest: float = 1.0
  """Seconds; a shorter clip is left out."""

  smallest_face: int = 64
  """Least width and height of a face, in pixels of the file."""

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
  """Yields the clips of a file in order, each complete, and a Rejected for each that cannot be used, or for the file.

  A clip shows at i / 25 s what the file shows then, cut to one steady square about the face; its sound is in step by
  the file's time stamps (a separate sound begins with the first picture). A file of more than config.longest gives
  <clip>/000, <clip>/001 and so on, without gap or overlap. source_name: mead, hdtf and so on. detector: Haar by
  default. A file that cannot be used is never an exception; OutputError is raised where the temporary folder is full.
  """
  config = config or PrepareConfig()
  with contextlib.ExitStack() as stack:
    try:
      _check_streams(source)
      sound = stack.enter_context(_spooled(source.audio or source.path))
      look = _look(source, config, detector or _haar())
      begin, parts = _plan(source, config, look, sound)
    except InputError as error:
      yield Rejected(source.clip, str(error))
      return
    heard = begin - (look.shown.begin if source.audio else sound.begin)
    shown = _shown(source, look, begin, parts[-1].first + parts[-1].count)
    for index, part in enumerate(parts):
      if part.reason:
        yield Rejected(part.clip, part.reason)
        _skip(shown, part.count, more=any(not later.reason for later in parts[index:]))
        continue
      pictures = itertools.islice(shown, part.count)
      try:
        frames, _ = encode_frames(cut(picture.pixels, part.crop, config.size) for picture in pictures)
      except InputError as error:
        # What comes later in the file cannot be reached either.
        yield from (Rejected(left.clip, left.reason or str(error)) for left in parts[index:])
        return
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
        audio=sound.between(heard + part.first / FPS, part.count * SAMPLES_PER_FRAME),
        emotion=source.emotion,
        level=source.level,
        expression=part.expression,
      )


def _skip(shown, count, more):
  if more:
    for _ in itertools.islice(shown, count):
      pass


def _check_streams(source: Source):
  with open_video(existing_file(source.path, "video")) as container:
    if source.audio is None and not container.streams.audio:
      raise InputError(f"video {source.path} has no sound, and there is no file of it where the set keeps such")


@functools.cache
def _haar() -> HaarDetector:
  return HaarDetector()


@dataclasses.dataclass
class _Sound:
  """16 kHz mono in a temporary file; `begin` in seconds on its file's clock."""

  file: BinaryIO
  begin: float = 0.0
  samples: int = 0
  peak: float = 0.0

  def between(self, begin: float, count: int) -> np.ndarray:
    """`count` samples from `begin` seconds after the sound's start, silent where there are none."""
    first = round(begin * SAMPLE_RATE)
    start, end = min(max(first, 0), self.samples), min(max(first + count, 0), self.samples)
    self.file.seek(4 * start)
    found = np.frombuffer(self.file.read(4 * (end - start)), np.float32)
    whole = np.zeros(count, np.float32)
    whole[start - first : end - first] = found
    return whole


def _spool(file: BinaryIO, block: np.ndarray) -> None:
  left = block.tobytes()
  try:
    while left:
      left = left[file.write(left) :]
  except OSError as error:
    raise OutputError(
      f"the temporary folder {tempfile.gettempdir()} takes no more ({error.strerror or error}); make space there, or "
      "set TMPDIR to another folder, and run the same command again"
    ) from error


@contextlib.contextmanager
def _spooled(path: Path):
  # With a buffer its end would try once more to write what there was no room for.
  with tempfile.TemporaryFile(buffering=0) as file:
    sound = _Sound(file)
    for time, block in stream_sound(path):
      sound.begin = sound.begin if sound.samples else time
      sound.samples += len(block)
      sound.peak = max(sound.peak, float(np.max(np.abs(block), initial=0)))
      _spool(file, block)
    if not sound.samples:
      raise InputError(f"audio {path} holds no sound (0 samples)")
    if sound.peak < SILENCE:
      raise InputError(f"audio {path} has no sound: it is silent throughout")
    yield sound


@dataclasses.dataclass
class _Look:
  """What the first pass saw: when the pictures are shown, and the faces every so often."""

  width: int
  height: int
  shown: PictureTimes
  faces: list[tuple[float, list[Face]]]


def _look(source: Source, config: PrepareConfig, detector: FaceDetector) -> _Look:
  look, due = None, 0.0
  for picture in stream_pictures(source.path):
    if look is None:
      look, due = _Look(picture.width, picture.height, PictureTimes(source.path), []), picture.time
    look.shown.add(picture)
    if picture.time >= due - STAMP_TOLERANCE:
      look.faces.append((picture.time, detect(picture, detector)))
      due = max(due, picture.time - STAMP_TOLERANCE) + DETECT_EVERY / FPS
  if look is None:
    raise InputError(f"video {source.path} is damaged: no picture in it can be decoded")
  return look


@dataclasses.dataclass
class _Part:
  """A clip to be: `count` frames from `first` on; `reason` is why there will be none."""

  clip: str
  first: int
  count: int
  crop: tuple[int, int, int] = (0, 0, 0)
  face_box: Box = (0, 0, 0, 0)
  expression: np.ndarray | None = None
  reason: str = ""


def _plan(source: Source, config: PrepareConfig, look: _Look, sound: _Sound) -> tuple[float, list[_Part]]:
  """Where the first clip begins, on the picture's clock, and all clips."""
  heard = look.shown.begin if source.audio else sound.begin
  begin, total = look.shown.with_sound(heard, sound.samples)
  if total < config.shortest * FPS:
    raise InputError(
      f"picture and sound last {max(0, total) / FPS:g} s together; at least {config.shortest:g} s are needed"
    )
  wanted = begin + np.arange(total) / FPS
  expression = None if source.expression is None else look.shown.expression(source.expression, wanted)
  number = math.ceil(total / math.floor(config.longest * FPS))
  bounds = [total * i // number for i in range(number + 1)]
  parts = []
  for index, (first, after) in enumerate(itertools.pairwise(bounds)):
    part = _Part(source.clip if number == 1 else f"{source.clip}/{index:03d}", first, after - first)
    part.expression = None if expression is None else expression[first:after]
    try:
      part.crop, part.face_box = _frame_face(look, config, begin + first / FPS, begin + after / FPS)
    except InputError as error:
      part.reason = str(error)
    parts.append(part)
  return begin, parts


def _frame_face(look: _Look, config: PrepareConfig, begin: float, end: float) -> tuple[tuple[int, int, int], Box]:
  """The crop from `begin` to `end`, and the face's box in it."""
  edge = STAMP_TOLERANCE
  found = track([faces for time, faces in look.faces if begin - edge <= time < end - edge])
  width, height = found.size
  if min(width, height) < config.smallest_face:
    raise InputError(f"the face is {round(width)}x{round(height)} pixels; at least {config.smallest_face} are needed")
  crop = steady_crop(found, look.width, look.height)
  return crop, face_box(found, crop, config.size)


def _shown(source: Source, look: _Look, begin: float, total: int) -> Iterator[Picture]:
  """The second pass: the picture on screen at begin + k / 25 s, for each k."""
  k, last = 0, None
  for picture in stream_pictures(source.path):
    while last is not None and k < total and begin + k / FPS < picture.time - STAMP_TOLERANCE:
      yield last
      k += 1
    last = picture
  if last is None or last.time != look.shown.times[-1]:
    raise InputError(f"video {source.path} gives other pictures when it is read again; is it being written to?")
  for _ in range(k, total):
    yield last
