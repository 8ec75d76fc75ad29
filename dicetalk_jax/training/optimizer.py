"""What moves parameters: Adam behind clipping, and the learning rate over the updates."""

import jax
import optax
import optax.contrib

from dicetalk_jax.errors import InputError
from dicetalk_jax.training.config import OptimizerConfig

# Of an update, as a share of the learning rate.
_RMS_OF_ADAM = 0.2


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate of update 0, 1, …, `steps` - 1; raises InputError for what makes no schedule."""
  rate, warmup = config.learning_rate, config.warmup_steps
  if rate <= 0 or not 0 <= config.final_scale <= 1:
    raise InputError(
      f"learning_rate {rate} and final_scale {config.final_scale} cannot be used: the first is above 0, the second "
      "from 0 to 1"
    )
  if not 0 <= warmup < max(steps, 1):
    raise InputError(f"warmup_steps {warmup} leaves nothing of {steps} steps; set fewer of them, or more steps")
  # The last update is `steps` - 1, and has the final rate.
  rest = max(steps - warmup - 1, 1)
  match config.schedule:
    case "constant":
      after = optax.constant_schedule(rate)
    case "linear":
      after = optax.linear_schedule(rate, rate * config.final_scale, rest)
    case "cosine":
      after = optax.cosine_decay_schedule(rate, rest, config.final_scale)
    case _:
      raise InputError(f"schedule is '{config.schedule}', wanted constant, cosine or linear")
  if not warmup:
    return after
  # From rate / warmup: a first update of 0 would be lost.
  rise = optax.linear_schedule(rate / warmup, rate, warmup - 1)
  return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """Clipping by global norm, then Adam, AdamW where weights decay, or Muon; raises InputError for what makes none."""
  if config.clip_norm is not None and config.clip_norm <= 0:
    raise InputError(f"clip_norm is {config.clip_norm}, wanted a number above 0, or none")
  if not (0 <= config.b1 < 1 and 0 <= config.b2 < 1 and config.eps > 0 and config.weight_decay >= 0):
    raise InputError(
      f"b1 {config.b1}, b2 {config.b2}, eps {config.eps} and weight_decay {config.weight_decay} cannot be used: the "
      "first two are from 0 up to 1, eps is above 0, weight_decay at least 0"
    )
  if config.kind not in ("adam", "muon"):
    raise InputError(f"kind is '{config.kind}', wanted adam or muon")
  adam = dict(b1=config.b1, b2=config.b2, eps=config.eps)
  schedule = make_schedule(config, steps)
  if config.kind == "muon":
    moved = optax.contrib.muon(
      schedule,
      weight_decay=config.weight_decay,
      weight_decay_mask=_matrices,
      adam_b1=config.b1,
      adam_b2=config.b2,
      eps=config.eps,
      muon_weight_dimension_numbers=_kernels,
      consistent_rms=_RMS_OF_ADAM,
    )
  elif config.weight_decay:
    moved = optax.adamw(schedule, weight_decay=config.weight_decay, mask=_matrices, **adam)
  else:
    moved = optax.adam(schedule, **adam)
  return moved if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), moved)


def _kernels(params):
  """Of each kernel the axes that are summed over and the last, of what comes out; None for what is no kernel."""

  def axes(path, leaf):
    if leaf.ndim < 2 or getattr(path[-1], "key", None) != "kernel":
      return None
    return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

  return jax.tree_util.tree_map_with_path(axes, params)


def _matrices(params):
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
