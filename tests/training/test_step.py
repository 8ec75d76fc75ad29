"""State and step: what is frozen stays, what is not finite is passed over, batches in parts are one batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dicetalk_jax.errors import InputError
from dicetalk_jax.training.config import OptimizerConfig
from dicetalk_jax.training.optimizer import make_optimizer, make_schedule
from dicetalk_jax.training.state import TrainState, merge, split
from dicetalk_jax.training.step import make_step

PARAMS = {
  "body": {
    "conv": {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), "bias": np.zeros(3, np.float32)},
    "attn": {"kernel": np.eye(3, dtype=np.float32)},
  },
  "head": {"kernel": np.ones((3, 1), np.float32)},
}


def loss_fn(params, batch, key):
  conv, attn = params["body"]["conv"], params["body"]["attn"]["kernel"]
  h = jnp.tanh(batch["x"] @ conv["kernel"].astype(jnp.float32) + conv["bias"]) @ attn
  error = h @ params["head"]["kernel"] - batch["y"]
  return jnp.square(error).mean(), {"noise": jax.random.normal(key)}


def batches(count, rows=8, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((count, rows, 4)).astype(np.float32)
  return [{"x": x[i], "y": np.sin(x[i].sum(-1, keepdims=True))} for i in range(count)]


def start(config=None, trainable="", steps=100, **options):
  config = config or OptimizerConfig(learning_rate=0.05, ema_decay=0.9)
  optimizer = make_optimizer(config, steps)
  ema = config.ema_decay > 0
  state = TrainState.create(PARAMS, optimizer, jax.random.key(1), trainable, ema)
  schedule = make_schedule(config, steps)
  return state, make_step(loss_fn, optimizer, schedule, config.ema_decay, config.accumulate, **options)


def same(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_what_is_frozen_stays_bit_for_bit_and_has_no_optimizer_state():
  state, step = start(trainable=("attn", "^head/"))
  state = state.replace(frozen=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.frozen))
  frozen = jax.tree.map(np.asarray, state.frozen)
  assert jax.tree.map(np.shape, frozen) == {"body": {"conv": {"kernel": (4, 3), "bias": (3,)}}}
  assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(frozen))
  moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
  assert sorted(leaf.shape for leaf in moments) == [(3, 1), (3, 1), (3, 3), (3, 3)]
  before = jax.tree.map(np.asarray, state.params)
  for batch in batches(5):
    state, metrics = step(state, batch)
  same(state.frozen, frozen)
  assert all((np.asarray(a) != b).any() for a, b in zip(*map(jax.tree.leaves, (state.params, before)), strict=True))
  assert jax.tree.structure(merge(state.params, state.frozen)) == jax.tree.structure(PARAMS)
  same(PARAMS["body"]["attn"]["kernel"], np.eye(3))


def test_muon_moves_kernels_in_all_directions_alike_and_all_else_as_adam_does():
  rng = np.random.default_rng(0)
  params = {
    "conv": {"kernel": jnp.zeros((3, 3, 4, 6)), "bias": jnp.zeros(6)},
    "dense": {"kernel": jnp.zeros((8, 5))},
    "codebook": {"embedding": jnp.zeros((7, 5))},
  }
  # Nearly of one direction, as gradients of small batches are.
  gradients = jax.tree.map(
    lambda leaf: 0.1 * rng.standard_normal(leaf.shape) + np.ones(leaf.shape[:1] + (1,) * (leaf.ndim - 1)), params
  )
  updates = {}
  for kind in ("adam", "muon"):
    config = OptimizerConfig(kind=kind, learning_rate=0.1, clip_norm=None)
    optimizer = make_optimizer(config, 10)
    updates[kind], _ = optimizer.update(gradients, optimizer.init(params), params)
  for name in ("conv", "dense"):
    update = np.asarray(updates["muon"][name]["kernel"])
    singular = np.linalg.svd(update.reshape(-1, update.shape[-1]), compute_uv=False)
    assert singular.min() > 0.5 * singular.max(), "Adam's update has one direction"
    np.testing.assert_allclose(np.sqrt(np.square(update).mean()), 0.2 * 0.1, rtol=0.25)
    of_adam = np.asarray(updates["adam"][name]["kernel"])
    singular = np.linalg.svd(of_adam.reshape(-1, of_adam.shape[-1]), compute_uv=False)
    assert singular[1] < 0.3 * singular[0]
  for path in (("conv", "bias"), ("codebook", "embedding")):
    ours, theirs = (updates[kind][path[0]][path[1]] for kind in ("muon", "adam"))
    # Nesterov's momentum looks one step ahead.
    np.testing.assert_allclose(ours, theirs * (0.9 / (1 - 0.9**2) * 0.1 + 1), rtol=1e-2)


@pytest.mark.parametrize("patterns, wrong", [(("attn", "attention"), "'attention'"), ("he(ad", "he"), ((), "nothing")])
def test_a_regex_that_matches_nothing_is_named(patterns, wrong):
  with pytest.raises(InputError, match=wrong.replace("(", r"\(")):
    split(PARAMS, patterns)


def test_split_and_merge():
  trains, frozen = split(PARAMS, "kernel$")
  assert "bias" not in trains["body"]["conv"] and list(frozen) == ["body"]
  same(merge(trains, frozen), PARAMS)
  assert split(PARAMS)[1] == {}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_steps_that_are_not_finite_are_passed_over_and_counted(value):
  state, step = start()
  data = batches(6)
  poison = {"x": data[0]["x"], "y": np.full_like(data[0]["y"], value)}
  for batch in data[:3]:
    state, metrics = step(state, batch)
  before = jax.tree.map(np.asarray, (state.params, state.opt_state.inner_state, state.ema))
  for _ in range(2):
    state, metrics = step(state, poison)
  same((state.params, state.opt_state.inner_state, state.ema), before)
  assert (state.step, metrics["skipped"], metrics["skipped_in_row"], metrics["finite"]) == (5, 2, 2, 0)
  assert not np.isfinite(metrics["loss"])
  state, metrics = step(state, data[3])
  assert (metrics["skipped"], metrics["skipped_in_row"], metrics["finite"]) == (2, 0, 1)
  # As if they had never been, but for the random numbers, which follow the step.
  other, step = start()
  for batch in data[:4]:
    other, _ = step(other, batch)
  inner, others = state.opt_state.inner_state, other.opt_state.inner_state
  same((state.params, inner, state.ema), (other.params, others, other.ema))


def test_gradients_that_overflow_are_passed_over_though_the_loss_is_finite():
  optimizer = optax.apply_if_finite(optax.sgd(1.0), 100)
  state = TrainState.create({"w": jnp.zeros(2)}, optimizer, jax.random.key(0))
  # The root's slope at 0 is infinite.
  step = make_step(lambda params, batch, key: (jnp.sqrt(jnp.abs(params["w"] - batch)).sum(), {}), optimizer)
  state, metrics = step(state, jnp.zeros(2))
  assert metrics["loss"] == 0 and metrics["finite"] == 0
  np.testing.assert_array_equal(state.params["w"], 0)


def test_batches_in_parts_are_one_large_batch():
  config = OptimizerConfig(learning_rate=0.05, clip_norm=0.5, ema_decay=0.9)
  whole, step = start(config)
  parts, step_in_parts = start(OptimizerConfig(learning_rate=0.05, clip_norm=0.5, ema_decay=0.9, accumulate=4))
  for batch in batches(5, rows=32):
    whole, ours = step(whole, batch)
    split_batch = {name: value.reshape(4, 8, -1) for name, value in batch.items()}
    parts, theirs = step_in_parts(parts, split_batch)
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    np.testing.assert_allclose(ours["grad_norm"], theirs["grad_norm"], rtol=1e-5)
  assert parts.step == 5
  # Sums in another order: float32 rounding, which Adam's division enlarges.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), whole.params, parts.params)


def test_random_numbers_follow_key_and_step_alone():
  def noise(state, step, count):
    drawn = []
    for batch in batches(count):
      state, metrics = step(state, batch)
      drawn.append(float(metrics["noise"]))
    return drawn

  state, step = start()
  whole = noise(state, step, 4)
  assert len(set(whole)) == 4
  state, step = start()
  assert noise(state.replace(step=jnp.int32(2)), step, 2) == whole[2:]


def test_clipping_bounds_the_gradient_that_the_optimizer_sees():
  state, step = start(OptimizerConfig(learning_rate=0.05, clip_norm=1e-3, ema_decay=0))
  state, metrics = step(state, batches(1)[0])
  # The first moment is (1 - β₁) of it.
  moment = optax.tree.norm(optax.tree.get(state.opt_state, "mu"))
  assert metrics["grad_norm"] > 0.01
  np.testing.assert_allclose(moment, 0.1 * 1e-3, rtol=1e-4)


def test_the_average_follows_what_trains():
  state, step = start(OptimizerConfig(learning_rate=0.05, ema_decay=0.15))
  mean = np.asarray(state.params["head"]["kernel"])
  for n, batch in enumerate(batches(4)):
    state, _ = step(state, batch)
    decay = min(0.15, (1 + n) / (10 + n))
    mean = decay * mean + (1 - decay) * np.asarray(state.params["head"]["kernel"])
  np.testing.assert_allclose(state.averaged()["head"]["kernel"], mean, rtol=1e-5)
  state, step = start(OptimizerConfig(ema_decay=0))
  state, _ = step(state, batches(1)[0])
  assert state.ema is None
  same(state.averaged(), merge(state.params, state.frozen))


def test_weights_decay_without_biases():
  config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, ema_decay=0)
  optimizer = make_optimizer(config, 10)
  params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
  np.testing.assert_array_equal(updates["bias"], 0)


@pytest.mark.parametrize(
  "schedule, expected",
  [
    ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]),
    ("linear", [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0]),
    ("cosine", [0.25, 0.5, 0.75, 1, 1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0]),
  ],
)
def test_schedules_rise_then_end_where_they_should(schedule, expected):
  config = OptimizerConfig(learning_rate=2e-3, schedule=schedule, warmup_steps=4)
  rate = make_schedule(config, 9)
  np.testing.assert_allclose([rate(i) for i in range(9)], 2e-3 * np.array(expected), rtol=1e-5, atol=1e-9)
  state, step = start(config, steps=9)
  _, metrics = step(state, batches(1)[0])
  np.testing.assert_allclose(metrics["learning_rate"], 2e-3 * expected[0], rtol=1e-5)


def test_a_schedule_without_warm_up_begins_at_its_highest():
  assert make_schedule(OptimizerConfig(learning_rate=0.5, schedule="cosine"), 10)(0) == 0.5
  rate = make_schedule(OptimizerConfig(learning_rate=0.5, warmup_steps=1), 10)
  assert [float(rate(i)) for i in range(3)] == [0.5] * 3


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(warmup_steps=10), "warmup_steps is 10"),
    (dict(learning_rate=0.0), "learning_rate"),
    (dict(clip_norm=-1.0), "clip_norm"),
    (dict(weight_decay=-1e-2), "weight_decay is -0.01"),
    (dict(schedule="step"), "'step'"),
    (dict(kind="sgd"), "kind is 'sgd'"),
  ],
)
def test_optimizers_that_make_no_sense(options, words):
  with pytest.raises(InputError, match=words):
    make_optimizer(OptimizerConfig(**options), 10)


@pytest.mark.parametrize("options", [dict(accumulate=0), dict(ema_decay=1.0)])
def test_steps_that_make_no_sense(options):
  with pytest.raises(InputError, match=next(iter(options))):
    start(OptimizerConfig(**options))
