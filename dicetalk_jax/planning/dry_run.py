"""What a run would take, told before it is begun: parameters, memory and operations by group; nothing is trained."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from dicetalk_jax.files import readable_size
from dicetalk_jax.parallel.flops import Flops, count, count_flops, peak_flops, size
from dicetalk_jax.planning.outline import Outline, adaptation_outline, embedder_outline
from dicetalk_jax.training.adaptation import training_flops
from dicetalk_jax.training.config import AdaptationConfig, EmbedderConfig, OptimizerConfig


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
  outline = adaptation_outline(config)
  flops = training_flops(outline.setup, config.objective, outline.params, outline.frozen, outline.batch)
  return _costs(outline, flops, compiled)


def embedder_costs(config: EmbedderConfig, compiled: bool = True) -> Costs:
  """Of the embedder's training; where the data does not exist yet it goes by the weights' Whisper, or Whisper-tiny.

  Raises as `train_embedder`.
  """
  outline = embedder_outline(config)
  gradient, inputs = outline.gradient()
  return _costs(outline, count_flops(gradient, *inputs), compiled)


def _costs(outline: Outline, flops: Flops, compiled: bool) -> Costs:
  config, networks, params = outline.config, outline.networks, outline.params
  optimizer: OptimizerConfig = config.optimizer
  parameters = {
    name: (count(params) if len(networks) == 1 else count(params.get(name, {})), count(shapes))
    for name, shapes in networks.items()
  }
  memory = {
    "parameters that train": size(params),
    "parameters that do not": size(outline.frozen),
    "optimizer": 2 * size(params),
    "moving average": size(params) if optimizer.ema_decay else 0,
    "gradients": size(params),
    "batch": optimizer.accumulate * size(outline.batch),
  }
  if compiled:
    temporary = outline.lowered().compile().memory_analysis().temp_size_in_bytes
    # What is compiled holds its gradients among what it computes on the way.
    memory["activations and the like"] = max(0, temporary - memory["gradients"])
  times = optimizer.accumulate
  flops = Flops({name: times * value for name, value in flops.groups.items()})
  dtype = jnp.dtype(getattr(config, "dtype", None) or ("float32" if jax.default_backend() == "cpu" else "bfloat16"))
  return Costs(parameters, memory, flops, config.loop.steps, times * outline.rows, peak_flops(dtype))
