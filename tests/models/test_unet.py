"""The U-Net against the golden outputs, block by block, and what its options must not change."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import config_json, draw, golden, quick_compilation, relative_error, stand_in
from state_dicts import to_flax
from talkers import CHANNELS, minute_unet

from dicetalk_jax.models.unet import UNet, resize_bicubic
from dicetalk_jax.weights.architectures import small_unet
from dicetalk_jax.weights.networks import network_shapes
from dicetalk_jax.weights.release.tables import UNET


@functools.cache
def tiny_unet(seed=0):
  config = config_json("unet") | {"adapter_scales": [1.0, 1.0]}
  params = to_flax(UNET, stand_in("unet_tiny", seed), network_shapes("unet", config))
  return UNet.from_config(config), {"params": params}


def golden_inputs():
  mask = np.zeros((1, 64, 128), np.float32)
  mask[:, 16:48, 16:112] = 1
  return dict(
    sample=draw("sample", (2, 5, 8, 8, 16)).transpose(0, 1, 3, 4, 2),
    timestep=1.2345,
    image_tokens=draw("clip", (10, 1, 1024)).reshape(2, 5, 1, 1024),
    adapter_tokens=tuple(draw(name, (10, 32, 1024)).reshape(2, 5, 32, 1024) for name in ("aud", "emo")),
    added_time_ids=np.array([[12.5, 8, 16]] * 2, np.float32),
    pose_features=draw("pose", (2, 5, 32, 8, 16)).transpose(0, 1, 3, 4, 2),
    face_mask=mask,
  )


@functools.cache
def compiled_with_blocks(**changes):
  """The tiny U-Net with some attributes changed and what its blocks give, compiled once for all tests."""
  return jax.jit(functools.partial(dataclasses.replace(tiny_unet()[0], **changes).apply, mutable=["intermediates"]))


def compiled(**changes):
  """The output alone."""
  apply = compiled_with_blocks(**changes)
  return lambda params, **inputs: apply(params, **inputs)[0]


def to_golden(x):
  return np.asarray(x).transpose(0, 1, 4, 2, 3)  # b f h w c -> b f c h w


def test_reproduces_the_released_network_block_by_block():
  _, params = tiny_unet()
  expected = golden("unet_tiny")
  out, collected = compiled_with_blocks()(params, **golden_inputs())
  for name, stored in collected["intermediates"].items():
    state = to_golden(stored[0])
    assert relative_error(state.reshape(-1, *state.shape[2:]), expected[name]) <= 2e-5, name
  assert len(collected["intermediates"]) == 10
  assert relative_error(to_golden(out), expected["out"]) <= 2e-5


def test_zero_tokens_and_zero_pose_features():
  _, params = tiny_unet()
  inputs = golden_inputs()
  inputs["pose_features"] = np.zeros_like(inputs["pose_features"])
  inputs["adapter_tokens"] = tuple(np.zeros_like(t) for t in inputs["adapter_tokens"])
  out = compiled()(params, **inputs)
  assert relative_error(to_golden(out), golden("unet_tiny")["out_zero_tokens_no_pose"]) <= 2e-5


def minute_inputs():
  """The golden inputs of `minute_unet`, which has one level: its programs compile in seconds."""
  inputs = golden_inputs() | {"pose_features": draw("pose", (2, 5, 8, 16, CHANNELS))}
  return inputs | {"adapter_tokens": tuple(tokens[:, :, :4] for tokens in inputs["adapter_tokens"])}


def test_no_pose_features_are_zero_pose_features():
  unet, params = minute_unet()
  inputs, apply = minute_inputs(), jax.jit(unet.apply)
  zeros = np.zeros_like(inputs["pose_features"])
  without = apply({"params": params}, **inputs | {"pose_features": None})
  # Two programs: they differ by float32 rounding.
  assert relative_error(without, apply({"params": params}, **inputs | {"pose_features": zeros})) <= 2e-5
  assert relative_error(without, apply({"params": params}, **inputs)) > 1e-2


def test_the_face_mask_confines_the_adapters_of_spatial_attention():
  """With a mask of zeros the audio reaches a frame through temporal attention alone: through the window's mean."""
  unet, params = tiny_unet()
  inputs = golden_inputs() | {"face_mask": np.zeros((1, 64, 128), np.float32)}
  apply = compiled()
  audio, emotion = inputs["adapter_tokens"]
  swapped = apply(params, **inputs | {"adapter_tokens": (audio[:, ::-1], emotion)})
  np.testing.assert_allclose(swapped, apply(params, **inputs), atol=1e-4)
  unmasked = golden_inputs() | {"adapter_tokens": (audio[:, ::-1], emotion)}
  assert relative_error(apply(params, **unmasked), apply(params, **golden_inputs())) > 1e-2


@pytest.mark.slow
def test_rematerialisation_changes_no_value_and_no_gradient():
  config = config_json("unet") | {
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
    "block_out_channels": [32, 32],
    "num_attention_heads": 2,
    "layers_per_block": 1,
    "cross_attention_dim": 16,
  }
  unet = UNet.from_config(config)
  shapes = unet.example_inputs(frames=3, size=4)
  inputs = jax.tree.map_with_path(lambda path, x: draw(str(path), x.shape), shapes)
  params = jax.jit(unet.init)(jax.random.key(0), **inputs)

  def gradient(unet):
    return jax.jit(jax.value_and_grad(lambda params: jnp.square(unet.apply(params, **inputs)).mean()))(params)

  with quick_compilation():
    expected = gradient(unet)
    found = [
      gradient(dataclasses.replace(unet, remat=True, remat_policy="dots_saveable")),
      gradient(dataclasses.replace(unet, remat="apart")),
    ]
  for of_kind in found:
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(of_kind), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_adapters_scale_what_their_tokens_add():
  unet, params = minute_unet()
  inputs = minute_inputs()
  changed = inputs | {"adapter_tokens": (inputs["adapter_tokens"][0], 3 * inputs["adapter_tokens"][1])}
  apply = functools.partial(jax.jit(dataclasses.replace(unet, adapter_scales=(1.0, 0.0)).apply), {"params": params})
  np.testing.assert_array_equal(apply(**inputs), apply(**changed))
  assert relative_error(apply(**inputs), jax.jit(unet.apply)({"params": params}, **inputs)) > 1e-2


@pytest.mark.slow
def test_bfloat16_stays_near_float32():
  unet, params = tiny_unet()
  out = compiled(dtype=jnp.bfloat16)(params, **golden_inputs())
  assert out.dtype == jnp.float32
  assert relative_error(to_golden(out), golden("unet_tiny")["out"]) <= 3e-2


def test_a_latent_side_that_cannot_be_halved_is_refused():
  unet, params = tiny_unet()
  inputs = golden_inputs()
  with pytest.raises(ValueError, match="8×15: both sides must be multiples of 8"):
    unet.apply(params, **inputs | {"sample": inputs["sample"][:, :, :, :15]})


def test_groups_of_several_channels_keep_what_they_differ_by():
  """A norm of one channel a group makes every frame's channels of one mean and one contrast; the last stands alone."""
  sample = np.random.default_rng(0).standard_normal((1, 2, 4, 4, 8)).astype(np.float32)
  spread = {}
  for groups in (8, 32):
    unet = UNet.from_config(small_unet((32,), head=16, width=16, groups=groups))
    inputs = dict(
      timestep=0.0,
      image_tokens=np.zeros((1, 2, 1, 16), np.float32),
      adapter_tokens=(np.zeros((1, 2, 1, 16), np.float32),) * 2,
      added_time_ids=np.zeros((1, 3), np.float32),
    )
    with quick_compilation():
      params = jax.jit(unet.init)(jax.random.key(0), sample=sample, **inputs)
      apply = functools.partial(unet.apply, capture_intermediates=lambda module, _: module.name == "conv_norm_out")
      _, kept = jax.jit(apply)(params, sample, **inputs)
    normed = np.concatenate([np.asarray(x) for x in kept["intermediates"]["conv_norm_out"]["__call__"]])
    spread[groups] = np.abs(normed.mean((1, 2))).max()
  assert spread[32] < 1e-4 < 0.1 < spread[8]


@pytest.mark.parametrize(
  "change",
  [
    {"down_block_types": ["DownBlock2D"] * 4},
    {"cross_attention_dim": [1, 2, 3, 4]},
    {"block_out_channels": [32, 48, 64, 64]},
  ],
)
def test_a_config_for_another_unet_is_refused_by_name(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    UNet.from_config(config_json("unet") | change)


@pytest.mark.parametrize(("size", "new"), [((64, 128), (8, 16)), ((64, 128), (1, 2)), ((50, 31), (7, 40))])
def test_bicubic_resize_is_pytorchs(size, new):
  torch = pytest.importorskip("torch")
  image = draw("bicubic", (2, *size))
  expected = torch.nn.functional.interpolate(torch.tensor(image)[:, None], size=new, mode="bicubic")[:, 0]
  np.testing.assert_allclose(resize_bicubic(image, *new), expected, atol=1e-5)
