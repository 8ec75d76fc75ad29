"""What a run takes: parameters, memory and FLOP, from shapes alone."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from dicetalk_jax.files import readable_size
from dicetalk_jax.parallel.flops import Flops, count, peak_flops, size
from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.planning.outline import make_outline
from dicetalk_jax.training.config import AdaptationConfig, EmbedderConfig


@dataclasses.dataclass(frozen=True)
class Costs:
  """Costs of a run; str() of it is a table.

  parameters: name -> (trained, all). memory: name -> bytes on one device that holds everything. flops: of a step,
  without recomputation. steps: of the run. rows: clips of a step. peak: FLOP/s of this machine's devices. compiled:
  whether the memory includes activations.
  """

  parameters: Mapping[str, tuple[int, int]]
  memory: Mapping[str, int]
  flops: Flops
  steps: int
  rows: int
  peak: float
  compiled: bool

  def __str__(self):
    trained, total = (sum(column) for column in zip(*self.parameters.values(), strict=True))
    flops = self.flops.total
    seconds, device = flops / self.peak, jax.local_devices()[0].device_kind
    lines = [
      _row("parameters", "train", "all"),
      *(_row(name, f"{ours:,}", f"{every:,}") for name, (ours, every) in self.parameters.items()),
      _row("all", f"{trained:,}", f"{total:,}"),
      "",
      _row("memory", "bytes"),
      *(_row(name, readable_size(held)) for name, held in self.memory.items()),
      _row("all", readable_size(sum(self.memory.values()))),
      *([] if self.compiled else ["Activations are not included; --compile compiles the step and adds them."]),
      "",
      _row(f"operations of a step ({self.rows} clips)", "TFLOP", "share"),
      *(_row(name, f"{part / 1e12:.4g}", f"{part / flops:.1%}") for name, part in self.flops.groups.items()),
      _row("all", f"{flops / 1e12:.4g}"),
      "",
      f"At this machine's peak ({device}, {self.peak / 1e12:.3g} TFLOP/s) a step takes {seconds:.3g} s and the run of "
      f"{self.steps} steps {_duration(seconds * self.steps)}; at 40 % of the peak the run takes "
      f"{_duration(2.5 * seconds * self.steps)}.",
    ]
    return "\n".join(lines)


def _row(name, *values) -> str:
  return f"{name:<40}" + "".join(f"{value:>16}" for value in values)


def _duration(seconds: float) -> str:
  for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
    if seconds >= 2 * length:
      return f"{seconds / length:.1f} {unit}"
  return f"{seconds:.0f} seconds"


def training_costs(config: AdaptationConfig | EmbedderConfig, compiled: bool = False) -> Costs:
  """Costs of a run of the adaptation or the embedder; data and weights need not exist, see `make_outline`.

  compiled: also compile the step, minutes at full size, to include activations in the memory. Raises what
  `make_outline` raises.
  """
  outline = make_outline(config)
  networks, params, optimizer = outline.networks, outline.params, config.optimizer
  parameters = {
    name: (count(params if len(networks) == 1 else params.get(name, {})), count(shapes))
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
    _, temporaries = outline.compiled_memory(Placement.alone())
    # The temporaries of a compiled step include its gradients.
    memory["activations and other temporaries"] = max(0, temporaries - memory["gradients"])
  peak = peak_flops(outline.setup.dtype if outline.setup else jnp.float32)
  flops, rows = outline.with_remat(False).flops, optimizer.accumulate * outline.rows
  return Costs(parameters, memory, flops, config.loop.steps, rows, peak, compiled)
