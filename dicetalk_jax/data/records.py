"""The record of all sets: a clip of one speaking face, as TFDS features without TensorFlow."""

import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np

from dicetalk_jax.data.index import as_text
from dicetalk_jax.errors import InputError
from dicetalk_jax.media.containers import put_picture
from dicetalk_jax.vocabulary import EMOTIONS, EXPRESSION_DIM, FPS, SAMPLES_PER_FRAME, TRUTH

_TEXTS = ("clip", "source", "split", "identity", "video", "sentence")
INTEGERS = ("level", "num_frames", "height", "width")


@dataclasses.dataclass(frozen=True)
class Source:
  """A video file to make clips of, with its labels.

  clip: its name, unique in the set, such as M003/front/angry/level_1/001; video: the recording that it was cut from;
  audio: its sound if that is another file; expression: the file of its coefficients, if any; emotion: one of EMOTIONS;
  level: 1 to 3, 0 when unknown; split: train or test if the labels say so.
  """

  clip: str
  path: Path
  identity: str
  video: str
  audio: Path | None = None
  expression: Path | None = None
  emotion: str | None = None
  level: int = 0
  split: str = ""


@dataclasses.dataclass(frozen=True)
class Rejected:
  """A clip or a whole file that is left out; `reason` is one sentence."""

  clip: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Clip:
  """One record of n frames at 25 a second and n · 640 samples; `features` describes the fields."""

  clip: str
  source: str
  identity: str
  video: str
  frames: bytes
  num_frames: int
  height: int
  width: int
  face_box: tuple[int, int, int, int]
  audio: np.ndarray
  emotion: str | None = None
  level: int = 0
  expression: np.ndarray | None = None
  truth: np.ndarray | None = None
  crop: tuple[int, int, int] = (0, 0, 0)
  sentence: str = ""
  split: str = "train"

  @staticmethod
  def features():
    return features()

  def example(self) -> dict:
    """The record as its features take it; ValueError when lengths disagree."""
    n = self.num_frames
    expression = np.zeros((0, EXPRESSION_DIM)) if self.expression is None else self.expression
    truth = np.zeros((0, len(TRUTH))) if self.truth is None else self.truth
    lengths = {"audio": (len(self.audio), n * SAMPLES_PER_FRAME)}
    lengths |= {k: (len(v), n) for k, v in (("expression", expression), ("truth", truth)) if len(v)}
    for name, (length, expected) in lengths.items():
      if length != expected:
        raise ValueError(f"clip {self.clip}: {name} has {length} rows for {n} frames, expected {expected}")
    values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    values |= {name: np.asarray(values[name], np.int32)[()] for name in (*INTEGERS, "face_box", "crop")}
    arrays = {"audio": self.audio, "expression": expression, "truth": truth}
    values |= {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    return values | {"emotion": -1 if self.emotion is None else EMOTIONS.index(self.emotion)}


def features():
  """The record as a `tfds.features.FeaturesDict`.

  clip (text): unique name in the set. source: mead, hdtf, voxceleb2, clips or synthetic. split: train or test.
  identity: the person, unique over all sets. video: the recording it was cut from. emotion (class label): one of
  EMOTIONS, -1 when unknown. level: 1 to 3, 0 when unknown. frames (bytes): n frames at 25 a second as H.264 in MP4, see
  `decode_frames`. num_frames: n. height, width: in pixels. face_box (4,): x, y, w, h of the face in pixels of the
  frame, over the whole clip. crop (3,): x, y and side of the square of the upright source that the frames show, in its
  pixels; zeros for drawn clips. audio (n · 640,) float32: 16 kHz mono in [-1, 1]. expression (n, 64) float32:
  coefficients of Deep3DFaceRecon, or 0 rows. truth (n, len(TRUTH)) float32: of drawn clips, else 0 rows. sentence: the
  words, if known.
  """
  import tensorflow_datasets as tfds

  f = tfds.features
  text, integer = f.Text(), f.Scalar(dtype=np.int32)
  return f.FeaturesDict(
    {
      **dict.fromkeys(_TEXTS, text),
      "emotion": f.ClassLabel(names=list(EMOTIONS)),
      **dict.fromkeys(INTEGERS, integer),
      "frames": f.Tensor(shape=(), dtype=np.object_),
      "face_box": f.Tensor(shape=(4,), dtype=np.int32),
      "crop": f.Tensor(shape=(3,), dtype=np.int32),
      "audio": f.Tensor(shape=(None,), dtype=np.float32),
      "expression": f.Tensor(shape=(None, EXPRESSION_DIM), dtype=np.float32),
      "truth": f.Tensor(shape=(None, len(TRUTH)), dtype=np.float32),
    }
  )


def plain_values(example: dict, record: type) -> dict:
  """The fields of a record in an example as a data source gives it: text, integers and arrays; None if missing."""
  values = {field.name: example.get(field.name) for field in dataclasses.fields(record)}
  values |= {name: as_text(values[name]) for name in _TEXTS}
  values |= {name: int(values[name]) for name in ("emotion", *INTEGERS)}
  return values | {"face_box": tuple(map(int, values["face_box"]))}


def clip_of(example: dict) -> Clip:
  """An example as a data source gives it -> Clip."""
  values = plain_values(example, Clip)
  # Unknown arrays have no rows.
  values |= {name: values[name] if len(values[name]) else None for name in ("expression", "truth")}
  emotion, crop = values["emotion"], tuple(map(int, values["crop"]))
  values |= {"emotion": EMOTIONS[emotion] if emotion >= 0 else None, "crop": crop, "frames": bytes(values["frames"])}
  return Clip(**values)


def encode_frames(frames: Iterable[np.ndarray], crf: float = 12) -> tuple[bytes, int]:
  """(h, w, 3) uint8 frames, h and w even -> bytes of H.264 in MP4 at 25 frames a second, and the number of frames.

  crf: x264's quality, lower is better and larger. Colour has full resolution (yuv444p): at 128 pixels half of it would
  blur lips and eyes. The same frames give the same bytes: one thread, no time stamps of the clock. There is a key frame
  each second, so that a window can be read alone.
  """
  buffer = io.BytesIO()
  count = 0
  with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
    # x264's macroblock tree changes the bytes for the same pictures about once in forty times.
    options = {"crf": str(crf), "preset": "veryfast", "g": str(FPS), "threads": "1", "x264-params": "mbtree=0"}
    stream = container.add_stream("libx264", rate=FPS, options=options)
    stream.codec_context.thread_count = 1
    for count, picture in enumerate(frames, 1):
      put_picture(container, stream, picture, count - 1, "yuv444p")
    if count:
      container.mux(stream.encode(None))
  if not count:
    raise ValueError("there are no frames to encode")
  return buffer.getvalue(), count


def decode_frames(encoded: bytes, indices: Sequence[int] | None = None) -> np.ndarray:
  """A record's `frames` -> (n, h, w, 3) uint8: all, or those of `indices` in their order, decoded from a key frame on.

  Raises InputError when the bytes are damaged or an index is not in the clip.
  """
  wanted = None if indices is None else [int(i) for i in indices]
  if wanted is not None and not wanted:
    raise ValueError("indices is empty")
  frames: dict[int, np.ndarray] = {}
  try:
    with av.open(io.BytesIO(encoded)) as container:
      stream = container.streams.video[0]
      if wanted is not None and min(wanted) >= FPS:
        container.seek(int(min(wanted) / FPS / stream.time_base), stream=stream, backward=True)
      for frame in container.decode(stream):
        i = round(float(frame.pts * stream.time_base) * FPS)
        if wanted is not None and i > max(wanted):
          break
        if wanted is None or i in wanted:
          frames[i] = frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
  except (av.FFmpegError, IndexError, ValueError) as error:
    raise InputError(f"a record's frames cannot be decoded ({error}); build the set again") from error
  order = sorted(frames) if wanted is None else wanted
  if missing := [i for i in order if i not in frames]:
    raise InputError(f"a record's frames lack frame {missing[0]}: {len(frames)} of {len(order)} could be decoded")
  return np.stack([frames[i] for i in order])
