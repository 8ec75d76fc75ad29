"""The adaptation's objective, piece by piece: what is dropped, what a dropped condition is, what pulls at what."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from random_weights import NETWORKS
from talkers import stand_in_params

from dicetalk_jax.diffusion.conditioning import speech_windows
from dicetalk_jax.inference.conditions import AUDIO, EMOTION, tabulate, whisper_states
from dicetalk_jax.models.emotion_embedder import EmotionEmbedder
from dicetalk_jax.training.adaptation_loss import (
  ObjectiveConfig,
  batch_conditions,
  condition_tokens,
  draw_visible,
  emotion_class,
  objective,
)
from dicetalk_jax.vocabulary import EMOTIONS
from dicetalk_jax.weights.architectures import small_unet
from dicetalk_jax.weights.networks import build, network_shapes

CONDITIONS, LEARNING = (AUDIO, EMOTION), ("unet", "audio_projection", "emotion_model", "pose_guider")
B, FRAMES, SIDE, POSITIONS, STATES, WIDTH = 2, 3, 8, 10, 3, 64
# A U-Net of one level: its gradient compiles in seconds.
ARCHITECTURES = NETWORKS | {"unet": small_unet((32,), width=WIDTH)}
ARCHITECTURES["emotion_model"] = NETWORKS["emotion_model"] | {"mid_features": 32}


@functools.cache
def networks():
  modules = {name: build(name, ARCHITECTURES[name]) for name in LEARNING}
  return modules | {"emotion_embedder": EmotionEmbedder(speech_features=WIDTH, num_layers=1, num_fusion_layers=1)}


@functools.cache
def batch():
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.normal(size=shape).astype(np.float16)

  return {
    "latents_mean": draw(B, FRAMES, SIDE, SIDE, 4),
    "latents_logvar": draw(B, FRAMES, SIDE, SIDE, 4) - 5,
    "image_latents": draw(B, SIDE, SIDE, 4),
    "image_embedding": draw(B, WIDTH),
    "audio": draw(B, FRAMES, POSITIONS, STATES, WIDTH),
    "mask_box": np.array([[10, 12, 30, 40], [0, 0, 64, 64]], np.float32),
    "expression": draw(B, 6, 64).astype(np.float32),
    "expression_mask": np.ones((B, 6), bool),
    "speech": draw(B, 6, WIDTH).astype(np.float32),
    "speech_mask": np.ones((B, 6), bool),
    "emotion": np.array([4, -1], np.int32),
    "level": np.array([2, 0], np.int32),
    "valid": np.ones(B, bool),
  }


@functools.cache
def params():
  """Drawn, not initialised: nothing is compiled, and no layer is zero."""
  given = batch()
  of_clip = [given[name] for name in ("expression", "expression_mask", "speech", "speech_mask")]
  embedder = jax.eval_shape(networks()["emotion_embedder"].init, jax.random.key(0), *of_clip)["params"]
  shapes = {name: network_shapes(name, ARCHITECTURES[name]) for name in LEARNING}
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    drawn = rng.normal(size=leaf.shape).astype(np.float32)
    if len(leaf.shape) < 2:
      return np.float32("scale" in path[-1].key) + np.float32(0.1) * drawn
    return drawn / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))

  return jax.tree_util.tree_map_with_path(draw, shapes | {"emotion_embedder": embedder})


def test_drops_are_rare_and_exclude_each_other():
  kept = np.asarray(draw_visible(jax.random.key(0), 40_000, CONDITIONS, ObjectiveConfig())).T
  dropped = (~kept).sum(axis=0)
  assert set(dropped) == {0, 1, 3}
  shares = [*((dropped == 1) & ~row for row in kept), dropped == 3]
  np.testing.assert_allclose([share.mean() for share in shares], [0.05] * 4, atol=0.004)
  nothing = ObjectiveConfig(drop_audio=0, drop_image=0, drop_emotion=0, drop_all=0)
  assert draw_visible(jax.random.key(0), 1000, CONDITIONS, nothing).all()


def test_classes_are_neutral_and_seven_emotions_at_three_levels():
  pairs = [(i, level) for i, e in enumerate(EMOTIONS) for level in ((1,) if e == "neutral" else (1, 2, 3))]
  found = emotion_class(*np.array(pairs).T)
  assert found.tolist() == list(range(22))
  assert emotion_class(np.array([-1]), np.array([0])).tolist() == [-1]
  happy = EMOTIONS.index("happy")
  assert emotion_class(np.array([happy]), np.array([0])) == emotion_class(np.array([happy]), np.array([2]))


@functools.cache
def condition(*visible):
  return _conditions(params(), batch(), np.array(visible))[0]


@jax.jit
def _conditions(params, batch, visible):
  return batch_conditions(networks(), CONDITIONS, params, batch, visible)


def test_what_is_dropped_is_what_guidance_subtracts():
  kept, dropped = condition((True,) * 3, (True,) * 3), condition((True,) * 3, (False,) * 3)
  for ours, theirs in zip(jax.tree.leaves(dropped), jax.tree.leaves(kept), strict=True):
    np.testing.assert_array_equal(ours[0], theirs[0])
  assert not np.asarray(dropped.image_latents[1]).any()
  assert not np.asarray(dropped.image_tokens[1]).any()
  modules, weights = networks(), params()
  # The tokens of inference.
  emotion = tabulate(modules["emotion_model"], weights["emotion_model"], np.ones((2, 256), np.float32))
  audio_tokens, emotion_tokens = dropped.adapter_tokens
  np.testing.assert_allclose(emotion_tokens[1, 0], emotion.unconditional, atol=1e-5)
  encoder = build("audio_encoder", NETWORKS["audio_encoder"])
  encoder_params = stand_in_params("audio_encoder", NETWORKS["audio_encoder"])
  sound = np.zeros(3200, np.float32)
  states = whisper_states(encoder, encoder_params, sound)
  features = speech_windows(states, 2 * np.arange(2), POSITIONS)
  silent = tabulate(modules["audio_projection"], weights["audio_projection"], features)
  for frame in range(FRAMES):
    np.testing.assert_allclose(audio_tokens[1, frame], silent.unconditional, atol=1e-5)
  for ours, theirs, least in zip(dropped.adapter_tokens, kept.adapter_tokens, (0.1, 1e-3), strict=True):
    assert np.abs(theirs[1] - ours[1]).max() > least


def test_bank_learning_pulls_code_and_prior_as_equation_17_says():
  model, weights = networks()["emotion_model"], params()["emotion_model"]
  prior = np.random.default_rng(0).normal(size=(3, 256)).astype(np.float32)

  def vq(weights):
    return model.apply({"params": weights}, prior, method=type(model).retrieve)[1].vq_loss.mean()

  slope = jax.jit(jax.grad(vq))(weights)["codebook"]
  fc, codes = weights["codebook"]["fc"], np.asarray(weights["codebook"]["codebook"]["embedding"], np.float64)
  z = prior @ np.asarray(fc["kernel"], np.float64) + np.asarray(fc["bias"])
  nearest = np.square(z[:, None] - codes).sum(-1).argmin(-1)
  size = z.size
  code_slope = np.zeros_like(codes)
  np.add.at(code_slope, nearest, 2 * (codes[nearest] - z) / size)
  np.testing.assert_allclose(slope["codebook"]["embedding"], code_slope, atol=1e-6)
  prior_slope = 0.25 * 2 * (z - codes[nearest]) / size
  np.testing.assert_allclose(slope["fc"]["bias"], prior_slope.sum(0), atol=1e-6)
  np.testing.assert_allclose(slope["fc"]["kernel"], prior.T @ prior_slope, atol=1e-6)


@functools.cache
def compiled(training, emotion_weight=0.1):
  config = ObjectiveConfig(emotion_weight=emotion_weight)

  def loss(params, batch, key):
    return objective(networks(), config, 0.18215, params, batch, key, training)

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_the_objective_reaches_all_that_is_to_learn():
  (loss, metrics), slope = compiled(True)(params(), batch(), jax.random.key(3))
  np.testing.assert_allclose(loss, metrics["denoising"] + 0.1 * metrics["emotion"] + metrics["vq"], rtol=1e-5)
  assert 0.3 < metrics["denoising"] < 10
  reached = {name: max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree)) for name, tree in slope.items()}
  assert reached.pop("emotion_embedder") == 0, "the embedder is frozen"
  assert min(reached.values()) > 0
  for part in ("classifier", "codebook", "emo_linear", "kv_tokens_linear", "attention"):
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope["emotion_model"][part])), part


def test_the_same_key_gives_the_same_loss_and_rows_that_only_fill_count_nothing():
  first, again = (compiled(True)(params(), batch(), jax.random.key(5))[0][0] for _ in range(2))
  assert first == again
  half = batch() | {"valid": np.array([True, False])}
  spoilt = half | {"latents_mean": np.where(half["valid"][:, None, None, None, None], half["latents_mean"], 100)}
  spoilt["expression"] = np.where(half["valid"][:, None, None], half["expression"], 3)
  key = jax.random.key(6)
  values = [compiled(True)(params(), given, key)[0][1] for given in (half, spoilt)]
  for name in ("denoising", "emotion", "vq"):
    np.testing.assert_allclose(values[0][name], values[1][name], rtol=1e-5, err_msg=name)


def test_the_slope_of_the_whole_objective():
  given, key, h = flatten_dict(params(), sep="/"), jax.random.key(4), 2e-4
  slope = flatten_dict(compiled(True)(params(), batch(), key)[1], sep="/")
  # Not the bank's, whose slopes are no differences of values: Eq. 17, and straight-through.
  for part in ("unet/", "audio_projection/", r"emotion_model/(?!codebook|classifier)", ".*classifier/", "pose_guider/"):
    # Uphill, each parameter by its size: no rounding hides it, and few ReLUs are within h of their kink.
    uphill = {path: np.sign(slope[path]) * np.abs(leaf) for path, leaf in given.items() if re.match(part, path)}
    expected = sum(float(np.abs(slope[path] * leaf).sum()) for path, leaf in uphill.items())
    above, below = (
      compiled(True)(
        unflatten_dict({path: leaf + by * uphill.get(path, 0) for path, leaf in given.items()}, sep="/"), batch(), key
      )
      for by in (np.float32(h), np.float32(-h))
    )
    np.testing.assert_allclose((above[0][0] - below[0][0]) / (2 * h), expected, rtol=0.01, err_msg=part)


def test_the_prior_is_drawn_or_its_mean():
  def run(name, *inputs):
    return networks()[name].apply({"params": params()[name]}, *inputs)

  draw = jax.jit(lambda key: EMOTION.of_batch(run, batch(), key))
  drawn = [draw(key) for key in jax.random.split(jax.random.key(0))]
  mean = draw(None)
  assert mean.shape == (B, 1, 256)
  assert all(np.abs(one - other).max() > 1e-3 for one, other in ((*drawn,), (drawn[0], mean)))


@pytest.mark.parametrize("conditioning", ["prior", "learnable"])
def test_without_the_bank_nothing_is_learnt_about_it(conditioning):
  keep = jnp.array([True, False])
  prior = np.stack([np.ones(256, np.float32), np.linspace(-1, 1, 256, dtype=np.float32)])
  model = networks()["emotion_model"].clone(conditioning=conditioning)
  weights = params()["emotion_model"] | (
    {"query": np.ones((8, WIDTH), np.float32)} if conditioning == "learnable" else {}
  )

  def tokens_of(weights, keep=keep):
    tokens, none, loss = condition_tokens(model, weights, prior[:, None])
    return jnp.where(keep[:, None, None], tokens[:, 0], none[0]), loss

  tokens, vq = tokens_of(weights)
  assert vq.shape == (2,) and not vq.any()
  slope = jax.jit(jax.grad(lambda w: tokens_of(w)[0].sum() + tokens_of(w)[0][0, 0, 0]))(weights)
  assert not any(np.abs(leaf).any() for leaf in jax.tree.leaves(slope["codebook"]))
  assert not any(np.abs(leaf).any() for leaf in jax.tree.leaves(slope["kv_tokens_linear"]))
  assert ("query" in slope) == (conditioning == "learnable")
  assert any(np.abs(leaf).any() for leaf in jax.tree.leaves(slope["emo_linear"]))
  # Training and inference take one path, whatever of the bank is asked for.
  zero = model.apply({"params": weights}, jnp.zeros((1, 256)), bank="nearest")
  np.testing.assert_allclose(tokens[1], zero[0], atol=1e-5)
  assert np.abs(tokens[0] - tokens_of(weights, jnp.array([True, True]))[0][1]).max() > 1e-3
