"""The small networks' tables: every published name and every parameter exactly once, and back bit by bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import config_json, manifest, stand_in
from flax.traverse_util import flatten_dict
from state_dicts import to_flax, to_torch

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.models.audio_encoder import AudioEncoder
from dicetalk_jax.models.audio_projection import AudioProjection
from dicetalk_jax.models.emotion_bank import EmotionModel
from dicetalk_jax.models.frame_interpolator import FrameInterpolator
from dicetalk_jax.models.image_encoder import ImageEncoder
from dicetalk_jax.models.pose_guider import PoseGuider
from dicetalk_jax.weights.release import tables
from dicetalk_jax.weights.release.names import plan

FRAME = (1, 32, 32, 3)
NETWORKS = {
  "image_encoder": (
    tables.IMAGE_ENCODER,
    ImageEncoder.from_config(config_json("image_encoder", "full")),
    [(1, 224, 224, 3)],
  ),
  "image_encoder_tiny": (
    tables.IMAGE_ENCODER,
    ImageEncoder.from_config(config_json("image_encoder", "tiny")),
    [(1, 224, 224, 3)],
  ),
  "whisper": (tables.AUDIO_ENCODER, AudioEncoder.from_config(config_json("whisper")), [(1, 3000, 80)]),
  "audio_linear": (tables.AUDIO_PROJECTION, AudioProjection(), [(1, 10, 5, 384)]),
  "emo_model": (tables.EMOTION_MODEL, EmotionModel(), [(1, 256)]),
  "pose_guider": (tables.POSE_GUIDER, PoseGuider(), [(1, 1, 64, 64, 3)]),
  "pose_guider_tiny": (tables.POSE_GUIDER, PoseGuider(features=32), [(1, 1, 64, 64, 3)]),
  "rife_flownet": (tables.FRAME_INTERPOLATOR, FrameInterpolator(), [FRAME, FRAME]),
}
UNUSED = {
  "whisper": lambda name: name.startswith("decoder."),
  "rife_flownet": lambda name: "block_tea" in name,
}


def target(network):
  _, module, shapes = NETWORKS[network]
  inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


@pytest.mark.parametrize("network", NETWORKS)
def test_every_published_name_and_every_parameter_exactly_once(network):
  table = NETWORKS[network][0]
  shapes, wanted = manifest(network), target(network)
  entries = plan(table, shapes, wanted)
  unused = {entry.key for entry in entries if entry.path is None}
  assert unused == set(filter(UNUSED.get(network, lambda name: False), shapes))
  paths = {entry.path: entry.key for entry in entries if entry.path is not None}
  assert {path: table.key(path) for path in flatten_dict(wanted, sep="/")} == paths


@pytest.mark.parametrize("network", sorted(NETWORKS.keys() - {"image_encoder"}))  # 2.5 GB; its tiny form is the same
def test_there_and_back_is_bit_equal(network):
  table, state = NETWORKS[network][0], stand_in(network)
  state = {name: value.astype(np.float16) for name, value in state.items()}
  back = to_torch(table, to_flax(table, state, target(network)))
  unused = UNUSED.get(network, lambda name: False)
  assert back.keys() == {name for name in state if not unused(name)}
  for name, value in back.items():
    assert value.dtype == np.float16
    np.testing.assert_array_equal(value, state[name], err_msg=name)


def test_other_published_spellings_fill_the_same_parameters():
  whisper = manifest("whisper")
  for_generation = {f"model.{name}": shape for name, shape in whisper.items()} | {"proj_out.weight": [51865, 384]}
  assert_same_paths("whisper", for_generation, lambda name: name.removeprefix("model."))

  rife = manifest("rife_flownet")
  bare = {name.removeprefix("module."): shape for name, shape in rife.items()}
  assert_same_paths("rife_flownet", bare, lambda name: f"module.{name}")

  clip = manifest("image_encoder_tiny") | {"vision_model.embeddings.position_ids": [1, 257]}
  assert_same_paths("image_encoder_tiny", clip, lambda name: name)


def assert_same_paths(network, shapes, canonical):
  table, wanted = NETWORKS[network][0], target(network)
  expected = {entry.key: entry.path for entry in plan(table, manifest(network), wanted)}
  found = {canonical(entry.key): entry.path for entry in plan(table, shapes, wanted) if entry.path}
  assert found == {key: path for key, path in expected.items() if path}


@pytest.mark.parametrize("network", ["whisper", "rife_flownet"])
def test_both_spellings_of_one_tensor_are_refused(network):
  shapes = manifest(network)
  name = next(iter(shapes))
  twice = shapes | {name.removeprefix("module.") if name.startswith("module.") else f"model.{name}": shapes[name]}
  with pytest.raises(WeightsError, match="both fill"):
    plan(NETWORKS[network][0], twice, target(network))


@pytest.mark.parametrize("network", NETWORKS)
def test_an_unknown_name_is_refused(network):
  with pytest.raises(WeightsError, match=r"lora_A"):
    plan(NETWORKS[network][0], manifest(network) | {"lora_A.default": [4, 4]}, target(network))
