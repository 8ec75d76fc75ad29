"""A training step as shapes: parameters, state and batch, on any mesh of devices, without data or weights."""

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
from dicetalk_jax.training.networks import Setup, batch_shapes, check_batch, check_trained, set_up, trainable_patterns
from dicetalk_jax.training.optimizer import make_optimizer, make_schedule
from dicetalk_jax.training.state import TrainState, merge, split
from dicetalk_jax.training.step import LossFn, make_step
from dicetalk_jax.vocabulary import EXPRESSION_DIM
from dicetalk_jax.weights.architectures import RELEASED
from dicetalk_jax.weights.folder import Weights


@dataclasses.dataclass(frozen=True)
class Outline:
  """A training step, with shapes instead of arrays.

  networks: {name: all parameters}. params, frozen: nested parameters that train, and that do not, the latter in the
  type that they are kept in. batch: of one of the step's `optimizer.accumulate` parts, of `rows` clips. setup: of the
  adaptation.
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
    """State and batches of a step, with the shardings that training uses on a mesh.

    Raises InputError for mesh rules that fit no parameter.
    """
    optimizer, accumulate = self.config.optimizer, self.config.optimizer.accumulate
    transformation = make_optimizer(optimizer, self.config.loop.steps)

    def create(params):
      state = TrainState.create(params, transformation, jax.random.key(0), ema=optimizer.ema_decay > 0)
      return state.replace(frozen=None)

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

  def compiled_memory(self, placement: Placement | None = None) -> tuple[int, int]:
    """Compiles the step, minutes at full size: bytes of arguments and of temporaries on a device."""
    state, batch = self.placed(placement)
    where = jax.tree.map(lambda leaf: leaf.sharding, state.replace(frozen=None)) if placement else None
    optimizer, steps = self.config.optimizer, self.config.loop.steps
    step = make_step(
      self.loss_fn,
      make_optimizer(optimizer, steps),
      make_schedule(optimizer, steps),
      optimizer.ema_decay,
      optimizer.accumulate,
      where,
    )
    # Nothing will run: spend no time on fast code.
    memory = step.lower(state, batch).compile({"xla_backend_optimization_level": 0}).memory_analysis()
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes

  def gradient(self) -> tuple[Callable, tuple]:
    """The gradient of the loss with respect to what trains, and the shapes of its arguments."""

    def gradient(params, frozen, batch, key):
      return jax.grad(lambda params: self.loss_fn(merge(params, frozen), batch, key)[0])(params)

    return gradient, (self.params, self.frozen, self.batch, jax.eval_shape(lambda: jax.random.key(0)))

  def with_remat(self, remat) -> "Outline":
    """The same step with another `remat` of the U-Net."""
    if self.setup is None:
      return self
    modules = self.setup.modules
    setup = dataclasses.replace(self.setup, modules=modules | {"unet": modules["unet"].clone(remat=remat)})
    return dataclasses.replace(self, setup=setup, loss_fn=adaptation_loss(setup, self.config.objective))


def _at(shapes, shardings):
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
  )


def make_outline(config: AdaptationConfig | EmbedderConfig) -> Outline:
  """The outline of a step of the adaptation or of the embedder. Data and weights that exist are checked.

  Without data, the sizes come from the configuration and the weights; without weights, from `config.networks` or, for
  the embedder, from Whisper-tiny. Raises what the training of `config` raises.
  """
  return _embedder(config) if isinstance(config, EmbedderConfig) else _adaptation(config)


def _adaptation(config: AdaptationConfig) -> Outline:
  setup = set_up(config, needs_weights=False)
  batch = batch_shapes(setup, config)
  if _exists(*config.emotional, *config.regular):
    with diffusion_batches(config.emotional, config.regular, config.batches, seed=config.loop.seed) as batches:
      example = batches.source[0]
    check_batch(setup, example, config)
    batch = _shapes(example)
  networks = setup.shapes
  params, frozen = split(networks, trainable_patterns(config))
  check_trained(params, setup)
  frozen |= {"unet": _as(frozen["unet"], setup.dtype)} if "unet" in frozen else {}
  loss_fn = adaptation_loss(setup, config.objective)
  return Outline(config, networks, _as(params, jnp.float32), frozen, batch, config.batches.batch, loss_fn, setup)


def _embedder(config: EmbedderConfig) -> Outline:
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
  """Whether any of the folders exists; then all have to."""
  return any(pathlib.Path(folder).expanduser().exists() for folder in folders)


def _embedder_batch(config: EmbedderConfig) -> dict:
  width = RELEASED["emotion_embedder"]["speech_features"]
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
