"""What a run would take, told before it is begun: parameters, memory and operations by group; nothing is trained."""

import dataclasses
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.conversion.store import readable_size
from dicetalk_jax.data.batches import diffusion_batches, embedder_batches
from dicetalk_jax.data.records import EXPRESSION_DIM
from dicetalk_jax.inference.weights import Weights
from dicetalk_jax.training.adaptation import adaptation_loss
from dicetalk_jax.training.adaptation_loss import Networks
from dicetalk_jax.training.config import AdaptationConfig, EmbedderConfig, OptimizerConfig
from dicetalk_jax.training.costs import Flops, count, count_flops, peak_flops, size, training_flops
from dicetalk_jax.training.embedder import embedder_inputs, embedder_loss, embedder_model
from dicetalk_jax.training.networks import batch_shapes, check_batch, check_trained, set_up, trainable_patterns
from dicetalk_jax.training.optimizer import make_optimizer, make_schedule
from dicetalk_jax.training.state import TrainState, split
from dicetalk_jax.training.step import make_step

_WHISPER_WIDTH = 384


@dataclasses.dataclass(frozen=True)
class Costs:
  """What a run takes; str() of it is for people.

  parameters: name -> (of which train, all). memory: name -> bytes, of one device that holds everything. flops: of one
  step, recomputation not counted. steps, rows: of the run, of a step. peak: FLOP/s of this machine's devices.
  """

  parameters: Mapping[str, tuple[int, int]]
  memory: Mapping[str, int]
  flops: Flops
  steps: int
  rows: int
  peak: float

  def __str__(self):
    lines = [f"{'parameters':<40}{'train':>16}{'all':>16}"]
    lines += [f"{name:<40}{trained:>16,}{total:>16,}" for name, (trained, total) in self.parameters.items()]
    trained, total = (sum(column) for column in zip(*self.parameters.values(), strict=True))
    lines += [f"{'all':<40}{trained:>16,}{total:>16,}", ""]
    lines += [f"{'memory':<40}{'bytes':>16}"]
    lines += [f"{name:<40}{readable_size(held):>16}" for name, held in self.memory.items()]
    lines += [f"{'all':<40}{readable_size(sum(self.memory.values())):>16}", ""]
    lines += [f"{f'operations of a step ({self.rows} clips)':<40}{'TFLOP':>16}{'share':>16}"]
    operations, all_of_them = self.flops.groups.items(), self.flops.total
    lines += [f"{name:<40}{flops / 1e12:>16.4g}{flops / all_of_them:>16.1%}" for name, flops in operations]
    lines += [f"{'all':<40}{all_of_them / 1e12:>16.4g}", ""]
    seconds = all_of_them / self.peak
    device = jax.local_devices()[0].device_kind
    lines += [
      f"at this machine's peak ({device}, {self.peak / 1e12:.3g} TFLOP/s) a step takes {seconds:.3g} s and the run of "
      f"{self.steps} steps {_duration(seconds * self.steps)}; at 40 % of it {_duration(2.5 * seconds * self.steps)}"
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
  for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
    if seconds >= 2 * length:
      return f"{seconds / length:.1f} {unit}"
  return f"{seconds:.0f} seconds"


def adaptation_costs(config: AdaptationConfig, compiled: bool = True) -> Costs:
  """Of the adaptation; where data or weights do not exist yet it goes by `config.size` and `config.networks`.

  compiled: also compiles the step, which takes minutes at full size, to tell what activations and the like take.
  Raises InputError and WeightsError as `train_adaptation`.
  """
  setup = set_up(config, needs_weights=False)
  batch = batch_shapes(setup, config)
  if _exists(*config.emotional, *config.regular):
    with diffusion_batches(config.emotional, config.regular, config.batches, seed=config.loop.seed) as batches:
      example = batches.source[0]
    check_batch(setup, example, config)
    batch = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), example)
  shapes = setup.shapes
  params, frozen = split(shapes, trainable_patterns(config))
  check_trained(params)
  frozen |= {"unet": _as(frozen["unet"], setup.dtype)} if "unet" in frozen else {}
  flops = training_flops(setup, config.objective, params, frozen, batch)
  return _costs(
    {name: shapes[name] for name in Networks._fields},
    params,
    frozen,
    batch,
    config.batches.batch,
    flops,
    config,
    adaptation_loss(setup, config.objective) if compiled else None,
  )


def embedder_costs(config: EmbedderConfig, compiled: bool = True) -> Costs:
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
  batch = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), batch)
  flops = count_flops(jax.grad(lambda *of: loss_fn(*of)[0]), params, batch, jax.eval_shape(lambda: jax.random.key(0)))
  rows = config.batches.groups * config.batches.clips
  return _costs({"emotion_embedder": params}, params, {}, batch, rows, flops, config, loss_fn if compiled else None)


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


def _costs(networks, params, frozen, batch, rows, flops, config, loss_fn) -> Costs:
  trained = _as(params, jnp.float32)
  optimizer: OptimizerConfig = config.optimizer
  parameters = {
    name: (count(params) if len(networks) == 1 else count(params.get(name, {})), count(shapes))
    for name, shapes in networks.items()
  }
  memory = {
    "parameters that train": size(trained),
    "parameters that do not": size(frozen),
    "optimizer": 2 * size(trained),
    "moving average": size(trained) if optimizer.ema_decay else 0,
    "gradients": size(trained),
    "batch": optimizer.accumulate * size(batch),
  }
  if loss_fn is not None:
    temporary = _compiled_memory(loss_fn, trained, frozen, batch, config)
    # What is compiled holds its gradients among what it computes on the way.
    memory["activations and the like"] = max(0, temporary - memory["gradients"])
  times = optimizer.accumulate
  flops = Flops({name: times * value for name, value in flops.groups.items()})
  dtype = jnp.dtype(getattr(config, "dtype", None) or ("float32" if jax.default_backend() == "cpu" else "bfloat16"))
  return Costs(parameters, memory, flops, config.loop.steps, times * rows, peak_flops(dtype))


def _compiled_memory(loss_fn, params, frozen, batch, config) -> int:
  """Bytes that the compiled step wants beside its arguments and results, on the default device."""
  optimizer = make_optimizer(config.optimizer, config.loop.steps)
  accumulate, keeps = config.optimizer.accumulate, config.optimizer.ema_decay > 0

  def state_of(params, frozen):
    created = TrainState.create(params, optimizer, jax.random.key(0), ema=keeps)
    return created.replace(frozen=frozen)

  state = jax.eval_shape(state_of, params, frozen)
  schedule = make_schedule(config.optimizer, config.loop.steps)
  step = make_step(loss_fn, optimizer, schedule, config.optimizer.ema_decay, accumulate)
  if accumulate > 1:
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((accumulate, *leaf.shape), leaf.dtype), batch)
  return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes


def _as(tree, dtype):
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)
