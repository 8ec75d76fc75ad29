"""The network that measures pictures of the drawn world: emotion, identity and face parameters.

`dicetalk train measuring` trains it on true frames only, never on generated ones.
"""

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.errors import InputError
from dicetalk_jax.vocabulary import EMOTIONS, TRUTH

# The face parameters that are numbers; a phoneme is a label.
MEASURED = tuple(name for name in TRUTH if name != "phoneme")
FILE = "measuring.safetensors"


class Measures(NamedTuple):
  """Measures of n frames.

  emotion (n, 8): logits in the order of EMOTIONS; identity (n, d), unit length; face (n, len(MEASURED)); features
  (n, f): the layer before, for Fréchet distances.
  """

  emotion: jax.Array
  identity: jax.Array
  face: jax.Array
  features: jax.Array


class MeasuringNetwork(nn.Module):
  """Frames (n, h, w, 3) in [0, 1] and neutral portraits of the same people -> `Measures`; h and w multiples of 32.

  Emotion and face compare the frame with the portrait, so that a person's own brows do not look like a frown. Identity
  uses the frame only. `face` is normalised: in standard deviations from the mean.
  """

  channels: tuple[int, ...] = (48, 64, 64, 96)
  person_channels: tuple[int, ...] = (32, 48, 64)
  features: int = 128
  identity_features: int = 64

  @nn.compact
  def __call__(self, frames, portraits) -> Measures:
    x = self._tower(jnp.concatenate([frames, portraits], axis=-1), self.channels, "expression")
    n, h, w, _ = frames.shape
    small = frames.reshape(n, h // 2, 2, w // 2, 2, 3).mean((2, 4))
    of_face, of_emotion, of_person = (
      nn.silu(nn.Dense(self.features, name=f"{name}_in")(tower))
      for name, tower in (("face", x), ("emotion", x), ("identity", self._tower(small, self.person_channels, "person")))
    )
    identity = nn.Dense(self.identity_features, name="identity")(of_person)
    identity /= jnp.sqrt(jnp.maximum(jnp.square(identity).sum(-1, keepdims=True), 1e-12))
    emotion, face = nn.Dense(len(EMOTIONS), name="emotion")(of_emotion), nn.Dense(len(MEASURED), name="face")(of_face)
    return Measures(emotion, identity, face, jnp.concatenate([of_face, of_person], axis=-1))

  def _tower(self, pictures, widths, name):
    x = 2 * pictures - 1
    for i, channels in enumerate(widths):
      # Patches as matrix rows: convolutions at full resolution are slow on a CPU.
      side = 4 if i == 0 else 2
      x = rearrange(x, "n (h a) (w b) c -> n h w (a b c)", a=side, b=side)
      x = nn.LayerNorm(name=f"{name}_norm_{i}")(nn.Dense(channels, name=f"{name}_down_{i}")(x))
      x = x + nn.silu(nn.Conv(channels, (3, 3), name=f"{name}_conv_{i}")(nn.silu(x)))
    # No pooling: positions matter.
    return x.reshape(len(x), -1)


class Measuring:
  """A trained measuring network. Call it with frames; `Measures.face` comes in the units of the truth.

  params of `MeasuringNetwork`; mean, std (len(MEASURED),): of the face parameters in training; size: height and width
  of the frames in training.
  """

  def __init__(self, params: Mapping, mean: np.ndarray, std: np.ndarray, size: tuple[int, int]):
    self._params, self._mean, self.face_std, self._size = params, mean, std, tuple(map(int, size))

  @property
  def identity(self) -> str:
    """Hash of the parameters."""
    leaves = [leaf for _, leaf in sorted(flatten_dict(self._params, sep="/").items())] + [self._mean, self.face_std]
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()[:16]

  def save(self, path: str | os.PathLike) -> None:
    flat = {f"network/{name}": np.asarray(leaf) for name, leaf in flatten_dict(self._params, sep="/").items()}
    safetensors.numpy.save_file(flat | {"mean": self._mean, "std": self.face_std, "size": np.array(self._size)}, path)

  @classmethod
  def load(cls, folder: str | os.PathLike) -> "Measuring":
    """Reads the network from the folder of a finished training; InputError when it is not there."""
    path = pathlib.Path(folder).expanduser() / FILE
    if not path.is_file():
      raise InputError(f"{path} does not exist; give the folder of a finished `dicetalk train measuring`")
    stored = safetensors.numpy.load_file(path)
    flat = {name.removeprefix("network/"): leaf for name, leaf in stored.items() if name.startswith("network/")}
    return cls(unflatten_dict(flat, sep="/"), stored["mean"], stored["std"], stored["size"])

  def __call__(self, frames: np.ndarray, portrait: np.ndarray, batch: int = 64) -> Measures:
    """frames (n, h, w, 3) and a neutral portrait (h, w, 3) of the same person; uint8 or float in [0, 1].

    Pictures are resized to the size of training.
    """
    frames, portrait = self._resize(_unit(frames)), self._resize(_unit(portrait)[None])[0]
    portraits = np.broadcast_to(portrait, (batch, *portrait.shape))
    parts = []
    for first in range(0, len(frames), batch):
      part = frames[first : first + batch]
      padded = np.pad(part, [(0, batch - len(part)), (0, 0), (0, 0), (0, 0)])
      parts.append([np.asarray(value)[: len(part)] for value in _measure(self._params, padded, portraits)])
    measures = Measures(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return measures._replace(face=self._mean + self.face_std * measures.face)

  def _resize(self, frames):
    height, width = self._size
    if frames.shape[1:3] == (height, width):
      return frames
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])


def _unit(frames: np.ndarray) -> np.ndarray:
  """Pictures as float32 in [0, 1]."""
  frames = np.asarray(frames)
  return frames.astype(np.float32) / 255 if frames.dtype == np.uint8 else frames.astype(np.float32)


@jax.jit
def _measure(params, frames, portraits):
  return MeasuringNetwork().apply({"params": params}, frames, portraits)
