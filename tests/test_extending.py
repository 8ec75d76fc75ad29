"""The code on docs/extending.md runs: each example's blocks in one process, in a folder with a portrait and a sound."""

import pathlib
import re

import jax
import numpy as np
import pytest
import soundfile
from conftest import GOLDEN, quick_compilation

import dicetalk_jax
from dicetalk_jax.inference import conditions
from dicetalk_jax.weights import networks

PAGE = pathlib.Path(dicetalk_jax.__file__).parents[1] / "docs" / "extending.md"
SECTIONS = [text.split("\n", 1) for text in PAGE.read_text().split("\n## ")[1:]]
EXAMPLES = {title: re.findall(r"```python\n(.*?)```", text, re.S) for title, text in SECTIONS}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  """A folder to run in, whose sound is short; what an example registers is gone after it."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(networks, "NETWORKS", dict(networks.NETWORKS))
  monkeypatch.setattr(conditions, "CONDITIONS", dict(conditions.CONDITIONS))
  (tmp_path / "portrait.png").write_bytes((GOLDEN / "portrait.png").read_bytes())
  sound, rate = soundfile.read(GOLDEN / "speech.wav")
  soundfile.write(tmp_path / "speech.wav", sound[rate // 5 : 3 * rate // 5], rate)
  with quick_compilation(tmp_path / "cache"):
    yield


def run(title):
  names = {}
  for block in EXAMPLES[title]:
    exec(compile(block, f"{PAGE.name}: {title}", "exec"), names)
  return names


def lines(title):
  code = [line for block in EXAMPLES[title][:1] for line in block.splitlines()]
  return [line for line in code if line.strip() and not line.startswith(("import ", "from "))]


@pytest.mark.parametrize("title", EXAMPLES)
def test_examples_are_short_and_public(title):
  assert len(lines(title)) <= 50
  for block in EXAMPLES[title]:
    assert not re.search(r"\b_[a-z]\w*|\._[a-z]", block), "a private name"


def test_a_sampler_of_one_s_own():
  names = run("A sampler of one's own")
  video = names["video"]
  assert np.isfinite(video.frames).all() and video.latents.shape[0] == 5 + 4
  # Of second order: on dx/dσ of data that is one Gaussian, half the step is far less than half the error.
  levels = {n: np.append(np.geomspace(10, 0.1, n), 0.1) for n in (9, 17)}

  def error(n):
    def model(x, sigma):
      return x / (1 + sigma**2)

    x, _ = names["dpmpp_2m"](model, np.full((1, 1, 1, 1, 1), 5.0), levels[n][:-1])
    return abs(float(x.squeeze()) - 5 * np.sqrt((1 + 0.1**2) / (1 + 10**2)))

  assert error(17) < 0.4 * error(9)


def test_a_third_condition():
  names = run("A third condition: gaze")
  video, talker = names["video"], names["talker"]
  assert np.isfinite(video.latents).all() and np.isfinite(float(names["loss"]))
  moved = jax.tree.map(
    lambda old, new: float(np.abs(old - new).max()), talker.params("gaze_projection"), names["trained"]
  )
  assert max(jax.tree.leaves(moved)) > 1e-4
  with pytest.raises(dicetalk_jax.errors.InputError, match="need an input 'gaze'"):
    talker.generate("portrait.png", "speech.wav", names["prior"], face_box=(100, 30, 100, 135))


def test_another_emotion_conditioning():
  names = run("Another emotion conditioning")
  assert np.isfinite(names["video"].frames).all()
  setup, model = names["setup"], names["model"]
  assert setup.modules["emotion_model"] is model and setup.missing == ("emotion_model",)
  assert jax.tree.map(np.shape, setup.shapes["emotion_model"]) == jax.tree.map(np.shape, names["params"])
