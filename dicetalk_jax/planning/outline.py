"""A run before it is begun, as shapes alone: its parameters, its batches, its compiled step; on any mesh of devices."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.data.batches.diffusion import diffusion_batches
from dicetalk_jax.data.batches.embedder import embedder_batches
from dicetalk_jax.parallel.mesh import batch_sharding
from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.parallel.rules import shardings_like
from dicetalk_jax.training.adaptation import adaptation_loss
from dicetalk_jax.training.config import AdaptationConfig, EmbedderConfig
from dicetalk_jax.training.embedder import embedder_inputs, embedder_loss, embedder_model
from dicetalk_jax.training.networks import (
  Setup,
  batch_shapes,
  check_batch,
  check_trained,
  set_up,
  trainable_patterns,
)
from dicetalk_jax.training.optimizer import make_optimizer, make_schedule
from dicetalk_jax.training.state import TrainState, merge, split
from dicetalk_jax.training.step import LossFn, make_step
from dicetalk_jax.vocabulary import EXPRESSION_DIM
from dicetalk_jax.weights.folder import Weights

_WHISPER_WIDTH = 384


@dataclasses.dataclass(frozen=True)
class Outline:
  """What a step is made of, arrays as their shapes.

  networks: {name: all its parameters}. params, frozen: what trains, and what does not in the dtype that it is kept in;
  nested. batch: of one of the step's `optimizer.accumulate` parts, of `rows` clips. setup: of the adaptation.
  """

  config: AdaptationConfig | EmbedderConfig
  networks: Mapping[str, Any]
  params: Mapping
  frozen: Mapping
  batch: Mapping[str, jax.ShapeDtypeStruct]
  rows: int
  loss_fn: LossFn
  setup: Setup | None = None

  def placed(self, placement: Placement | None = None) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """The state and the batches of a step, each leaf where training has it on a mesh.

    Raises InputError for rules of the placement that cannot be meant.
    """
    optimizer = make_optimizer(self.config.optimizer, self.config.loop.steps)
    keeps, accumulate = self.config.optimizer.ema_decay > 0, self.config.optimizer.accumulate

    def create(params):
      return TrainState.create(params, optimizer, jax.random.key(0), ema=keeps).replace(frozen=None)

    state = jax.eval_shape(create, self.params)
    batch, frozen, parts = self.batch, self.frozen, int(accumulate > 1)
    if parts:
      batch = {name: jax.ShapeDtypeStruct((accumulate, *leaf.shape), leaf.dtype) for name, leaf in batch.items()}
    if placement is not None:
      placement.check(self.networks if self.setup else self.params)
      state = _at(state, shardings_like(state, self.params, placement.parameters(self.params), placement.mesh))
      frozen = _at(frozen, placement.parameters(frozen))
      batch = _at(batch, dict.fromkeys(batch, batch_sharding(placement.mesh, parts)))
    return state.replace(frozen=frozen), batch

  def lowered(self, placement: Placement | None = None) -> jax.stages.Lowered:
    """The step that training would run, ready to be compiled: on a mesh, or for the default device."""
    state, batch = self.placed(placement)
    where = jax.tree.map(lambda leaf: leaf.sharding, state.replace(frozen=None)) if placement else None
    optimizer = self.config.optimizer
    step = make_step(
      self.loss_fn,
      make_optimizer(optimizer, self.config.loop.steps),
      make_schedule(optimizer, self.config.loop.steps),
      optimizer.ema_decay,
      optimizer.accumulate,
      where,
    )
    return step.lower(state, batch)

  def gradient(self) -> tuple[Callable, tuple]:
    """The gradient of the loss by what trains, and the shapes that it takes."""

    def gradient(params, frozen, batch, key):
      return jax.grad(lambda params: self.loss_fn(merge(params, frozen), batch, key)[0])(params)

    return gradient, (self.params, self.frozen, self.batch, jax.eval_shape(lambda: jax.random.key(0)))


def _at(shapes, shardings):
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
  )


def adaptation_outline(config: AdaptationConfig) -> Outline:
  """Of the adaptation; where data or weights do not exist yet it goes by `config.size` and `config.networks`.

  Raises InputError and WeightsError as `train_adaptation`.
  """
  setup = set_up(config, needs_weights=False)
  batch = batch_shapes(setup, config)
  if _exists(*config.emotional, *config.regular):
    with diffusion_batches(config.emotional, config.regular, config.batches, seed=config.loop.seed) as batches:
      example = batches.source[0]
    check_batch(setup, example, config)
    batch = _shapes(example)
  params, frozen = split(setup.shapes, trainable_patterns(config))
  check_trained(params, setup)
  frozen |= {"unet": _as(frozen["unet"], setup.dtype)} if "unet" in frozen else {}
  loss_fn = adaptation_loss(setup, config.objective)
  return Outline(config, setup.shapes, _as(params, jnp.float32), frozen, batch, config.batches.batch, loss_fn, setup)


def embedder_outline(config: EmbedderConfig) -> Outline:
  """Of the embedder's training; where the data does not exist yet it goes by the weights' Whisper, or Whisper-tiny.

  Raises as `train_embedder`.
  """
  if _exists(*config.data):
    with embedder_batches(list(config.data), config.batches, seed=config.loop.seed) as batches:
      batch = batches.source[0]
  else:
    batch = _embedder_batch(config)
  model = embedder_model(config, batch)
  params = jax.eval_shape(model.init, jax.random.key(0), *embedder_inputs(batch))["params"]
  loss_fn = embedder_loss(model, config.temperature, config.drop_video, config.drop_audio)
  rows = config.batches.groups * config.batches.clips
  return Outline(config, {"emotion_embedder": params}, _as(params, jnp.float32), {}, _shapes(batch), rows, loss_fn)


def _exists(*folders: str) -> bool:
  """Whether any is there: then all have to be."""
  return any(pathlib.Path(folder).expanduser().exists() for folder in folders)


def _embedder_batch(config: EmbedderConfig) -> dict:
  width = _WHISPER_WIDTH
  if _exists(config.weights or "nothing"):
    width = Weights.open(config.weights).config["networks"].get("audio_encoder", {}).get("d_model", width)
  rows, frames = config.batches.groups * config.batches.clips, config.batches.frames
  batch = {
    name: np.zeros((rows, frames, size), np.float32)
    for name, size in (("expression", EXPRESSION_DIM), ("speech", width))
  }
  batch |= dict.fromkeys(("expression_mask", "speech_mask"), np.ones((rows, frames), bool))
  labels = ("group", "identity", "clip", "emotion", "level")
  return batch | dict.fromkeys(labels, np.zeros(rows, np.int32)) | {"valid": np.ones(rows, bool)}


def _shapes(batch):
  return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in batch.items()}


def _as(tree, dtype):
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)
