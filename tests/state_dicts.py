"""Whole PyTorch state dicts <-> nested Flax parameters, by the tables of the package."""

from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.weights.release.names import Table, plan


def to_flax(table: Table, tensors: Mapping, target: Mapping, source: str = "") -> dict:
  """A whole state dict (name -> array) -> nested Flax parameters of the same dtypes; raises as `plan`."""
  entries = plan(table, {key: value.shape for key, value in tensors.items()}, target, source)
  return unflatten_dict(
    {e.path: e.transform.to_flax(np.asarray(tensors[e.key])) for e in entries if e.path is not None}, sep="/"
  )


def to_torch(table: Table, params: Mapping) -> dict[str, np.ndarray]:
  """Nested Flax parameters -> state dict (name -> array) of the same dtypes."""
  state = {}
  for path, value in flatten_dict(params, sep="/").items():
    key = table.key(path)
    state[key] = table.rule(key).transform.to_torch(np.asarray(value))
  return state
