"""Trains the VAE (Rombach et al. 2022, without their discriminator)."""

import functools
import os
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from tensorboardX import summary

from dicetalk_jax.data.batches.pictures import frame_batches
from dicetalk_jax.diffusion.picture_losses import kl_loss, psnr, pyramid_loss
from dicetalk_jax.errors import InputError
from dicetalk_jax.models.vae import ENCODING_PARTS, VAE
from dicetalk_jax.training.config import check_least
from dicetalk_jax.training.foundations.autoencoder_start import as_thumbnail
from dicetalk_jax.training.foundations.common import MEMORY_GB, VALIDATION_CLIPS, valid_rows
from dicetalk_jax.training.foundations.config import AutoencoderConfig
from dicetalk_jax.training.loop import Outcome, Status
from dicetalk_jax.training.stage import Stage, Start
from dicetalk_jax.training.state import split
from dicetalk_jax.training.step import LossFn
from dicetalk_jax.weights.architectures import RELEASED

# Training clips, at most, whose latents give the `scaling_factor`.
_SCALING_CLIPS = 256


def autoencoder_loss(model: VAE, kl_weight: float) -> LossFn:
  """L1 + pyramid + KL on batches of `frame_batches`; encodes frame by frame and decodes each run together."""

  def loss_fn(params, batch, key):
    frames = signed(batch["frames"])
    mean, logvar = encode(model, params, frames)
    z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    drawn = model.apply({"params": params}, z, method="decode")
    l1, pyramid = jnp.abs(drawn - frames).mean(), pyramid_loss(drawn, frames)
    kl = kl_loss(mean, logvar)
    loss = l1 + pyramid + kl_weight * kl
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
  """psnr of held-out frames decoded from their latents' means, in dB, averaged over frames; kl in nats per value."""

  def measure(batch):
    ratio, kl, _ = _redraw(model, params, batch["frames"])
    return {"psnr": ratio, "kl": kl}

  return {name: float(values.mean()) for name, values in valid_rows(measure, batches).items()}


@functools.partial(jax.jit, static_argnums=0)
def _redraw(model, params, frames):
  """Frames uint8 (b, f, H, W, 3) -> psnr (b, f), kl (b,), decoded frames in [0, 1]."""
  mean, logvar = encode(model, params, signed(frames))
  drawn = _unit(model.apply({"params": params}, mean, method="decode"))
  return psnr(drawn, frames / 255), jax.vmap(kl_loss)(mean, logvar), drawn


def _unit(images):
  """[-1, 1] -> [0, 1], clipped."""
  return jnp.clip((images + 1) / 2, 0, 1)


def latent_scale(model: VAE, params: Mapping, batches: Iterable[dict]) -> float:
  """1 / the standard deviation of sampled latents of finite batches: the VAE's `scaling_factor`."""
  sums = np.zeros(3)
  for batch in batches:
    sums += np.asarray(_sums(model, params, batch["frames"], batch["valid"]), np.float64)
  count, first, second = sums
  return float((second / count - (first / count) ** 2) ** -0.5)


@functools.partial(jax.jit, static_argnums=0)
def _sums(model, params, frames, valid):
  """Number of latent values, their sum, and the expected sum of their squares."""
  mean, logvar = encode(model, params, signed(frames))
  valid = jnp.broadcast_to(valid[:, None, None, None, None], mean.shape)
  return jnp.stack([(valid * x).sum() for x in (jnp.ones_like(mean), mean, jnp.square(mean) + jnp.exp(logvar))])


def train_autoencoder(
  config: AutoencoderConfig, folder: str | os.PathLike | None = None, **listeners
) -> tuple[VAE, Outcome]:
  """Trains the VAE in `folder`, by default `config.out`, or continues there; see `loop.train`.

  A finished run leaves `folder`/weights with the moving average, and the `scaling_factor` that gives training latents
  unit variance. Validation is `reconstruction` of people of the validation split. listeners: see `Stage`. Raises what
  `loop.train`, `frame_batches` and `Start.of` raise, and InputError for a kl_weight below 0 and frames whose sides the
  VAE cannot halve.
  """
  check_least(config, {"kl_weight": 0})
  start = Start.of("vae", autoencoder_architecture(config), config)
  model, seed, settings = start.module, config.loop.seed, config.batches
  batches = functools.partial(frame_batches, list(config.data), settings, seed=seed, memory_gb=MEMORY_GB)
  with Stage(config, batches, settings.batch, "runs", folder=folder, **listeners) as stage:
    height, width = stage.batches.source.size
    if height % model.downscale or width % model.downscale:
      raise InputError(
        f"frames of {width}x{height} pixels cannot be encoded: both sides must be multiples of {model.downscale}; "
        "build the set at another size, or crop a square with batches.crop"
      )
    params = start.params(stage.placement, seed)
    if start.is_new:
      params = as_thumbnail(model, params)

    def measure(state, held_out, log):
      params = state.averaged()
      log.summaries(int(state.step), _picture(model, params, held_out.source[0]["frames"][:, 0]))
      return reconstruction(model, params, held_out)

    outcome = stage.train(
      autoencoder_loss(model, config.kl_weight),
      *split(params, config.trainable),
      frames=settings.batch * settings.frames,
      validate=stage.validation(measure, limit=VALIDATION_CLIPS),
    )
  params, architecture = outcome.state.averaged(), dict(start.architecture)
  # If only the decoder trained, encoded sets stay valid, and so does their scale.
  if outcome.status == Status.FINISHED and not outcome.state.params.keys().isdisjoint(ENCODING_PARTS):
    with batches(training=False, limit=_SCALING_CLIPS) as finite:
      architecture["scaling_factor"] = latent_scale(model, params, finite)
  return start.finish(stage, outcome, params, architecture), outcome


def autoencoder_architecture(config: AutoencoderConfig) -> dict:
  """The config.json of a new VAE."""
  sizes = RELEASED["vae"] | {"_class_name": "AutoencoderKLTemporalDecoder", "norm_num_groups": 32, "force_upcast": True}
  sizes |= {"scaling_factor": 1.0} | dict(config.model)
  channels = list(sizes["block_out_channels"])
  return sizes | {"down_block_types": ["DownEncoderBlock2D"] * len(channels), "block_out_channels": channels}


def _picture(model, params, frames):
  """A picture for the log: a row of frames, and the same frames encoded and decoded."""
  drawn = np.asarray(_redraw(model, params, frames[:, None])[2][:, 0])
  rows = [np.concatenate(list(row), axis=1) for row in (frames / 255, drawn)]
  picture = (255 * np.concatenate(rows)).astype(np.uint8)
  return summary.image("validation/frames", picture, dataformats="HWC")
