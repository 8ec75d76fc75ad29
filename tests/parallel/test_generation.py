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
from dicetalk_jax.diffusion.conditioning import Conditions
from dicetalk_jax.diffusion.samplers import euler
from dicetalk_jax.inference.denoising import denoise_windows
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

  constants = Conditions(
    image_latents=shape(1, 8, 8, 4),
    image_tokens=shape(1, 1, 64),
    adapter_tokens=(shape(1, 1, 32, 64), shape(1, 1, 16, 64)),
    pose_features=shape(1, 1, 8, 8, 32),
    face_mask=shape(1, 64, 64),
  )
  x, *tokens = (shape(4, 5, *of, sharding=over) for of in ((8, 8, 4), (32, 64), (16, 64)))
  sigmas, scales = np.array([2, 1], np.float32), np.zeros(2, np.float32)
  branches = guidance.plan(3.0, (None, 6.0)).branches
  lowered = denoise_windows.lower(
    weights.module("unet"), branches, euler, params, x, tuple(tokens), constants, sigmas, scales, None, over
  )
  program = lowered.compile().as_text()
  assert "convolution" in program
  assert not re.findall(r"all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute", program)
