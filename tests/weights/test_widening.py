"""Twice the channels compute the same, and learn apart from there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import quick_compilation
from talkers import stand_in_params

from dicetalk_jax.cli import main
from dicetalk_jax.errors import WeightsError
from dicetalk_jax.weights.architectures import small_conditioning, small_unet
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.widening import widen

UNET = small_unet((8, 16), width=8, head=4, groups=4)
NETWORKS = {"unet": UNET, **small_conditioning(8, 16, width=8, pose_features=(4, 4, 4, 4))}


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
  with quick_compilation():
    yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Weights, and those with twice the channels."""
  folder = tmp_path_factory.mktemp("widening")
  params = {name: stand_in_params(name, config) for name, config in NETWORKS.items()}
  narrow = Weights.save(folder / "narrow", params, {"networks": NETWORKS})
  assert main(["widen", str(folder / "narrow"), str(folder / "wide")]) == 0
  return narrow, Weights.open(folder / "wide")


def inputs_of(unet, rng):
  given = unet.example_inputs(1, 3, 4)
  given["pose_features"] = jax.ShapeDtypeStruct((1, 3, 4, 4, unet.block_out_channels[0]), jnp.float32)
  return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), given)


def test_the_wide_networks_compute_the_same(folders):
  narrow, wide = folders
  assert wide.config["networks"]["unet"]["block_out_channels"] == [16, 32]
  rng = np.random.default_rng(0)
  mask = jnp.asarray(rng.random((1, 3, 32, 32, 3)), jnp.float32)
  pose = [each.module("pose_guider").apply({"params": each.load("pose_guider")}, mask) for each in folders]
  assert pose[1].shape[-1] == 16
  # Each unit is there twice, side by side.
  np.testing.assert_allclose(pose[1], jnp.repeat(pose[0], 2, -1), atol=1e-5)

  given = inputs_of(narrow.module("unet"), rng) | {"timestep": jnp.array([0.3])}
  features, seen = [], []
  for each, pose_features in zip(folders, pose, strict=True):
    unet = each.module("unet")
    made, state = jax.jit(lambda params, given, unet=unet: unet.apply(params, **given, mutable=["intermediates"]))(
      {"params": each.load("unet")}, given | {"pose_features": pose_features}
    )
    features.append(made)
    seen.append(state["intermediates"]["after_mid"][0])
  assert np.std(features[0]) > 0.01
  np.testing.assert_allclose(features[1], features[0], atol=1e-4 * np.abs(features[0]).max())
  np.testing.assert_allclose(seen[1], jnp.repeat(seen[0], 2, -1), atol=1e-4 * np.abs(seen[0]).max())
  logits = [
    each.module("emotion_model").apply(
      {"params": each.load("emotion_model")}, f_t.reshape(1, -1, *f_t.shape[3:]), True, method="classify"
    )
    for each, f_t in zip(folders, seen, strict=True)
  ]
  np.testing.assert_allclose(*logits, atol=1e-4)


def test_the_two_halves_of_a_unit_learn_apart(folders):
  _, wide = folders
  unet, params = wide.module("unet"), wide.load("unet")
  given = inputs_of(unet, np.random.default_rng(1))
  gradient = jax.jit(jax.grad(lambda params: jnp.square(unet.apply({"params": params}, **given)).mean()))(params)
  of_conv = np.asarray(gradient["conv_in"]["kernel"])
  apart = np.abs(of_conv[..., ::2] - of_conv[..., 1::2]).mean()
  assert apart > 0.05 * np.abs(of_conv).mean()


def test_what_does_not_depend_on_the_width_stays(folders):
  narrow, wide = folders
  jax.tree.map(np.testing.assert_array_equal, narrow.load("audio_projection"), wide.load("audio_projection"))


def test_weights_without_a_unet_are_refused(tmp_path):
  config = NETWORKS["pose_guider"]
  params = {"pose_guider": stand_in_params("pose_guider", config)}
  weights = Weights.save(tmp_path / "pose", params, {"networks": {"pose_guider": config}})
  with pytest.raises(WeightsError, match="has no unet"):
    widen(weights, tmp_path / "out")
