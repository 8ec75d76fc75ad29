"""The denoising loop: one compiled Euler step over a fixed group of windows, run over groups and steps by the host.

The compiled unit knows nothing of the video's length, so that every length shares it.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from dicetalk_jax.diffusion import edm, guidance, windows
from dicetalk_jax.inference.conditions import TokenTable
from dicetalk_jax.models.unet import UNet
from dicetalk_jax.parallel.mesh import batch_parts, batch_sharding, replicated

# fps, motion bucket and noise augmentation that the released model was trained with.
ADDED_TIME_IDS = (12.5, 8.0, 16.0)


@struct.dataclass
class Constants:
  """What is the same for all frames.

  image_latents (h, w, c), image_token (1, d), audio and emotion: the unconditional tokens (n, d), pose_features
  (1, 1, h, w, c₀), face_mask (1, H, W).
  """

  image_latents: jnp.ndarray
  image_token: jnp.ndarray
  audio: jnp.ndarray
  emotion: jnp.ndarray
  pose_features: jnp.ndarray
  face_mask: jnp.ndarray


@functools.partial(jax.jit, static_argnames=("unet", "branches", "sharding"))
def denoise_windows(
  unet: UNet, branches, params, x, audio, emotion, constants: Constants, sigma, next_sigma, scales, sharding=None
):
  """One guided Euler step of a group of windows.

  x (g, f, h, w, c), audio and emotion (g, f, n, d), sigma and next_sigma (), scales (len(branches) − 1,)
  -> (g, f, h, w, c). Branches run one after another: at video size one of them fills the device, and memory is a
  third. sharding: of the windows over a mesh, which then work apart from one another.
  """
  g, f = x.shape[:2]
  scaled = x * edm.precondition(sigma).c_in
  added_time_ids = jnp.broadcast_to(jnp.array(ADDED_TIME_IDS), (g, 3))

  def spread(array):
    return jnp.broadcast_to(array, (g, f, *array.shape))

  def run(sees):
    image, speech, feeling = sees
    image_latents = spread(image * constants.image_latents)
    return unet.apply(
      {"params": params},
      sample=jnp.concatenate([scaled, image_latents], axis=-1),
      timestep=edm.timestep(sigma),
      image_tokens=spread(image * constants.image_token),
      adapter_tokens=(
        jnp.where(speech > 0, audio, spread(constants.audio)),
        jnp.where(feeling > 0, emotion, spread(constants.emotion)),
      ),
      added_time_ids=added_time_ids,
      pose_features=constants.pose_features,
      face_mask=constants.face_mask,
    )

  outputs = jax.lax.map(run, jnp.array(branches, jnp.float32))
  moved = edm.euler_step(x, guidance.guide(outputs, scales), sigma, next_sigma)
  return moved if sharding is None else jax.lax.with_sharding_constraint(moved, sharding)


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a video is denoised; see `diffusion.windows`. `group`: windows side by side on a device, 0 for all."""

  steps: int = 25
  window: int = 25
  shift: int = 7
  overlap: int = 0
  group: int = 1
  sigma_min: float = edm.SIGMA_MIN
  sigma_max: float = edm.SIGMA_MAX

  def groups(self, frames: int, step: int, parts: int = 1):
    """The groups of windows of one step: [(indices (n, window), weights (n,))]; n is a multiple of `parts` devices."""
    shifted = windows.shift_at(step, self.shift, self.window)
    indices = windows.plan(frames, self.window, self.overlap, shifted)
    of_a_device = self.group or -(-len(indices) // parts)
    return list(windows.groups(indices, parts * of_a_device))


@functools.partial(jax.jit, donate_argnums=(0, 1), static_argnames="sharding")
def _scatter(total, count, indices, weights, results, sharding=None):
  if sharding is not None:
    # The one place where devices exchange what they have computed.
    results = jax.lax.with_sharding_constraint(results, sharding)
  return windows.scatter(total, count, indices, weights, results)


@functools.partial(jax.jit, static_argnames="sharding")
def _gather(x, indices, sharding=None):
  return x[indices] if sharding is None else jax.lax.with_sharding_constraint(x[indices], sharding)


# As one program each: what is written out to JAX operation by operation is compiled so.
@jax.jit
def _begin(latent_scale, image_latents, noise, sigma):
  return latent_scale * image_latents + noise * sigma


@jax.jit
def _mean(total, count):
  return total / count[:, None, None, None]


def denoise(
  unet: UNet,
  params,
  noise: jnp.ndarray,
  audio: TokenTable,
  emotion: TokenTable,
  constants: Constants,
  plan: Plan,
  scales: tuple[float, ...],
  branches: tuple[guidance.Branch, ...],
  latent_scale: float,
  progress: Callable[[int, int], None] | None = None,
  mesh: Mesh | None = None,
) -> jnp.ndarray:
  """Noise (N, h, w, c) of unit variance -> latents (N, h, w, c), on the VAE's scale times `latent_scale`.

  audio and emotion cover the N frames. progress(done, total) is called first and after each group of windows. mesh:
  where `params` lie; windows of a step go side by side over `data` and `fsdp`, and the latents are replicated. All of
  its processes call with the same.
  """
  sigmas = edm.karras_sigmas(plan.steps, plan.sigma_min, plan.sigma_max)
  x = _begin(latent_scale, constants.image_latents, noise, sigmas[0])
  frames, parts = len(noise), 1
  over, everywhere = None, None
  if mesh is not None:
    parts, over, everywhere = batch_parts(mesh), batch_sharding(mesh), replicated(mesh)
    # From the host: an array of one device cannot be spread over several processes.
    x, constants = jax.device_put(jax.tree.map(np.asarray, (x, constants)), everywhere)

  def gather(table, indices):
    # Tokens are of this process, and go to its devices' windows.
    return table[indices] if over is None else jax.device_put(np.asarray(table[indices]), over)

  total = sum(len(plan.groups(frames, step, parts)) for step in range(plan.steps))
  done = 0
  if progress:
    progress(0, total)
  for step in range(plan.steps):
    summed, count = jnp.zeros_like(x), jnp.zeros(frames, jnp.float32, device=everywhere)
    for indices, weights in plan.groups(frames, step, parts):
      inputs = (_gather(x, indices, over), gather(audio, indices))
      inputs += (gather(emotion, indices), constants, sigmas[step], sigmas[step + 1], np.array(scales, np.float32))
      with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        result = denoise_windows(unet, branches, params, *inputs, over)
      summed, count = _scatter(summed, count, indices, weights, result, everywhere)
      done += 1
      if progress:
        # Dispatch runs ahead of the device: without waiting, the bar would show what was asked, not what was done.
        jax.block_until_ready(summed)
        progress(done, total)
    x = _mean(summed, count)
  return x
