"""Floating-point operations of a function, counted from its trace, and the peak of the devices."""

import collections
import dataclasses
import functools
import math
import re
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from dicetalk_jax.models.cpu import MATERIALISED

# Dense bfloat16 peaks in FLOP/s from data sheets. The first name found in `device_kind` applies.
_PEAKS = (
  ("H200", 989e12),
  ("H100 PCIe", 756e12),
  ("H100", 989e12),
  ("GH200", 989e12),
  ("B200", 2250e12),
  ("A100", 312e12),
  ("L40S", 362e12),
  ("L4", 121e12),
  ("V100", 125e12),
  ("TPU v6", 918e12),
  ("TPU v5p", 459e12),
  ("TPU v5 lite", 197e12),
  ("TPU v5e", 197e12),
  ("TPU v5", 459e12),
  ("TPU v4", 275e12),
  ("TPU v3", 123e12),
)
# Groups of operations by the path of their module. The first match applies.
_GROUPS = (
  ("U-Net: speech and emotion adapters", r"UNet.*attn2/to_[kv]_ip_"),
  ("U-Net: spatial self-attention", r"UNet.*/transformer_blocks_\d+/attn1"),
  ("U-Net: temporal self-attention", r"UNet.*temporal_transformer_blocks_\d+/attn1"),
  ("U-Net: cross-attention", r"UNet.*/attn2"),
  ("U-Net: feed-forward", r"UNet.*/ff(_in)?/"),
  ("U-Net: residual blocks", r"UNet.*resnets_\d+"),
  ("U-Net: other", r"UNet"),
  ("emotion embedder", r"EmotionEmbedder"),
  ("emotion discriminator", r"classifier"),
  ("emotion model", r"EmotionModel"),
  ("speech projection", r"AudioProjection"),
  ("pose guider", r"PoseGuider"),
)


@dataclasses.dataclass(frozen=True)
class Flops:
  """FLOP of matrix products and convolutions, by group of modules."""

  groups: Mapping[str, float]

  @property
  def total(self) -> float:
    return sum(self.groups.values())


def count_flops(function: Callable, *inputs) -> Flops:
  """FLOP of one call of `function` on arrays or shapes: two for each multiplication and addition. Nothing runs.

  Loops count once per iteration. Attention is traced in the form of a CPU, which hides nothing in a fused kernel.
  """
  with jax.default_device(jax.devices("cpu")[0]):
    # A new function, so that JAX does not reuse a trace for another device.
    jaxpr = jax.make_jaxpr(lambda *inputs: function(*inputs))(*inputs)
  groups = collections.Counter()
  _count(jaxpr.jaxpr, "", 1, groups)
  order = [name for name, _ in _GROUPS] + ["other"]
  return Flops({name: groups[name] for name in order if groups[name]})


def _count(jaxpr, prefix, times, groups):
  for equation in jaxpr.eqns:
    where = f"{prefix}/{equation.source_info.name_stack}"
    if MATERIALISED in where:
      continue
    if flops := _flops(equation):
      groups[_group(where)] += times * flops
    repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
    for inner in jex.jaxprs_in_params(equation.params):
      _count(inner, where, times * repeats, groups)


def _flops(equation) -> float:
  name = equation.primitive.name
  if name == "dot_general":
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
  if name == "conv_general_dilated":
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
    spatial = math.prod(kernel[axis] for axis in numbers.rhs_spec[2:])
    inputs = kernel[numbers.rhs_spec[1]]
    # Do not count the zeros that a stride inserts between the inputs of a gradient.
    spread = math.prod(equation.params["lhs_dilation"])
    groups = equation.params["batch_group_count"]
    return 2 * math.prod(equation.outvars[0].aval.shape) * spatial * inputs / spread / groups
  return 0


@functools.cache
def _group(where: str) -> str:
  return next((name for name, pattern in _GROUPS if re.search(pattern, where)), "other")


def peak_flops(dtype=jnp.bfloat16) -> float:
  """Peak FLOP/s of all devices of this process: from a data sheet for known accelerators.

  For other devices, such as a CPU, it is the measured rate of a large matrix product in `dtype`.
  """
  first = jax.local_devices()[0]
  if first.platform == "cpu":
    return _measured_peak(jnp.dtype(dtype).name)  # simulated devices share the cores
  known = (peak for name, peak in _PEAKS if name.lower() in first.device_kind.lower())
  return jax.local_device_count() * (next(known, None) or _measured_peak(jnp.dtype(dtype).name))


@functools.cache
def _measured_peak(dtype: str, n: int = 1024) -> float:
  x = jnp.ones((n, n), dtype)
  product = jax.jit(lambda x: x @ x)
  product(x).block_until_ready()
  best = math.inf
  for _ in range(5):
    start = time.perf_counter()
    product(x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * n**3 / best


def size(tree) -> int:
  """Bytes of a tree of arrays or shapes."""
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def count(tree) -> int:
  """Number of values in a tree of arrays or shapes."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
