"""A whole evaluation of an untrained model: everything is made once, measured, and written."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from dicetalk_jax.cli import main
from dicetalk_jax.cli.demo import random_weights
from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import InputError
from dicetalk_jax.evaluation.evaluate import EvaluationConfig, evaluate
from dicetalk_jax.evaluation.measurements import Store
from dicetalk_jax.evaluation.measuring import MEASURED, Measuring, MeasuringNetwork
from dicetalk_jax.inference.pipeline import DiceTalk

CONFIG = EvaluationConfig(clips=3, people=3, gallery=4, interpolations=1, interpolation_steps=2, seconds=0.4)


def untrained(size=64, seed=0):
  import jax

  frames = np.zeros((1, size, size, 3), np.float32)
  params = jax.jit(MeasuringNetwork().init)(jax.random.key(seed), frames, frames)["params"]
  return Measuring(jax.device_get(params), np.zeros(len(MEASURED)), np.ones(len(MEASURED)), (size, size))


def test_an_evaluation_goes_on_and_tells_what_it_was(tmp_path, capsys):
  weights = random_weights(tmp_path / "weights").folder
  untrained().save(tmp_path / "measuring.safetensors")
  line = ["evaluate", "--out", str(tmp_path / "out"), "--weights", str(weights), "--measuring", str(tmp_path)]
  for name in ("clips", "people", "gallery", "interpolations", "interpolation_steps", "seconds"):
    line += [f"--{name.replace('_', '-')}", str(getattr(CONFIG, name))]
  line += ["--size", "64", "--steps", "1", "--decode-chunk", "3"]
  assert main(line) == 0
  out = capsys.readouterr().out
  assert "emotion as asked for, all eight | " in out and "taken for themselves among 4 | " in out
  assert Image.open(tmp_path / "out" / "sheet.png").height == 3 * 64, "three emotions of three cases"
  assert Image.open(tmp_path / "out" / "plots.png").width > 500
  first = (tmp_path / "out" / "report.md").read_text()
  # Again: nothing is made anew, and a file that was cut off is.
  made = sorted((tmp_path / "out" / "measured").iterdir())
  assert len(made) == 3 + 3 + 2 + 1, "and the true ends of the way, of which one was there"
  made[0].write_bytes(made[0].read_bytes()[:100])
  before = [path.stat().st_mtime_ns for path in made]
  assert main(line) == 0
  after = [path.stat().st_mtime_ns for path in made]
  assert before[1:] == after[1:] and before[0] != after[0]
  assert without_times((tmp_path / "out" / "report.md").read_text()) == without_times(first)
  assert main([*line, "--seed", "1"]) == 1
  assert "holds an evaluation with" in capsys.readouterr().err
  # What another network has measured is not taken for this one's.
  untrained(seed=1).save(tmp_path / "measuring.safetensors")
  assert main(line) == 1
  assert "holds an evaluation with measuring network" in capsys.readouterr().err.replace("\n", " ")


def without_times(text):
  return [line for line in text.splitlines() if not line.startswith("| seconds a video")]


def test_a_store_of_other_settings_is_refused(tmp_path):
  Store(tmp_path, {"seed": 0})
  with pytest.raises(InputError, match="with seed 0, and now it is 1; give another --out"):
    Store(tmp_path, {"seed": 1})


@pytest.mark.slow
def test_generation_at_half_the_frames_is_measured_at_all(tmp_path):
  talker = DiceTalk.load(random_weights(tmp_path / "weights"))
  generation = GenerationConfig(size=64, steps=1, interpolate=False)
  config = dataclasses.replace(CONFIG, clips=1, interpolations=0)
  found = evaluate(talker, untrained(), tmp_path / "out", config, generation)
  assert list(found.trials) == ["label"], "without an embedder no emotion of clips"
  assert found.trials["label"].confusion.sum() == 1 and found.priors is None and not len(found.ways)
