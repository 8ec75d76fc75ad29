"""Rematerialisation: the activations inside a block are recomputed in the backward pass instead of stored."""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax

from dicetalk_jax.models.cpu import computed_apart

Remat = bool | Literal["apart"]


def rematerialiser(remat: Remat, policy: str | None = None) -> Callable[[type[nn.Module]], Callable]:
  """A transformation of module classes, which keeps their parameters; the identity if `remat` is false.

  True: `nn.remat`, with the policy of this name in `jax.checkpoint_policies`. "apart": `cpu.computed_apart`, for
  compilers that move recomputation elsewhere.
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
