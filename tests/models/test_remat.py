"""Rematerialisation apart: the same gradients, less memory on a CPU, and nothing for what is not differentiated."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.models.cpu import computed_apart
from dicetalk_jax.models.remat import rematerialiser

WIDTH, BLOCKS = 64, 8


class Wide(nn.Module):
  """What a feed-forward does: sixteen times as much inside as outside."""

  @nn.compact
  def __call__(self, x, scale):
    return x + scale * nn.Dense(WIDTH)(nn.gelu(nn.Dense(16 * WIDTH)(x)))


class Chain(nn.Module):
  remat: bool | str = False

  @nn.compact
  def __call__(self, x, scale):
    block = rematerialiser(self.remat)(Wide)
    for i in range(BLOCKS):
      x = block(name=f"block_{i}")(x, scale)
    return x


X = jax.random.normal(jax.random.key(0), (2048, WIDTH))
SCALE = jnp.float32(0.5)
PARAMS = jax.jit(Chain().init)(jax.random.key(1), X, SCALE)


def gradient(remat):
  def loss(params, scale):
    return jnp.square(Chain(remat).apply(params, X, scale)).mean()

  return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(PARAMS, SCALE).compile()


def test_parameters_and_gradients_are_the_same_and_memory_is_less():
  assert jax.tree.structure(PARAMS) == jax.tree.structure(
    jax.eval_shape(Chain("apart").init, jax.random.key(1), X, SCALE)
  )
  plain, usual, apart = (gradient(remat) for remat in (False, True, "apart"))
  for expected, found in zip(jax.tree.leaves(plain(PARAMS, SCALE)), jax.tree.leaves(apart(PARAMS, SCALE)), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
  held = {name: program.memory_analysis().temp_size_in_bytes for name, program in (("usual", usual), ("apart", apart))}
  # One block's inside, a few times 8 MB, instead of all eight blocks'.
  assert held["apart"] < 0.5 * held["usual"], held


def test_what_is_not_differentiated_takes_no_work():
  calls = []

  @jax.custom_jvp
  def marked(x):
    return x

  @marked.defjvp
  def _(primals, tangents):
    calls.append(1)
    return primals[0], tangents[0]

  def block(w, table, i):
    return w * marked(table)[i]

  def value(w, table):
    return computed_apart(block, w, table, jnp.int32(1)).sum()

  w, table = jnp.ones(3), jnp.arange(6.0).reshape(2, 3)
  np.testing.assert_array_equal(jax.grad(value)(w, table), [3, 4, 5])
  assert not calls, "the table is a constant here"
  np.testing.assert_array_equal(jax.grad(value, argnums=1)(w, table), [[0, 0, 0], [1, 1, 1]])
  assert calls


def test_a_gradient_that_is_nan_stays_nan():
  def loss(x, factor):
    return (factor * computed_apart(jnp.sin, x)).sum()

  assert np.isnan(jax.grad(loss)(jnp.ones(3), jnp.nan)).all()
  np.testing.assert_allclose(jax.grad(loss)(jnp.ones(3), 2.0), 2 * np.cos(np.ones(3)), rtol=1e-6)
