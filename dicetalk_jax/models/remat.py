"""Rematerialisation: what a block computes inside is computed again in the backward pass, instead of kept."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

Remat = bool | Literal["apart"]


def rematerialiser(remat: Remat, policy: str | None = None) -> Callable[[type[nn.Module]], Callable]:
  """What makes a module class one whose inside is rematerialised, with the same parameters; nothing where not `remat`.

  True is `nn.remat`, of which `policy` names one of `jax.checkpoint_policies`. "apart" is `computed_apart`, for
  compilers that do not leave recomputation where it is wanted.
  """
  if remat == "apart":
    return _apart
  if not remat:
    return lambda module: module
  chosen = getattr(jax.checkpoint_policies, policy) if policy else None
  return lambda module: nn.remat(module, policy=chosen)


def _apart(module):
  def make(*arguments, **options):
    child = module(*arguments, **options)

    def call(*inputs):
      if child.is_initializing():
        return child(*inputs)
      alone = child.clone(parent=None, name=None)

      def apply(params, *inputs):
        return alone.apply({"params": params}, *inputs)

      return computed_apart(apply, child.variables["params"], *inputs)

    return call

  return make


def computed_apart(function: Callable, *inputs) -> Any:
  """function(*inputs), differentiable; all of its backward pass is one branch of a conditional.

  A compiler that drops optimization barriers, as XLA's for the CPU does, is free to recompute the insides of all blocks
  early and to leave the gradients of their weights for later, and so has them all in memory together. It can move
  nothing out of a branch that may not be taken: there is one block's inside at a time. The branch is not taken where
  the first number of the gradient is NaN, which then is all of it.
  """
  leaves, tree = jax.tree.flatten(inputs)
  wanted = []  # which leaves are differentiated, told by the forward pass

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
    # Always so unless it is NaN, which no compiler knows.
    found = iter(lax.cond(first == first, again, nothing, values, gradient))
    return tuple(next(found) if is_wanted else None for is_wanted in wanted)

  run.defvjp(forward, backward, symbolic_zeros=True)
  return run(*leaves)


def _instantiated(gradient):
  return jnp.zeros(gradient.shape, gradient.dtype) if isinstance(gradient, SymbolicZero) else gradient
