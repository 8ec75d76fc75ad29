"""The emotion embedder, which was not published, in the released layout: out, into PyTorch, and back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import draw, relative_error
from embedder_in_torch import Embedder
from flax.traverse_util import flatten_dict
from release import load_tensors, small_release, small_weights, variation
from state_dicts import to_flax, to_torch
from talkers import EMBEDDER, embedder_params, with_embedder

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import NETWORKS, build, network_shapes
from dicetalk_jax.weights.release.convert import convert
from dicetalk_jax.weights.release.export import export
from dicetalk_jax.weights.release.names import plan

TABLE = NETWORKS["emotion_embedder"].table


def test_every_name_has_one_rule_and_every_parameter_one_source_both_ways():
  target, module = network_shapes("emotion_embedder", EMBEDDER), Embedder(EMBEDDER)
  shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
  entries = plan(TABLE, shapes, target)
  assert {entry.path for entry in entries} == set(flatten_dict(target, sep="/"))
  assert all(TABLE.key(entry.path) == entry.key for entry in entries)
  params = embedder_params()
  back = flatten_dict(to_flax(TABLE, to_torch(TABLE, params), target), sep="/")
  for path, value in flatten_dict(params, sep="/").items():
    np.testing.assert_array_equal(back[path], value, path)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_exported_embedder_runs_in_pytorch_and_comes_back(tmp_path_factory, tmp_path, dtype):
  small = Weights.open(small_weights(tmp_path_factory))
  params = {"emotion_embedder": _cast(embedder_params(), dtype)}
  settings = {"emotion_embedder": {"frames": 20}}
  weights = small.derive(tmp_path / "weights", params, {"emotion_embedder": EMBEDDER}, config=settings)
  assert "DICE-Talk/emotion_embedder.pth" in export(weights.folder, tmp_path / "back")
  config = json.loads((tmp_path / "back" / "DICE-Talk" / "emotion_embedder.json").read_text())
  assert config == EMBEDDER

  module = Embedder(config)
  state = load_tensors(tmp_path / "back" / "DICE-Talk" / "emotion_embedder.pth")
  module.load_state_dict({name: tensor.float() for name, tensor in state.items()})
  expression, speech = draw("expression", (2, 7, 64)), draw("speech", (2, 7, 384))
  with torch.no_grad():
    theirs = module(torch.from_numpy(expression), torch.from_numpy(speech))
  mask = np.ones((2, 7), bool)
  loaded = {"params": weights.load("emotion_embedder", jnp.float32)}
  ours = weights.module("emotion_embedder").apply(loaded, expression, mask, speech, mask)
  # float32 in another order of summation.
  assert max(map(relative_error, ours, theirs)) < 2e-6

  export(weights.folder, tmp_path / "all", all=True)
  again = convert(tmp_path / "all", tmp_path / "again")
  for name in ("networks", "emotion_embedder", "sampler", "emotions"):
    assert again.config[name] == weights.config[name], name
  for path, value in flatten_dict(again.load("emotion_embedder"), sep="/").items():
    assert value.dtype == dtype
    np.testing.assert_array_equal(value, flatten_dict(params["emotion_embedder"], sep="/")[path], path)


def _cast(params, dtype):
  return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), params)


def test_a_release_without_one_converts_to_weights_without_one(tmp_path_factory):
  config = Weights.open(small_weights(tmp_path_factory)).config
  assert "emotion_embedder" not in config["networks"] and "emotion_embedder" not in config


def test_a_release_whose_embedder_lacks_its_sizes_or_has_others_is_refused(tmp_path_factory, tmp_path):
  weights = with_embedder(Weights.open(small_weights(tmp_path_factory)), tmp_path / "weights")
  export(weights.folder, tmp_path / "own")
  source = variation(small_release(tmp_path_factory), tmp_path / "source")
  for name in ("emotion_embedder.pth", "emotion_embedder.json"):
    (tmp_path / "own" / "DICE-Talk" / name).rename(source / "DICE-Talk" / name)
  described = source / "DICE-Talk" / "emotion_embedder.json"
  for config, words in (
    (EMBEDDER | {"mlp": 48}, r"linear1\.bias' has shape \(32,\).*has \(48,\)"),
    (EMBEDDER | {"num_heads": 3}, "emotion_embedder.json"),
    (EMBEDDER | {"inputs": "smell"}, "inputs is 'smell'"),
    (EMBEDDER | {"gender": 2}, "asks for gender"),
    (None, "emotion_embedder.json is missing"),
  ):
    described.unlink()
    if config:
      described.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=words):
      convert(source, tmp_path / "converted")


@pytest.mark.parametrize("name", ["dropout_rate", "fusion_scale"])
def test_numbers_that_may_be_zero(name):
  assert getattr(build("emotion_embedder", EMBEDDER | {name: 0}), name) == 0
  for wrong in (-1, None, "x", float("nan")):
    with pytest.raises(WeightsError, match=f"{name} is .*a number of at least 0 is required"):
      build("emotion_embedder", EMBEDDER | {name: wrong})
