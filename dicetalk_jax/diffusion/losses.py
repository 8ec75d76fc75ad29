"""The losses of both stages, as plain functions: contrast of priors (Eq. 7, 8), denoising (Eq. 1), emotion (Eq. 16).

Eq. 17 is in `models.emotion_bank`, where the code is chosen. All are means over what they are of, computed in `dtype`.
"""

import jax
import jax.numpy as jnp

from dicetalk_jax.diffusion.edm import precondition

# ln σ is normal: the values that Stable Video Diffusion was trained with (Blattmann et al. 2023, appendix D).
SIGMA_MEAN, SIGMA_STD = 0.7, 1.6


def info_nce(s, group, valid=None, temperature=0.1, dtype=jnp.float32):
  """L_con (Eq. 7, 8): priors s (b, d), group (b,) -> (), with cosine similarity ζ and temperature τ.

  Every ordered pair (s, s^p) of one group counts once; the negatives S^n of s are all of other groups. valid (b,):
  false in rows that are to be passed over. Without a pair it is 0. It is computed through logarithms: shifting
  all similarities by a constant, as the paper does for stability, changes nothing.
  """
  s = s.astype(dtype)
  valid = jnp.ones(len(s), bool) if valid is None else valid
  norm = jnp.sqrt(jnp.maximum(jnp.square(s).sum(-1, keepdims=True), 1e-12))
  similarity = (s / norm) @ (s / norm).T / temperature
  both = valid[:, None] & valid[None, :]
  same = group[:, None] == group[None, :]
  positive = both & same & ~jnp.eye(len(s), dtype=bool)
  negatives = jnp.where(both & ~same, similarity, -jnp.inf)
  # A row without negatives: a sum of none is 0, whose logarithm softplus takes as it should.
  none = ~(both & ~same).any(-1)
  log_sum = jnp.where(none, -jnp.inf, jax.nn.logsumexp(jnp.where(none[:, None], 0.0, negatives), axis=-1))
  # −log(ω_p / (ω_p + Σ ω_n)) = log(1 + exp(log Σ ω_n − ζ_p/τ))
  loss = jax.nn.softplus(jnp.where(positive, log_sum[:, None] - similarity, -jnp.inf))
  return jnp.where(positive, loss, 0.0).sum() / jnp.maximum(positive.sum(), 1)


def draw_sigma(key, count, mean=SIGMA_MEAN, std=SIGMA_STD):
  """Noise levels for training, ln σ ~ N(mean, std²): (count,) float32."""
  return jnp.exp(mean + std * jax.random.normal(key, (count,)))


def denoising_target(x, noise, sigma):
  """What the network F should give for z = x + σ noise: (x − c_skip z) / c_out, of unit variance."""
  c = precondition(sigma)
  return (x - c.c_skip * (x + sigma * noise)) / c.c_out


def denoising_loss(v, x, noise, sigma, dtype=jnp.float32):
  """L_denoising (Eq. 1) in EDM's terms: the mean of λ(σ) |D(z; σ) − x|² with λ = 1 / c_out², for v = F(c_in z).

  v, x, noise (b, ...), sigma (b, 1, ...) -> (b,): each sample's mean, before that over the batch.
  """
  error = v.astype(dtype) - denoising_target(x.astype(dtype), noise, sigma)
  return jnp.square(error).mean(axis=tuple(range(1, error.ndim)))


def emotion_loss(logits, label, dtype=jnp.float32):
  """L_cls (Eq. 16): logits (b, classes), label (b,) int, -1 where there is none -> (), mean over the labelled."""
  known = label >= 0
  log_p = jax.nn.log_softmax(logits.astype(dtype))
  of_label = jnp.take_along_axis(log_p, jnp.maximum(label, 0)[:, None], axis=-1)[:, 0]
  return -jnp.where(known, of_label, 0.0).sum() / jnp.maximum(known.sum(), 1)
