"""The EDM diffusion of Stable Video Diffusion: noise levels and preconditioning for v-prediction.

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", for data of unit variance
(σ_data = 1). Everything is float32. Sampler and loss share `precondition`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dicetalk_jax.config import GenerationConfig


def karras_sigmas(steps, sigma_min=GenerationConfig.sigma_min, sigma_max=GenerationConfig.sigma_max, rho=7.0):
  """Noise levels from sigma_max down to sigma_min, even in σ^(1/ρ), then 0 (Eq. 5 there): (steps + 1,) float32.

  Computed in float64 on the host, because they are constants of a run. ValueError for fewer than 1 step.
  """
  if steps < 1:
    raise ValueError(f"{steps} steps; at least 1 is needed")
  ramp = np.linspace(0, 1, steps)
  low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
  return np.append((high + ramp * (low - high)) ** rho, 0).astype(np.float32)


def timestep(sigma):
  """The network's input for a noise level: c_noise(σ) = ln σ / 4, for σ > 0."""
  return 0.25 * jnp.log(sigma)


class Preconditioning(NamedTuple):
  """D(x; σ) = c_skip x + c_out F(c_in x; c_noise): the denoiser D in terms of the network F."""

  c_skip: jnp.ndarray
  c_out: jnp.ndarray
  c_in: jnp.ndarray
  c_noise: jnp.ndarray


def precondition(sigma) -> Preconditioning:
  """v-prediction: c_skip = 1/(σ²+1), c_out = −σ/√(σ²+1), c_in = 1/√(σ²+1), c_noise = ln σ / 4; any shape, σ > 0."""
  sigma = jnp.asarray(sigma, jnp.float32)
  scale = jnp.sqrt(sigma**2 + 1)
  return Preconditioning(1 / (sigma**2 + 1), -sigma / scale, 1 / scale, timestep(sigma))


def denoised(x, v, sigma):
  """D(x; σ), the clean sample, from the network's output v."""
  c = precondition(sigma)
  return c.c_skip * x + c.c_out * v
