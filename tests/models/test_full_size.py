"""The released sizes: by shape in seconds, and once by value, marked slow."""

import functools
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights
from conftest import config_json, manifest
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.diffusion import guidance
from dicetalk_jax.diffusion.conditioning import Conditions
from dicetalk_jax.diffusion.samplers import euler
from dicetalk_jax.inference.denoising import denoise_windows
from dicetalk_jax.weights.networks import build, network_shapes
from dicetalk_jax.weights.release.names import plan
from dicetalk_jax.weights.release.tables import UNET

CONFIGS = {
  "unet": config_json("unet", "full") | {"adapter_scales": [1.0, 1.0]},
  "vae": config_json("vae", "full"),
  "image_encoder": config_json("image_encoder", "full"),
  "audio_encoder": config_json("whisper"),
  "audio_projection": {"window": 10, "states": 5, "d_model": 384},
  "pose_guider": {},
  "frame_interpolator": {},
}
FRAMES, SIDE = 25, 512
LATENT = SIDE // 8


def shaped(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def output(network, *inputs, dtype=jnp.float32, **options):
  """The shapes of what a full-size network makes of abstract inputs."""
  module, params = build(network, CONFIGS[network], dtype), network_shapes(network, CONFIGS[network])
  apply = functools.partial(module.apply, **options)
  return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), jax.eval_shape(apply, {"params": params}, *inputs))


def parameters(network):
  return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(network_shapes(network, CONFIGS[network])))


def test_the_unet_has_the_published_number_of_parameters():
  assert parameters("unet") == sum(np.prod(shape) for shape in manifest("unet").values())
  assert 1.625e9 < parameters("unet") < 1.635e9


def test_a_guided_step_of_a_video():
  """Three branches, 25 frames, 512×512: the compiled unit of `dicetalk generate`, adapters, pose and mask included."""
  unet, params = build("unet", CONFIGS["unet"], jnp.bfloat16), network_shapes("unet", CONFIGS["unet"])
  d = unet.cross_attention_dim
  constants = Conditions(
    image_latents=shaped(1, LATENT, LATENT, 4),
    image_tokens=shaped(1, 1, d),
    adapter_tokens=(shaped(1, 1, 32, d),) * 2,
    pose_features=shaped(1, 1, LATENT, LATENT, 320),
    face_mask=shaped(1, SIDE, SIDE),
  )
  plan = guidance.plan(3.0, (None, 6.0))
  step = functools.partial(denoise_windows, unet, plan.branches, euler)
  x, scales = shaped(1, FRAMES, LATENT, LATENT, 4), shaped(len(plan.scales))
  out, _ = jax.eval_shape(step, params, x, (shaped(1, FRAMES, 32, d),) * 2, constants, shaped(2), scales)
  assert (out.shape, out.dtype) == (x.shape, jnp.float32)


def test_the_vae_at_512_pixels():
  latents = (1, LATENT, LATENT, 4), jnp.float32
  assert output("vae", shaped(1, SIDE, SIDE, 3), method="encode") == (latents, latents)
  decoded = output("vae", shaped(1, 10, LATENT, LATENT, 4), dtype=jnp.bfloat16, method="decode")
  assert decoded == ((1, 10, SIDE, SIDE, 3), jnp.float32)


@pytest.mark.parametrize(
  ("network", "inputs", "expected"),
  [
    ("image_encoder", [(1, 224, 224, 3)], (1, 1024)),
    ("audio_encoder", [(1, 3000, 80)], (1, 1500, 5, 384)),
    ("audio_projection", [(1, FRAMES, 10, 5, 384)], (1, FRAMES, 32, 1024)),
    ("pose_guider", [(1, 1, SIDE, SIDE, 3)], (1, 1, LATENT, LATENT, 320)),
    ("frame_interpolator", [(4, SIDE, SIDE, 3)] * 2, (4, SIDE, SIDE, 3)),
  ],
)
def test_what_goes_around_the_unet(network, inputs, expected):
  assert output(network, *(shaped(*shape) for shape in inputs))[0] == expected


@pytest.mark.slow
def test_the_full_size_unet_runs_a_forward_in_float32():
  """All 1.63 B stand-in parameters, converted one by one, in the memory of a 24 GiB machine."""
  shapes, target = manifest("unet"), network_shapes("unet", CONFIGS["unet"])
  params = unflatten_dict(
    {
      entry.path: jnp.asarray(entry.transform.to_flax(weights.tensor(entry.key, tuple(shapes[entry.key]))))
      for entry in plan(UNET, shapes, target)
    },
    sep="/",
  )
  assert sum(leaf.nbytes for leaf in flatten_dict(params, sep="/").values()) == 4 * parameters("unet")
  unet = build("unet", CONFIGS["unet"])
  generator = np.random.default_rng(0)
  inputs = jax.tree.map(lambda leaf: generator.standard_normal(leaf.shape, np.float32), unet.example_inputs(frames=2))
  inputs["pose_features"] = generator.standard_normal((1, 1, 8, 8, 320), np.float32)
  inputs["face_mask"] = np.ones((1, 64, 64), np.float32)
  out = np.asarray(jax.jit(unet.apply)({"params": params}, **inputs))
  assert out.shape == (1, 2, 8, 8, 4)
  assert np.isfinite(out).all()
  # The stand-in weights keep variances, so that a block left out or counted twice would show in the size of the output.
  assert 0.1 < out.std() < 10
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(f"peak resident memory {peak:.1f} GiB")
  assert peak < 20
