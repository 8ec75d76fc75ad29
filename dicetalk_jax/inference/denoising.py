"""The denoising loop: one compiled sampler step over a fixed group of windows; the host loops over groups and steps.

The compiled unit does not depend on the video's length, so that videos of every length share it.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.diffusion import edm, guidance, windows
from dicetalk_jax.diffusion.conditioning import Conditions, hide, unet_inputs
from dicetalk_jax.diffusion.samplers import Sampler, euler
from dicetalk_jax.inference.conditions import TokenTable
from dicetalk_jax.models.unet import UNet
from dicetalk_jax.parallel.mesh import batch_parts, batch_sharding, replicated


@functools.partial(jax.jit, static_argnames=("unet", "branches", "sampler", "sharding"))
def denoise_windows(
  unet: UNet,
  branches,
  sampler: Sampler,
  params,
  x,
  tokens,
  constants: Conditions,
  sigmas,
  scales,
  memory=None,
  sharding=None,
):
  """One guided step of a group of windows.

  x (g, f, h, w, c); tokens: (g, f, n, d) for each condition; constants: what all windows share, with the unconditional
  tokens (1, 1, n, d); sigmas (2,); scales (len(branches) − 1,); memory: the sampler's -> (x, memory) after the step.
  Branches run one after another: at video size one of them fills the device, and memory is a third. sharding: of the
  windows over a mesh; no device then needs anything from another.
  """
  conditions = constants.replace(adapter_tokens=tokens)

  def model(x, sigma):
    def run(visible):
      inputs = unet_inputs(x, sigma, hide(conditions, constants.adapter_tokens, visible[None]))
      return unet.apply({"params": params}, **inputs)

    outputs = jax.lax.map(run, jnp.array(branches, jnp.float32))
    return edm.denoised(x, guidance.guide(outputs, scales), sigma)

  moved = sampler(model, x, sigmas, memory)
  return moved if sharding is None else jax.lax.with_sharding_constraint(moved, sharding)


def window_groups(config: GenerationConfig, frames: int, step: int, parts: int = 1):
  """The groups of windows of one step: [(indices (n, window), weights (n,))]; n is a multiple of `parts` devices."""
  shifted = windows.shift_at(step, config.shift, config.window)
  indices = windows.plan(frames, config.window, config.overlap, shifted)
  per_device = config.windows_at_once or -(-len(indices) // parts)
  return list(windows.groups(indices, parts * per_device))


@functools.partial(jax.jit, donate_argnums=(0, 1), static_argnames="sharding")
def _scatter(total, count, indices, weights, results, sharding=None):
  if sharding is not None:
    # The only place where devices exchange results.
    results = jax.lax.with_sharding_constraint(results, sharding)
  return windows.scatter(total, count, indices, weights, results)


@functools.partial(jax.jit, static_argnames="sharding")
def _gather(x, indices, sharding=None):
  rows = jax.tree.map(lambda array: array[indices], x)
  return rows if sharding is None else jax.lax.with_sharding_constraint(rows, sharding)


# One program each: outside jit, JAX compiles every operation by itself.
@jax.jit
def _start(latent_scale, image_latents, noise, sigma):
  return latent_scale * image_latents + noise * sigma


@jax.jit
def _mean(total, count):
  return jax.tree.map(lambda array: array / count.reshape(-1, *[1] * (array.ndim - 1)), total)


def denoise(
  unet: UNet,
  params,
  noise: jnp.ndarray,
  tables: Sequence[TokenTable],
  constants: Conditions,
  config: GenerationConfig,
  plan: guidance.Guidance,
  latent_scale: float,
  sampler: Sampler = euler,
  progress: Callable[[int, int], None] | None = None,
  mesh: Mesh | None = None,
) -> jnp.ndarray:
  """Noise (N, h, w, c) of unit variance -> latents (N, h, w, c), the VAE's times `latent_scale`.

  tables: each condition's tokens of the N frames, in the order of the U-Net's adapters. constants: what all frames
  share, one window and one frame, adapter tokens left empty. progress(done, total) is called first and after each group
  of windows. mesh: where `params` lie; windows of a step run side by side over `data` and `fsdp`, and the latents are
  replicated. All processes of the mesh call with the same arguments.
  """
  sigmas = edm.karras_sigmas(config.steps, config.sigma_min, config.sigma_max)
  constants = constants.replace(adapter_tokens=tuple(table.unconditional[None, None] for table in tables))
  x = _start(latent_scale, constants.image_latents, noise, sigmas[0])
  frames, parts, memory = len(noise), 1, None
  over, everywhere = None, None
  if mesh is not None:
    parts, over, everywhere = batch_parts(mesh), batch_sharding(mesh), replicated(mesh)
    # From the host: an array of one device cannot be spread over several processes.
    x, constants = jax.device_put(jax.tree.map(np.asarray, (x, constants)), everywhere)

  def tokens_of(table, indices):
    # Tokens are on this process, and go to its devices' windows.
    return table[indices] if over is None else jax.device_put(np.asarray(table[indices]), over)

  total = sum(len(window_groups(config, frames, step, parts)) for step in range(config.steps))
  done = 0
  if progress:
    progress(0, total)
  for step in range(config.steps):
    summed, count = None, jnp.zeros(frames, jnp.float32, device=everywhere)
    for indices, weights in window_groups(config, frames, step, parts):
      rows, past = _gather((x, memory), indices, over)
      tokens = tuple(tokens_of(table, indices) for table in tables)
      inputs = (rows, tokens, constants, sigmas[step : step + 2], np.array(plan.scales, np.float32), past)
      with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        result = denoise_windows(unet, plan.branches, sampler, params, *inputs, over)
      if summed is None:
        summed = jax.tree.map(lambda r: jnp.zeros((frames, *r.shape[2:]), r.dtype, device=everywhere), result)
      summed, count = _scatter(summed, count, indices, weights, result, everywhere)
      done += 1
      if progress:
        # Dispatch runs ahead of the device. Wait, so that the bar shows what is done.
        jax.block_until_ready(summed)
        progress(done, total)
    x, memory = _mean(summed, count)
  return x
