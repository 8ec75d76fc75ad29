"""Weights made of others by replacing some networks, priors or settings: what is new, what stays, what is exported."""

import hashlib

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from release import load_tensors, small_release, small_weights, write_release
from talkers import EMBEDDER, embedder_params, stand_in_params, with_embedder

from dicetalk_jax.errors import OutputError, WeightsError
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.release.convert import convert
from dicetalk_jax.weights.release.export import export


@pytest.fixture
def weights(tmp_path_factory):
  return Weights.open(small_weights(tmp_path_factory))


def moved(params, dtype=np.float32):
  """As if trained: every value another one, in a dtype of training's choice."""
  return jax.tree.map(lambda leaf: (np.asarray(leaf, np.float32) + 0.125).astype(dtype), params)


def assert_equal_params(ours, theirs):
  ours, theirs = flatten_dict(ours, sep="/"), flatten_dict(theirs, sep="/")
  assert ours.keys() == theirs.keys()
  for path, value in theirs.items():
    assert ours[path].dtype == value.dtype, path
    np.testing.assert_array_equal(ours[path], value, path)


def assert_same_file(ours, theirs):
  ours, theirs = load_tensors(ours), load_tensors(theirs)
  assert list(ours) == list(theirs)
  assert all(ours[key].dtype == value.dtype and torch.equal(ours[key], value) for key, value in theirs.items())


def digests(folder):
  files = sorted(path for path in folder.rglob("*") if path.is_file())
  return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_one_network_priors_and_settings_are_new_and_the_rest_is_as_it_was(weights, tmp_path_factory, tmp_path):
  before = digests(weights.folder)
  pose = moved(weights.load("pose_guider"), np.float16)
  priors = {"calm": {"mu": np.arange(256, dtype=np.float32), "sigma": np.ones(256, np.float32)}}
  derived = weights.derive(tmp_path / "new", {"pose_guider": pose}, priors=priors, config={"note": {"steps": 3}})

  assert_equal_params(derived.load("pose_guider"), pose)
  assert_equal_params(derived.load("emotion_model"), weights.load("emotion_model"))
  assert derived.config["networks"] == weights.config["networks"] and derived.config["note"] == {"steps": 3}
  assert derived.config["emotions"] == ["calm"] and derived.config["sampler"] == weights.config["sampler"]
  np.testing.assert_array_equal(derived.priors()["calm"]["mu"], np.arange(256))
  assert "DICE-Talk/pose_guider.pth" not in derived.config["source"]
  assert "DICE-Talk/unet.pth" in derived.config["source"]

  source = small_release(tmp_path_factory)
  written = export(derived.folder, tmp_path / "back", all=True)
  assert sorted(written) == sorted(weights.config["source"])
  for name in written:
    if name == "DICE-Talk/pose_guider.pth":
      ours, theirs = load_tensors(tmp_path / "back" / name), load_tensors(source / name)
      assert list(ours) == list(theirs)
      assert all(torch.equal(ours[key], (value + 0.125).half()) for key, value in theirs.items())
    else:
      assert_same_file(tmp_path / "back" / name, source / name)
  assert digests(weights.folder) == before


def test_without_changes_it_is_a_copy_and_priors_stay(weights, tmp_path):
  copy = weights.derive(tmp_path / "copy")
  assert copy.config == weights.config and copy.priors().keys() == weights.priors().keys()
  np.testing.assert_array_equal(copy.priors()["sad"]["mu"], weights.priors()["sad"]["mu"])


def test_a_network_is_added_and_then_replaced(weights, tmp_path):
  first = with_embedder(weights, tmp_path / "first")
  assert first.config["networks"]["emotion_embedder"] == EMBEDDER
  assert first.config["emotion_embedder"] == {"frames": 20}
  assert_equal_params(first.load("emotion_embedder"), embedder_params())
  assert "emotion_embedder" in str(first.info())

  longer = EMBEDDER | {"num_layers": 2}
  second = with_embedder(first, tmp_path / "second", num_layers=2)
  assert second.config["networks"]["emotion_embedder"] == longer
  written = export(second.folder, tmp_path / "back")
  assert written.count("DICE-Talk/emotion_embedder.pth") == 1 and len(written) == 5
  assert "audio.layers.1.linear1.bias" in load_tensors(tmp_path / "back" / "DICE-Talk" / "emotion_embedder.pth")


def test_a_trained_unet_leaves_stable_video_diffusions_file_alone(weights, tmp_path_factory, tmp_path):
  unet = moved(weights.load("unet"))
  derived = weights.derive(tmp_path / "new", {"unet": unet})
  export(derived.folder, tmp_path / "back", all=True)
  svd = "stable-video-diffusion-img2vid-xt/unet/diffusion_pytorch_model.safetensors"
  assert_same_file(tmp_path / "back" / svd, small_release(tmp_path_factory) / svd)
  assert_equal_params(convert(tmp_path / "back", tmp_path / "again").load("unet"), unet)


@pytest.mark.slow
def test_a_release_in_shards_with_a_partial_unet_gets_files_with_a_place_for_everything(tmp_path):
  options = {"unet_dtype": "float16", "svd_dtype": "float16", "partial": True, "svd_format": "sharded safetensors"}
  source = write_release(tmp_path / "source", small=True, **options)
  weights = convert(source, tmp_path / "weights", slim=True)
  networks = {"unet": moved(weights.load("unet")), "vae": moved(weights.load("vae"))}
  derived = weights.derive(tmp_path / "new", networks)
  export(derived.folder, tmp_path / "own")
  own, released = (load_tensors(folder / "DICE-Talk" / "unet.pth") for folder in (tmp_path / "own", source))
  assert len(own) == len(flatten_dict(networks["unet"], sep="/")) > len(released)
  assert_same_file(tmp_path / "own" / "DICE-Talk" / "emo_model.pth", source / "DICE-Talk" / "emo_model.pth")
  with pytest.raises(WeightsError, match="--slim"):  # Whisper's decoder
    export(derived.folder, tmp_path / "all", all=True)

  whole = convert(source, tmp_path / "whole").derive(tmp_path / "whole_new", networks)
  export(whole.folder, tmp_path / "all", all=True)
  again = convert(tmp_path / "all", tmp_path / "again")
  for name, params in networks.items():
    assert_equal_params(again.load(name), params)
  assert_equal_params(again.load("audio_encoder"), weights.load("audio_encoder"))


def test_another_conditioning_survives_the_way_out_and_back(weights, tmp_path):
  sizes = weights.config["networks"]["emotion_model"] | {"conditioning": "learnable", "num_heads": 4}
  params = stand_in_params("emotion_model", sizes)
  derived = weights.derive(tmp_path / "new", {"emotion_model": params}, {"emotion_model": sizes})
  export(derived.folder, tmp_path / "back", all=True)
  again = convert(tmp_path / "back", tmp_path / "again")
  assert again.config["networks"] == derived.config["networks"]
  assert_equal_params(again.load("emotion_model"), params)
  # As released it says nothing that the release does not.
  plain = again.derive(
    tmp_path / "plain",
    {"emotion_model": weights.load("emotion_model")},
    {"emotion_model": weights.config["networks"]["emotion_model"] | {"conditioning": "bank"}},
  )
  export(plain.folder, tmp_path / "released")
  assert not list((tmp_path / "released").rglob("*.json"))
  (tmp_path / "back" / "DICE-Talk" / "emo_model.json").write_text('{"num_codes": 64}')
  with pytest.raises(WeightsError, match=r"emo_model\.json has num_codes; it may have"):
    convert(tmp_path / "back", tmp_path / "wrong")


def test_weights_that_were_trained_can_be_derived_from(weights, tmp_path):
  trained = Weights.save(tmp_path / "trained", {"pose_guider": weights.load("pose_guider")}, weights.config)
  derived = trained.derive(tmp_path / "new", {"emotion_embedder": embedder_params()}, {"emotion_embedder": EMBEDDER})
  assert list(derived.config["networks"]) == ["pose_guider", "emotion_embedder"]
  assert export(derived.folder, tmp_path / "back") == ["DICE-Talk/pose_guider.pth", "DICE-Talk/emotion_embedder.pth"]


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ({"networks": {"emotion": {}}}, "'emotion' is not a network of a weights folder; those are unet"),
    ({"networks": {"emotion_embedder": {}}}, "has no emotion_embedder, so a new one needs its architecture"),
    ({"architectures": {"emotion_embedder": EMBEDDER}}, "was given without its parameters"),
    (
      {"networks": {"pose_guider": {"conv_in": {"bias": np.zeros(3)}}}},
      r"new pose_guider does not fit.*'blocks_0/bias'",
    ),
    ({"architectures": {"pose_guider": {"features": 7}}}, r"new pose_guider does not fit.*is \(32,\), wanted \(7,\)"),
  ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(weights, tmp_path, arguments, words):
  with pytest.raises(WeightsError, match=words):
    weights.derive(tmp_path / "new", **arguments)
  assert not list(tmp_path.iterdir())
  (tmp_path / "new").mkdir()
  (tmp_path / "new" / "mine").touch()
  with pytest.raises(OutputError, match="not an empty folder"):
    weights.derive(tmp_path / "new")
