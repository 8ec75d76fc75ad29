"""Workarounds for XLA's CPU compiler, each with the figure that justifies it. None of them changes a result.

- `materialised_gradient`, around every normalisation: the gradient of the bundled U-Net, two windows of 8 frames of
  16 x 16 latents, takes 1.61 s of processor time with it and 1.92 s without; compilation takes 37 s and 44 s.
- `computed_apart`, for `remat="apart"`: at 512 x 512 and 25 frames over eight devices (`fsdp=8`), `jax.checkpoint`
  leaves 124 GB of temporaries per device on a CPU; docs/scaling.md has the figures.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

# Scope of operations that do not belong to the model: counts of its arithmetic leave them out.
MATERIALISED = "materialised"


@jax.custom_vjp
def materialised_gradient(x):
  """The identity on x (..., c). On a CPU its gradient is written to memory; elsewhere the compiler decides.

  XLA for the CPU fuses a gradient into every operation that reads it, and recomputes it in each. It does not fuse into
  a matrix product, so the gradient is multiplied by the identity matrix.
  """
  return x


def _materialise(g):
  with jax.named_scope(MATERIALISED):
    return jax.lax.platform_dependent(g, cpu=_times_identity, default=lambda g: g)


def _times_identity(g):
  return jnp.dot(g, jnp.eye(g.shape[-1], dtype=g.dtype), precision="highest")


materialised_gradient.defvjp(lambda x: (x, None), lambda _, g: (_materialise(g),))


def computed_apart(function: Callable, *inputs) -> Any:
  """function(*inputs), differentiable; all of its backward pass is one branch of a conditional.

  XLA for the CPU drops optimization barriers. It may then recompute the activations of all blocks early and use them
  late, so that all are in memory at once. It cannot move work out of a branch that may not be taken, so only one
  block's activations exist at a time. The branch is not taken if the first value of the gradient is NaN; all of it is
  then NaN.
  """
  leaves, tree = jax.tree.flatten(inputs)
  wanted = []  # which leaves are differentiated; known in the forward pass

  @jax.custom_vjp
  def run(*leaves):
    return function(*jax.tree.unflatten(tree, leaves))

  def forward(*leaves):
    values = [leaf.value for leaf in leaves]
    wanted[:] = [leaf.perturbed and jnp.issubdtype(leaf.value.dtype, jnp.floating) for leaf in leaves]
    return run(*values), values

  def backward(values, gradient):
    gradient = jax.tree.map(_instantiated, gradient, is_leaf=lambda g: isinstance(g, SymbolicZero))

    def split(values):
      return [value for value, is_wanted in zip(values, wanted, strict=True) if is_wanted]

    def again(values, gradient):
      def of(chosen):
        chosen = iter(chosen)
        joined = [next(chosen) if is_wanted else value for value, is_wanted in zip(values, wanted, strict=True)]
        return function(*jax.tree.unflatten(tree, joined))

      return jax.vjp(of, split(values))[1](gradient)[0]

    def nothing(values, gradient):
      del gradient
      return [jnp.full_like(value, jnp.nan) for value in split(values)]

    first = jax.tree.leaves(gradient)[0].ravel()[0].astype(jnp.float32)
    # True unless it is NaN, which the compiler cannot rule out.
    gradients = iter(lax.cond(first == first, again, nothing, values, gradient))
    return tuple(next(gradients) if is_wanted else None for is_wanted in wanted)

  run.defvjp(forward, backward, symbolic_zeros=True)
  return run(*leaves)


def _instantiated(gradient):
  return jnp.zeros(gradient.shape, gradient.dtype) if isinstance(gradient, SymbolicZero) else gradient
