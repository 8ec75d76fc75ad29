"""The emotion discriminator ψ: classifies the emotion from the U-Net's features (§3.3, Eq. 16)."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp


class EmotionDiscriminator(nn.Module):
  """f_t (b, h, w, c) of the U-Net's middle block -> logits (b, num_classes) of p_t = softmax(ψ(φ(f_t))).

  φ is the mean over space, c = 1280 as released. The 22 classes are neutral at one level and seven emotions at three.
  With `deterministic=False` dropout needs the rng "dropout".
  """

  hidden: Sequence[int] = (512, 256)
  num_classes: int = 22
  dropout_rate: float = 0.1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, f_t, deterministic=True):
    v_t = f_t.astype(jnp.float32).mean(axis=(1, 2)).astype(self.dtype)
    for i, features in enumerate(self.hidden, start=1):
      v_t = nn.relu(nn.Dense(features, dtype=self.dtype, name=f"fc{i}")(v_t))
      v_t = nn.Dropout(self.dropout_rate)(v_t, deterministic=deterministic)
    return nn.Dense(self.num_classes, dtype=self.dtype, name=f"fc{len(self.hidden) + 1}")(v_t)
