"""Decodes latents to frames, and interpolates from 12.5 to 25 frames per second."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dicetalk_jax.parallel.mesh import batch_parts, batch_sharding, to_host

# Pairs of frames per call of the interpolator.
_PAIRS = 4


@functools.partial(jax.jit, static_argnames=("vae",))
def _decode(vae, params, latents):
  """latents (b, f, h, w, c) of the diffusion model -> frames (b, f, 8h, 8w, 3) in [0, 1]."""
  images = vae.apply({"params": params}, latents / vae.scaling_factor, method="decode")
  return jnp.clip((images + 1) / 2, 0, 1)


def decode_frames(
  vae,
  params,
  latents,
  frames: int,
  chunk: int = 10,
  progress: Callable[[int, int], None] | None = None,
  mesh: Mesh | None = None,
  show: Callable[[int, np.ndarray], None] | None = None,
) -> np.ndarray:
  """The first `frames` of latents (N, h, w, c) -> (frames, 8h, 8w, 3) float32 in [0, 1].

  The decoder mixes the frames of a chunk, so the chunk size affects the result (released: 10). Chunks of padding alone
  are not decoded. mesh: of `params`; chunks are decoded side by side over its batch axes, and all of its processes call
  with the same arguments. show(first, pictures) receives each chunk when it is ready.
  """
  if mesh is None:
    latents, parts, place = jnp.asarray(latents), 1, lambda rows: rows
  else:
    latents, parts = to_host(latents), batch_parts(mesh)
    place = functools.partial(jax.device_put, device=batch_sharding(mesh))
  if progress:
    progress(0, frames)
  pictures, last = [], len(latents) - len(latents) % chunk
  for first in range(0, min(frames, last), parts * chunk):
    # The last whole chunk is repeated, so that every device has one.
    starts = np.minimum(first + chunk * np.arange(parts), last - chunk)
    decoded = to_host(_decode(vae, params, place(latents[starts[:, None] + np.arange(chunk)])))
    count = min(parts * chunk, last - first, frames - first)
    pictures.append(decoded.reshape(-1, *decoded.shape[2:])[:count])
    if show:
      show(first, pictures[-1])
    if progress:
      progress(first + count, frames)
  if frames > last:
    # A short last chunk needs a program of its own.
    pictures.append(to_host(_decode(vae, params, latents[None, last:]))[0, : frames - last])
    if show:
      show(last, pictures[-1])
    if progress:
      progress(frames, frames)
  return np.concatenate(pictures)


@functools.partial(jax.jit, static_argnames=("interpolator",))
def _between(interpolator, params, first, second):
  return jnp.clip(interpolator.apply({"params": params}, first, second), 0, 1)


def interpolate_frames(
  interpolator, params, frames: np.ndarray, progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
  """Puts one frame between each two: (n, h, w, 3) in [0, 1] -> (2n − 1, h, w, 3)."""
  pairs = len(frames) - 1
  out = np.empty((2 * len(frames) - 1, *frames.shape[1:]), np.float32)
  out[::2] = frames
  if progress:
    progress(0, pairs)
  for first in range(0, pairs, _PAIRS):
    # A short last batch repeats its last pair, so that one program is enough.
    index = np.minimum(np.arange(first, first + _PAIRS), pairs - 1)
    middle = np.asarray(_between(interpolator, params, frames[index], frames[index + 1]))
    count = min(_PAIRS, pairs - first)
    out[2 * first + 1 : 2 * (first + count) : 2] = middle[:count]
    if progress:
      progress(first + count, pairs)
  return out
