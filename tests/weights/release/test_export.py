"""A weights folder -> the released layout, bit by bit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import torch
from conftest import stand_in
from flax.traverse_util import flatten_dict
from release import (
  SVD,
  is_adapter,
  load_tensors,
  save_torch,
  small_release,
  small_weights,
  tensors,
  variation,
  write_release,
)
from state_dicts import to_torch

from dicetalk_jax.errors import OutputError, WeightsError
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import NETWORKS
from dicetalk_jax.weights.release.convert import convert
from dicetalk_jax.weights.release.export import export
from dicetalk_jax.weights.widening import widen

OWN = {f"DICE-Talk/{name}.pth" for name in ("unet", "pose_guider", "audio_linear", "emo_model")}


def files(folder):
  return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def assert_same_tensors(path, source):
  ours, theirs = load_tensors(path), load_tensors(source)
  assert list(ours) == list(theirs)
  for key, tensor in theirs.items():
    assert ours[key].dtype == tensor.dtype and ours[key].shape == tensor.shape, key
    assert ours[key].contiguous().flatten().view(torch.uint8).equal(tensor.contiguous().flatten().view(torch.uint8)), (
      key
    )


def test_the_four_files_come_back(tmp_path_factory, tmp_path):
  source, weights = small_release(tmp_path_factory), small_weights(tmp_path_factory)
  assert set(export(weights, tmp_path / "back")) == OWN == files(tmp_path / "back")
  for name in OWN:
    assert_same_tensors(tmp_path / "back" / name, source / name)


def test_relative_paths_are_those_of_the_current_folder(tmp_path_factory, tmp_path, monkeypatch):
  monkeypatch.chdir(small_weights(tmp_path_factory).parent)
  export("small_weights", tmp_path / "back")
  assert files(tmp_path / "back") == OWN


def published(weights, network):
  """The network's state dict as the weights folder holds it, under PyTorch's names."""
  return to_torch(NETWORKS[network].table, weights.arrays(network))


@pytest.mark.parametrize(
  "options",
  [
    {"unet_dtype": "float16", "svd_dtype": "float16", "partial": True, "whisper_prefix": "model."},
    {"unet_dtype": "bfloat16", "svd_dtype": "float16", "svd_format": "sharded safetensors"},
    {"svd_dtype": "bfloat16", "svd_format": "sharded bin", "priors": None},
  ],
  ids=["partial fp16", "sharded", "sharded bin"],
)
def test_every_form_arrives_in_its_own_dtype_and_comes_back(tmp_path, options):
  source = write_release(tmp_path / "source", small=True, **options)
  weights = convert(source, tmp_path / "weights")
  own = load_tensors(source / "DICE-Talk" / "unet.pth")
  unet = published(weights, "unet")
  for key, value in stand_in("unet_tiny").items():
    dtype = options.get("unet_dtype", "float32") if key in own else options["svd_dtype"]
    assert unet[key].dtype.name == dtype, key
    np.testing.assert_array_equal(unet[key], value.astype(unet[key].dtype), key)
  assert {value.dtype.name for value in published(weights, "vae").values()} == {options["svd_dtype"]}
  speech = tensors("whisper", small=True)
  assert all(np.array_equal(value, speech[key]) for key, value in published(weights, "audio_encoder").items())

  export(tmp_path / "weights", tmp_path / "back", all=True)
  assert files(tmp_path / "back") == files(source)
  for name in files(source):
    ours, theirs = tmp_path / "back" / name, source / name
    if theirs.suffix in (".pth", ".pkl", ".bin", ".safetensors"):
      assert_same_tensors(ours, theirs)
    if theirs.suffix in (".json", ".safetensors"):
      assert ours.read_bytes() == theirs.read_bytes(), name
  assert weights.priors().keys() == {path.stem for path in source.glob("emotion_priors/*")}


def test_odd_tensors_and_wrappers_come_back(tmp_path_factory, tmp_path):
  source = variation(small_release(tmp_path_factory), tmp_path / "source")
  for name, state in (
    ("RIFE/flownet.pkl", {"module.block_tea.steps": torch.tensor(7), "module.block_tea.none": torch.zeros(0, 4)}),
    ("DICE-Talk/pose_guider.pth", {}),
  ):
    state = torch.load(source / name, weights_only=True) | state
    (source / name).unlink()
    torch.save({"state_dict": state} if "pose" in name else state, source / name)
  convert(source, tmp_path / "weights")
  export(tmp_path / "weights", tmp_path / "back", all=True)
  assert_same_tensors(tmp_path / "back" / "RIFE" / "flownet.pkl", source / "RIFE" / "flownet.pkl")
  wrapped = torch.load(tmp_path / "back" / "DICE-Talk" / "pose_guider.pth", weights_only=True)
  assert list(wrapped) == ["state_dict"] and "conv_in.weight" in wrapped["state_dict"]


def test_slim_weights_give_the_four_files_and_say_why_not_all(tmp_path_factory, tmp_path):
  source = small_release(tmp_path_factory)
  convert(source, tmp_path / "weights", slim=True)
  export(tmp_path / "weights", tmp_path / "back")
  for name in OWN:
    assert_same_tensors(tmp_path / "back" / name, source / name)
  with pytest.raises(WeightsError, match=r"--slim.*diffusion_pytorch_model"):
    export(tmp_path / "weights", tmp_path / "whole", all=True)
  assert not (tmp_path / "whole").exists()


def test_weights_without_a_source_get_the_released_names(tmp_path_factory, tmp_path):
  source, converted = small_release(tmp_path_factory), Weights.open(small_weights(tmp_path_factory))
  networks = {name: converted.load(name) for name in converted.config["networks"]}
  trained = Weights.save(tmp_path / "trained", networks, converted.config, converted.priors())
  export(trained.folder, tmp_path / "back", all=True)
  for name in OWN:
    ours, theirs = load_tensors(tmp_path / "back" / name), load_tensors(source / name)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], value) for key, value in theirs.items()), name
  with safetensors.safe_open(tmp_path / "back" / SVD / "unet/diffusion_pytorch_model.safetensors", "np") as file:
    assert not any(is_adapter(key) for key in file.keys())  # noqa: SIM118
    assert file.metadata() == {"format": "pt"}
  config = json.loads((tmp_path / "back" / SVD / "unet" / "config.json").read_text())
  assert config == json.loads((source / SVD / "unet" / "config.json").read_text())
  again = convert(tmp_path / "back", tmp_path / "again")
  assert again.priors().keys() == converted.priors().keys()
  for name, params in networks.items():
    wanted = flatten_dict(params, sep="/")
    for path, value in flatten_dict(again.arrays(name), sep="/").items():
      np.testing.assert_array_equal(value, wanted[path], f"{name} {path}")


def test_a_network_trained_alone_is_exported_alone(tmp_path_factory, tmp_path):
  converted = Weights.open(small_weights(tmp_path_factory))
  params = converted.load("pose_guider", jnp.bfloat16)
  Weights.save(tmp_path / "trained", {"pose_guider": params}, converted.config)
  assert export(tmp_path / "trained", tmp_path / "back") == ["DICE-Talk/pose_guider.pth"]
  state = load_tensors(tmp_path / "back" / "DICE-Talk" / "pose_guider.pth")
  assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}


def test_a_filled_target_is_left_alone(tmp_path_factory, tmp_path):
  (tmp_path / "back").mkdir()
  save_torch({"a": np.ones(2, np.float32)}, tmp_path / "back" / "mine.pth")
  with pytest.raises(OutputError, match="not an empty folder"):
    export(small_weights(tmp_path_factory), tmp_path / "back")
  assert files(tmp_path / "back") == {"mine.pth"}


def trained(weights, folder):
  """As training leaves it: a float32 U-Net in the place of the bfloat16 one, adapters that weigh differently."""
  unet = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) + 0.125, weights.arrays("unet"))
  sizes = weights.config["networks"]["unet"] | {"adapter_scales": [1.0, 0.5]}
  return weights.derive(folder, {"unet": unet}, {"unet": sizes})


@pytest.mark.parametrize("change", [None, trained, widen], ids=["packaged", "trained", "widened"])
def test_weights_of_other_sizes_come_back_through_the_released_layout(tmp_path, change):
  """The packaged weights have priors of 64 numbers, groups of 8 channels and settings of their own."""
  weights = Weights.open(Weights.bundled())
  if change:
    weights = change(weights, tmp_path / "changed")
  export(weights.folder, tmp_path / "back", all=True)
  again = convert(tmp_path / "back", tmp_path / "again")
  assert again.generation == weights.generation
  assert again.config["emotion_embedder"] == weights.config["emotion_embedder"]
  jax.tree.map(np.testing.assert_array_equal, again.priors(), weights.priors())
  assert again.config["networks"].keys() == weights.config["networks"].keys()
  for name in weights.config["networks"]:
    assert again.module(name) == weights.module(name)
    ours, theirs = flatten_dict(again.arrays(name), sep="/"), flatten_dict(weights.arrays(name), sep="/")
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
      assert ours[path].dtype == value.dtype and ours[path].tobytes() == value.tobytes(), path
