"""A network that measures pictures of the drawn world: emotion, person, and how the face is held.

It is trained on true frames alone, and checked there, on people whom it has not seen, before it judges anything.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.data.batches.sampling import ENDLESS, Batches, generator
from dicetalk_jax.data.batches.sources import ClipSets
from dicetalk_jax.data.index import Index
from dicetalk_jax.diffusion.losses import emotion_loss
from dicetalk_jax.errors import InputError
from dicetalk_jax.evaluation.drawn_faces import EXPRESSIONS, PORTRAITS, DrawnFaces, draw_faces
from dicetalk_jax.training.checkpoints import show
from dicetalk_jax.training.config import LoopConfig, OptimizerConfig
from dicetalk_jax.training.foundations.common import fit, held_out
from dicetalk_jax.training.loop import Outcome, Status
from dicetalk_jax.vocabulary import EMOTIONS, LEVELS, TRUTH

# The phoneme is no size that can be regressed.
MEASURED = tuple(name for name in TRUTH if name != "phoneme")
_COLUMNS = [TRUTH.index(name) for name in MEASURED]
_FRAMES = 30  # what a random draw is for
_FILE = "measuring.safetensors"


class Measures(NamedTuple):
  """Of n frames: emotion (n, 8) logits in EMOTIONS' order, identity (n, d) of length 1, face (n, len(MEASURED)).

  features (n, f): what the last layers make these of, for distances between many pictures and many others.
  """

  emotion: jax.Array
  identity: jax.Array
  face: jax.Array
  features: jax.Array


class MeasuringNetwork(nn.Module):
  """Frames (n, h, w, 3) in [0, 1], sides multiples of 32, and neutral portraits of the same people -> `Measures`.

  What the face does is told by comparison with the portrait, so that a person's own brows are not taken for a frown;
  who it is, by the frame alone. The face comes in deviations from its mean.
  """

  channels: tuple[int, ...] = (48, 64, 64, 96)
  person_channels: tuple[int, ...] = (32, 48, 64)
  features: int = 128
  identity_features: int = 64

  @nn.compact
  def __call__(self, frames, portraits) -> Measures:
    x = self._seen(jnp.concatenate([frames, portraits], axis=-1), self.channels, "expression")
    n, h, w, _ = frames.shape
    small = frames.reshape(n, h // 2, 2, w // 2, 2, 3).mean((2, 4))
    of_face, of_emotion, of_person = (
      nn.silu(nn.Dense(self.features, name=f"{name}_in")(seen))
      for name, seen in (("face", x), ("emotion", x), ("identity", self._seen(small, self.person_channels, "person")))
    )
    identity = nn.Dense(self.identity_features, name="identity")(of_person)
    identity /= jnp.sqrt(jnp.maximum(jnp.square(identity).sum(-1, keepdims=True), 1e-12))
    emotion, face = nn.Dense(len(EMOTIONS), name="emotion")(of_emotion), nn.Dense(len(MEASURED), name="face")(of_face)
    return Measures(emotion, identity, face, jnp.concatenate([of_face, of_person], axis=-1))

  def _seen(self, pictures, widths, name):
    x = 2 * pictures - 1
    for i, channels in enumerate(widths):
      # Patches as rows of a product: full resolution is never convolved, which is what a CPU is slow at.
      side = 4 if i == 0 else 2
      x = rearrange(x, "n (h a) (w b) c -> n h w (a b c)", a=side, b=side)
      x = nn.LayerNorm(name=f"{name}_norm_{i}")(nn.Dense(channels, name=f"{name}_down_{i}")(x))
      x = x + nn.silu(nn.Conv(channels, (3, 3), name=f"{name}_conv_{i}")(nn.silu(x)))
    # Where things are matters: no pooling.
    return x.reshape(len(x), -1)


@dataclasses.dataclass(frozen=True)
class MeasuringConfig:
  """How the measuring network is trained."""

  out: str = "runs/measuring"
  """Folder of the run: checkpoints, log, and measuring.safetensors that it ends with."""

  data: tuple[str, ...] = ()
  """Sets of drawn clips, as `dicetalk data build synthetic` leaves them, that it is checked on in the end, if any."""

  people: int = 2000
  """Of the train split of `loop.seed`, drawn for it anew; eight frames of each, 0.4 MB at 128 pixels."""

  size: int = 128
  """Of the frames in pixels, a multiple of 32."""

  batch: int = 48
  """Frames in a batch."""

  optimizer: OptimizerConfig = dataclasses.field(
    default_factory=lambda: OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=50, ema_decay=0.99)
  )
  """Adam, learning rate, moving average."""

  loop: LoopConfig = dataclasses.field(default_factory=lambda: LoopConfig(steps=3000, checkpoint_every=500))
  """Steps, and what is written when."""

  identity_temperature: float = 0.1
  """Of the softmax over the people of training."""

  validation_split: str = "test"
  """Of the data: people that are not in training."""


class _Source:
  """Single frames of random people, with what is known of them and a neutral portrait of the same person."""

  def __init__(self, faces: DrawnFaces, batch: int, seed: int):
    self._faces, self._seed, self._batch = faces, seed, batch
    self._rows = range(batch)
    self.fingerprint = {"kind": "measuring", "seed": seed, "people": len(faces.frames), "size": faces.frames.shape[2]}

  def __len__(self):
    return ENDLESS

  def __getitem__(self, batch: int) -> dict[str, np.ndarray]:
    rows = [self._row(generator(self._seed, _FRAMES, batch * self._batch + row)) for row in self._rows]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  def _row(self, rng):
    faces, person = self._faces, int(rng.integers(len(self._faces.frames)))
    i = int(rng.integers(EXPRESSIONS))
    return {
      "frames": faces.frames[person, i],
      "portraits": faces.portraits[person, int(rng.integers(PORTRAITS))],
      "emotion": np.int32(faces.emotion[person, i]),
      "identity": np.int32(person),
      "face": faces.truth[person, i, _COLUMNS],
    }


def neutral_records(index: Index) -> dict[str, np.ndarray]:
  """Person -> the records of an index that show them with no emotion. InputError for one who is never neutral."""
  neutral = EMOTIONS.index("neutral")
  found = {person: np.flatnonzero((index.identity == person) & (index.emotion == neutral)) for person in index.identity}
  for person, records in found.items():
    if not len(records):
      raise InputError(f"{person} has no neutral clip, which expressions are compared with; build labelled sets")
  return found


def _worn(frames, key):
  """Pictures as a generated one may be: softer, noisier, lighter or darker, by an amount of each picture's own."""
  blur, noise, gain, shift, draw = jax.random.split(key, 5)
  n, h, w, c = frames.shape
  share = jax.random.uniform(blur, (n, 1, 1, 1))
  small = jax.image.resize(frames, (n, h // 2, w // 2, c), "linear")
  frames = (1 - share) * frames + share * jax.image.resize(small, frames.shape, "cubic")
  frames += 0.05 * jax.random.uniform(noise, (n, 1, 1, 1)) * jax.random.normal(draw, frames.shape)
  frames *= 1 + jax.random.uniform(gain, (n, 1, 1, 3), minval=-0.1, maxval=0.1)
  return jnp.clip(frames + jax.random.uniform(shift, (n, 1, 1, 3), minval=-0.05, maxval=0.05), 0, 1)


def train_measuring(
  config: MeasuringConfig,
  folder: str | os.PathLike | None = None,
  report: Callable[[int, dict[str, float]], None] | None = None,
  progress: Callable[[str, int, int], None] | None = None,
  warn: Callable[[str], None] = show,
  validated: Callable[[int, Mapping[str, float]], None] | None = None,
) -> tuple["Measuring", Outcome]:
  """Trains in `folder`, by default `config.out`, or goes on; a finished run leaves measuring.safetensors there.

  validated(step, scalars) is told in the end what `check` finds, where `config.validation_split` has clips. Raises
  what `loop.train` raises, and InputError for sizes that cannot be drawn and sets that cannot be read.
  """
  folder = pathlib.Path(folder or config.out).expanduser()
  if config.people < 2 or config.size % 32 or config.size < 64:
    raise InputError(
      f"people {config.people} and size {config.size} cannot be used: give at least 2 people, and a multiple of 32 "
      "that is at least 64"
    )
  drawn = functools.partial(progress, "drawing faces") if progress else lambda done, total: None
  source = _Source(draw_faces(config.people, config.size, config.loop.seed, drawn), config.batch, config.loop.seed)
  size = (config.size, config.size)
  many = [source[i] for i in range(8)]
  face = np.concatenate([batch["face"] for batch in many])
  mean, std = face.mean(0), np.maximum(face.std(0), 1e-4)
  module = MeasuringNetwork()
  key = jax.random.key(config.loop.seed)
  params = {
    "network": jax.jit(module.init)(key, *2 * [jnp.zeros((1, *size, 3))])["params"],
    "people": jax.random.normal(key, (config.people, module.identity_features)),
  }

  def loss_fn(params, batch, key):
    frames, portraits = (
      _worn(batch[name].astype(jnp.float32) / 255, jax.random.fold_in(key, i))
      for i, name in enumerate(("frames", "portraits"))
    )
    found = module.apply({"params": params["network"]}, frames, portraits)
    people = params["people"] / jnp.linalg.norm(params["people"], axis=-1, keepdims=True)
    losses = {
      "emotion": emotion_loss(found.emotion, batch["emotion"]),
      "identity": emotion_loss(found.identity @ people.T / config.identity_temperature, batch["identity"]),
      "face": jnp.square(found.face - (batch["face"] - mean) / std).mean(),
    }
    return sum(losses.values()), losses

  with Batches(source) as batches:
    outcome = fit(
      params,
      loss_fn,
      batches,
      config.optimizer,
      config.loop,
      folder,
      frames=config.batch,
      report=report,
      progress=progress,
      warn=warn,
    )
  measuring = Measuring(jax.device_get(outcome.state.averaged()["network"]), mean, std, size)
  if outcome.status == Status.FINISHED:
    measuring.save(folder / _FILE)
    if (
      validated
      and config.data
      and (checked := held_out(lambda: ClipSets(list(config.data), config.validation_split), warn))
    ):
      validated(outcome.step, check(measuring, checked))
  return measuring, outcome


class Measuring:
  """A trained measuring network: frames -> `Measures`, the face in its own units."""

  def __init__(self, params: Mapping, mean: np.ndarray, std: np.ndarray, size: tuple[int, int]):
    self._params, self._mean, self._std, self._size = params, mean, std, tuple(map(int, size))

  @property
  def identity(self) -> str:
    """The same for the same network alone, wherever it lies."""
    parts = [
      *(np.asarray(leaf) for _, leaf in sorted(flatten_dict(self._params, sep="/").items())),
      self._mean,
      self._std,
    ]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]

  @property
  def face_std(self) -> np.ndarray:
    """(len(MEASURED),): how far each measure of a face spreads in training."""
    return self._std

  def save(self, path: str | os.PathLike) -> None:
    flat = {f"network/{name}": np.asarray(leaf) for name, leaf in flatten_dict(self._params, sep="/").items()}
    safetensors.numpy.save_file(flat | {"mean": self._mean, "std": self._std, "size": np.array(self._size)}, path)

  @classmethod
  def load(cls, folder: str | os.PathLike) -> "Measuring":
    """Of a folder of `train_measuring`; InputError where it has none."""
    path = pathlib.Path(folder).expanduser() / _FILE
    if not path.is_file():
      raise InputError(f"{path} is missing; make it with `dicetalk train measuring`, and give its folder")
    stored = safetensors.numpy.load_file(path)
    flat = {name.removeprefix("network/"): leaf for name, leaf in stored.items() if name.startswith("network/")}
    return cls(unflatten_dict(flat, sep="/"), stored["mean"], stored["std"], stored["size"])

  def __call__(self, frames: np.ndarray, portrait: np.ndarray, batch: int = 64) -> Measures:
    """frames (n, h, w, 3), and a neutral portrait (h, w, 3) of the same person; uint8 or float in [0, 1].

    Pictures of another size than those of training are resized.
    """
    frames, portrait = self._sized(unit(frames)), self._sized(unit(portrait)[None])[0]
    portraits = np.broadcast_to(portrait, (batch, *portrait.shape))
    found = []
    for first in range(0, len(frames), batch):
      part = frames[first : first + batch]
      padded = np.pad(part, [(0, batch - len(part)), (0, 0), (0, 0), (0, 0)])
      found.append([np.asarray(value)[: len(part)] for value in _measure(self._params, padded, portraits)])
    found = Measures(*(np.concatenate(column) for column in zip(*found, strict=True)))
    return found._replace(face=self._mean + self._std * found.face)

  def _sized(self, frames):
    height, width = self._size
    if frames.shape[1:3] == (height, width):
      return frames
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])


def unit(frames: np.ndarray) -> np.ndarray:
  """Pictures as float32 in [0, 1]."""
  frames = np.asarray(frames)
  return frames.astype(np.float32) / 255 if frames.dtype == np.uint8 else frames.astype(np.float32)


@jax.jit
def _measure(params, frames, portraits):
  return MeasuringNetwork().apply({"params": params}, frames, portraits)


def check(measuring: Measuring, sets: ClipSets, frames: int = 8) -> dict[str, float]:
  """How well it measures true frames of sets: emotion accuracy of clips, top-1 of people, correlation of the mouth.

  Of each clip `frames` frames, spread evenly. A clip's emotion is that of its mean logits; its person is looked for
  among the first clip of each person of the split.
  """
  index, right, identity, opening = sets.index, [], [], []
  neutral = neutral_records(index)
  portraits = {person: sets.frames(records[0], [0])[0] for person, records in neutral.items()}
  for record in range(len(index)):
    clip = sets.clip(record)
    chosen = np.linspace(0, clip.num_frames - 1, frames).astype(int)
    found = measuring(sets.frames(record, chosen), portraits[clip.identity])
    right.append(index.emotion[record] == found.emotion.mean(0).argmax())
    identity.append(found.identity.mean(0))
    opening.append(np.stack([found.face[:, 0], clip.truth[chosen, _COLUMNS[0]]]))
  right, identity = np.array(right, bool), np.stack(identity)
  strongest = (index.level == LEVELS[-1]) | (index.emotion == EMOTIONS.index("neutral"))
  _, first, person = np.unique(index.identity, return_index=True, return_inverse=True)
  others = ~np.isin(np.arange(len(identity)), first)
  nearest = (identity[others] @ identity[first].T).argmax(-1)
  return {
    "emotion_accuracy": float(right.mean()),
    "emotion_accuracy_strongest": float(right[strongest].mean()),
    "identity_top1": float((nearest == person[others]).mean()),
    "mouth_correlation": float(np.corrcoef(np.concatenate(opening, axis=1))[0, 1]),
  }
