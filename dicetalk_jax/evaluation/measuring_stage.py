"""Training of the measuring network on true frames of drawn people, and its check on people held out."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.data.batches.sampling import ENDLESS, Batches, generator
from dicetalk_jax.data.batches.sources import ClipSets
from dicetalk_jax.diffusion.losses import emotion_loss
from dicetalk_jax.errors import InputError
from dicetalk_jax.evaluation.drawn_faces import EXPRESSIONS, PORTRAITS, DrawnFaces, draw_faces
from dicetalk_jax.evaluation.networks.measuring import FILE, MEASURED, Measuring, MeasuringNetwork
from dicetalk_jax.parallel.mesh import MeshConfig
from dicetalk_jax.training.config import LoopConfig, OptimizerConfig, StageConfig
from dicetalk_jax.training.loop import Outcome, Status
from dicetalk_jax.training.stage import Stage
from dicetalk_jax.vocabulary import EMOTIONS, LEVELS, TRUTH

_COLUMNS = [TRUTH.index(name) for name in MEASURED]
_FRAMES = 30  # stream of random numbers
_TEMPERATURE = 0.1  # of the softmax over training identities


@dataclasses.dataclass(frozen=True)
class MeasuringConfig(StageConfig):
  """The network that `dicetalk evaluate` measures pictures with. Its result is measuring.safetensors."""

  data: tuple[str, ...] = ()
  """Drawn sets to check the trained network on, if any. Training draws its own people."""

  people: int = 2000
  """Drawn people of training. Each has eight frames, 0.4 MB at 128 pixels."""

  size: int = 128
  """Height and width of the frames in pixels, a multiple of 32."""

  batch: int = 48
  """Frames per batch."""

  optimizer: OptimizerConfig = dataclasses.field(
    default_factory=lambda: OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=50, ema_decay=0.99)
  )
  """Optimizer, learning rate, clipping, accumulation, moving average."""

  loop: LoopConfig = dataclasses.field(default_factory=lambda: LoopConfig(steps=3000))
  """Steps, logging, checkpoints."""

  mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(1, 1, 1))
  """Devices of this host as data x fsdp x tensor."""

  STAGE = "measuring"


class _Source:
  """Batches of single frames of random people, with their truth and a neutral portrait of the same person."""

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


def _degrade(frames, key):
  """Random blur, noise, brightness and colour for each picture, as generated frames may have."""
  blur, noise, gain, shift, draw = jax.random.split(key, 5)
  n, h, w, c = frames.shape
  share = jax.random.uniform(blur, (n, 1, 1, 1))
  small = jax.image.resize(frames, (n, h // 2, w // 2, c), "linear")
  frames = (1 - share) * frames + share * jax.image.resize(small, frames.shape, "cubic")
  frames += 0.05 * jax.random.uniform(noise, (n, 1, 1, 1)) * jax.random.normal(draw, frames.shape)
  frames *= 1 + jax.random.uniform(gain, (n, 1, 1, 3), minval=-0.1, maxval=0.1)
  return jnp.clip(frames + jax.random.uniform(shift, (n, 1, 1, 3), minval=-0.05, maxval=0.05), 0, 1)


def train_measuring(
  config: MeasuringConfig, folder: str | os.PathLike | None = None, **listeners
) -> tuple[Measuring, Outcome]:
  """Trains in `folder`, by default `config.out`, or continues there; a finished run leaves measuring.safetensors.

  The listener `validated` is called once, with the scalars of `check`, if `config.data` has clips in the validation
  split. listeners: see `Stage`. Raises what `loop.train` raises, and InputError for sizes that cannot be drawn and sets
  that cannot be read.
  """
  if config.people < 2 or config.size % 32 or config.size < 64:
    raise InputError(
      f"people is {config.people} and size {config.size}; give at least 2 people, and a multiple of 32 that is at "
      "least 64"
    )
  progress, seed = listeners.get("progress"), config.loop.seed
  drawn = functools.partial(progress, "drawing faces") if progress else lambda done, total: None
  faces = draw_faces(config.people, config.size, seed, drawn)

  def batches(workers=0, **share):
    return Batches(_Source(faces, config.batch, seed), workers)

  size, key = (config.size, config.size), jax.random.key(seed)
  with Stage(config, batches, config.batch, "frames", folder=folder, **listeners) as stage:
    face = np.concatenate([stage.batches.source[i]["face"] for i in range(8)])
    mean, std = face.mean(0), np.maximum(face.std(0), 1e-4)
    module = MeasuringNetwork()
    params = {
      "network": jax.jit(module.init)(key, *2 * [jnp.zeros((1, *size, 3))])["params"],
      "people": jax.random.normal(key, (config.people, module.identity_features)),
    }
    outcome = stage.train(_loss(module, mean, std), params, frames=config.batch)
  measuring = Measuring(jax.device_get(outcome.state.averaged()["network"]), mean, std, size)
  if outcome.status == Status.FINISHED:
    measuring.save(stage.folder / FILE)
    if stage.validated and config.data:
      try:
        stage.validated(outcome.step, check(measuring, ClipSets(list(config.data), config.validation_split)))
      except InputError as error:
        stage.warn(f"The network was not checked: {error}.")
  return measuring, outcome


def _loss(module, mean, std):
  """Cross-entropy of emotion and of person, and squared error of the face's measures."""

  def loss_fn(params, batch, key):
    frames, portraits = (
      _degrade(batch[name].astype(jnp.float32) / 255, jax.random.fold_in(key, i))
      for i, name in enumerate(("frames", "portraits"))
    )
    measures = module.apply({"params": params["network"]}, frames, portraits)
    people = params["people"] / jnp.linalg.norm(params["people"], axis=-1, keepdims=True)
    losses = {
      "emotion": emotion_loss(measures.emotion, batch["emotion"]),
      "identity": emotion_loss(measures.identity @ people.T / _TEMPERATURE, batch["identity"]),
      "face": jnp.square(measures.face - (batch["face"] - mean) / std).mean(),
    }
    return sum(losses.values()), losses

  return loss_fn


def check(measuring: Measuring, sets: ClipSets, frames: int = 8) -> dict[str, float]:
  """Accuracy on true frames: emotion of clips, top-1 identity, correlation of the mouth opening.

  Uses `frames` evenly spaced frames per clip. A clip's emotion is that of its mean logits. Its identity is looked up
  among the first clip of each person. Raises InputError for a person without a neutral clip.
  """
  index, right, identity, opening = sets.index, [], [], []
  is_neutral = index.emotion == EMOTIONS.index("neutral")
  portraits = {}
  for person in np.unique(index.identity):
    records = np.flatnonzero((index.identity == person) & is_neutral)
    if not len(records):
      raise InputError(f"{person} has no neutral clip to compare expressions with; build a labelled set")
    portraits[person] = sets.frames(records[0], [0])[0]
  for record in range(len(index)):
    clip = sets.clip(record)
    chosen = np.linspace(0, clip.num_frames - 1, frames).astype(int)
    measures = measuring(sets.frames(record, chosen), portraits[clip.identity])
    right.append(index.emotion[record] == measures.emotion.mean(0).argmax())
    identity.append(measures.identity.mean(0))
    opening.append(np.stack([measures.face[:, 0], clip.truth[chosen, _COLUMNS[0]]]))
  right, identity = np.array(right, bool), np.stack(identity)
  _, first, person = np.unique(index.identity, return_index=True, return_inverse=True)
  others = ~np.isin(np.arange(len(identity)), first)
  nearest = (identity[others] @ identity[first].T).argmax(-1)
  return {
    "emotion_accuracy": float(right.mean()),
    "emotion_accuracy_strongest": float(right[(index.level == LEVELS[-1]) | is_neutral].mean()),
    "identity_top1": float((nearest == person[others]).mean()),
    "mouth_correlation": float(np.corrcoef(np.concatenate(opening, axis=1))[0, 1]),
  }
