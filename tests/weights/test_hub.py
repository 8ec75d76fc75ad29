"""A weights folder in a repository of the hub, `user/repo`, through the loopback server."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from hub_server import COMMIT, Hub

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.inference.pipeline import DiceTalk
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.hub import fetch_weights
from dicetalk_jax.weights.tensors import shapes_of, write_network

REPOSITORY = "someone/small"


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """The hub has the bundled weights, with files that nobody needs to generate a video."""
  for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no token"))
  spare = tmp_path / "spare"
  spare.write_bytes(b"spare")
  files = {path.name: path for path in Weights.bundled().iterdir()}
  return Hub({REPOSITORY: files | dict.fromkeys(("README.md", "source.json", "retained/0.safetensors"), spare)})


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
  """`Weights.open` asks the loopback hub and caches in a folder of its own."""
  with hub.serving() as endpoint:
    fetch = functools.partial(fetch_weights, endpoint=endpoint, cache=tmp_path / "cache")
    monkeypatch.setattr("dicetalk_jax.weights.folder.fetch_weights", fetch)
    monkeypatch.chdir(tmp_path)
    yield hub


def test_a_repository_is_opened_and_only_what_is_needed_is_fetched(here):
  talker, bundled = DiceTalk.load(REPOSITORY), Weights.open(Weights.bundled())
  assert talker.emotions == sorted(bundled.priors()) and talker.weights.config == bundled.config
  for name in bundled.config["networks"]:
    jax.tree.map(np.testing.assert_array_equal, talker.weights.arrays(name), bundled.arrays(name))
  assert talker.weights.folder.name == COMMIT
  assert sorted(name for name, _ in here.downloads) == sorted(path.name for path in bundled.folder.iterdir())
  here.downloads.clear()
  Weights.open(REPOSITORY)
  assert here.downloads == []


def test_a_folder_of_that_name_is_preferred(here, tmp_path):
  packed = Weights.open(Weights.bundled()).pack(tmp_path / "someone" / "small")
  assert Weights.open(REPOSITORY).folder == packed.folder
  assert here.downloads == []


def test_a_network_in_several_files_is_fetched(hub, tmp_path):
  whole = dict(Weights.open(Weights.bundled()).tensors("unet").read())
  write_network(tmp_path, "unet", shapes_of(whole), whole.values(), largest=4_000_000)
  del hub.files[REPOSITORY]["unet.safetensors"]
  hub.files[REPOSITORY] |= {path.name: path for path in tmp_path.glob("unet*")}
  with hub.serving() as endpoint:
    weights = Weights.open(fetch_weights(REPOSITORY, endpoint, tmp_path / "cache"))
  assert len(list(weights.folder.glob("unet-*.safetensors"))) == 3
  jax.tree.map(np.testing.assert_array_equal, dict(weights.tensors("unet").read()), whole)


def test_the_environment_decides_and_the_cache_is_enough_offline(hub, tmp_path):
  environment = os.environ | {
    "HF_HOME": str(tmp_path / "home"),
    "HF_TOKEN": "hf_secret",
    "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
  }
  command = [sys.executable, "-m", "dicetalk_jax.cli", "info", REPOSITORY]

  def run(**variables):
    return subprocess.run(
      command, env=environment | variables, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )

  offline = run(HF_HUB_OFFLINE="1")
  assert offline.returncode == 1 and "Traceback" not in offline.stderr
  assert "someone/small is not a folder here" in offline.stderr and "No connection" in offline.stderr
  with hub.serving() as endpoint:
    assert "5,366,036" in run(HF_ENDPOINT=endpoint).stdout
  assert "Bearer hf_secret" in hub.tokens
  assert "5,366,036" in run(HF_HUB_OFFLINE="1").stdout


@pytest.mark.parametrize(
  ("spoil", "words"),
  [
    (lambda hub, spare: hub.files.clear(), "was not found at"),
    (lambda hub, spare: hub.refusals.update({REPOSITORY: (403, "GatedRepo")}), "behind a licence: accept it at"),
    (lambda hub, spare: hub.refusals.update({REPOSITORY: (503, None)}), "answered 503|No connection"),
    (lambda hub, spare: setattr(hub, "portal", True), "No connection|is not the hub"),
    (lambda hub, spare: hub.files[REPOSITORY].pop("config.json"), "has no config.json, so it is not a weights folder"),
    (lambda hub, spare: hub.files[REPOSITORY].update({"config.json": spare}), r"config\.json cannot be read as JSON"),
    (lambda hub, spare: hub.files[REPOSITORY].pop("vae.safetensors"), "incomplete: vae missing"),
    (lambda hub, spare: hub.files[REPOSITORY].update({"vae.safetensors": spare}), r"vae\.safetensors is a web page"),
  ],
)
def test_what_the_hub_cannot_give_is_one_sentence(here, tmp_path, monkeypatch, spoil, words):
  monkeypatch.setattr("time.sleep", lambda _: None)
  (tmp_path / "page").write_text("<!DOCTYPE html><html>Log in first</html>")
  spoil(here, tmp_path / "page")
  with pytest.raises(WeightsError, match=words) as caught:
    Weights.open(REPOSITORY).load("vae")
  assert "someone" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_no_network_is_said(tmp_path, monkeypatch):
  monkeypatch.setattr("time.sleep", lambda _: None)
  with pytest.raises(WeightsError, match=r"No connection to http://127\.0\.0\.1:9/"):
    fetch_weights(REPOSITORY, "http://127.0.0.1:9", tmp_path / "cache")
