"""The encoded record: a clip as latents, embeddings and speech states, as training reads it."""

import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np

from dicetalk_jax.data import records
from dicetalk_jax.data.index import Index, read_index
from dicetalk_jax.data.sets import INFO, Records
from dicetalk_jax.errors import InputError
from dicetalk_jax.files import expanded

CONFIG = "encoding.json"
FORMAT = "dicetalk_jax encoded clips"
VERSION = 1
# "audio" has no latents and embeddings; it is all that the emotion embedder needs, and much smaller.
WHAT = ("all", "audio")
# Large arrays, stored as npy bytes.
LARGE = ("latents_mean", "latents_logvar", "image_embedding", "states")


@dataclasses.dataclass(frozen=True)
class EncodedClip:
  """One encoded record; n frames at 25 a second.

  states (2n, layers + 1, d) float16: Whisper's hidden states at 50 Hz. latents_mean, latents_logvar (n, h/8, w/8, 4)
  float16: the VAE's mean and log-variance, unscaled. reference_index (r,) int32: the frames with CLIP embeddings
  image_embedding (r, d) float16. Latents and embeddings are None when only the sound was encoded. emotion: index in
  EMOTIONS, -1 when unknown. expression and truth have 0 rows when unknown. All other fields are as in `records.Clip`.
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

  def features(self):
    return features("all" if self.latents_mean is not None else "audio")

  def example(self) -> dict:
    """The record as its features take it."""
    values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    for name in (name for name in LARGE if values[name] is not None):
      buffer = io.BytesIO()
      np.save(buffer, np.ascontiguousarray(values[name]), allow_pickle=False)
      values[name] = buffer.getvalue()
    values |= {name: np.int32(values[name]) for name in records.INTEGERS}
    values["face_box"] = np.asarray(self.face_box, np.int32)
    return {name: value for name, value in values.items() if value is not None}


def features(what: str = "all"):
  """The encoded record as a `tfds.features.FeaturesDict`: `EncodedClip`'s fields, float16 arrays as npy bytes.

  TFDS needs TensorFlow to decode float16 and free shapes, so these arrays are stored as the bytes of npy files.
  """
  import tensorflow_datasets as tfds

  raw = tfds.features.Tensor(shape=(), dtype=np.object_)
  own = {name: feature for name, feature in records.features().items() if name not in ("frames", "audio", "crop")}
  if what == "all":
    own |= dict.fromkeys(("latents_mean", "latents_logvar", "image_embedding"), raw)
    own["reference_index"] = tfds.features.Tensor(shape=(None,), dtype=np.int32)
  return tfds.features.FeaturesDict(own | {"states": raw})


def encoded_clip(example: dict) -> EncodedClip:
  """An example as a data source gives it -> EncodedClip."""
  values = records.plain_values(example, EncodedClip)
  stored = {name: io.BytesIO(values[name]) for name in LARGE if values[name] is not None}
  return EncodedClip(**values | {name: np.load(file, allow_pickle=False) for name, file in stored.items()})


def open_encoded(folder: str | os.PathLike, split: str, pictures: bool = True) -> tuple[Records, Index]:
  """A split of an encoded set, and its index.

  Raises InputError for a folder that is missing, not encoded, not finished or damaged, and for one without latents and
  embeddings when `pictures` are needed.
  """
  folder = expanded(folder, "data set")
  if (folder / CONFIG).is_file() and not (folder / INFO).is_file():
    raise InputError(f"{folder} is not finished: run the same `dicetalk data encode` command again")
  records = Records(folder, split)
  if "states" not in records.features:
    raise InputError(f"{folder} holds clips that are not encoded; run `dicetalk data encode {folder} TARGET` first")
  if pictures and "latents_mean" not in records.features:
    raise InputError(
      f"{folder} was encoded without its pictures, which are needed here; run `dicetalk data encode` with --what all "
      "into another folder"
    )
  return records, read_index(records)


def encoding_config(folder: Path) -> dict | None:
  """encoding.json of a folder: its data, networks and options; None if it is missing. InputError if it is damaged."""
  path = folder / CONFIG
  try:
    config = json.loads(path.read_text(encoding="utf-8"))
    if config["format"] != FORMAT or config["version"] != VERSION:
      raise ValueError(f"its format is {config['format']} version {config['version']}")
    return config
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(f"{path} cannot be read by this version ({error}); encode into another folder") from error
