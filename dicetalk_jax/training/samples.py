"""Samples of a model in training: clips of held-out people, made as `generate` makes them, beside the true ones."""

import io
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image
from tensorboardX.proto.summary_pb2 import Summary

from dicetalk_jax.diffusion import guidance
from dicetalk_jax.errors import DiceTalkError
from dicetalk_jax.inference import conditions
from dicetalk_jax.inference.decoding import decode_frames
from dicetalk_jax.inference.denoising import Constants, Plan, denoise
from dicetalk_jax.inference.emotion import Emotion
from dicetalk_jax.media.video import write_video
from dicetalk_jax.parallel.hosts import is_first
from dicetalk_jax.parallel.mesh import to_host
from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.training.adaptation_loss import Networks, face_masks
from dicetalk_jax.training.config import SamplesConfig
from dicetalk_jax.training.events import EventLog
from dicetalk_jax.training.networks import Setup
from dicetalk_jax.vocabulary import MODEL_FPS


def sample_latents(
  setup: Setup,
  params: Mapping,
  row: Mapping,
  mu: np.ndarray,
  config: SamplesConfig,
  noise: np.ndarray,
  mesh: Mesh | None = None,
) -> jax.Array:
  """Denoises one window with the conditions of a row of `diffusion_batches` and the prior mu (256,), as inference does.

  noise (f, h, w, c) of unit variance -> latents (f, h, w, c) times the VAE's scaling factor. mesh: where `params` lie,
  if over several processes, which all call this.
  """
  modules, frames = setup.modules, len(noise)
  params = _local(params)
  mask = face_masks(jnp.asarray(row["mask_box"])[None], *(setup.downscale * side for side in noise.shape[1:3]))
  windows = np.concatenate([row["audio"], np.zeros_like(row["audio"][:1])]).astype(np.float32)
  tokens = _apply(modules.audio_projection, params["audio_projection"], windows)
  audio = conditions.TokenTable(tokens.astype(setup.dtype), np.arange(frames))
  emotion = conditions.emotion_tokens(
    modules.emotion_model, params["emotion_model"], Emotion([0.0], mu[None]), frames, config.bank, setup.dtype
  )
  pose = _apply(modules.pose_guider, params["pose_guider"], jnp.repeat(mask[:, None, ..., None], 3, axis=-1))
  constants = Constants(
    image_latents=jnp.asarray(row["image_latents"], jnp.float32),
    image_token=jnp.asarray(row["image_embedding"], jnp.float32)[None],
    audio=audio.unconditional,
    emotion=emotion.unconditional,
    pose_features=pose.astype(setup.dtype),
    face_mask=mask,
  )
  branches, scales = guidance.needed(guidance.branches(), guidance.scales(config.identity_scale, config.emotion_scale))
  return denoise(
    modules.unet.clone(remat=False, remat_policy=None),
    params["unet"],
    jnp.asarray(noise, jnp.float32),
    audio,
    emotion,
    constants,
    Plan(config.steps, window=frames, shift=0, sigma_min=config.sigma_min, sigma_max=config.sigma_max),
    scales,
    branches,
    setup.scaling_factor,
    mesh=mesh,
  )


def _local(params: Mapping) -> dict:
  """The parameters with all networks but the U-Net on this process, where they lie over several."""
  if jax.process_count() == 1:
    return params
  return {name: of if name == "unet" else to_host(of) for name, of in params.items()}


_apply = jax.jit(lambda module, params, *inputs: module.apply({"params": params}, *inputs), static_argnums=0)


class SampleWriter:
  """Writes samples of the first clips of a batch, the true clip on the left: `folder`/<step>_<clip>.mp4, and the log.

  They are seen through the VAE on both sides, so that what differs is the diffusion model's.
  """

  def __init__(self, setup: Setup, config: SamplesConfig, folder: pathlib.Path, placement: Placement | None = None):
    """placement: where the parameters lie; all its processes make the same samples, and the first writes them."""
    self._setup, self._config, self._folder = setup, config, folder
    self._mesh = placement.mesh if placement is not None and placement.mesh.size > 1 else None
    self._vae = setup.weights.module("vae", setup.dtype)
    self._vae_params = None

  def write(self, step: int, params: Mapping, batch: Mapping, log: EventLog) -> None:
    """The same noise each time. A disk that takes no more is told in the log's way, and training goes on."""
    for i in range(min(self._config.clips, int(batch["valid"].sum()))):
      row = {name: value[i] for name, value in batch.items()}
      true, made = self.pictures(params, row, i)
      if not is_first():
        continue
      pictures = np.concatenate([true, made], axis=2)  # side by side along the width
      log.summaries(step, _animation(f"samples/{i}", pictures))
      try:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_video(self._folder / f"{step:07d}_{i}.mp4", pictures, MODEL_FPS)
      except (OSError, DiceTalkError) as error:
        log.warn(f"{self._folder}: a sample could not be written ({error}); training goes on.")

  def pictures(self, params: Mapping, row: Mapping, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The clip of a row through the VAE, and one made from its conditions: (f, H, W, 3) float32 in [0, 1] each."""
    if self._vae_params is None:
      self._vae_params = self._setup.weights.load("vae", self._setup.dtype)
    true = self._setup.scaling_factor * row["latents_mean"].astype(np.float32)
    (mu,) = prior_means(self._setup.modules, params, {name: value[None] for name, value in row.items()})
    noise = np.asarray(jax.random.normal(jax.random.key(seed), true.shape))
    made = np.asarray(sample_latents(self._setup, params, row, mu, self._config, noise, self._mesh))
    return tuple(
      decode_frames(self._vae, self._vae_params, jnp.asarray(latents), len(true), self._config.decode_chunk)
      for latents in (true, made)
    )


def prior_means(modules: Networks, params: Mapping, batch: Mapping) -> np.ndarray:
  """μ_s (b, 256) of a batch's clips (Eq. 4)."""
  inputs = [batch[name] for name in ("expression", "expression_mask", "speech", "speech_mask")]
  return to_host(_apply(modules.emotion_embedder, params["emotion_embedder"], *inputs).mu)


def _animation(name: str, frames: np.ndarray) -> Summary:
  """An animated GIF, which is what TensorBoard plays: frames (f, H, W, 3) in [0, 1]."""
  pictures = [Image.fromarray(frame) for frame in np.rint(255 * frames).astype(np.uint8)]
  file = io.BytesIO()
  pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / MODEL_FPS), loop=0)
  height, width = frames.shape[1:3]
  image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.getvalue())
  return Summary(value=[Summary.Value(tag=name, image=image)])
