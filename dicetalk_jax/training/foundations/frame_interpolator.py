"""RIFE from nothing: the middle one of three consecutive frames, from the two around it (Huang et al. 2022)."""

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.data.batches.pictures import frame_batches
from dicetalk_jax.diffusion.picture_losses import psnr, pyramid_loss
from dicetalk_jax.errors import InputError
from dicetalk_jax.models.frame_interpolator import FrameInterpolator
from dicetalk_jax.training.checkpoints import show
from dicetalk_jax.training.foundations.common import begin, check_weights, finish, fit, held_out, validation
from dicetalk_jax.training.foundations.config import FrameInterpolatorConfig
from dicetalk_jax.training.loop import Outcome
from dicetalk_jax.training.step import LossFn


def frame_interpolator_loss(model: FrameInterpolator, config: FrameInterpolatorConfig) -> LossFn:
  """L1 + pyramid of the middle frame, of batches as `frame_batches` gives with runs of three."""

  def loss_fn(params, batch, key):
    del key
    first, middle, last = _triplet(batch["frames"])
    drawn = model.apply({"params": params}, first, last)
    l1, pyramid = jnp.abs(drawn - middle).mean(), pyramid_loss(drawn, middle, config.pyramid_levels)
    return l1 + config.pyramid_weight * pyramid, {"l1": l1, "pyramid": pyramid, "psnr": psnr(drawn, middle).mean()}

  return loss_fn


def _triplet(frames):
  """uint8 (b, 3, h, w, 3) -> three of (b, h, w, 3) float32 in [0, 1]."""
  return tuple(jnp.moveaxis(frames.astype(jnp.float32) / 255, 1, 0))


def interpolation(model: FrameInterpolator, params: Mapping, batches: Iterable[dict]) -> dict[str, float]:
  """psnr in dB of held-out middle frames, and average_psnr of the mere mean of their neighbours; means over frames."""
  found = []
  for batch in batches:
    ratios = _ratios(model, params, batch["frames"])
    found.append([np.asarray(ratio)[batch["valid"]] for ratio in ratios])
  ours, average = (np.concatenate(part) for part in zip(*found, strict=True))
  return {"psnr": float(ours.mean()), "average_psnr": float(average.mean())}


@functools.partial(jax.jit, static_argnums=0)
def _ratios(model, params, frames):
  first, middle, last = _triplet(frames)
  drawn = jnp.clip(model.apply({"params": params}, first, last), 0, 1)
  return psnr(drawn, middle), psnr((first + last) / 2, middle)


def train_frame_interpolator(
  config: FrameInterpolatorConfig,
  folder: str | os.PathLike | None = None,
  report: Callable[[int, dict[str, float]], None] | None = None,
  progress: Callable[[str, int, int], None] | None = None,
  warn: Callable[[str], None] = show,
  validated: Callable[[int, Mapping[str, float]], None] | None = None,
) -> tuple[FrameInterpolator, Outcome]:
  """Trains the frame interpolator in `folder`, by default `config.out`, or goes on; see `loop.train`.

  At its end `folder`/weights holds the moving average. Validation is `interpolation` of people of the validation
  split, where the data has one; validated(step, scalars) is called after it. Raises what `loop.train`,
  `frame_batches` and `Weights.open` raise, and InputError for weights of losses below 0 and runs that are not of
  three frames.
  """
  check_weights(config, ("pyramid_weight",))
  folder = pathlib.Path(folder or config.out).expanduser()
  loop, batches_config = config.loop, config.batches
  if batches_config.frames != 3:
    raise InputError(f"batches.frames is {batches_config.frames}; the frame interpolator trains on runs of 3")
  options = dict(config=batches_config, seed=loop.seed, memory_gb=config.memory_gb)
  beginning = begin("frame_interpolator", {"features": config.model.features}, config.weights, loop.seed)
  model = beginning.module
  with frame_batches(list(config.data), workers=config.workers, **options) as batches:
    outcome = fit(
      beginning.params,
      frame_interpolator_loss(model, config),
      batches,
      config.optimizer,
      loop,
      folder,
      frames=3 * batches_config.batch,
      validate=_validation(config, model, options, warn, validated),
      report=report,
      progress=progress,
      warn=warn,
    )
  return finish(beginning, outcome, outcome.state.averaged(), folder), outcome


def _validation(config, model, options, warn, validated):
  unseen = held_out(
    lambda: frame_batches(
      list(config.data), split=config.validation_split, training=False, limit=config.validation_clips, **options
    ),
    warn,
  )
  return validation(unseen, lambda state, log: interpolation(model, state.averaged(), unseen), validated)
