"""What lies where on the mesh: one ordered table, path -> PartitionSpec, for parameters and all that has their paths.

Optimizer state and averages repeat the paths of the parameters behind prefixes of their own, so one table serves all.
The first rule whose expression is found in a path decides. Large dimensions lie over `fsdp` in every rule; over
`tensor` lie the outputs of a product's first half and the inputs of its second: only the second has to be summed.
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

# Kernels are (in, out), (frames, in, out) or (height, width, in, out): specs are of the last dimensions.
RULES: tuple[Rule, ...] = (
  # Attention: heads over `tensor`.
  (r"/(to_[qkv](_ip_\d+)?|[qkv]_proj)/kernel$", ("fsdp", "tensor")),
  (r"/(to_out_0|out_proj)/kernel$", ("tensor", "fsdp")),
  # Feed-forward.
  (r"/(net_0/proj|linear1|fc1|linear_1)/kernel$", ("fsdp", "tensor")),
  (r"/(net_2|linear2|fc2|linear_2)/kernel$", ("tensor", "fsdp")),
  # Residual blocks: the first convolution's channels, which the second takes.
  (r"/(conv1|time_emb_proj)/kernel$", ("fsdp", "tensor")),
  (r"/conv2/kernel$", ("tensor", "fsdp")),
  # What stands alone.
  (r"(^|/)kernel$", ("fsdp", None)),
  (r"(^|/)embedding$", ("fsdp", None)),
  # Of products so wide that their bias is large.
  (r"(^|/)bias$", ("fsdp",)),
  # Scales, mixing factors, learnt queries.
  (r"", ()),
)
# What is smaller stays whole on every device: it would cost more to fetch than to keep.
SMALLEST = 2**12


def spec_of(path: str, shape: Sequence[int], mesh: Mesh, rules: Sequence[Rule] = RULES) -> PartitionSpec:
  """The spec of a leaf. An axis that does not divide its dimension goes to the largest that no axis is meant for.

  Leaves below SMALLEST numbers are replicated.
  """
  if math.prod(shape) < SMALLEST:
    return PartitionSpec()
  axes = next((axes for pattern, axes in rules if re.search(pattern, path)), ())
  # Aligned at the end: what is in front of a kernel's inputs is small.
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
  """Nested parameters, arrays or their shapes -> the same of NamedShardings; `extra` rules are asked first."""
  rules = (*extra, *RULES)
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(mesh, spec_of(path_name(path), leaf.shape, mesh, rules)), params
  )


def shardings_like(tree: Any, params: Any, of_params: Any, mesh: Mesh) -> Any:
  """A tree of arrays or their shapes -> its NamedShardings, each as that of the parameter whose path and shape it has.

  So optimizer state and averages lie beside the parameters that they are of; all else is replicated. params: nested
  arrays or their shapes; of_params: their shardings.
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
  """A path of JAX's as "opt_state/0/mu/unet/conv_in/kernel"."""
  return "/".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path)


def check_rules(rules: Sequence[Rule], shapes: Mapping[str, Sequence[int]]) -> None:
  """InputError for rules of a configuration that cannot be meant, with the shapes of all parameters by their paths.

  Those are: no regular expression, found in no path, an axis that is none or named twice, more dimensions than a leaf.
  """
  for pattern, axes in rules:
    try:
      found = [path for path in shapes if re.search(pattern, path)]
    except re.error as error:
      raise InputError(f"mesh.rules: '{pattern}' is not a regular expression: {error}") from None
    if not found:
      some = next(iter(shapes), "")
      raise InputError(f"mesh.rules: '{pattern}' names none of the {len(shapes)} parameters, such as '{some}'")
    named = [axis for axis in axes if axis is not None]
    if unknown := set(named) - set(AXES):
      raise InputError(f"mesh.rules: '{pattern}' names axis {sorted(unknown)[0]!r}; the axes are {', '.join(AXES)}")
    if len(set(named)) < len(named):
      raise InputError(f"mesh.rules: '{pattern}' gives one axis to two dimensions; each axis can split one")
    if short := next((path for path in found if len(shapes[path]) < len(axes)), None):
      raise InputError(
        f"mesh.rules: '{pattern}' names {len(axes)} dimensions, and '{short}' has {len(shapes[short])}; name fewer"
      )
