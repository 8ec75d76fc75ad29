"""The state of training as a pytree: trained and frozen parameters, optimizer, average, step and random key."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.errors import InputError


@flax.struct.dataclass
class TrainState:
  """State of a run. params and frozen are nested dicts without a common leaf.

  The random numbers of a step come from fold_in(key, step) and depend on nothing else.
  """

  step: jax.Array  # () int32, skipped steps included
  params: Any  # trained parameters, float32
  frozen: Any
  opt_state: optax.OptState  # of `optimizer.make_optimizer`
  ema: Any  # as params, or None
  key: jax.Array  # raw, uint32

  @classmethod
  def create(
    cls,
    params: Mapping,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    trainable: str | Sequence[str] = "",
    ema: bool = True,
  ) -> "TrainState":
    """The state before the first step. Trained parameters are copied as float32, so `params` stay usable.

    trainable: see `split`, which may raise. ema: keep a moving average.
    """
    params, frozen = split(params, trainable)
    params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
      key = jax.random.key_data(key)
    return cls(
      step=jnp.zeros((), jnp.int32),
      params=params,
      frozen=jax.tree.map(jnp.asarray, frozen),
      opt_state=optimizer.init(params),
      # A copy, because a step donates all of its buffers and none may be donated twice.
      ema=jax.tree.map(jnp.copy, params) if ema else None,
      key=jnp.array(key),
    )

  @property
  def skipped(self) -> jax.Array:
    """() int32: steps with a non-finite loss or gradient."""
    return self.opt_state.total_notfinite

  @property
  def skipped_in_row(self) -> jax.Array:
    """() int32: consecutive steps, up to this one, with a non-finite loss or gradient."""
    return self.opt_state.notfinite_count

  def emptied(self) -> "TrainState":
    """Shapes and shardings in place of all that a checkpoint restores. Frees the memory of these arrays."""

    def describe(leaf):
      described = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
      leaf.delete()
      return described

    return jax.tree.map(describe, self.replace(frozen=None)).replace(frozen=self.frozen)

  def averaged(self) -> dict:
    """All parameters, the trained ones as their moving average if there is one."""
    return merge(self.params if self.ema is None else self.ema, self.frozen)


def split(params: Mapping, trainable: str | Sequence[str] = "") -> tuple[dict, dict]:
  """Splits nested params into (trained, frozen), nested dicts without a common leaf.

  trainable: regular expressions. A leaf trains if one of them is found in its path, such as
  "down_blocks_0/attentions_1/to_q/kernel"; "" is found in every path. Raises InputError for an expression that is
  invalid or found in no path, and for an empty list.
  """
  patterns = [trainable] if isinstance(trainable, str) else list(trainable)
  flat = flatten_dict(params, sep="/")
  if not patterns:
    raise InputError("nothing is selected to train; give at least one regular expression of parameter paths")
  chosen = set()
  for pattern in patterns:
    try:
      matches = {path for path in flat if re.search(pattern, path)}
    except re.error as error:
      raise InputError(f"trainable: '{pattern}' is not a regular expression: {error}") from None
    if not matches:
      raise InputError(
        f"trainable: '{pattern}' matches none of the {len(flat)} parameters, such as '{next(iter(flat))}'"
      )
    chosen |= matches
  parts = ({path: leaf for path, leaf in flat.items() if (path in chosen) is trains} for trains in (True, False))
  return tuple(unflatten_dict(part, sep="/") for part in parts)


def merge(params: Mapping, frozen: Mapping) -> dict:
  """Joins the two parts of `split`."""
  return unflatten_dict(flatten_dict(params, sep="/") | flatten_dict(frozen, sep="/"), sep="/")
