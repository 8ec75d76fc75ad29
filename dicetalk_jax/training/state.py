"""The state of training, a pytree: what trains apart from what is frozen, and all that a run needs to go on exactly."""

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
  """step counts every step, skipped ones included; params and frozen are nested dicts that have no leaf in common.

  The random numbers of a step are those of fold_in(key, step): they depend on nothing else.
  """

  step: jax.Array  # () int32
  params: Any  # what trains, float32
  frozen: Any
  opt_state: optax.OptState
  ema: Any  # as params, or None
  key: jax.Array  # raw, uint32
  skipped: jax.Array  # () int32: steps whose loss or gradients were not finite
  skipped_in_row: jax.Array  # () int32: those since the last that was taken

  @classmethod
  def create(
    cls,
    params: Mapping,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    trainable: str | Sequence[str] = "",
    ema: bool = True,
    frozen_dtype: jnp.dtype | None = None,
  ) -> "TrainState":
    """The state before the first step. `params` stay usable: what trains is copied, as float32.

    trainable: see `split`; frozen_dtype: what the frozen floating-point leaves are cast to. InputError as of `split`.
    """
    params, frozen = split(params, trainable)
    params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)
    if frozen_dtype is not None:
      frozen = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, frozen_dtype if jnp.issubdtype(leaf.dtype, jnp.floating) else None), frozen
      )
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
      key = jax.random.key_data(key)
    return cls(
      step=jnp.zeros((), jnp.int32),
      params=params,
      frozen=jax.tree.map(jnp.asarray, frozen),
      opt_state=optimizer.init(params),
      # A copy: a step gives all of its buffers away, and none may be given twice.
      ema=jax.tree.map(jnp.copy, params) if ema else None,
      key=jnp.array(key),
      skipped=jnp.zeros((), jnp.int32),
      skipped_in_row=jnp.zeros((), jnp.int32),
    )

  def emptied(self) -> "TrainState":
    """The state with shapes and shardings for all that a checkpoint brings; the memory of these arrays is freed."""

    def describe(leaf):
      described = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
      leaf.delete()
      return described

    return jax.tree.map(describe, self.replace(frozen=None)).replace(frozen=self.frozen)

  def latest(self) -> dict:
    """All parameters as they are now, nested."""
    return merge(self.params, self.frozen)

  def averaged(self) -> dict:
    """All parameters with the moving average of what trains, or as they are now where none is kept."""
    return merge(self.params if self.ema is None else self.ema, self.frozen)


def split(params: Mapping, trainable: str | Sequence[str] = "") -> tuple[dict, dict]:
  """Nested params -> what trains, what does not: nested dicts without a leaf in common.

  trainable: regular expressions searched for in paths such as "down_blocks_0/attentions_1/to_q/kernel"; a leaf trains
  where one is found, and "" is found in all. Raises InputError, naming it, for one that is found in none or is no
  regular expression, and where there is none.
  """
  patterns = [trainable] if isinstance(trainable, str) else list(trainable)
  flat = flatten_dict(params, sep="/")
  if not patterns:
    raise InputError("nothing is named to train; give at least one regular expression of parameter paths")
  chosen = set()
  for pattern in patterns:
    try:
      found = {path for path in flat if re.search(pattern, path)}
    except re.error as error:
      raise InputError(f"'{pattern}' of what is to train is not a regular expression: {error}") from None
    if not found:
      raise InputError(
        f"'{pattern}' of what is to train is found in none of the {len(flat)} parameters, such as '{next(iter(flat))}'"
      )
    chosen |= found
  parts = ({path: leaf for path, leaf in flat.items() if (path in chosen) is trains} for trains in (True, False))
  return tuple(unflatten_dict(part, sep="/") for part in parts)


def merge(params: Mapping, frozen: Mapping) -> dict:
  """The two parts of `split` as one again."""
  return unflatten_dict(flatten_dict(params, sep="/") | flatten_dict(frozen, sep="/"), sep="/")
