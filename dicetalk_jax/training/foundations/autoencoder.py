"""The VAE from nothing: frames become latents and frames again (Rombach et al. 2022, without their discriminator)."""

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from tensorboardX import summary

from dicetalk_jax.data.batches.pictures import frame_batches
from dicetalk_jax.diffusion.picture_losses import kl_loss, psnr, pyramid_loss
from dicetalk_jax.models.vae import ENCODING_PARTS, VAE
from dicetalk_jax.training.checkpoints import show
from dicetalk_jax.training.foundations.autoencoder_start import as_thumbnail
from dicetalk_jax.training.foundations.common import (
  begin,
  check_downscale,
  check_weights,
  finish,
  fit,
  held_out,
  validation,
)
from dicetalk_jax.training.foundations.config import AutoencoderConfig
from dicetalk_jax.training.loop import Outcome, Status
from dicetalk_jax.training.step import LossFn


def autoencoder_loss(model: VAE, config: AutoencoderConfig) -> LossFn:
  """L1 + pyramid + KL of batches as `frame_batches` gives; frames are encoded one by one and decoded a run together."""

  def loss_fn(params, batch, key):
    frames = signed(batch["frames"])
    mean, logvar = encode(model, params, frames)
    z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    drawn = model.apply({"params": params}, z, method="decode")
    l1, pyramid = jnp.abs(drawn - frames).mean(), pyramid_loss(drawn, frames, config.pyramid_levels)
    kl = kl_loss(mean, logvar)
    loss = l1 + config.pyramid_weight * pyramid + config.kl_weight * kl
    return loss, {"l1": l1, "pyramid": pyramid, "kl": kl, "psnr": psnr(_unit(drawn), _unit(frames)).mean()}

  return loss_fn


def signed(frames):
  """uint8 -> float32 in [-1, 1]: the VAE's input."""
  return frames.astype(jnp.float32) / 127.5 - 1


def encode(model: VAE, params, frames):
  """Frames (b, f, H, W, 3) in [-1, 1] -> mean and log-variance (b, f, h, w, c)."""
  moments = model.apply({"params": params}, rearrange(frames, "b f h w c -> (b f) h w c"), method="encode")
  return tuple(rearrange(part, "(b f) h w c -> b f h w c", b=len(frames)) for part in moments)


def reconstruction(model: VAE, params: Mapping, batches: Iterable[dict]) -> dict[str, float]:
  """psnr in dB of held-out frames drawn from their latents' means, the mean over frames; kl in nats a number."""
  found = []
  for batch in batches:
    ratio, kl, _ = _redraw(model, params, batch["frames"])
    found.append((np.asarray(ratio)[batch["valid"]], np.asarray(kl)[batch["valid"]]))
  ratio, kl = (np.concatenate(part) for part in zip(*found, strict=True))
  return {"psnr": float(ratio.mean()), "kl": float(kl.mean())}


@functools.partial(jax.jit, static_argnums=0)
def _redraw(model, params, frames):
  """Frames uint8 (b, f, H, W, 3) -> psnr (b, f), kl (b,), and what is drawn, in [0, 1]."""
  mean, logvar = encode(model, params, signed(frames))
  drawn = _unit(model.apply({"params": params}, mean, method="decode"))
  return psnr(drawn, frames / 255), jax.vmap(kl_loss)(mean, logvar), drawn


def _unit(images):
  """[-1, 1] -> [0, 1], cut to it."""
  return jnp.clip((images + 1) / 2, 0, 1)


def latent_scale(model: VAE, params: Mapping, batches: Iterable[dict]) -> float:
  """1 / the standard deviation of latents, drawn from their Gaussians, of finite batches: the `scaling_factor`."""
  sums = np.zeros(3)
  for batch in batches:
    sums += np.asarray(_sums(model, params, batch["frames"], batch["valid"]), np.float64)
  count, first, second = sums
  return float((second / count - (first / count) ** 2) ** -0.5)


@functools.partial(jax.jit, static_argnums=0)
def _sums(model, params, frames, valid):
  """How many latent numbers, their sum, and the sum of their squares in expectation."""
  mean, logvar = encode(model, params, signed(frames))
  valid = jnp.broadcast_to(valid[:, None, None, None, None], mean.shape)
  return jnp.stack([(valid * x).sum() for x in (jnp.ones_like(mean), mean, jnp.square(mean) + jnp.exp(logvar))])


def train_autoencoder(
  config: AutoencoderConfig,
  folder: str | os.PathLike | None = None,
  report: Callable[[int, dict[str, float]], None] | None = None,
  progress: Callable[[str, int, int], None] | None = None,
  warn: Callable[[str], None] = show,
  validated: Callable[[int, Mapping[str, float]], None] | None = None,
) -> tuple[VAE, Outcome]:
  """Trains the VAE in `folder`, by default `config.out`, or goes on; see `loop.train`.

  At its end `folder`/weights holds the moving average, with the `scaling_factor` that gives latents of training unit
  variance. Validation is `reconstruction` of people of the validation split, where the data has one; validated(step,
  scalars) is called after it. Raises what `loop.train`, `frame_batches` and `Weights.open` raise, and InputError for
  weights of losses below 0 and frames that the VAE cannot divide.
  """
  check_weights(config, ("pyramid_weight", "kl_weight"))
  folder = pathlib.Path(folder or config.out).expanduser()
  loop, batches_config = config.loop, config.batches
  options = dict(config=batches_config, seed=loop.seed, memory_gb=config.memory_gb)
  beginning = begin("vae", autoencoder_architecture(config), config.weights, loop.seed)
  model, params = beginning.module, beginning.params
  if beginning.is_new:
    params = as_thumbnail(model, params)
  with frame_batches(list(config.data), workers=config.workers, **options) as batches:
    check_downscale(batches.source.size, model.downscale)
    outcome = fit(
      params,
      autoencoder_loss(model, config),
      batches,
      config.optimizer,
      loop,
      folder,
      frames=batches_config.batch * batches_config.frames,
      trainable=config.trainable,
      validate=_validation(config, model, options, warn, validated),
      report=report,
      progress=progress,
      warn=warn,
    )
  params, architecture = outcome.state.averaged(), dict(beginning.architecture)
  # What is encoded stays as it was, its scale included, where only the decoder has changed.
  if outcome.status == Status.FINISHED and not outcome.state.params.keys().isdisjoint(ENCODING_PARTS):
    with frame_batches(list(config.data), training=False, limit=config.scaling_clips, **options) as finite:
      architecture["scaling_factor"] = latent_scale(model, params, finite)
  return finish(beginning, outcome, params, folder, architecture), outcome


def autoencoder_architecture(config: AutoencoderConfig) -> dict:
  """The VAE's published config.json, with these sizes."""
  channels = config.model.block_out_channels
  return {
    "_class_name": "AutoencoderKLTemporalDecoder",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * len(channels),
    "block_out_channels": list(channels),
    "layers_per_block": config.model.layers_per_block,
    "latent_channels": config.model.latent_channels,
    "norm_num_groups": config.model.norm_num_groups,
    "scaling_factor": 1.0,
    "force_upcast": True,
  }


def _validation(config, model, options, warn, validated):
  unseen = held_out(
    lambda: frame_batches(
      list(config.data), split=config.validation_split, training=False, limit=config.validation_clips, **options
    ),
    warn,
  )

  def evaluate(state, log):
    params = state.averaged()
    frames = unseen.source[0]["frames"][:, 0]
    drawn = np.asarray(_redraw(model, params, frames[:, None])[2][:, 0])
    # Rows of a picture: as it is, as it is drawn.
    rows = [np.concatenate(list(row), axis=1) for row in (frames / 255, drawn)]
    picture = (255 * np.concatenate(rows)).astype(np.uint8)
    log.summaries(int(state.step), summary.image("validation/frames", picture, dataformats="HWC"))
    return reconstruction(model, params, unseen)

  return validation(unseen, evaluate, validated)
