"""A training step as shapes: parameters, state and batch, on any mesh of devices, without data or weights."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.data.batches.diffusion import diffusion_batches
from dicetalk_jax.data.batches.embedder import embedder_batches
from dicetalk_jax.parallel.flops import Flops
from dicetalk_jax.parallel.mesh import batch_sharding
from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.parallel.rules import shardings_like
from dicetalk_jax.training.adaptation import adaptation_loss
from dicetalk_jax.training.config import AdaptationConfig, EmbedderConfig
from dicetalk_jax.training.embedder import embedder_inputs, embedder_loss, embedder_model
from dicetalk_jax.training.networks import Setup, batch_shapes, check_batch, set_up, split_trained
from dicetalk_jax.training.stage import state_maker, step_of
from dicetalk_jax.training.state import TrainState, merge
from dicetalk_jax.training.step import LossFn, gradient_flops
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

  def placed(self, placement: Placement) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """State and batches of a step, with the shardings that training uses on a mesh.

    Raises InputError for mesh rules that fit no parameter.
    """
    accumulate, parameters = self.config.optimizer.accumulate, placement.parameters
    placement.check(self.networks if self.setup else self.params)
    state = jax.eval_shape(state_maker(self.config), self.params)
    state = _at(state, shardings_like(state, self.params, parameters(self.params), placement.mesh))
    batch, parts = self.batch, int(accumulate > 1)
    if parts:
      batch = {name: jax.ShapeDtypeStruct((accumulate, *leaf.shape), leaf.dtype) for name, leaf in batch.items()}
    batch = _at(batch, dict.fromkeys(batch, batch_sharding(placement.mesh, parts)))
    return state.replace(frozen=_at(self.frozen, parameters(self.frozen))), batch

  def compiled_memory(self, placement: Placement) -> tuple[int, int]:
    """Compiles the step, minutes at full size: bytes of arguments and of temporaries on a device."""
    state, batch = self.placed(placement)
    step = step_of(self.config, self.loss_fn, jax.tree.map(lambda leaf: leaf.sharding, state.replace(frozen=None)))
    # Nothing will run: spend no time on fast code.
    memory = step.lower(state, batch).compile({"xla_backend_optimization_level": 0}).memory_analysis()
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes

  @property
  def flops(self) -> Flops:
    """FLOP of a step."""
    groups = gradient_flops(self.loss_fn, self.params, self.frozen, self.batch).groups
    return Flops({name: self.config.optimizer.accumulate * flops for name, flops in groups.items()})

  def loss(self, params, frozen, batch):
    """() loss of a batch, for traces."""
    return self.loss_fn(merge(params, frozen), batch, jax.random.key(0))[0]

  def with_remat(self, remat) -> "Outline":
    """The same step with another `remat` of the U-Net."""
    if self.setup is None:
      return self
    setup = self.setup.with_remat(remat)
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
  params, frozen = split_trained(setup, config, networks)
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
