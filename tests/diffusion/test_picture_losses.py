"""Losses of pictures, against what they are by definition."""

import jax
import numpy as np
import pytest

from dicetalk_jax.diffusion.picture_losses import kl_loss, laplacian_pyramid, psnr, pyramid_loss


def picture(*shape):
  return np.random.default_rng([*shape]).random(shape, np.float32)


def test_a_pyramids_bands_make_the_picture_again():
  x = picture(2, 16, 24, 3)
  *bands, whole = laplacian_pyramid(x, 4)
  assert [band.shape[1:3] for band in (*bands, whole)] == [(16, 24), (8, 12), (4, 6), (2, 3)]
  for band in reversed(bands):
    whole = np.repeat(np.repeat(whole, 2, 1), 2, 2) + band
    np.testing.assert_allclose(band.reshape(2, band.shape[1] // 2, 2, -1, 2, 3).mean((2, 4)), 0, atol=1e-6)
  np.testing.assert_allclose(whole, x, atol=1e-6)
  # 3 is odd: 2x3 is not halved.
  assert len(laplacian_pyramid(x, 9)) == 4 and len(laplacian_pyramid(x, 1)) == 1


def test_the_pyramid_counts_each_scale():
  x = np.zeros((1, 8, 8, 1), np.float32)
  # A constant is in the coarsest band alone, a checkerboard in the finest alone.
  np.testing.assert_allclose(pyramid_loss(x + 0.25, x, 3), 0.25, rtol=1e-6)
  checkerboard = (-1.0) ** np.add.outer(np.arange(8), np.arange(8))[None, :, :, None]
  np.testing.assert_allclose(pyramid_loss(x + checkerboard, x, 3), 1, rtol=1e-6)
  stripes = np.repeat([1.0, -1.0, 1.0, -1.0], 2)[None, None, :, None] * np.ones((1, 8, 1, 1))
  np.testing.assert_allclose(pyramid_loss(stripes, x, 3), 1, rtol=1e-6)


def test_kl_is_that_of_gaussians():
  assert kl_loss(np.zeros(5), np.zeros(5)) == 0
  # KL(N(2, 9) || N(0, 1)) = (4 + 9 - 1 - ln 9) / 2
  np.testing.assert_allclose(kl_loss(np.full(4, 2.0), np.full(4, np.log(9.0))), (12 - np.log(9)) / 2, rtol=1e-6)
  np.testing.assert_allclose(jax.grad(kl_loss)(np.array([3.0]), np.array([0.5])), [3.0], rtol=1e-6)


@pytest.mark.parametrize("error, decibels", [(0.1, 20), (0.01, 40), (0.0, 100)])
def test_psnr(error, decibels):
  x = picture(2, 4, 4, 3)
  # float32: an error of 0.01 is known to five digits.
  np.testing.assert_allclose(psnr(x + np.float32(error), x), [decibels] * 2, rtol=1e-4)
