"""Every form of attention against PyTorch's and against one another, and which form a device gets."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import draw, relative_error

from dicetalk_jax.models.attention import attention, choose_implementation


def inputs(b, n, m, heads, d, dtype=jnp.float32):
  query = draw("q", (b, n, heads, d))
  key, value = draw("k", (b, m, heads, d)), draw("v", (b, m, heads, d))
  return tuple(jnp.asarray(x, dtype) for x in (query, key, value))


@functools.cache
def form(name):
  return jax.jit(functools.partial(attention, implementation=name))


def pytorch(query, key, value):
  torch = pytest.importorskip("torch")
  # b n heads d -> b heads n d
  tensors = (torch.tensor(np.asarray(x, np.float32)).transpose(1, 2) for x in (query, key, value))
  out = torch.nn.functional.scaled_dot_product_attention(*tensors)
  return out.transpose(1, 2).numpy()


# One block, several whole ones, and the last one partly filled, over queries, keys and both.
SIZES = [(2, 7, 3, 2, 8), (1, 512, 512, 1, 64), (1, 1024, 512, 2, 16), (2, 513, 1030, 2, 24), (1, 5, 1600, 3, 40)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", ["plain", "blocked"])
def test_float32_is_pytorchs(name, sizes):
  arrays = inputs(*sizes)
  out = form(name)(*arrays)
  assert out.shape == arrays[0].shape and out.dtype == jnp.float32
  assert relative_error(out, pytorch(*arrays)) <= 2e-6


@pytest.mark.parametrize("name", ["plain", "blocked"])
def test_bfloat16_has_a_float32_softmax(name):
  """Only inputs, weights and result are rounded: three roundings of 2^-9, not a sum of a thousand in bfloat16."""
  arrays = inputs(1, 300, 1030, 2, 64, jnp.bfloat16)
  out = form(name)(*arrays)
  assert out.dtype == jnp.bfloat16
  assert relative_error(out, pytorch(*arrays)) <= 6e-3


@pytest.mark.parametrize("name", ["plain", "blocked"])
def test_large_scores_neither_overflow_nor_vanish(name):
  query, key, value = inputs(1, 530, 1030, 2, 16)
  # Scores of ±1e4, whose exponentials are infinite or 0, rising from one key block to the next.
  query, key = 1e2 * query, 1e2 * key * jnp.linspace(0.1, 1, 1030)[None, :, None, None]
  out = form(name)(query, key, value)
  assert np.isfinite(out).all()
  assert relative_error(out, pytorch(query, key, value)) <= 1e-3


@pytest.mark.parametrize("shift", [-3e4, 3e4])
def test_a_constant_added_to_all_scores_changes_nothing(shift):
  """Padding keys score −∞, not 0: beside scores far below 0, zeros would take all the weight."""
  query, key, value = inputs(1, 20, 700, 1, 8)
  query = jnp.concatenate([query, jnp.full_like(query[..., :1], shift)], axis=-1)
  key = jnp.concatenate([key, jnp.ones_like(key[..., :1])], axis=-1)
  value = jnp.concatenate([value, value[..., :1]], axis=-1)
  out = form("blocked")(query, key, value)
  # Scores near 1e4 have steps of 1e-3 in float32.
  assert relative_error(out, pytorch(query, key, value)) <= 1e-2
  assert relative_error(out, form("plain")(query, key, value)) <= 1e-2


def test_gradients_of_the_blocked_form_are_the_plain_forms():
  arrays = inputs(2, 515, 600, 2, 8)
  direction = draw("direction", arrays[0].shape)

  def gradient(name):
    return jax.jit(jax.grad(lambda arrays: (form(name)(*arrays) * direction).sum()))(arrays)

  for found, expected in zip(gradient("blocked"), gradient("plain"), strict=True):
    assert relative_error(found, expected) <= 2e-6


@pytest.mark.parametrize("name", ["plain", "blocked", None])
def test_one_key_is_copied_to_every_query(name):
  query, key, value = inputs(2, 9, 1, 3, 8)
  np.testing.assert_array_equal(form(name)(query, key, value), np.broadcast_to(value, query.shape))
  assert form(name)(query.astype(jnp.bfloat16), key, value).dtype == jnp.bfloat16


@pytest.mark.parametrize("d", [64, 128])
def test_the_tpu_kernel_is_the_plain_form(d):
  """Pallas' interpreter runs on a CPU what a TPU would."""
  arrays = inputs(2, 256, 384, 2, d)
  assert relative_error(attention(*arrays, implementation="splash-interpreted"), form("plain")(*arrays)) <= 2e-6
  half = inputs(1, 256, 256, 1, d, jnp.bfloat16)
  out = attention(*half, implementation="splash-interpreted")
  assert out.dtype == jnp.bfloat16
  assert relative_error(out, pytorch(*half)) <= 6e-3


def shapes(n, m, d=64, dtype=jnp.bfloat16):
  query, key = jax.ShapeDtypeStruct((2, n, 5, d), dtype), jax.ShapeDtypeStruct((2, m, 5, d), dtype)
  return query, key


@pytest.mark.parametrize(
  ("backend", "n", "m", "d", "dtype", "expected"),
  [
    ("gpu", 4096, 4096, 64, jnp.bfloat16, "cudnn"),
    ("gpu", 25, 25, 64, jnp.float16, "plain"),  # cuDNN has no gradient of odd lengths
    ("gpu", 4097, 4096, 64, jnp.bfloat16, "blocked"),
    ("gpu", 8, 8, 64, jnp.bfloat16, "plain"),
    ("gpu", 4096, 32, 128, jnp.bfloat16, "cudnn"),
    ("gpu", 4096, 4096, 64, jnp.float32, "blocked"),  # cuDNN has no float32
    ("gpu", 4096, 4096, 512, jnp.bfloat16, "blocked"),  # the VAE's single head is too wide
    ("gpu", 4096, 4096, 60, jnp.bfloat16, "blocked"),
    ("gpu", 32, 64, 512, jnp.bfloat16, "plain"),
    ("tpu", 4096, 4096, 64, jnp.bfloat16, "splash"),
    ("tpu", 4096, 4096, 128, jnp.float32, "splash"),
    ("tpu", 1024, 1024, 64, jnp.bfloat16, "splash"),
    ("tpu", 4096, 4096, 512, jnp.bfloat16, "blocked"),
    ("tpu", 4100, 4100, 64, jnp.bfloat16, "blocked"),
    ("tpu", 102400, 32, 64, jnp.bfloat16, "blocked"),
    ("tpu", 25, 25, 64, jnp.bfloat16, "plain"),
    ("cpu", 4096, 4096, 64, jnp.float32, "blocked"),
    ("cpu", 512, 512, 64, jnp.float32, "plain"),
    ("cpu", 512, 513, 64, jnp.bfloat16, "blocked"),
    ("cpu", 25, 25, 64, jnp.float32, "plain"),
  ],
)
def test_a_device_gets_the_fastest_form_it_has(backend, n, m, d, dtype, expected):
  assert choose_implementation(*shapes(n, m, d, dtype), backend) == expected


def test_no_device_ever_holds_the_scores_of_a_large_picture():
  dtypes = (jnp.float32, jnp.float16, jnp.bfloat16)
  for backend, dtype, d in itertools.product(("cpu", "gpu", "tpu"), dtypes, (20, 40, 64, 80, 128, 160, 512)):
    for n, m in itertools.product((4096, 4097, 9216, 102400), (1024, 4096, 9217)):
      assert choose_implementation(*shapes(n, m, d, dtype), backend) != "plain"


def test_the_blocked_form_needs_memory_in_proportion_to_its_sides():
  """The compiled program's temporary buffers: a score matrix of 4096×4096 alone would be 64 MiB."""

  def temporary(n, name):
    arrays = [jax.ShapeDtypeStruct((1, n, 1, 64), jnp.float32)] * 3
    return form(name).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

  scores = 4 * 4096 * 4096
  assert temporary(4096, "plain") >= scores
  assert temporary(4096, "blocked") <= scores / 8
  # Twice the side: twice the inputs' copies, not four times the scores.
  assert temporary(8192, "blocked") <= 2.2 * temporary(4096, "blocked")


def test_the_blocked_form_needs_no_scores_for_its_gradient_either():
  arrays = [jax.ShapeDtypeStruct((1, 4096, 1, 64), jnp.float32)] * 3
  gradient = jax.jit(jax.grad(lambda arrays: form("blocked")(*arrays).sum()))
  assert gradient.lower(arrays).compile().memory_analysis().temp_size_in_bytes < 4 * 4096 * 4096


@pytest.mark.parametrize("sizes, heads", [((2, 2, 2), 2), ((4, 1, 2), 3)])
def test_a_kernel_that_cannot_be_split_runs_on_each_device_of_a_mesh(sizes, heads):
  axes = ("data", "fsdp", "tensor")
  mesh = jax.make_mesh(sizes, axes, axis_types=(jax.sharding.AxisType.Auto,) * 3)
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axes[:2]))
  query, key, value = (jax.random.normal(jax.random.key(i), (8, 128, heads, 64)) for i in range(3))
  run = jax.jit(lambda *of: attention(*of, implementation="splash-interpreted"))
  with jax.set_mesh(mesh):
    placed = [jax.device_put(x, rows) for x in (query, key, value)]
    found = run(*placed)
    assert "all-gather" not in run.lower(*placed).compile().as_text() or sizes[2] > 1
  np.testing.assert_allclose(found, attention(query, key, value, implementation="plain"), atol=2e-5)
