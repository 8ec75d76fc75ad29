"""Shardings: one ordered table, path -> PartitionSpec, for parameters, optimizer state and averages.

Optimizer state and averages repeat the paths of the parameters after prefixes, so one table serves all. The first rule
whose expression is found in a path decides. Every rule splits large dimensions over `fsdp`. `tensor` splits the outputs
of the first of two products and the inputs of the second, so that only the second needs a sum over devices.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dicetalk_jax.errors import InputError
from dicetalk_jax.parallel.mesh import AXES

Rule = tuple[str, tuple[str | None, ...]]

# Kernels are (in, out), (frames, in, out) or (height, width, in, out). A spec applies to the last dimensions.
RULES: tuple[Rule, ...] = (
  # Attention: heads over `tensor`.
  (r"/(to_[qkv](_ip_\d+)?|[qkv]_proj)/kernel$", ("fsdp", "tensor")),
  (r"/(to_out_0|out_proj)/kernel$", ("tensor", "fsdp")),
  # Feed-forward.
  (r"/(net_0/proj|linear1|fc1|linear_1)/kernel$", ("fsdp", "tensor")),
  (r"/(net_2|linear2|fc2|linear_2)/kernel$", ("tensor", "fsdp")),
  # Residual blocks: the channels between the two convolutions.
  (r"/(conv1|time_emb_proj)/kernel$", ("fsdp", "tensor")),
  (r"/conv2/kernel$", ("tensor", "fsdp")),
  # Single products.
  (r"(^|/)kernel$", ("fsdp", None)),
  (r"(^|/)embedding$", ("fsdp", None)),
  # Biases of very wide products.
  (r"(^|/)bias$", ("fsdp",)),
  # Scales, mixing factors, learnt queries: replicated.
  (r"", ()),
)
# Smaller parameters are replicated: fetching them costs more than keeping them.
SMALLEST = 2**12


def spec_of(path: str, shape: Sequence[int], mesh: Mesh, rules: Sequence[Rule] = RULES) -> PartitionSpec:
  """The spec of a leaf. An axis that does not divide its dimension moves to the largest dimension without an axis.

  Leaves with fewer than SMALLEST values are replicated.
  """
  if math.prod(shape) < SMALLEST:
    return PartitionSpec()
  axes = next((axes for pattern, axes in rules if re.search(pattern, path)), ())
  # Align at the end: the dimensions before a kernel's inputs are small.
  axes = [None] * (len(shape) - len(axes)) + list(axes[max(0, len(axes) - len(shape)) :])
  others = sorted((i for i, axis in enumerate(axes) if axis is None), key=lambda i: -shape[i])
  dims = [None] * len(shape)
  for wanted, axis in enumerate(axes):
    if axis is None or mesh.shape[axis] == 1:
      continue
    fitting = (i for i in (wanted, *others) if dims[i] is None and shape[i] % mesh.shape[axis] == 0)
    if (chosen := next(fitting, None)) is not None:
      dims[chosen] = axis
  return PartitionSpec(*dims)


def shardings(params: Any, mesh: Mesh, extra: Sequence[Rule] = ()) -> Any:
  """NamedShardings of nested parameters or their shapes; `extra` rules precede RULES."""
  rules = (*extra, *RULES)
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(mesh, spec_of(path_name(path), leaf.shape, mesh, rules)), params
  )


def shardings_like(tree: Any, params: Any, of_params: Any, mesh: Mesh) -> Any:
  """NamedShardings of a tree: a leaf whose path ends in a parameter's path, and has its shape, gets its sharding.

  This puts optimizer state and averages on the devices of their parameters; other leaves are replicated. params: nested
  arrays or shapes. of_params: their shardings.
  """
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  known = {
    (path_name(path), leaf.shape): sharding
    for (path, leaf), sharding in zip(flat, jax.tree.leaves(of_params), strict=True)
  }

  def find(path, leaf):
    parts = path_name(path).split("/")
    names = (("/".join(parts[i:]), leaf.shape) for i in range(len(parts)))
    return next((known[name] for name in names if name in known), NamedSharding(mesh, PartitionSpec()))

  return jax.tree_util.tree_map_with_path(find, tree)


def path_name(path) -> str:
  """A JAX key path as "opt_state/0/mu/unet/conv_in/kernel"."""
  return "/".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path)


def check_rules(rules: Sequence[Rule], shapes: Mapping[str, Sequence[int]]) -> None:
  """Raises InputError for a rule with an invalid expression or one that is found in no path, with an axis that is
  unknown or named twice, or with more dimensions than a leaf. shapes: of all parameters, by path.
  """
  for pattern, axes in rules:
    try:
      matches = [path for path in shapes if re.search(pattern, path)]
    except re.error as error:
      raise InputError(f"mesh.rules: '{pattern}' is not a regular expression: {error}") from None
    if not matches:
      some = next(iter(shapes), "")
      raise InputError(f"mesh.rules: '{pattern}' matches none of the {len(shapes)} parameters, such as '{some}'")
    named = [axis for axis in axes if axis is not None]
    if unknown := set(named) - set(AXES):
      raise InputError(f"mesh.rules: '{pattern}' names axis {sorted(unknown)[0]!r}; the axes are {', '.join(AXES)}")
    if len(set(named)) < len(named):
      raise InputError(f"mesh.rules: '{pattern}' names one axis twice; each axis can split one dimension")
    if short := next((path for path in matches if len(shapes[path]) < len(axes)), None):
      raise InputError(
        f"mesh.rules: '{pattern}' names {len(axes)} dimensions, and '{short}' has {len(shapes[short])}; name fewer"
      )
