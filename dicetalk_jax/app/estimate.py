"""Expected duration of a generation: its operations are counted, the device's speed is measured."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from dicetalk_jax.app.requests import Request
from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.diffusion import guidance
from dicetalk_jax.inference.conditions import AUDIO, EMOTION, frame_count
from dicetalk_jax.inference.denoising import window_groups
from dicetalk_jax.inference.pipeline import DiceTalk
from dicetalk_jax.parallel.flops import count_flops, peak_flops
from dicetalk_jax.vocabulary import SAMPLE_RATE
from dicetalk_jax.weights.networks import network_shapes

# Share of the speed of a large matrix product, assumed before the first measurement.
_REACHED = 0.4


class Estimator:
  """Expected seconds of generations, corrected by each finished one.

  measured: whether a generation has measured the device's speed.
  """

  def __init__(self, talker: DiceTalk):
    self._talker, self._rate, self.measured = talker, None, False
    self._step_flops = functools.lru_cache(64)(self._count_step)
    self._decoding_flops = functools.lru_cache(64)(self._count_decoding)

  def seconds(self, config: GenerationConfig, video_size: tuple[int, int], seconds: float) -> float:
    """Expected seconds for a video of (width, height) and `seconds`, without compiling."""
    if self._rate is None:
      self._rate = _REACHED * peak_flops(self._talker.dtype)
    frames = frame_count(round(seconds * SAMPLE_RATE))
    alone = dataclasses.replace(config, windows_at_once=1)
    groups = sum(len(window_groups(alone, frames + config.window, step)) for step in range(config.steps))
    step, decoding = self._step_flops(*_shape(config, video_size)), self._decoding_flops(*video_size)
    return (groups * step + frames * decoding) / self._rate

  def learn(self, request: Request, step_seconds: float):
    """Records that a group of windows took `step_seconds`."""
    config = request.config
    flops = self._step_flops(*_shape(config, request.video_size)) * max(config.windows_at_once, 1)
    self._rate, self.measured = flops / max(step_seconds, 1e-9), True

  def _count_step(self, width: int, height: int, window: int, branches: int) -> float:
    """Operations of one guided step of one window."""
    unet, downscale = self._talker.module("unet"), self._talker.module("vae").downscale
    inputs = unet.example_inputs(frames=window)
    sample = inputs["sample"]
    shape = (1, window, height // downscale, width // downscale, sample.shape[-1])
    inputs["sample"] = jax.ShapeDtypeStruct(shape, sample.dtype)
    return branches * self._count("unet", lambda params, inputs: unet.apply({"params": params}, **inputs), inputs)

  def _count_decoding(self, width: int, height: int) -> float:
    """Operations of decoding one frame."""
    vae = self._talker.module("vae")
    shape = (1, 1, height // vae.downscale, width // vae.downscale, vae.latent_channels)
    latents = jax.ShapeDtypeStruct(shape, jnp.float32)
    return self._count("vae", lambda params, x: vae.apply({"params": params}, x, method="decode"), latents)

  def _count(self, network, apply, inputs):
    params = network_shapes(network, self._talker.weights.config["networks"][network])
    return count_flops(apply, params, inputs).total


def _shape(config, video_size):
  return (*video_size, config.window, len(guidance.of_settings(config, (AUDIO, EMOTION)).branches))
