"""The sampler against the golden schedule and trajectory, and its equations against one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import draw, golden, relative_error

from dicetalk_jax.diffusion import edm
from dicetalk_jax.diffusion.samplers import euler


def euler_step(x, v, sigma, next_sigma):
  return euler(lambda x, sigma: edm.denoised(x, v, sigma), x, jnp.array([sigma, next_sigma], jnp.float32))[0]


@pytest.mark.parametrize("steps", [4, 25])
def test_noise_levels_and_timesteps_are_the_released(steps):
  expected = golden("euler_edm")
  sigmas = edm.karras_sigmas(steps)
  assert sigmas.dtype == np.float32
  np.testing.assert_allclose(sigmas, expected[f"sigmas_{steps}"], rtol=2e-5)
  np.testing.assert_allclose(edm.timestep(sigmas[:-1]), expected[f"timesteps_{steps}"], rtol=2e-5, atol=1e-6)


def test_trajectory_is_the_released():
  expected = golden("euler_edm")
  sigmas = edm.karras_sigmas(4)
  x = draw("sx", (1, 2, 4, 8, 16)) * expected["init_noise_sigma"]
  assert relative_error(x, expected["trajectory"][0]) <= 2e-5

  def model(x, sigma):
    return edm.denoised(x, 0.5 * np.tanh(x * edm.precondition(sigma).c_in), sigma)

  whole, _ = euler(model, x, sigmas)
  for k in range(4):
    x, _ = euler(model, x, sigmas[k : k + 2])
    assert relative_error(x, expected["trajectory"][k + 1]) <= 2e-5, k
  np.testing.assert_array_equal(whole, x)


@pytest.mark.parametrize(
  ("steps", "bounds"), [(1, {}), (2, {}), (7, {"sigma_min": 0.1, "sigma_max": 80.0, "rho": 3.0}), (1000, {})]
)
def test_noise_levels_fall_from_the_largest_to_zero_evenly_in_their_root(steps, bounds):
  sigmas = edm.karras_sigmas(steps, **bounds)
  low, high, rho = bounds.get("sigma_min", 0.002), bounds.get("sigma_max", 700.0), bounds.get("rho", 7.0)
  assert sigmas.shape == (steps + 1,) and sigmas[-1] == 0
  assert (np.diff(sigmas) < 0).all()
  np.testing.assert_allclose(sigmas[0], high, rtol=1e-6)
  if steps > 1:
    np.testing.assert_allclose(sigmas[-2], low, rtol=1e-6)
    # float32 has seven digits, of which the root takes none away and the difference of neighbours up to three.
    spacing = np.diff(sigmas[:-1].astype(np.float64) ** (1 / rho))
    np.testing.assert_allclose(spacing, (low ** (1 / rho) - high ** (1 / rho)) / (steps - 1), rtol=2e-3)


@pytest.mark.parametrize("steps", [0, -3])
def test_fewer_than_one_step_is_refused(steps):
  with pytest.raises(ValueError, match=f"{steps} steps; at least 1"):
    edm.karras_sigmas(steps)


def test_preconditioning_is_its_definition_for_any_shape():
  sigma = np.array([[0.002, 0.5], [1.0, 700.0]])
  c = edm.precondition(sigma)
  assert all(array.shape == (2, 2) and array.dtype == jnp.float32 for array in c)
  np.testing.assert_allclose(c.c_skip, 1 / (sigma**2 + 1), rtol=1e-6)
  np.testing.assert_allclose(c.c_out, -sigma / np.sqrt(sigma**2 + 1), rtol=1e-6)
  np.testing.assert_allclose(c.c_in, 1 / np.sqrt(sigma**2 + 1), rtol=1e-6)
  np.testing.assert_allclose(c.c_noise, np.log(sigma) / 4, rtol=1e-6, atol=1e-7)
  assert edm.precondition(jnp.bfloat16(3)).c_in.dtype == jnp.float32


@pytest.mark.parametrize("sigma", [0.01, 1.0, 50.0])
def test_the_true_v_gives_back_the_clean_sample(sigma):
  """v = α ε − s x₀ with x = x₀ + σ ε, α = 1/√(σ²+1), s = σ/√(σ²+1): what v-prediction means, in EDM's variables."""
  clean, noise = draw("clean", (3, 5)), draw("noise", (3, 5))
  scale = np.sqrt(sigma**2 + 1)
  v = noise / scale - sigma / scale * clean
  x = clean + sigma * noise
  # Where σ is large x₀ is the small difference of large numbers: float32's 6e-8 grows with σ.
  np.testing.assert_allclose(edm.denoised(x, v, sigma), clean, atol=1e-6 * (1 + sigma))
  # The ODE of a single data point is a straight line: a step of any size stays on it.
  np.testing.assert_allclose(euler_step(x, v, sigma, sigma / 3), clean + sigma / 3 * noise, atol=1e-6 * (1 + sigma))


def test_a_step_to_zero_noise_gives_the_denoised_sample():
  x, v = 4 * draw("x", (2, 3, 4)), draw("v", (2, 3, 4))
  np.testing.assert_allclose(euler_step(x, v, 2.5, 0.0), edm.denoised(x, v, 2.5), rtol=1e-5, atol=1e-6)


def test_a_step_is_jittable_and_differentiable():
  x, v = draw("x", (2, 3)), draw("v", (2, 3))
  step = jax.jit(euler_step)
  np.testing.assert_allclose(step(x, v, 2.0, 1.0), euler_step(x, v, 2.0, 1.0), rtol=1e-5, atol=1e-6)
  # d step / d v = −c_out (σ' − σ) / σ, element by element.
  gradient = jax.grad(lambda v: step(x, v, 2.0, 1.0).sum())(v)
  np.testing.assert_allclose(gradient, np.full((2, 3), -1 / np.sqrt(5)), rtol=1e-5)
