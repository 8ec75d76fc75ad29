"""Samples of a model in training: clips of held-out people, generated as `generate` does, beside the true clips."""

import dataclasses
import io
import pathlib
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image
from tensorboardX.proto.summary_pb2 import Summary

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.diffusion import guidance
from dicetalk_jax.diffusion.conditioning import Conditions, face_mask, pose_input
from dicetalk_jax.errors import DiceTalkError
from dicetalk_jax.inference.conditions import run, tabulate
from dicetalk_jax.inference.decoding import decode_frames
from dicetalk_jax.inference.denoising import denoise
from dicetalk_jax.media.video import write_video
from dicetalk_jax.parallel.hosts import is_first
from dicetalk_jax.parallel.mesh import to_host
from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.training.config import SamplesConfig
from dicetalk_jax.training.embedder import embedder_inputs
from dicetalk_jax.training.events import EventLog
from dicetalk_jax.training.networks import Setup
from dicetalk_jax.vocabulary import MODEL_FPS


def sample_latents(
  setup: Setup, params: Mapping, row: Mapping, config: GenerationConfig, noise: np.ndarray, mesh: Mesh | None = None
) -> jax.Array:
  """Denoises one window with the conditions of a row of `diffusion_batches`, as inference does.

  Priors are the means that the embedder gives. noise (f, h, w, c) of unit variance -> latents (f, h, w, c) times the
  VAE's scaling factor. mesh: where `params` lie, if over several processes, which all call this.
  """
  modules, frames = setup.modules, len(noise)
  batch = {name: np.asarray(value)[None] for name, value in row.items()}
  if jax.process_count() > 1:
    params = {name: of if name == "unet" else to_host(of) for name, of in params.items()}
  config = dataclasses.replace(config, window=frames, shift=0, overlap=0)

  def apply(name, *inputs):
    return run(modules[name], params[name], *inputs)

  tables = []
  for condition in setup.conditions:
    features = np.asarray(condition.of_batch(apply, batch, None))[0]
    features = np.broadcast_to(features, (frames, *features.shape[1:]))
    options = {name: getattr(config, name) for name in condition.options}
    module, weights = modules[condition.network], params[condition.network]
    tables.append(tabulate(module, weights, features, condition.rows, setup.dtype, **options))
  mask = face_mask(batch["mask_box"], *(setup.downscale * side for side in noise.shape[1:3]))
  constants = Conditions(
    image_latents=jnp.asarray(batch["image_latents"], jnp.float32),
    image_tokens=jnp.asarray(batch["image_embedding"], jnp.float32)[:, None],
    adapter_tokens=(),
    pose_features=apply("pose_guider", pose_input(mask)).astype(setup.dtype),
    face_mask=jnp.asarray(mask),
  )
  unet = modules["unet"].clone(remat=False, remat_policy=None)
  noise, plan = jnp.asarray(noise, jnp.float32), guidance.of_settings(config, setup.conditions)
  return denoise(unet, params["unet"], noise, tables, constants, config, plan, setup.scaling_factor, mesh=mesh)


class SampleWriter:
  """Writes samples for the first clips of a batch, the true clip on the left: `folder`/<step>_<clip>.mp4, and the log.

  The true clip goes through the VAE too, so that the two sides differ by the diffusion model alone.
  """

  def __init__(self, setup: Setup, config: SamplesConfig, folder: pathlib.Path, placement: Placement | None = None):
    """placement: of the parameters. All its processes compute the same samples, and the first one writes them."""
    self._setup, self._config, self._folder = setup, config, folder
    self._mesh = placement.mesh if placement is not None and placement.mesh.size > 1 else None
    self._vae = setup.weights.module("vae", setup.dtype)
    self._vae_params = None

  def write(self, step: int, params: Mapping, batch: Mapping, log: EventLog) -> None:
    """Uses the same noise each time. If the disk is full, warns in the log and returns."""
    for i in range(min(self._config.clips, int(batch["valid"].sum()))):
      row = {name: value[i] for name, value in batch.items()}
      true, sample = self.pictures(params, row, i)
      if not is_first():
        continue
      pictures = np.concatenate([true, sample], axis=2)  # side by side along the width
      log.summaries(step, _animation(f"samples/{i}", pictures))
      try:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_video(self._folder / f"{step:07d}_{i}.mp4", pictures, MODEL_FPS)
      except (OSError, DiceTalkError) as error:
        log.warn(f"{self._folder}: a sample could not be written ({error}); training goes on.")

  def pictures(self, params: Mapping, row: Mapping, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The clip of a row through the VAE, and a sample with its conditions: (f, H, W, 3) float32 in [0, 1] each."""
    if self._vae_params is None:
      self._vae_params = self._setup.weights.load("vae", self._setup.dtype)
    true = self._setup.scaling_factor * row["latents_mean"].astype(np.float32)
    noise = np.asarray(jax.random.normal(jax.random.key(seed), true.shape))
    config = self._config.generation
    sample = np.asarray(sample_latents(self._setup, params, row, config, noise, self._mesh))
    return tuple(
      decode_frames(self._vae, self._vae_params, jnp.asarray(latents), len(true), config.decode_chunk)
      for latents in (true, sample)
    )


def prior_means(modules: Mapping[str, nn.Module], params: Mapping, batch: Mapping) -> np.ndarray:
  """μ_s (b, 256) of a batch's clips (Eq. 4)."""
  return to_host(run(modules["emotion_embedder"], params["emotion_embedder"], *embedder_inputs(batch)).mu)


def _animation(name: str, frames: np.ndarray) -> Summary:
  """An animated GIF, which TensorBoard can play: frames (f, H, W, 3) in [0, 1]."""
  pictures = [Image.fromarray(frame) for frame in np.rint(255 * frames).astype(np.uint8)]
  file = io.BytesIO()
  pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / MODEL_FPS), loop=0)
  height, width = frames.shape[1:3]
  image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.getvalue())
  return Summary(value=[Summary.Value(tag=name, image=image)])
