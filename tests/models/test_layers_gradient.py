"""Gradients that are written to memory on a CPU are the same gradients, and cost other machines nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dicetalk_jax.models.cpu import materialised_gradient
from dicetalk_jax.models.layers import GroupNorm, LayerNorm
from dicetalk_jax.parallel.flops import count_flops


def gradient(x):
  return jax.grad(lambda x: jnp.sin(materialised_gradient(jnp.tanh(x))).sum())(x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_is_the_same(dtype):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 7)), dtype)
  wanted = jax.grad(lambda x: jnp.sin(jnp.tanh(x)).sum())(x)
  assert gradient(x).dtype == dtype
  np.testing.assert_array_equal(gradient(x), wanted)


@pytest.mark.parametrize("norm", [LayerNorm(), GroupNorm(1e-5, groups=4)])
def test_norms_have_the_gradients_of_finite_differences(norm):
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(size=(2, 3, 8)), jnp.float32)
  direction = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
  params = norm.init(jax.random.key(0), x)

  def loss(x):
    return (norm.apply(params, x) ** 3).sum()

  step = 1e-2
  wanted = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
  np.testing.assert_allclose((jax.grad(loss)(x) * direction).sum(), wanted, rtol=2e-2)


def products(platform):
  traced = jax.jit(gradient).trace(jax.ShapeDtypeStruct((4, 8), jnp.float32))
  return traced.lower(lowering_platforms=(platform,)).as_text().count("dot_general")


def test_only_a_cpu_multiplies():
  assert products("cpu") == 1
  assert products("tpu") == products("cuda") == 0


def test_no_count_of_the_models_arithmetic_holds_it():
  assert count_flops(gradient, jnp.ones((4, 8))).total == 0
