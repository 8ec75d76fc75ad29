"""How far a picture is from the one it should be: losses for networks that draw pixels, and the usual measure."""

import jax.numpy as jnp


def laplacian_pyramid(x, levels):
  """Bands of detail from fine to coarse, and what is left: (..., h, w, c) -> up to `levels` arrays.

  Each halves the size by the mean of four pixels; where a side is odd it ends earlier. The bands are linear in x.
  """
  bands = []
  for _ in range(levels - 1):
    *lead, h, w, c = x.shape
    if h % 2 or w % 2:
      break
    coarse = x.reshape(*lead, h // 2, 2, w // 2, 2, c).mean((-4, -2))
    bands.append(x - jnp.repeat(jnp.repeat(coarse, 2, axis=-3), 2, axis=-2))
    x = coarse
  return [*bands, x]


def pyramid_loss(x, y, levels=4):
  """The sum over a Laplacian pyramid's bands of their mean absolute difference, (..., h, w, c) both -> ().

  Beside L1 it counts what is wrong over whole regions, and blurred edges, each at its own scale.
  """
  difference = x.astype(jnp.float32) - y.astype(jnp.float32)
  return sum(jnp.abs(band).mean() for band in laplacian_pyramid(difference, levels))


def kl_loss(mean, logvar):
  """KL(N(mean, exp(logvar)) ‖ N(0, 1)), arrays of one shape -> (): the mean over all elements, in nats."""
  return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean()


def psnr(x, y):
  """Peak signal to noise in dB of pictures in [0, 1]: (..., h, w, c) both -> (...)."""
  error = jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32)).mean((-3, -2, -1))
  return -10 * jnp.log10(jnp.maximum(error, 1e-10))
