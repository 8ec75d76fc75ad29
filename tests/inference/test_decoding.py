"""Decoding in chunks and interpolating in batches, against the networks applied by hand."""

import functools

import jax
import numpy as np
import pytest
from conftest import config_json, draw, relative_error
from talkers import stand_in_params

from dicetalk_jax.inference.decoding import decode_frames, interpolate_frames
from dicetalk_jax.weights.networks import build

# Two levels of the tiny VAE's four: a latent position is 2×2 pixels.
VAE_CONFIG = config_json("vae") | {"block_out_channels": [32, 32], "down_block_types": ["DownEncoderBlock2D"] * 2}


@functools.cache
def vae():
  return build("vae", VAE_CONFIG), stand_in_params("vae", VAE_CONFIG)


@functools.cache
def decode():
  module, params = vae()
  return functools.partial(jax.jit(functools.partial(module.apply, method="decode")), {"params": params})


def latents(count):
  return 0.18215 * draw("latents", (40, 8, 16, 4))[:count]


def decoded_by_hand(chunk_of_latents):
  pictures = np.asarray(decode()(chunk_of_latents[None] / 0.18215))[0]
  return np.clip((pictures + 1) / 2, 0, 1)


def test_the_chunks_are_the_releaseds():
  """Chunks of all N latents, padding included, of which the first frames are kept."""
  x = latents(11)
  found = decode_frames(*vae(), x, 6, chunk=4)
  assert found.shape == (6, 16, 32, 3) and found.dtype == np.float32
  assert found.min() >= 0 and found.max() <= 1
  assert relative_error(found, np.concatenate([decoded_by_hand(x[:4]), decoded_by_hand(x[4:8])[:2]])) <= 1e-5
  # The decoder mixes a chunk's frames: other chunks are another result, not only at their edges.
  assert relative_error(found, decode_frames(*vae(), x, 6, chunk=8)) > 1e-3


def test_the_last_chunk_may_be_short():
  x = latents(7)  # as when a window is shorter than a chunk
  found = decode_frames(*vae(), x, 6, chunk=4)
  assert relative_error(found[4:], decoded_by_hand(x[4:])[:2]) <= 1e-5


def test_a_chunk_of_padding_alone_is_not_decoded():
  x, calls = latents(20), []
  expected = decode_frames(*vae(), x, 8, chunk=4)
  x[8:] = np.nan
  found = decode_frames(*vae(), x, 8, 4, lambda done, total: calls.append((done, total)))
  np.testing.assert_array_equal(found, expected)
  assert calls == [(0, 8), (4, 8), (8, 8)]


def test_chunks_are_shown_as_they_come():
  shown = []
  found = decode_frames(*vae(), latents(11), 11, chunk=4, show=lambda first, frames: shown.append((first, frames)))
  assert [first for first, _ in shown] == [0, 4, 8]
  np.testing.assert_array_equal(np.concatenate([frames for _, frames in shown]), found)


@pytest.fixture(scope="module")
def interpolator():
  params = stand_in_params("frame_interpolator", {})
  # As drawn, its slopes let the flow grow without bound.
  tame = jax.tree.map_with_path(lambda path, x: 0.25 * x if path[-1].key == "negative_slope" else x, params)
  return build("frame_interpolator", {}), tame


def test_interpolated_frames_stand_between_the_originals(interpolator):
  module, params = interpolator
  frames, calls = (np.tanh(draw("frames", (7, 32, 64, 3))) + 1) / 2, []
  found = interpolate_frames(module, params, frames, lambda done, total: calls.append((done, total)))
  assert found.shape == (13, 32, 64, 3) and found.dtype == np.float32
  np.testing.assert_array_equal(found[::2], frames)
  between = jax.jit(module.apply)
  # Six pairs, in the interpolator's own order of arguments: the earlier frame first.
  expected = np.concatenate([between({"params": params}, frames[k : k + 4], frames[k + 1 : k + 5]) for k in (0, 2)])
  expected = np.clip(np.concatenate([expected[:4], expected[6:]]), 0, 1)
  assert relative_error(found[1::2], expected) <= 1e-6
  assert calls == [(0, 6), (4, 6), (6, 6)]
  # Middle frames are neither a copy of a neighbour nor their mean.
  assert relative_error(found[1::2], frames[:-1]) > 1e-2
  assert relative_error(found[1::2], (frames[:-1] + frames[1:]) / 2) > 1e-3


def test_two_frames_become_three_and_one_stays_one(interpolator):
  frames = (np.tanh(draw("frames", (2, 32, 64, 3))) + 1) / 2
  found = interpolate_frames(*interpolator, frames)
  assert found.shape == (3, 32, 64, 3)
  np.testing.assert_array_equal(found[[0, 2]], frames)
  np.testing.assert_array_equal(interpolate_frames(*interpolator, frames[:1]), frames[:1])
