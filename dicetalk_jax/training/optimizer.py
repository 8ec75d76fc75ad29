"""Optimizer and learning-rate schedule."""

import jax
import optax
import optax.contrib

from dicetalk_jax.errors import InputError
from dicetalk_jax.training.config import OptimizerConfig, check_least

# Root mean square of an Adam update, as a share of the learning rate (Liu et al. 2025).
_RMS_OF_ADAM = 0.2


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate of updates 0, …, `steps` - 1. Raises InputError for settings that give no schedule."""
  rate, warmup = config.learning_rate, config.warmup_steps
  if rate <= 0:
    raise InputError(f"optimizer.learning_rate is {rate}; give a number above 0")
  if not 0 <= warmup < max(steps, 1):
    raise InputError(
      f"optimizer.warmup_steps is {warmup} and loop.steps is {steps}; the warm-up must be shorter than the run"
    )
  # The last update is `steps` - 1, and has the final rate.
  rest = max(steps - warmup - 1, 1)
  schedules = {
    "constant": optax.constant_schedule(rate),
    "linear": optax.linear_schedule(rate, 0.0, rest),
    "cosine": optax.cosine_decay_schedule(rate, rest),
  }
  if config.schedule not in schedules:
    raise InputError(f"optimizer.schedule is '{config.schedule}'; choose constant, cosine or linear")
  after = schedules[config.schedule]
  if not warmup:
    return after
  # From rate / warmup, because a first update of 0 would be wasted.
  rise = optax.linear_schedule(rate / warmup, rate, warmup - 1)
  return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """Clipping by global norm, then Adam, AdamW or Muon; updates that are not finite are skipped and counted.

  Raises InputError for settings that cannot be used.
  """
  if config.clip_norm is not None and config.clip_norm <= 0:
    raise InputError(f"optimizer.clip_norm is {config.clip_norm}; give a number above 0, or none")
  check_least(config, {"weight_decay": 0}, "optimizer.")
  if config.kind not in ("adam", "muon"):
    raise InputError(f"optimizer.kind is '{config.kind}'; choose adam or muon")
  schedule = make_schedule(config, steps)
  if config.kind == "muon":
    optimizer = optax.contrib.muon(
      schedule,
      weight_decay=config.weight_decay,
      weight_decay_mask=_matrices,
      muon_weight_dimension_numbers=_kernels,
      consistent_rms=_RMS_OF_ADAM,
    )
  elif config.weight_decay:
    optimizer = optax.adamw(schedule, weight_decay=config.weight_decay, mask=_matrices)
  else:
    optimizer = optax.adam(schedule)
  if config.clip_norm is not None:
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
  # The loop ends a run that does not recover, so the wrapper never gives up by itself.
  return optax.apply_if_finite(optimizer, max_consecutive_errors=2**31 - 2)


def _kernels(params):
  """Input axes and output axis of each kernel for Muon; None for all other parameters, which Adam updates."""

  def axes(path, leaf):
    if leaf.ndim < 2 or getattr(path[-1], "key", None) != "kernel":
      return None
    return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

  return jax.tree_util.tree_map_with_path(axes, params)


def _matrices(params):
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
