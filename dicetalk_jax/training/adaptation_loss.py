"""The objective of the compositional adaptation (§3.3, Eq. 15): one pure function of parameters and a batch.

L = L_denoising + λ L_cls + L_vq. Conditions are dropped at random, so that guidance can subtract them.
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dicetalk_jax.diffusion.conditioning import Conditions, face_mask, hide, pose_input, unet_inputs
from dicetalk_jax.diffusion.losses import denoising_loss, draw_sigma, emotion_loss
from dicetalk_jax.inference.conditions import AUDIO, EMOTION, Condition
from dicetalk_jax.training.config import ObjectiveConfig
from dicetalk_jax.vocabulary import EMOTIONS, LEVELS


def drops(conditions: Sequence[Condition], config: ObjectiveConfig) -> dict[str, float]:
  """The share of samples in which the image, or one condition, is dropped: the setting drop_<name>, else its own."""
  own = {condition.name: condition.drop for condition in conditions}
  return {name: getattr(config, f"drop_{name}", own.get(name)) for name in ("image", *own)}


def draw_visible(key, count: int, conditions: Sequence[Condition], config: ObjectiveConfig) -> jax.Array:
  """Draws which conditions each sample sees: (count, 1 + conditions) bool, the image first.

  Drops exclude each other: one condition, or all of them, or none.
  """
  shares = [*drops(conditions, config).values(), config.drop_all]
  edges, one = jnp.cumsum(jnp.array(shares)), len(shares) - 1
  dropped = jnp.searchsorted(edges, jax.random.uniform(key, (count,)), side="right")[:, None]
  return (dropped != jnp.arange(one)) & (dropped != one)


def emotion_class(emotion, level):
  """The discriminator's class of an emotion (index in EMOTIONS) at a level: 22 in EMOTIONS' order, -1 for unknown.

  Neutral has one class, the others three. A known emotion of unknown level (0) counts as its middle one.
  """
  neutral = EMOTIONS.index("neutral")
  level = jnp.where(level == 0, LEVELS[1], level)
  first = len(LEVELS) * emotion - jnp.where(emotion > neutral, len(LEVELS) - 1, 0)
  index = jnp.where(emotion == neutral, first, first + level - 1)
  return jnp.where(emotion < 0, -1, index)


def condition_tokens(module: nn.Module, params, features):
  """A condition's tokens in training: features (b, f, ...) -> tokens, unconditional tokens, loss.

  tokens (b, f, n, d), unconditional (1, 1, n, d). loss (b,): what the module's method `for_training` returns, such as
  L_vq (Eq. 9-11, 17); 0 without that method.
  """
  b, f = features.shape[:2]
  rows, loss = features.reshape(b * f, *features.shape[2:]), jnp.zeros(b)

  def run(rows, method=None):
    return module.apply({"params": params}, rows, method=method)

  if hasattr(module, "for_training"):
    tokens, losses = run(rows, type(module).for_training)
    loss = losses.reshape(b, f).mean(axis=1)
  else:
    tokens = run(rows)
  return tokens.reshape(b, f, *tokens.shape[1:]), run(jnp.zeros_like(rows[:1]))[None], loss


def batch_conditions(
  modules: Mapping[str, nn.Module], conditions: Sequence[Condition], params, batch, visible, key=None, downscale=8
) -> tuple[Conditions, jax.Array]:
  """A batch of `diffusion_batches` -> what the U-Net sees, and the losses of the conditions' networks, (b,).

  visible: from `draw_visible`. key: of what conditions draw, None: means instead. downscale: pixels per latent.
  """
  b, _, h, w, _ = batch["latents_mean"].shape

  def run(name, *inputs):
    return modules[name].apply({"params": params[name]}, *inputs)

  tokens, unconditional, losses = [], [], []
  for i, condition in enumerate(conditions):
    features = condition.of_batch(run, batch, None if key is None else jax.random.fold_in(key, i))
    own, none, loss = condition_tokens(modules[condition.network], params[condition.network], features)
    tokens.append(own), unconditional.append(none), losses.append(loss)
  mask = face_mask(batch["mask_box"], h * downscale, w * downscale)
  seen = Conditions(
    image_latents=batch["image_latents"].astype(jnp.float32),
    image_tokens=batch["image_embedding"].astype(jnp.float32)[:, None],
    adapter_tokens=tuple(tokens),
    pose_features=run("pose_guider", pose_input(mask)),
    face_mask=mask,
  )
  return hide(seen, unconditional, visible), sum(losses, jnp.zeros(b))


def objective(
  modules: Mapping[str, nn.Module],
  config: ObjectiveConfig,
  scaling_factor,
  params,
  batch,
  key,
  training=True,
  downscale=8,
  conditions: Sequence[Condition] = (AUDIO, EMOTION),
):
  """Eq. 15 for a batch -> (L (), metrics {name: ()}).

  modules, params: {network: module}, {network: parameters} of the U-Net, the pose guider, and what `conditions` need.
  scaling_factor, downscale: the VAE's. training=False drops no condition and no unit. Rows outside batch["valid"] do
  not count.
  """
  b = len(batch["latents_mean"])
  keys = dict(zip(("latents", "sigma", "noise", "drop", "prior", "dropout"), jax.random.split(key, 6), strict=True))
  valid = batch["valid"].astype(jnp.float32)
  mean, logvar = (batch[name].astype(jnp.float32) for name in ("latents_mean", "latents_logvar"))
  x = scaling_factor * (mean + jnp.exp(0.5 * logvar) * jax.random.normal(keys["latents"], mean.shape))
  sigma = draw_sigma(keys["sigma"], b, config.sigma_mean, config.sigma_std)
  noise, wide = jax.random.normal(keys["noise"], x.shape), sigma[:, None, None, None, None]
  visible = jnp.ones((b, 1 + len(conditions)), bool)
  if training:
    visible = draw_visible(keys["drop"], b, conditions, config)
  prior_key = keys["prior"] if config.sample_prior else None
  seen, vq = batch_conditions(modules, conditions, params, batch, visible, prior_key, downscale)

  inputs = unet_inputs(x + wide * noise, sigma, seen)
  v, states = modules["unet"].apply({"params": params["unet"]}, **inputs, mutable=["intermediates"])
  (f_t,) = states["intermediates"]["after_mid"]
  each = denoising_loss(v, x, noise, wide)
  l_denoising, l_vq = ((loss * valid).sum() / jnp.maximum(valid.sum(), 1) for loss in (each, vq))
  metrics = {"denoising": l_denoising, "vq": l_vq}
  loss = l_denoising + l_vq
  if EMOTION in conditions:
    of_emotion = visible[:, 1 + conditions.index(EMOTION)]
    label = jnp.where(of_emotion & batch["valid"], emotion_class(batch["emotion"], batch["level"]), -1)
    emotion_model = modules[EMOTION.network]
    logits = emotion_model.apply(
      {"params": params[EMOTION.network]},
      # φ pools frames, height and width alike.
      f_t.reshape(b, -1, *f_t.shape[3:]),
      not training,
      method=type(emotion_model).classify,
      rngs={"dropout": keys["dropout"]},
    )
    known = label >= 0
    metrics["emotion"] = emotion_loss(logits, label)
    metrics["accuracy"] = (known & (logits.argmax(-1) == label)).sum() / jnp.maximum(known.sum(), 1)
    loss += config.emotion_weight * metrics["emotion"]
  return loss, {"loss": loss} | metrics
