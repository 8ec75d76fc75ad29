"""The encoded record: a clip as latents, embeddings and speech states, which is what training reads."""

import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np

from dicetalk_jax.data.index import Index, read_index
from dicetalk_jax.data.sets import INFO, Records
from dicetalk_jax.errors import InputError
from dicetalk_jax.files import expanded
from dicetalk_jax.vocabulary import EMOTIONS, EXPRESSION_DIM, TRUTH

CONFIG = "encoding.json"
FORMAT = "dicetalk_jax encoded clips"
VERSION = 1
# "audio" has no pictures: all that the emotion embedder needs, at a small part of the size.
WHAT = ("all", "audio")
_TEXTS = ("clip", "source", "split", "identity", "video", "sentence")
# What of a record is large, stored as npy bytes.
LARGE = ("latents_mean", "latents_logvar", "image_embedding", "states")


@dataclasses.dataclass(frozen=True)
class EncodedClip:
  """One encoded record; n frames at 25 a second.

  states (2n, layers + 1, d) float16: all of Whisper's hidden states at 50 Hz. latents_mean, latents_logvar
  (n, h/8, w/8, 4) float16: the VAE's, unscaled. reference_index (r,): the frames whose CLIP embeddings are
  image_embedding (r, d) float16. Those of pictures are None where only the sound was encoded. emotion: index in
  EMOTIONS, -1 not known; everything else is as in `records.Clip`, expression and truth of 0 rows where not known.
  """

  clip: str
  source: str
  split: str
  identity: str
  video: str
  sentence: str
  emotion: int
  level: int
  num_frames: int
  height: int
  width: int
  face_box: tuple[int, int, int, int]
  expression: np.ndarray
  truth: np.ndarray
  states: np.ndarray
  latents_mean: np.ndarray | None = None
  latents_logvar: np.ndarray | None = None
  reference_index: np.ndarray | None = None
  image_embedding: np.ndarray | None = None

  def example(self) -> dict:
    """As the record's features take it."""
    found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    found |= {name: to_npy(found[name]) for name in LARGE if found[name] is not None}
    found |= {name: np.int32(found[name]) for name in ("level", "num_frames", "height", "width")}
    found["face_box"] = np.asarray(self.face_box, np.int32)
    return {name: value for name, value in found.items() if value is not None}


def features(what: str = "all"):
  """The encoded record as a `tfds.features.FeaturesDict`: `EncodedClip`'s fields, float16 arrays as npy bytes.

  TFDS decodes free shapes and float16 with TensorFlow alone, so such arrays are stored as the bytes of an npy file.
  """
  import tensorflow_datasets as tfds

  f = tfds.features
  raw, whole = f.Tensor(shape=(), dtype=np.object_), f.Scalar(dtype=np.int32)
  pictures = {
    **dict.fromkeys(("latents_mean", "latents_logvar", "image_embedding"), raw),
    "reference_index": f.Tensor(shape=(None,), dtype=np.int32),
  }
  return f.FeaturesDict(
    {
      **dict.fromkeys(_TEXTS, f.Text()),
      "emotion": f.ClassLabel(names=list(EMOTIONS)),
      **dict.fromkeys(("level", "num_frames", "height", "width"), whole),
      "face_box": f.Tensor(shape=(4,), dtype=np.int32),
      "expression": f.Tensor(shape=(None, EXPRESSION_DIM), dtype=np.float32),
      "truth": f.Tensor(shape=(None, len(TRUTH)), dtype=np.float32),
      "states": raw,
      **(pictures if what == "all" else {}),
    }
  )


def encoded_clip(example: dict) -> EncodedClip:
  """A record as read from a data source -> EncodedClip; the float16 arrays are read-only views of its bytes."""
  found = {field.name: example.get(field.name) for field in dataclasses.fields(EncodedClip)}
  found |= {name: value.decode() if isinstance(value := found[name], bytes) else str(value) for name in _TEXTS}
  found |= {name: int(found[name]) for name in ("emotion", "level", "num_frames", "height", "width")}
  found |= {name: from_npy(found[name]) for name in LARGE if found[name] is not None}
  found["face_box"] = tuple(int(v) for v in found["face_box"])
  return EncodedClip(**found)


def to_npy(array: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
  return buffer.getvalue()


def from_npy(stored: bytes) -> np.ndarray:
  """The array of an npy file's bytes, without a copy."""
  buffer = io.BytesIO(stored)
  np.lib.format.read_magic(buffer)
  shape, fortran, dtype = np.lib.format.read_array_header_1_0(buffer)
  if fortran:
    raise ValueError("the array is stored in Fortran order")
  return np.frombuffer(stored, dtype, offset=buffer.tell()).reshape(shape)


def open_encoded(folder: str | os.PathLike, split: str, pictures: bool = True) -> tuple[Records, Index]:
  """A split of an encoded set and its index; the index is made by a pass over the records where it is missing.

  Raises InputError for a folder that is missing, not encoded, not finished, damaged, or without `pictures` where they
  are wanted; it says what to run.
  """
  folder = expanded(folder, "data set")
  if (folder / CONFIG).is_file() and not (folder / INFO).is_file():
    raise InputError(f"{folder} is not finished: run the same `dicetalk data encode` command again until its end")
  records = Records(folder, split)
  if "states" not in records.features:
    raise InputError(f"{folder} holds clips that are not encoded; run `dicetalk data encode {folder} TARGET` first")
  if pictures and "latents_mean" not in records.features:
    raise InputError(
      f"{folder} was encoded without its pictures, which this needs; run `dicetalk data encode` with all networks into "
      "another folder"
    )
  return records, read_index(records)


def encoding_config(folder: Path) -> dict | None:
  """encoding.json: what a folder was encoded from and with; None where there is none. InputError where damaged."""
  path = folder / CONFIG
  try:
    config = json.loads(path.read_text(encoding="utf-8"))
    if config["format"] != FORMAT or config["version"] != VERSION:
      raise ValueError(f"its format is {config['format']} version {config['version']}")
    return config
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(f"{path} is not one that this version can read ({error}); encode into another folder") from error
