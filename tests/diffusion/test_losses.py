"""The losses by value, by loops written from the paper, and their slopes by finite differences in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from dicetalk_jax.diffusion.edm import denoised
from dicetalk_jax.diffusion.losses import (
  SIGMA_MEAN,
  SIGMA_STD,
  denoising_loss,
  denoising_target,
  draw_sigma,
  emotion_loss,
  info_nce,
)

GROUP = np.array([0, 0, 1, 1, 1, 2])


def priors(rows=6, d=8):
  return np.random.default_rng(0).normal(size=(rows, d)).astype(np.float32)


def contrast_by_hand(s, group, temperature, valid=None):
  """Eq. 7 and 8 pair by pair."""
  s = s / np.linalg.norm(s, axis=1, keepdims=True)
  valid = np.ones(len(s), bool) if valid is None else valid
  losses = []
  for i in range(len(s)):
    for p in range(len(s)):
      if p == i or group[p] != group[i] or not (valid[i] and valid[p]):
        continue
      negatives = [s[i] @ s[n] / temperature for n in range(len(s)) if group[n] != group[i] and valid[n]]
      positive = s[i] @ s[p] / temperature
      losses.append(logsumexp([positive, *negatives]) - positive)
  return np.mean(losses)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
def test_contrast_is_equation_8(temperature):
  s = priors()
  np.testing.assert_allclose(info_nce(s, GROUP, temperature=temperature), contrast_by_hand(s, GROUP, temperature), 1e-4)


def test_contrast_passes_over_rows_that_only_fill():
  s, valid = priors(), np.array([True, True, True, False, True, True])
  expected = contrast_by_hand(s, GROUP, 0.1, valid)
  np.testing.assert_allclose(info_nce(s, GROUP, valid), expected, 1e-5)
  s[3] = np.inf
  slope = jax.grad(lambda s: info_nce(jnp.where(valid[:, None], s, 0), GROUP, valid))(s)
  assert np.isfinite(slope).all()


def test_contrast_without_pairs_or_negatives():
  s = priors(4)
  assert info_nce(s, np.arange(4)) == 0
  assert info_nce(s, np.zeros(4, int)) == 0
  assert np.isfinite(jax.grad(info_nce)(s, np.zeros(4, int))).all()
  same = np.ones((4, 8), np.float32)
  np.testing.assert_allclose(info_nce(same, np.array([0, 0, 1, 1])), np.log(3), 1e-5)


def slope_error(function, x):
  """How far the slope in float64 is from finite differences, relative to its size."""
  with jax.enable_x64(True):
    x = jnp.asarray(x, jnp.float64)
    slope = jax.grad(function)(x)
    directions = np.random.default_rng(1).normal(size=(4, *x.shape))
    h = 1e-6
    found = [(function(x + h * d) - function(x - h * d)) / (2 * h) for d in directions]
    expected = [(slope * d).sum() for d in directions]
    return np.abs(np.array(found) - np.array(expected)).max() / np.abs(np.array(expected)).max()


def test_slopes():
  rng = np.random.default_rng(2)
  assert slope_error(lambda s: info_nce(s, GROUP, dtype=jnp.float64), priors()) < 1e-6
  label = np.array([3, -1, 0])
  assert slope_error(lambda x: emotion_loss(x, label, dtype=jnp.float64), rng.normal(size=(3, 22))) < 1e-6
  x, noise = rng.normal(size=(2, 2, 4, 4))
  sigma = np.array([0.5, 9.0])[:, None, None]
  assert (
    slope_error(lambda v: denoising_loss(v, x, noise, sigma, dtype=jnp.float64).sum(), rng.normal(size=x.shape)) < 1e-6
  )


def test_denoising_loss_is_the_weighted_error_of_the_denoiser():
  rng = np.random.default_rng(0)
  v, x, noise = rng.normal(size=(3, 5, 2, 4, 4, 4)).astype(np.float32)
  sigma = np.array([0.002, 0.1, 1.0, 30.0, 700.0], np.float32).reshape(5, 1, 1, 1, 1)
  z = x + sigma * noise
  weight = (sigma**2 + 1) / sigma**2
  expected = (weight.astype(np.float64) * (np.asarray(denoised(z, v, sigma), np.float64) - x) ** 2).mean((1, 2, 3, 4))
  # Near σ = 0 the right side subtracts what is nearly equal.
  np.testing.assert_allclose(denoising_loss(v, x, noise, sigma)[1:], expected[1:], 2e-3)
  assert np.isfinite(denoising_loss(v, x, noise, sigma)).all()


def test_denoising_target_is_zero_loss_and_of_unit_variance():
  rng = np.random.default_rng(0)
  x, noise = rng.normal(size=(2, 4, 1000)).astype(np.float32)
  sigma = np.array([0.01, 0.5, 3.0, 200.0], np.float32)[:, None]
  target = denoising_target(x, noise, sigma)
  np.testing.assert_array_equal(denoising_loss(target, x, noise, sigma), np.zeros(4))
  np.testing.assert_allclose(np.asarray(target).std(axis=1), np.ones(4), atol=0.1)


def test_noise_levels_are_log_normal():
  log = np.log(draw_sigma(jax.random.key(0), 20_000))
  np.testing.assert_allclose([log.mean(), log.std()], [SIGMA_MEAN, SIGMA_STD], atol=0.03)


def test_emotion_loss_counts_labelled_rows_alone():
  logits = np.random.default_rng(0).normal(size=(4, 22)).astype(np.float32)
  log_p = logits - logsumexp(logits, axis=1, keepdims=True)
  label = np.array([5, -1, 21, -1])
  np.testing.assert_allclose(emotion_loss(logits, label), -(log_p[0, 5] + log_p[2, 21]) / 2, 1e-5)
  assert emotion_loss(logits, np.full(4, -1)) == 0
  slope = jax.grad(emotion_loss)(logits, label)
  assert not np.asarray(slope)[[1, 3]].any()
