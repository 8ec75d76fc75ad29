"""Every network's table against the published names, at full and tiny size, both ways."""

import numpy as np
import pytest
from conftest import config_json, manifest
from flax.traverse_util import flatten_dict
from state_dicts import to_flax, to_torch

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.weights.networks import NETWORKS, build, network_shapes
from dicetalk_jax.weights.release.names import Rule, Table, plan

ADAPTERS = {"adapter_scales": [1.0, 1.0]}
AUDIO = {"window": 10, "states": 5, "d_model": 384}
CASES = {
  "unet": ("unet", config_json("unet", "full") | ADAPTERS),
  "unet_tiny": ("unet", config_json("unet") | ADAPTERS),
  "vae": ("vae", config_json("vae", "full")),
  "vae_tiny": ("vae", config_json("vae")),
  "image_encoder": ("image_encoder", config_json("image_encoder", "full")),
  "whisper": ("audio_encoder", config_json("whisper")),
  "audio_linear": ("audio_projection", AUDIO),
  "pose_guider": ("pose_guider", {}),
  "emo_model": ("emotion_model", {}),
  "rife_flownet": ("frame_interpolator", {}),
}


def test_every_published_network_has_a_case():
  assert {network for network, _ in CASES.values()} == {name for name, network in NETWORKS.items() if network.published}


@pytest.mark.parametrize("case", CASES)
def test_every_name_has_one_rule_and_every_parameter_one_source_both_ways(case):
  network, config = CASES[case]
  table, target = NETWORKS[network].table, network_shapes(network, config)
  shapes = {key: tuple(shape) for key, shape in manifest(case).items()}
  entries = [entry for entry in plan(table, shapes, target) if entry.path]
  assert {entry.path for entry in entries} == set(flatten_dict(target, sep="/"))
  for entry in entries:
    assert table.key(entry.path) == entry.key
    assert entry.transform.torch_shape(flatten_dict(target, sep="/")[entry.path].shape) == shapes[entry.key]
  unread = len(shapes) - len(entries)
  assert unread == {"whisper": 100, "rife_flownet": 40}.get(case, 0)


@pytest.mark.parametrize("case", ["unet_tiny", "vae_tiny"])
def test_values_survive_the_way_there_and_back(case):
  network, config = CASES[case]
  generator = np.random.default_rng(0)
  state = {key: generator.standard_normal(shape, np.float32) for key, shape in manifest(case).items()}
  back = to_torch(NETWORKS[network].table, to_flax(NETWORKS[network].table, state, network_shapes(network, config)))
  assert back.keys() == state.keys()
  for key, value in state.items():
    np.testing.assert_array_equal(back[key], value, key)


def test_layouts():
  table = NETWORKS["unet"].table
  assert table.rule("conv_in.weight").transform.shape((320, 8, 3, 3)) == (3, 3, 8, 320)
  temporal = "mid_block.resnets.0.temporal_res_block.conv1.weight"
  assert table.rule(temporal).transform.shape((1280, 640, 3, 1, 1)) == (3, 640, 1280)
  attention = "down_blocks.0.attentions.1.transformer_blocks.0.attn2"
  names = {
    f"{attention}.to_q.weight": "to_q/kernel",
    f"{attention}.to_out.0.bias": "to_out_0/bias",
    f"{attention}.processor.to_k_ip.0.weight": "to_k_ip_0/kernel",
  }
  for key, path in names.items():
    assert table.rule(key).path(key)[1] == f"down_blocks_0/attentions_1/transformer_blocks_0/attn2/{path}"
  assert table.rule("time_embedding.linear_1.weight").path("time_embedding.linear_1.weight") == (
    True,
    "time_embedding/linear_1/kernel",
  )


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda s: s | {"conv_in.extra": (3,)}, ["conv_in.extra", "no rule"]),
    (lambda s: s | {"mid_block.resnets.7.time_mixer.mix_factor": (1,)}, ["mid_block.resnets.7", "has no place"]),
    (lambda s: s | {"conv_in.weight": (32, 4, 3, 3)}, ["conv_in.weight", "(32, 4, 3, 3)", "(3, 3, 8, 32)"]),
    (lambda s: s | {"conv_in.weight": (32, 72)}, ["conv_in.weight", "(32, 72)", "(3, 3, 8, 32)"]),
    (lambda s: {k: v for k, v in s.items() if k != "conv_out.bias"}, ["conv_out.bias", "missing", "(4,)"]),
  ],
)
def test_what_does_not_fit_is_named_with_both_shapes(change, words):
  network, config = CASES["unet_tiny"]
  shapes = change({key: tuple(shape) for key, shape in manifest("unet_tiny").items()})
  with pytest.raises(WeightsError) as caught:
    plan(NETWORKS[network].table, shapes, network_shapes(network, config), "unet.pth")
  assert all(word in str(caught.value) for word in ["unet.pth", *words]), caught.value


def test_two_rules_for_one_name_are_an_error():
  table = Table("example", (Rule("{module}.weight", "{module}/kernel"), Rule("a.{rest}", None)))
  with pytest.raises(WeightsError, match=r"a\.weight.*cover it"):
    table.rule("a.weight")


@pytest.mark.parametrize(
  ("network", "config", "words"),
  [
    ("vae", {"in_channels": 3}, "block_out_channels"),
    ("unet", config_json("unet") | ADAPTERS | {"cross_attention_dim": [1, 2, 3, 4]}, "cross_attention_dim"),
    ("image_encoder", config_json("image_encoder") | {"hidden_act": "relu"}, "relu"),
  ],
)
def test_a_configuration_of_another_network_is_named(network, config, words):
  with pytest.raises(WeightsError, match=words):
    build(network, config)
