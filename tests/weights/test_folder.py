"""A weights folder: opening, loading, casting, sharding, what it says of itself, and what it refuses."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, draw
from flax.traverse_util import flatten_dict
from release import LABELS, small_release, small_weights, tensors, variation, write_prior

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import InputError, OutputError, WeightsError
from dicetalk_jax.weights.download import download
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import _network_shapes
from dicetalk_jax.weights.release.convert import convert
from dicetalk_jax.weights.release.export import export
from dicetalk_jax.weights.tensors import shapes_of, write_network


@pytest.fixture
def weights(tmp_path_factory):
  return Weights.open(small_weights(tmp_path_factory))


@pytest.fixture
def folder(tmp_path_factory, tmp_path):
  """A copy that a test may spoil."""
  return variation(small_weights(tmp_path_factory), tmp_path / "weights")


def edit_config(folder, **changes):
  config = json.loads((folder / "config.json").read_text()) | changes
  (folder / "config.json").unlink()
  (folder / "config.json").write_text(json.dumps(config))


def test_loads_what_was_converted(weights):
  params = weights.load("pose_guider")
  state = tensors("pose_guider_tiny")
  np.testing.assert_array_equal(params["blocks_1"]["kernel"], state["blocks.1.weight"].transpose(2, 3, 1, 0))
  assert isinstance(params["conv_in"]["bias"], jax.Array) and params["conv_in"]["bias"].dtype == jnp.float32
  mask = jnp.ones((1, 1, 16, 16, 3))
  assert weights.module("pose_guider").apply({"params": params}, mask).shape == (1, 1, 2, 2, 32)


def test_casts_while_loading(weights):
  exact, cast = (flatten_dict(weights.load("emotion_model", dtype), sep="/") for dtype in (None, jnp.bfloat16))
  assert exact.keys() == cast.keys()
  for path, value in exact.items():
    assert value.dtype == jnp.float32 and cast[path].dtype == jnp.bfloat16
    np.testing.assert_array_equal(cast[path], value.astype(jnp.bfloat16), path)
  assert weights.module("emotion_model", jnp.bfloat16).dtype == jnp.bfloat16


def test_loads_into_shardings(weights):
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.NamedSharding(mesh, jax.P("data"))
  whole = jax.NamedSharding(mesh, jax.P())
  shapes = flatten_dict(weights.load("audio_projection"), sep="/")
  rules = {path: split if path == "proj3/kernel" else whole for path in shapes}
  nested = {}
  for path, rule in rules.items():
    module, leaf = path.split("/")
    nested.setdefault(module, {})[leaf] = rule
  loaded = flatten_dict(weights.load("audio_projection", sharding=nested), sep="/")
  assert loaded["proj3/kernel"].sharding == split and loaded["proj1/kernel"].sharding == whole
  assert loaded["proj3/kernel"].addressable_shards[0].data.shape == (4, 32768)
  np.testing.assert_array_equal(loaded["proj3/kernel"], shapes["proj3/kernel"])
  assert flatten_dict(weights.load("audio_projection", sharding=whole), sep="/")["norm/scale"].sharding == whole


def test_priors_are_those_of_the_release(weights):
  priors = weights.priors()
  assert sorted(priors) == sorted(LABELS)
  golden = np.load(GOLDEN / "emotion.npy", allow_pickle=True).item()["mu"][0]
  np.testing.assert_array_equal(priors["happy"]["mu"], golden)
  np.testing.assert_array_equal(priors["sad"]["mu"], 2 * draw("prior:sad", (1, 256))[0])
  assert priors["sad"]["mu"].dtype == np.float32 and priors["sad"].keys() == {"mu"}


def test_priors_of_another_folder_win(tmp_path_factory, tmp_path):
  (tmp_path / "mine").mkdir()
  write_prior(tmp_path / "mine" / "bored.npy", np.full((1, 256), 0.5))
  weights = convert(small_release(tmp_path_factory), tmp_path / "weights", tmp_path / "mine", slim=True)
  assert weights.config["emotions"] == ["bored"]
  np.testing.assert_array_equal(weights.priors()["bored"]["mu"], np.full(256, 0.5, np.float32))


def test_priors_that_cannot_be_used_stop_the_conversion(tmp_path_factory, tmp_path):
  for content in (None, b"not a prior"):
    if content:
      (tmp_path / "mine").mkdir()
      (tmp_path / "mine" / "happy.npy").write_bytes(content)
    with pytest.raises(InputError, match="mine"):
      convert(small_release(tmp_path_factory), tmp_path / "weights", tmp_path / "mine")
    assert not (tmp_path / "weights").exists()


def test_info_says_what_the_folder_holds(weights):
  info = weights.info()
  assert info.networks["unet"].parameters == 30_166_026
  assert info.networks["unet"].bytes == 4 * 30_166_026 and info.networks["unet"].dtypes == {"float32": 30_166_026}
  assert info.networks["pose_guider"].architecture == {"features": 32, "block_features": [16, 32, 96, 256]}
  text = str(info)
  for words in ("format version 2", "30,166,026", "120.7 MB", "block_out_channels 32/64/128/128", *LABELS):
    assert words in text, text
  assert "DICE-Talk/unet.pth" in text


def test_saves_what_training_makes(weights, tmp_path):
  params = weights.load("pose_guider", jnp.bfloat16)
  priors = {"calm": {"mu": np.zeros(256, np.float32), "sigma": np.ones(256, np.float32)}}
  saved = Weights.save(tmp_path / "saved", {"pose_guider": params}, weights.config, priors)
  assert list(saved.config["networks"]) == ["pose_guider"] and saved.config["emotions"] == ["calm"]
  np.testing.assert_array_equal(saved.priors()["calm"]["sigma"], np.ones(256))
  assert saved.config["sampler"] == weights.config["sampler"]
  for path, value in flatten_dict(saved.load("pose_guider"), sep="/").items():
    assert value.dtype == jnp.bfloat16
    np.testing.assert_array_equal(value, flatten_dict(params, sep="/")[path])
  assert "trained" in str(saved.info())
  with pytest.raises(OutputError, match="not an empty folder"):
    Weights.save(tmp_path / "saved", {"pose_guider": params}, weights.config)
  with pytest.raises(WeightsError, match="has no unet; it holds pose_guider"):
    saved.load("unet")


@pytest.mark.parametrize(
  ("spoil", "words"),
  [
    (shutil.rmtree, "is not a folder"),
    (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    (lambda folder: edit_config(folder, format="something else"), "does not belong to a weights folder"),
    (lambda folder: edit_config(folder, version=3), r"format version 3, this version reads 2; update dicetalk-jax"),
    (
      lambda folder: edit_config(folder, version=1),
      r"format version 1 \(Orbax\).*`dicetalk convert` or `dicetalk pack` again",
    ),
    (lambda folder: edit_config(folder, version="1"), "does not belong to a weights folder"),
    (lambda folder: edit_config(folder, version=0), "does not belong to a weights folder"),
    (lambda folder: edit_config(folder, networks={}), "lists no networks"),
    (
      lambda folder: edit_config(folder, networks={"unet": "x"}),
      r'networks\.unet is "x"; an object with its sizes is required',
    ),
    (lambda folder: edit_config(folder, sampler=[]), r"the sampler is \[\]; an object"),
    (lambda folder: edit_config(folder, sampler={"sigma_max": "x"}), 'sigma_max is "x"; a number above 0'),
    (lambda folder: edit_config(folder, sampler={"sigma_min": -1}), "sigma_min is -1; a number above 0"),
    (lambda folder: edit_config(folder, emotions=3), "emotions is 3; a list of names is required"),
    (lambda folder: (folder / "vae.safetensors").unlink(), "incomplete: vae missing"),
    (
      lambda folder: (folder / "vae.safetensors").rename(folder / "vae-00001-of-00002.safetensors"),
      "incomplete: vae missing",
    ),
    (lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").write_text("{")), "JSON"),
  ],
)
def test_what_is_no_weights_folder_is_refused(folder, spoil, words):
  spoil(folder)
  with pytest.raises(WeightsError, match=words) as caught:
    Weights.open(folder)
  assert "\n" not in str(caught.value)


def test_a_released_folder_is_told_from_a_weights_folder(tmp_path_factory):
  with pytest.raises(WeightsError, match="dicetalk convert"):
    Weights.open(small_release(tmp_path_factory))


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"block_features": [16, 32, 96, 128]}, r"'blocks_5/bias' is \(256,\), wanted \(128,\)"),
    ({"block_features": [16, 32, 96]}, r"'blocks_4/bias' is \(96,\), wanted none of that name"),
    ({"features": "x"}, r"features is 'x'; whole numbers above 0 are required"),
  ],
)
def test_a_config_that_disagrees_with_the_tensors_is_refused(folder, change, words):
  networks = json.loads((folder / "config.json").read_text())["networks"]
  edit_config(folder, networks=networks | {"pose_guider": networks["pose_guider"] | change})
  with pytest.raises(WeightsError, match=words) as caught:
    Weights.open(folder).load("pose_guider")
  assert "pose_guider" in str(caught.value) and "\n" not in str(caught.value)


def test_a_packed_copy_is_small_and_says_how_it_is_used(tmp_path):
  weights = Weights.open(Weights.bundled())
  traced = _network_shapes.cache_info()
  packed = weights.pack(tmp_path / "packed", GenerationConfig(size=128, steps=10))
  assert packed.config["generation"] == {"size": 128, "steps": 10} and packed.generation.window == 25
  for name in weights.config["networks"]:
    theirs, ours = flatten_dict(packed.load(name), sep="/"), flatten_dict(weights.load(name, jnp.bfloat16), sep="/")
    assert theirs.keys() == ours.keys()
    assert all(leaf.dtype == jnp.bfloat16 and (leaf == ours[path]).all() for path, leaf in theirs.items())
  assert len(weights.priors()) == 8
  jax.tree.map(np.testing.assert_array_equal, packed.priors(), weights.priors())
  # Both are known to fit, so that no network has been traced to see it; of another architecture nothing is known.
  assert packed.config["fits"] == weights.config["fits"]
  assert packed.config["fits"].keys() == packed.config["networks"].keys()
  assert _network_shapes.cache_info() == traced
  networks = packed.config["networks"]
  edit_config(packed.folder, networks=networks | {"pose_guider": networks["pose_guider"] | {"features": 32}})
  with pytest.raises(WeightsError, match="does not fit"):
    Weights.open(packed.folder).load("pose_guider")


def test_info_keeps_columns_apart(weights):
  dtypes = {"float16": 1, "float32": 1, "bfloat16": 1}
  info = weights.info()
  mixed = dataclasses.replace(info.networks["vae"], dtypes=dtypes)
  rows = str(dataclasses.replace(info, networks=info.networks | {"vae": mixed})).splitlines()
  assert "float16, float32, bfloat16  block_out_channels" in next(row for row in rows if row.startswith("vae"))
  columns = {row.index(word) for row in rows for word in ("architecture", "block_out_channels") if word in row}
  assert len(columns) == 1


@pytest.mark.parametrize(("path", "words"), [("~nosuchuser/x", "does not exist"), ("", "empty")])
def test_a_path_that_cannot_be_is_refused(path, words, tmp_path):
  for call in (Weights.open, lambda p: convert(p, tmp_path / "w"), lambda p: export(p, tmp_path / "back")):
    with pytest.raises(WeightsError, match=words):
      call(path)
  with pytest.raises(OutputError, match=words):
    Weights.save(path, {}, {"networks": {}})
  with pytest.raises(OutputError, match=words):
    download(path)


@pytest.mark.parametrize("kind", ["truncated", "no header", "web page", "empty"])
def test_a_damaged_network_is_named(folder, kind):
  path = folder / "pose_guider.safetensors"
  data = path.read_bytes()
  path.unlink()
  content = {"truncated": data[: len(data) // 2], "no header": bytes(1000), "web page": b"<html></html>", "empty": b""}
  path.write_bytes(content[kind])
  for use in (lambda: Weights.open(folder).load("pose_guider"), lambda: Weights.open(folder).info()):
    with pytest.raises(WeightsError, match=r"pose_guider\.safetensors is (truncated or damaged|a web page)") as caught:
      use()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_large_network_is_in_several_files_with_the_hubs_index(folder):
  weights = Weights.open(folder)
  whole = flatten_dict(weights.arrays("pose_guider"), sep="/")
  (folder / "pose_guider.safetensors").unlink()
  write_network(folder, "pose_guider", shapes_of(whole), whole.values(), largest=500_000)
  index = json.loads((folder / "pose_guider.safetensors.index.json").read_text())
  assert set(index["weight_map"]) == set(whole)
  assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
  names = sorted(path.name for path in folder.glob("pose_guider-*"))
  assert len(names) > 2 and names[0] == f"pose_guider-00001-of-{len(names):05d}.safetensors"
  weights = Weights.open(folder)
  loaded = flatten_dict(weights.load("pose_guider"), sep="/")
  jax.tree.map(np.testing.assert_array_equal, loaded, whole)
  assert weights.derive(folder.parent / "derived").info().networks == weights.info().networks
  (folder / names[1]).unlink()
  with pytest.raises(WeightsError, match="incomplete: pose_guider missing"):
    Weights.open(folder)


def test_damaged_priors_are_named(folder):
  (folder / "emotion_priors.safetensors").unlink()
  with pytest.raises(WeightsError, match=r"emotion_priors\.safetensors is missing"):
    Weights.open(folder).priors()
