"""Correlation-enhanced emotion conditioning: the emotion bank and attention to it (§3.2, Eq. 9-13, 17).

What another emotion model must have, to take the place of `EmotionModel` in `DiceTalk(networks=…)` and in training:
- attribute `prior_dim`: numbers in a prior;
- `__call__(prior, bank="all")`: priors (b, prior_dim) -> tokens (b, n, d), d the U-Net's `cross_attention_dim`. The
  tokens of a prior of zeros are the unconditional ones. When it is initialised it must create the parameters of
  `classify`, too;
- `classify(f_t, deterministic=True)`: logits of the 22 emotion classes, for L_cls (Eq. 16); see `EmotionDiscriminator`.
  A loss that does not need it can leave it out;
- optional `for_training(prior)` -> tokens, and a loss (b,) that is added to the objective, such as L_vq.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from dicetalk_jax.models.attention import attention
from dicetalk_jax.models.audio_projection import TokenProjection
from dicetalk_jax.models.emotion_discriminator import EmotionDiscriminator


class Retrieval(NamedTuple):
  """The bank's output for priors (..., 256): s* (..., d), straight-through; L_vq and the code's index k, (...) each."""

  s_star: jax.Array
  vq_loss: jax.Array
  index: jax.Array


def bank_loss(z, code, commitment=0.25):
  """L_vq (Eq. 17) of z, the prior's projection, and its code: both (..., d) -> (...), squares as means over d.

  The first term moves the code to z; the second, times β = `commitment`, moves z to the code.
  """
  towards_prior = jnp.square(code - lax.stop_gradient(z)).mean(-1)
  towards_code = jnp.square(lax.stop_gradient(code) - z).mean(-1)
  return towards_prior + commitment * towards_code


class EmotionBank(nn.Module):
  """The bank C of `num_codes` emotion prototypes: prior s (..., 256) -> the nearest code (Eq. 9), `Retrieval`.

  Distances are float32, because rounding may change the choice.
  """

  num_codes: int = 64
  features: int = 1024
  commitment: float = 0.25  # β of Eq. 17

  def setup(self):
    self.fc = nn.Dense(self.features, dtype=jnp.float32)
    self.codebook = nn.Embed(self.num_codes, self.features, dtype=jnp.float32)

  @property
  def codes(self):
    """C (num_codes, features)."""
    return self.codebook.embedding.astype(jnp.float32)

  def __call__(self, s):
    z = self.fc(s)
    index = jnp.argmin(jnp.square(z[..., None, :] - self.codes).sum(-1), axis=-1)
    code = self.codes[index]
    # Straight-through: the code's value, z's gradient.
    return Retrieval(z + lax.stop_gradient(code - z), bank_loss(z, code, self.commitment), index)


class EmotionAttention(nn.Module):
  """CA(Q, K, V) of Eq. 11 and 13, no projection after: tokens (b, n, c), memory (b or 1, m, c) -> (b, n, c)."""

  num_heads: int = 8
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens, memory):
    def project(x, name):
      projected = nn.Dense(tokens.shape[-1], dtype=self.dtype, name=name)(x)
      projected = rearrange(projected, "b n (heads d) -> b n heads d", heads=self.num_heads)
      return jnp.broadcast_to(projected, (tokens.shape[0], *projected.shape[1:]))

    attended = attention(project(tokens, "fc_q"), project(memory, "fc_k"), project(memory, "fc_v"))
    return rearrange(attended, "b n heads d -> b n (heads d)")


CONDITIONINGS = ("bank", "prior", "learnable")


class EmotionModel(nn.Module):
  """From an emotion prior to emotion tokens, and the discriminator that is published with it.

  prior s (b, prior_dim) -> E_s (b, num_tokens, features).
  conditioning: "bank" is the paper's. Ablations (Table 4): "prior" has no bank, E_s is the projection of s; in
  "learnable", learned query tokens attend to that projection.
  """

  prior_dim: int = 256
  hidden: int = 1024
  num_tokens: int = 32
  features: int = 1024
  num_codes: int = 64
  num_heads: int = 8
  commitment: float = 0.25
  mid_features: int = 1280
  num_classes: int = 22
  conditioning: str = "bank"
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    if self.conditioning not in CONDITIONINGS:
      raise ValueError(f"conditioning is {self.conditioning!r}, wanted one of {', '.join(CONDITIONINGS)}")
    if self.conditioning == "learnable":
      # Of the same scale as the normalised tokens that it replaces.
      self.query = self.param("query", nn.initializers.normal(1.0), (self.num_tokens, self.features))
    self.emo_linear = TokenProjection(self.hidden, self.num_tokens, self.features, self.dtype)
    self.codebook = EmotionBank(self.num_codes, self.features, self.commitment)
    self.kv_tokens_linear = TokenProjection(self.hidden, self.num_tokens, self.features, self.dtype)
    self.attention = EmotionAttention(self.num_heads, self.dtype)
    self.classifier = EmotionDiscriminator(num_classes=self.num_classes, dtype=self.dtype)

  def __call__(self, prior, bank="all"):
    """E_s from the whole bank (`bank="all"`, Eq. 12 and 13) or from its nearest code ("nearest", Eq. 9-11).

    Without a bank both are the same. Raises ValueError for another `bank`.
    """
    if self.is_initializing():
      # Create every parameter of the checkpoint, not only those of one path.
      self.retrieve(prior)
      self.classify(jnp.zeros((1, 1, 1, self.mid_features), self.dtype))
    if bank not in ("all", "nearest"):
      raise ValueError(f'bank is {bank!r}, wanted "all" or "nearest"')
    if self.conditioning != "bank":
      return self._without_bank(prior)
    if bank == "nearest":
      return self.retrieve(prior)[0]
    memory = self.kv_tokens_linear(self.codebook.codes)
    memory = rearrange(memory, "codes tokens c -> 1 (codes tokens) c")
    return self.attention(self.emo_linear(prior), memory)

  def retrieve(self, prior):
    """Training's path (Eq. 9-11): (E_s, `Retrieval`)."""
    retrieval = self.codebook(prior)
    return self.attention(self.emo_linear(prior), self.kv_tokens_linear(retrieval.s_star)), retrieval

  def for_training(self, prior):
    """(E_s, L_vq (b,)) for training: retrieved from the bank, or without a bank and 0."""
    if self.conditioning != "bank":
      return self._without_bank(prior), jnp.zeros(len(prior))
    tokens, retrieval = self.retrieve(prior)
    return tokens, retrieval.vq_loss

  def _without_bank(self, prior):
    tokens = self.emo_linear(prior)
    if self.conditioning == "prior":
      return tokens
    query = jnp.broadcast_to(self.query.astype(tokens.dtype), (len(prior), *self.query.shape))
    return self.attention(query, tokens)

  def classify(self, f_t, deterministic=True):
    """The discriminator's logits (b, num_classes) for middle-block features f_t (b, h, w, mid_features), Eq. 16."""
    return self.classifier(f_t, deterministic)
