"""Generation over a mesh: the same latents and frames, and devices that do not wait for one another."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import quick_compilation, relative_error
from random_weights import random_weights

from dicetalk_jax import DiceTalk
from dicetalk_jax.diffusion import guidance
from dicetalk_jax.inference.denoising import Constants, denoise_windows
from dicetalk_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh, replicated
from dicetalk_jax.parallel.rules import shardings


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly(tmp_path_factory):
  with quick_compilation(tmp_path_factory.mktemp("cache")):
    yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  return random_weights(tmp_path_factory.mktemp("weights") / "w")


def generate(weights, mesh=None, **options):
  rng = np.random.default_rng(0)
  image, audio = rng.integers(0, 256, (96, 96, 3), np.uint8), 0.1 * rng.standard_normal(40_000).astype(np.float32)
  options = dict(face_box=(20, 20, 50, 50), size=64, steps=2, window=7, shift=2, decode_chunk=5) | options
  talker = DiceTalk.load(weights, mesh=mesh)
  return talker.generate(image, audio, "happy", interpolate=False, **options)


@pytest.fixture(scope="module")
def alone(weights):
  return generate(weights)


@pytest.mark.parametrize("mesh", ["data=8", "data=2,fsdp=2,tensor=2"])
def test_a_mesh_gives_the_same(mesh, weights, alone):
  video = generate(weights, mesh)
  assert video.frames.shape == alone.frames.shape
  # Sums in another order, over a few steps.
  assert relative_error(video.latents, alone.latents) < 1e-4
  assert relative_error(video.frames, alone.frames) < 1e-4


def test_windows_on_several_devices_need_nothing_of_each_other(weights):
  mesh = make_mesh(MeshConfig(4, 1, 1))
  over, everywhere = batch_sharding(mesh), replicated(mesh)
  params = weights.load("unet", sharding=lambda shapes: shardings({"unet": shapes}, mesh)["unet"])

  def shape(*of, sharding=everywhere):
    return jax.ShapeDtypeStruct(of, jnp.float32, sharding=sharding)

  constants = Constants(
    image_latents=shape(8, 8, 4),
    image_token=shape(1, 64),
    audio=shape(32, 64),
    emotion=shape(16, 64),
    pose_features=shape(1, 1, 8, 8, 32),
    face_mask=shape(1, 64, 64),
  )
  windows = [shape(4, 5, *of, sharding=over) for of in ((8, 8, 4), (32, 64), (16, 64))]
  sigmas = (np.float32(2), np.float32(1), np.zeros(2, np.float32))
  lowered = denoise_windows.lower(
    weights.module("unet"), guidance.branches(), params, *windows, constants, *sigmas, over
  )
  program = lowered.compile().as_text()
  assert "convolution" in program
  assert not re.findall(r"all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute", program)
