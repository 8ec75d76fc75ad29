"""Expected duration of a generation: its operations are counted, the device's speed is measured."""

import dataclasses
import functools
import json
import threading

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
from dicetalk_jax.weights.networks import build, network_shapes

# Share of the speed of a large matrix product, assumed before the first measurement.
_REACHED = 0.4


class Estimator:
  """Expected seconds of generations, corrected by each finished one. Thread-safe."""

  def __init__(self, talker: DiceTalk):
    self._talker = talker
    self._rate = None
    self._measured = False
    self._lock = threading.Lock()

  @property
  def measured(self) -> bool:
    """Whether a generation has measured the device's speed."""
    return self._measured

  def seconds(self, config: GenerationConfig, video_size: tuple[int, int], seconds: float) -> float:
    """Expected seconds for a video of (width, height) and `seconds`, without compiling."""
    with self._lock:
      if self._rate is None:
        self._rate = _REACHED * peak_flops(self._talker.dtype)
      rate = self._rate
    return self._flops(config, video_size, seconds) / rate

  def learn(self, request: Request, step_seconds: float, groups: int):
    """Records that each of `groups` groups of windows took `step_seconds`."""
    config = request.config
    flops = self._group_flops(_shape(config, request.video_size)) * max(config.windows_at_once, 1)
    if step_seconds > 0 and groups > 0:
      with self._lock:
        self._rate, self._measured = flops / step_seconds, True

  def _flops(self, config, video_size, seconds):
    frames = frame_count(round(seconds * SAMPLE_RATE))
    alone = dataclasses.replace(config, windows_at_once=1)
    groups = sum(len(window_groups(alone, frames + config.window, step)) for step in range(config.steps))
    decoding = frames * _decoding_flops(self._config("vae"), *video_size)
    return groups * self._group_flops(_shape(config, video_size)) + decoding

  def _group_flops(self, shape):
    return _group_flops(self._config("unet"), self._talker.weights.module("vae").downscale, *shape)

  def _config(self, network):
    return json.dumps(self._talker.weights.config["networks"][network])


def _shape(config, video_size):
  return (*video_size, config.window, len(guidance.of_settings(config, (AUDIO, EMOTION)).branches))


@functools.lru_cache(maxsize=64)
def _group_flops(config: str, downscale: int, width: int, height: int, window: int, branches: int) -> float:
  """Operations of one guided step of one window."""
  config = json.loads(config)
  unet, params = build("unet", config), network_shapes("unet", config)
  inputs = unet.example_inputs(frames=window)
  sample = inputs["sample"]
  shape = (1, window, height // downscale, width // downscale, sample.shape[-1])
  inputs["sample"] = jax.ShapeDtypeStruct(shape, sample.dtype)
  return branches * count_flops(lambda params, inputs: unet.apply({"params": params}, **inputs), params, inputs).total


@functools.lru_cache(maxsize=64)
def _decoding_flops(config: str, width: int, height: int) -> float:
  """Operations of decoding one frame."""
  config = json.loads(config)
  vae, params = build("vae", config), network_shapes("vae", config)
  latents = jax.ShapeDtypeStruct(
    (1, 1, height // vae.downscale, width // vae.downscale, vae.latent_channels), jnp.float32
  )
  return count_flops(lambda params, x: vae.apply({"params": params}, x, method="decode"), params, latents).total
