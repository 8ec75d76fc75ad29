"""The emotion model, its bank and its discriminator against the golden outputs, and what training needs of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import draw, golden, relative_error, stand_in
from state_dicts import to_flax

from dicetalk_jax.models.emotion_bank import EmotionBank, EmotionModel, bank_loss
from dicetalk_jax.models.emotion_discriminator import EmotionDiscriminator
from dicetalk_jax.weights.release.tables import EMOTION_MODEL


@functools.cache
def released():
  model = EmotionModel()
  target = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 256)))["params"]
  return model, {"params": to_flax(EMOTION_MODEL, stand_in("emo_model"), target)}


@functools.cache
def small():
  model = EmotionModel(
    prior_dim=6, hidden=8, num_tokens=3, features=16, num_codes=5, num_heads=2, mid_features=7, num_classes=4
  )
  return model, jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 6)))


def prior(name="prior"):
  return draw(name, (1, 1, 1, 1, 256)).reshape(1, 256)


def test_golden_whole_bank():
  model, params = released()
  tokens = jax.jit(model.apply)(params, 2 * prior())
  assert relative_error(tokens[None], golden("emo_model")["out_all"]) <= 2e-5


def test_golden_retrieval():
  model, params = released()
  expected = golden("emo_model")
  tokens, retrieval = jax.jit(functools.partial(model.apply, method="retrieve"))(params, 2 * prior())
  assert relative_error(tokens[None], expected["out_retrieval"]) <= 2e-5
  assert relative_error(retrieval.vq_loss.mean(), expected["vq_loss"]) <= 2e-5
  np.testing.assert_array_equal(
    model.apply(params, 2 * prior(), bank="nearest"), model.apply(params, 2 * prior(), method="retrieve")[0]
  )


def test_golden_bank_alone():
  _, params = released()
  expected = golden("emo_model")
  priors = np.stack([2 * prior(), prior("prior2")], axis=1)  # (1, 2, 256)
  retrieval = EmotionBank().apply({"params": params["params"]["codebook"]}, priors)
  assert relative_error(retrieval.s_star, expected["bank_quantized"].reshape(1, 2, 1024)) <= 2e-5
  assert relative_error(retrieval.vq_loss.mean(), expected["bank_loss"]) <= 2e-5
  np.testing.assert_array_equal(retrieval.index.reshape(2, 1), expected["bank_index"])


def test_golden_classifier():
  model, params = released()
  f_t = draw("feat", (3, 1280, 4, 4)).transpose(0, 2, 3, 1)
  expected = golden("emo_model")["classifier_out"]
  assert relative_error(model.apply(params, f_t, method="classify"), expected) <= 2e-5
  # The discriminator also stands alone, on its part of the parameters.
  alone = {"params": params["params"]["classifier"]}
  assert relative_error(EmotionDiscriminator().apply(alone, f_t), expected) <= 2e-5


def test_priors_of_a_batch_are_independent():
  model, params = small()
  priors = draw("priors", (4, 6))
  for bank in ("all", "nearest"):
    apply = jax.jit(functools.partial(model.apply, bank=bank))
    together = apply(params, priors)
    others = priors.copy()
    others[1:] = draw("other priors", (3, 6))
    changed = apply(params, others)
    assert relative_error(changed[0], together[0]) <= 1e-6
    assert relative_error(changed[1:], together[1:]) > 1e-2


def test_dropout_only_in_training():
  model, params = small()
  f_t = draw("features", (2, 3, 5, 7))
  classify = functools.partial(model.apply, params, f_t, method="classify")
  dropped = classify(deterministic=False, rngs={"dropout": jax.random.key(0)})
  assert relative_error(dropped, classify()) > 1e-3
  np.testing.assert_array_equal(classify(), classify())


def test_vq_loss_moves_the_chosen_code_and_the_projection_only():
  bank = EmotionBank(num_codes=5, features=16)
  s = draw("one prior", (1, 6))
  params = bank.init(jax.random.key(0), s)
  z, codes = s @ params["params"]["fc"]["kernel"], params["params"]["codebook"]["embedding"]
  index = int(bank.apply(params, s).index[0])
  assert index == int(np.argmin(np.linalg.norm(np.asarray(z) - codes, axis=-1)))

  gradient = jax.grad(lambda p: bank.apply(p, s).vq_loss.sum())(params)["params"]
  # Eq. 17's first term alone reaches the code, its second, with β = 0.25, alone the projection.
  towards = 2 * (codes[index] - z[0]) / 16
  np.testing.assert_allclose(gradient["codebook"]["embedding"][index], towards, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(np.delete(gradient["codebook"]["embedding"], index, axis=0), 0)
  np.testing.assert_allclose(gradient["fc"]["bias"], -0.25 * towards, rtol=1e-4, atol=1e-6)


def test_the_slopes_of_equation_17_in_float64():
  rng = np.random.default_rng(0)
  z, code, direction = rng.normal(size=(3, 4, 16))
  beta, h = 0.3, 1e-6
  with jax.enable_x64(True):

    def moved(along_z, along_code):
      return float(bank_loss(z + along_z * direction, code + along_code * direction, beta).sum())

    slopes = jax.grad(lambda *of: bank_loss(*of, beta).sum(), argnums=(0, 1))(z, code)
    of_z, of_code = (float((slope * direction).sum()) for slope in slopes)
    by_z, by_code = (moved(h, 0) - moved(-h, 0)) / (2 * h), (moved(0, h) - moved(0, -h)) / (2 * h)
    value = np.asarray(bank_loss(z, code, beta))
  np.testing.assert_allclose(value, (1 + beta) * np.square(z - code).mean(-1), rtol=1e-12)
  # By value both terms move with both; the slope to the code is the first's alone, that to z the second's.
  np.testing.assert_allclose([of_code, of_z], [by_code / (1 + beta), by_z * beta / (1 + beta)], rtol=1e-7)


def test_the_retrieved_code_passes_gradients_straight_through():
  bank = EmotionBank(num_codes=5, features=16)
  s = draw("one prior", (1, 6))
  params = bank.init(jax.random.key(0), s)
  weights = draw("weights", (16,))
  gradient = jax.grad(lambda p: (bank.apply(p, s).s_star[0] * weights).sum())(params)["params"]
  np.testing.assert_allclose(gradient["fc"]["bias"], weights, rtol=1e-6)
  np.testing.assert_array_equal(gradient["codebook"]["embedding"], 0)


def test_another_bank_is_refused():
  model, params = small()
  with pytest.raises(ValueError, match="some"):
    model.apply(params, jnp.zeros((1, 6)), bank="some")
