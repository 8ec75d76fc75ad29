"""The emotion embedder: its layers against PyTorch's, Eq. 2-5 by hand, padding, and modalities that are absent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dicetalk_jax.models.emotion_embedder import (
  EmotionEmbedder,
  EmotionPrior,
  MaskedAttention,
  TransformerLayer,
  gaussian_pool,
  sinusoidal_positions,
)

SIZES = dict(features=16, speech_features=12, num_layers=2, num_fusion_layers=2, num_heads=4, mlp=24)
NAMES = ("expression", "expression_mask", "speech", "speech_mask")


def clips(rows=4, frames=9, seed=0):
  rng = np.random.default_rng(seed)
  mask = np.ones((rows, frames), bool)
  return {
    "expression": rng.standard_normal((rows, frames, 64)).astype(np.float32),
    "expression_mask": mask.copy(),
    "speech": rng.standard_normal((rows, frames, 12)).astype(np.float32),
    "speech_mask": mask.copy(),
  }


@pytest.fixture(scope="module")
def params():
  """Every leaf random, so that what begins at 0 or 1 is seen, too."""
  shapes = jax.eval_shape(EmotionEmbedder(**SIZES).init, jax.random.key(0), *clips().values())["params"]
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def embed(params):
  @jax.jit
  def apply(batch):
    return EmotionEmbedder(**SIZES).apply({"params": params}, *(batch[name] for name in NAMES))

  return apply


def same(ours, theirs, rows=slice(None)):
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a[rows], b[rows], rtol=1e-4, atol=1e-5)


def differ(ours, theirs):
  assert (np.abs(np.asarray(ours.mu) - theirs.mu).max(-1) > 1e-3).all()


def test_a_layer_is_pytorchs_post_norm_encoder_layer():
  rng = np.random.default_rng(0)
  layer = TransformerLayer(num_heads=4, mlp=24)
  x, mask = rng.standard_normal((2, 7, 16)).astype(np.float32), np.arange(7) < np.array([[7], [4]])
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x, mask)["params"]
  params = jax.tree.map(lambda leaf: (0.4 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)
  reference = torch.nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, layer_norm_eps=1e-6).eval()
  attn = params["self_attn"]
  projections = [attn[f"{name}_proj"] for name in "qkv"]
  state = {
    "self_attn.in_proj_weight": np.concatenate([p["kernel"].T for p in projections]),
    "self_attn.in_proj_bias": np.concatenate([p["bias"] for p in projections]),
    "self_attn.out_proj.weight": attn["out_proj"]["kernel"].T,
    "self_attn.out_proj.bias": np.zeros(16, np.float32),
  }
  for name in ("linear1", "linear2"):
    state |= {f"{name}.weight": params[name]["kernel"].T, f"{name}.bias": params[name]["bias"]}
  for name in ("norm1", "norm2"):
    state |= {f"{name}.weight": params[name]["scale"], f"{name}.bias": params[name]["bias"]}
  reference.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()})
  with torch.no_grad():
    expected = reference(torch.from_numpy(x), src_key_padding_mask=torch.from_numpy(~mask)).numpy()
  ours = np.asarray(layer.apply({"params": params}, x, mask))
  np.testing.assert_allclose(ours[mask], expected[mask], rtol=1e-4, atol=1e-5)


def test_attention_to_nothing_is_nothing():
  x, mask = np.ones((2, 3, 8), np.float32), np.zeros((2, 5), bool)
  attention = MaskedAttention(num_heads=2)
  attended, _ = attention.init_with_output(jax.random.key(0), x, np.ones((2, 5, 8), np.float32), mask)
  np.testing.assert_array_equal(attended, 0)


def test_positions_are_those_of_the_paper():
  positions = sinusoidal_positions(5, 6)
  for n in range(5):
    for i in range(3):
      angle = n / 10_000 ** (2 * i / 6)
      np.testing.assert_allclose(positions[n, 2 * i : 2 * i + 2], [np.sin(angle), np.cos(angle)], atol=1e-6)
  assert sinusoidal_positions(4, 5).shape == (4, 5)


def test_pooling_is_equations_4_and_5():
  rng = np.random.default_rng(0)
  s_hat, w_s = rng.normal(size=(3, 6, 4)), rng.normal(size=4)
  lengths = np.array([6, 3, 1])
  prior = gaussian_pool(s_hat, np.arange(6) < lengths[:, None], w_s)
  for row, length in enumerate(lengths):
    score = np.exp(s_hat[row, :length] @ w_s)
    weight = score / score.sum()
    mu = weight @ s_hat[row, :length]
    sigma = np.sqrt(weight @ np.square(s_hat[row, :length] - mu))
    np.testing.assert_allclose(prior.mu[row], mu, rtol=1e-4)
    np.testing.assert_allclose(prior.sigma[row], sigma, rtol=1e-4, atol=1e-6)


def test_pooling_of_no_frames_and_of_equal_ones_has_finite_slopes():
  mask = np.array([[True] * 4, [False] * 4])
  s_hat, w_s = jnp.ones((2, 4, 3)), jnp.ones(3)
  prior = gaussian_pool(s_hat, mask, w_s)
  np.testing.assert_array_equal(prior.mu, [[1] * 3, [0] * 3])
  np.testing.assert_array_equal(prior.sigma, 0)
  slopes = jax.jit(jax.grad(lambda s_hat, w_s: sum(x.sum() for x in gaussian_pool(s_hat, mask, w_s)), argnums=(0, 1)))
  assert all(np.isfinite(slope).all() for slope in slopes(s_hat, w_s))


def test_a_sample_is_of_the_gaussian():
  prior = EmotionPrior(jnp.array([[1.0, -2.0]]), jnp.array([[0.5, 0.0]]))
  draws = np.asarray(jax.vmap(prior.sample)(jax.random.split(jax.random.key(0), 400)))[:, 0]
  # Four standard errors of 400 draws.
  np.testing.assert_allclose(draws.mean(0), [1, -2], atol=4 * 0.5 / 20)
  assert abs(draws[:, 0].std() - 0.5) < 0.08 and (draws[:, 1] == -2).all()


def test_full_size_is_styletalks():
  n, d, mlp = 64, 256, 1024
  inputs = [jax.ShapeDtypeStruct((2, n, size), np.float32) for size in (64, 384)]
  mask = jax.ShapeDtypeStruct((2, n), bool)
  model = EmotionEmbedder()
  variables = jax.eval_shape(model.init, jax.random.key(0), inputs[0], mask, inputs[1], mask)
  prior = jax.eval_shape(model.apply, variables, inputs[0], mask, inputs[1], mask)
  assert prior.mu.shape == prior.sigma.shape == (2, d) and prior.mu.dtype == np.float32
  attention = 4 * d * d + 3 * d
  layer = attention + (d * mlp + mlp) + (mlp * d + d) + 2 * 2 * d
  expected = 2 * (3 * layer + d) + (64 * d + d) + (384 * d + d) + 3 * attention + d
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == expected


def test_what_is_behind_the_end_of_a_clip_changes_nothing(embed):
  batch = clips()
  for name in ("expression_mask", "speech_mask"):
    batch[name][:2, 6:] = False
  other = {name: value.copy() for name, value in batch.items()}
  for name in ("expression", "speech"):
    other[name][:2, 6:] = 100.0
  same(embed(batch), embed(other))
  short = {name: value[:2, :6] for name, value in batch.items()}
  same(embed(batch), embed(short), slice(2))


def test_both_modalities_and_the_order_of_frames_count(embed):
  batch = clips()
  for name in ("expression", "speech"):
    differ(embed(batch), embed(batch | {name: clips(seed=1)[name]}))
  # The same for both: what changes is their place in time alone.
  differ(embed(batch), embed(batch | {name: batch[name][:, ::-1] for name in ("expression", "speech")}))


@pytest.mark.parametrize("inputs, absent", [("video", "speech"), ("audio", "expression")])
def test_a_modality_may_be_absent_for_once_or_for_good(inputs, absent, embed, params):
  batch = clips()
  without = batch | {f"{absent}_mask": np.zeros_like(batch[f"{absent}_mask"])}
  found = embed(without)
  assert all(np.isfinite(leaf).all() for leaf in found) and (np.asarray(found.sigma) > 0).all()
  same(found, embed(without | {absent: clips(seed=1)[absent]}))
  differ(found, embed(batch))
  kept = "expression" if absent == "speech" else "speech"
  differ(found, embed(without | {kept: clips(seed=1)[kept]}))
  model = EmotionEmbedder(**SIZES, inputs=inputs)
  same(found, jax.jit(model.apply)({"params": params}, *(batch[name] for name in NAMES)))


def test_of_nothing_nothing_is_said_and_nothing_pulls(params):
  batch = clips()
  for name in ("expression_mask", "speech_mask"):
    batch[name][1] = False

  def loss(params):
    prior = EmotionEmbedder(**SIZES).apply({"params": params}, *(batch[name] for name in NAMES))
    return jnp.square(prior.mu).sum() + prior.sigma.sum(), prior

  (_, prior), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  np.testing.assert_array_equal([prior.mu[1], prior.sigma[1]], 0)
  assert all(np.isfinite(slope).all() for slope in jax.tree.leaves(slopes))


def test_fusion_is_scaled_by_lambda(params):
  batch = clips()

  @functools.partial(jax.jit, static_argnums=0)
  def mu(scale, expression):
    model = EmotionEmbedder(**SIZES, fusion_scale=scale)
    return model.apply({"params": params}, *((batch | {"expression": expression})[name] for name in NAMES)).mu

  other = clips(seed=1)["expression"]
  np.testing.assert_array_equal(mu(0.0, batch["expression"]), mu(0.0, other))
  near, far = (np.abs(mu(scale, batch["expression"]) - mu(scale, other)).max() for scale in (0.01, 1.0))
  assert 0 < near < far


def test_dropout_is_of_training_alone(embed, params):
  batch, model = clips(), EmotionEmbedder(**SIZES)

  @jax.jit
  def dropped(seed):
    inputs = [batch[name] for name in NAMES]
    return model.apply({"params": params}, *inputs, deterministic=False, rngs={"dropout": jax.random.key(seed)})

  differ(dropped(0), dropped(1))
  same(dropped(0), dropped(0))
  differ(dropped(0), embed(batch))


def test_inputs_are_one_of_three():
  with pytest.raises(ValueError, match="'sound'"):
    EmotionEmbedder(**SIZES, inputs="sound").init(jax.random.key(0), *clips().values())
