"""Samplers of the probability-flow ODE, dx/dσ = (x − D(x; σ)) / σ (Karras et al. 2022), as plain functions."""

import itertools
from typing import Any, Protocol


class Sampler(Protocol):
  """What `DiceTalk.generate(sampler=…)` takes: a pure function of arrays that JAX can trace.

  model(x, sigma): the denoiser D(x; σ), defined for σ > 0; x (..., h, w, c). sigmas: noise levels to go through, the
  last one may be 0. memory: what the call before returned beside x, or None at first; for multistep methods. Each of
  its arrays starts with x's axes of windows and frames, (windows, frames, ...).
  Returns x at sigmas[-1], and the memory for the next call.

  `generate` calls it with two levels, one step of one group of windows: windows move between steps. A call with all
  levels integrates the whole trajectory of a single window.
  """

  def __call__(self, model, x, sigmas, memory: Any = None) -> tuple[Any, Any]: ...


def euler(model, x, sigmas, memory=None):
  """Euler's method without churn, the release's sampler; one call of the model per step."""
  for sigma, next_sigma in itertools.pairwise(sigmas):
    slope = (x - model(x, sigma)) / sigma
    x = x + slope * (next_sigma - sigma)
  return x, memory
