"""Trains RIFE (Huang et al. 2022): the middle one of three consecutive frames from the two around it."""

import functools
import os
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from dicetalk_jax.data.batches.pictures import frame_batches
from dicetalk_jax.diffusion.picture_losses import psnr, pyramid_loss
from dicetalk_jax.errors import InputError
from dicetalk_jax.models.frame_interpolator import FrameInterpolator
from dicetalk_jax.training.foundations.common import MEMORY_GB, VALIDATION_CLIPS, valid_rows
from dicetalk_jax.training.foundations.config import FrameInterpolatorConfig
from dicetalk_jax.training.loop import Outcome
from dicetalk_jax.training.stage import Stage, Start
from dicetalk_jax.training.step import LossFn

_RELEASED = {"features": 90}


def frame_interpolator_loss(model: FrameInterpolator) -> LossFn:
  """L1 + pyramid loss of the middle frame, on batches of `frame_batches` with runs of three frames."""

  def loss_fn(params, batch, key):
    del key
    first, middle, last = _triplet(batch["frames"])
    drawn = model.apply({"params": params}, first, last)
    l1, pyramid = jnp.abs(drawn - middle).mean(), pyramid_loss(drawn, middle)
    return l1 + pyramid, {"l1": l1, "pyramid": pyramid, "psnr": psnr(drawn, middle).mean()}

  return loss_fn


def _triplet(frames):
  """uint8 (b, 3, h, w, 3) -> three of (b, h, w, 3) float32 in [0, 1]."""
  return tuple(jnp.moveaxis(frames.astype(jnp.float32) / 255, 1, 0))


def interpolation(model: FrameInterpolator, params: Mapping, batches: Iterable[dict]) -> dict[str, float]:
  """psnr of predicted middle frames and average_psnr of the mean of their neighbours, in dB, averaged over frames."""
  ratios = valid_rows(lambda batch: _ratios(model, params, batch["frames"]), batches)
  return {name: float(values.mean()) for name, values in ratios.items()}


@functools.partial(jax.jit, static_argnums=0)
def _ratios(model, params, frames):
  first, middle, last = _triplet(frames)
  drawn = jnp.clip(model.apply({"params": params}, first, last), 0, 1)
  return {"psnr": psnr(drawn, middle), "average_psnr": psnr((first + last) / 2, middle)}


def train_frame_interpolator(
  config: FrameInterpolatorConfig, folder: str | os.PathLike | None = None, **listeners
) -> tuple[FrameInterpolator, Outcome]:
  """Trains the frame interpolator in `folder`, by default `config.out`, or continues there; see `loop.train`.

  A finished run leaves `folder`/weights with the moving average. Validation is `interpolation` on people of the
  validation split. listeners: see `Stage`. Raises what `loop.train`, `frame_batches` and `Start.of` raise, and
  InputError for runs that are not of three frames.
  """
  if config.batches.frames != 3:
    raise InputError(f"batches.frames is {config.batches.frames}; the frame interpolator needs runs of 3")
  start = Start.of("frame_interpolator", _RELEASED | dict(config.model), config)
  model = start.module
  batches = functools.partial(
    frame_batches, list(config.data), config.batches, seed=config.loop.seed, memory_gb=MEMORY_GB
  )
  with Stage(config, batches, config.batches.batch, "runs", folder=folder, **listeners) as stage:
    outcome = stage.train(
      frame_interpolator_loss(model),
      start.params(stage.placement, config.loop.seed),
      frames=3 * config.batches.batch,
      validate=stage.validation(
        lambda state, held_out, log: interpolation(model, state.averaged(), held_out), limit=VALIDATION_CLIPS
      ),
    )
  return start.finish(stage, outcome), outcome
