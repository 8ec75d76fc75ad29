"""The objective of the compositional adaptation (section 3.3, Eq. 15): one pure function of parameters and a batch.

L = L_denoising + λ L_cls + L_vq, with every condition dropped now and then, so that guidance has what it subtracts.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dicetalk_jax.diffusion.edm import precondition
from dicetalk_jax.diffusion.losses import denoising_loss, draw_sigma, emotion_loss
from dicetalk_jax.inference.denoising import ADDED_TIME_IDS
from dicetalk_jax.training.config import ObjectiveConfig
from dicetalk_jax.vocabulary import EMOTIONS, LEVELS

# The release scales the face's box about its centre.
_MASK_SCALE = 1.1


class Networks(NamedTuple):
  """The modules that the objective runs; their parameters are a dict of the same names."""

  unet: nn.Module
  audio_projection: nn.Module
  emotion_model: nn.Module
  pose_guider: nn.Module
  emotion_embedder: nn.Module


class Kept(NamedTuple):
  """Which conditions each sample sees, (b,) bool each."""

  audio: jax.Array
  image: jax.Array
  emotion: jax.Array


class Conditions(NamedTuple):
  """What the U-Net is conditioned on, dropped ones replaced: as `UNet` takes them, and L_vq (b,)."""

  image_latents: jax.Array
  image_tokens: jax.Array
  audio_tokens: jax.Array
  emotion_tokens: jax.Array
  pose_features: jax.Array
  face_mask: jax.Array
  vq_loss: jax.Array


def draw_kept(key, count, config: ObjectiveConfig) -> Kept:
  """Draws what is dropped from each of `count` samples: one of the three, or all, or nothing."""
  u = jax.random.uniform(key, (count,))
  edges = jnp.cumsum(jnp.array([config.drop_audio, config.drop_image, config.drop_emotion, config.drop_all]))
  dropped = jnp.searchsorted(edges, u, side="right")  # 0 to 3: audio, image, emotion, all; 4: nothing
  everything = dropped == 3
  return Kept(*(~((dropped == which) | everything) for which in range(3)))


def emotion_class(emotion, level):
  """The discriminator's class of an emotion (index in EMOTIONS) at a level: 22 in EMOTIONS' order, -1 where not known.

  Neutral has one class, the others three. A known emotion of unknown level (0) is taken for its middle one.
  """
  neutral = EMOTIONS.index("neutral")
  level = jnp.where(level == 0, LEVELS[1], level)
  first = len(LEVELS) * emotion - jnp.where(emotion > neutral, len(LEVELS) - 1, 0)
  found = jnp.where(emotion == neutral, first, first + level - 1)
  return jnp.where(emotion < 0, -1, found)


def face_masks(box, height, width):
  """Boxes (b, 4) x, y, w, h in pixels -> masks (b, height, width) float32, 1 inside the box scaled by 1.1."""
  x, y, w, h = (box[:, i, None] for i in range(4))

  def inside(length, centre, size):
    return jnp.abs(jnp.arange(length) + 0.5 - centre) < _MASK_SCALE * size / 2

  rows, columns = inside(height, y + h / 2, h), inside(width, x + w / 2, w)
  return (rows[:, :, None] & columns[:, None, :]).astype(jnp.float32)


def emotion_tokens(model, params, prior, keep):
  """E_s (b, n, d) of priors (b, 256), that of a prior of zeros where not kept, and L_vq (b,) (Eq. 9-11, 17)."""

  def run(prior, method=None):
    return model.apply({"params": params}, prior, method=method)

  tokens, vq_loss = run(prior, type(model).for_training)
  # Guidance subtracts the release's unconditional tokens, those of a zero prior over the whole bank.
  return jnp.where(keep[:, None, None], tokens, run(jnp.zeros_like(prior[:1]))), vq_loss


def conditions(networks: Networks, params, batch, prior, keep: Kept, downscale=8) -> Conditions:
  """A batch of `diffusion_batches` and its priors (b, 256) -> what the U-Net sees; downscale: pixels a latent."""
  b, frames, h, w, _ = batch["latents_mean"].shape
  image = keep.image.astype(jnp.float32)

  def run(name, *inputs):
    return getattr(networks, name).apply({"params": params[name]}, *inputs)

  def every_frame(tokens):
    return jnp.broadcast_to(tokens[:, None], (b, frames, *tokens.shape[1:]))

  windows = batch["audio"].astype(jnp.float32)
  audio, silence = run("audio_projection", windows), run("audio_projection", jnp.zeros_like(windows[:1, :1]))
  emotion, vq_loss = emotion_tokens(networks.emotion_model, params["emotion_model"], prior, keep.emotion)
  mask = face_masks(batch["mask_box"], h * downscale, w * downscale)
  pose = run("pose_guider", jnp.repeat(mask[:, None, ..., None], 3, axis=-1))
  image_token = image[:, None, None] * batch["image_embedding"].astype(jnp.float32)[:, None]
  return Conditions(
    image_latents=every_frame(image[:, None, None, None] * batch["image_latents"].astype(jnp.float32)),
    image_tokens=every_frame(image_token),
    audio_tokens=jnp.where(keep.audio[:, None, None, None], audio, silence),
    emotion_tokens=every_frame(emotion),
    pose_features=pose,
    face_mask=mask,
    vq_loss=vq_loss,
  )


def draw_prior(embedder, params, batch, key, config: ObjectiveConfig):
  """The emotion priors s (b, 256) of a batch's clips, of the frozen embedder (Eq. 6)."""
  of_clip = [batch[name] for name in ("expression", "expression_mask", "speech", "speech_mask")]
  prior = embedder.apply({"params": params}, *of_clip)
  return jax.lax.stop_gradient(prior.sample(key) if config.sample_prior else prior.mu)


def objective(
  networks: Networks, config: ObjectiveConfig, scaling_factor, params, batch, key, training=True, downscale=8
):
  """Eq. 15 for a batch -> (L (), metrics {name: ()}).

  params: {network: parameters} for `Networks`' names. scaling_factor, downscale: the VAE's. training=False drops no
  condition and no unit. Rows that are not batch["valid"] count nothing.
  """
  b = len(batch["latents_mean"])
  keys = dict(zip(("latents", "sigma", "noise", "drop", "prior", "dropout"), jax.random.split(key, 6), strict=True))
  valid = batch["valid"].astype(jnp.float32)
  mean, logvar = (batch[name].astype(jnp.float32) for name in ("latents_mean", "latents_logvar"))
  x = scaling_factor * (mean + jnp.exp(0.5 * logvar) * jax.random.normal(keys["latents"], mean.shape))
  sigma = draw_sigma(keys["sigma"], b, config.sigma_mean, config.sigma_std)
  noise, wide = jax.random.normal(keys["noise"], x.shape), sigma[:, None, None, None, None]
  everything = Kept(*[jnp.ones(b, bool)] * 3)
  keep = draw_kept(keys["drop"], b, config) if training else everything
  prior = draw_prior(networks.emotion_embedder, params["emotion_embedder"], batch, keys["prior"], config)
  given = conditions(networks, params, batch, prior, keep, downscale)

  c = precondition(wide)
  v, seen = networks.unet.apply(
    {"params": params["unet"]},
    sample=jnp.concatenate([c.c_in * (x + wide * noise), given.image_latents], axis=-1),
    timestep=precondition(sigma).c_noise,
    image_tokens=given.image_tokens,
    adapter_tokens=(given.audio_tokens, given.emotion_tokens),
    added_time_ids=jnp.broadcast_to(jnp.array(ADDED_TIME_IDS), (b, 3)),
    pose_features=given.pose_features,
    face_mask=given.face_mask,
    mutable=["intermediates"],
  )
  (f_t,) = seen["intermediates"]["after_mid"]
  each = denoising_loss(v, x, noise, wide)
  l_denoising, l_vq = ((loss * valid).sum() / jnp.maximum(valid.sum(), 1) for loss in (each, given.vq_loss))

  label = jnp.where(keep.emotion & batch["valid"], emotion_class(batch["emotion"], batch["level"]), -1)
  logits = networks.emotion_model.apply(
    {"params": params["emotion_model"]},
    # φ pools frames, height and width alike.
    f_t.reshape(b, -1, *f_t.shape[3:]),
    not training,
    method=type(networks.emotion_model).classify,
    rngs={"dropout": keys["dropout"]},
  )
  l_cls = emotion_loss(logits, label)
  known = label >= 0
  accuracy = (known & (logits.argmax(-1) == label)).sum() / jnp.maximum(known.sum(), 1)
  loss = l_denoising + config.emotion_weight * l_cls + l_vq
  metrics = {"loss": loss, "denoising": l_denoising, "emotion": l_cls, "vq": l_vq, "accuracy": accuracy}
  return loss, metrics
