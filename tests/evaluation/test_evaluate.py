"""A whole evaluation of an untrained model: every case is generated once, measured, and reported."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from random_weights import random_weights

from dicetalk_jax.cli import main
from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import InputError
from dicetalk_jax.evaluation.cases import Case, Cases
from dicetalk_jax.evaluation.drawn_cases import World, drawn_cases
from dicetalk_jax.evaluation.evaluate import evaluate
from dicetalk_jax.evaluation.measurements import Store
from dicetalk_jax.evaluation.networks.measuring import MEASURED, Measuring, MeasuringNetwork
from dicetalk_jax.evaluation.report import write_report
from dicetalk_jax.inference.pipeline import DiceTalk

CLIPS, SECONDS = 3, 0.4


def untrained(size=64, seed=0):
  import jax

  frames = np.zeros((1, size, size, 3), np.float32)
  params = jax.jit(MeasuringNetwork().init)(jax.random.key(seed), frames, frames)["params"]
  return Measuring(jax.device_get(params), np.zeros(len(MEASURED)), np.ones(len(MEASURED)), (size, size))


def test_an_evaluation_goes_on_and_tells_what_it_was(tmp_path, capsys):
  weights = random_weights(tmp_path / "weights").folder
  (tmp_path / "network").mkdir()
  untrained().save(tmp_path / "network" / "measuring.safetensors")
  line = ["evaluate", "--out", str(tmp_path / "out"), "--weights", str(weights)]
  line += ["--measuring", str(tmp_path / "network")]
  line += ["--clips", str(CLIPS), "--people", "3", "--seconds", str(SECONDS), "--size", "64"]
  line += ["--steps", "1", "--decode-chunk", "3"]
  assert main(line) == 0
  out = capsys.readouterr().out
  assert "emotion as requested, all eight | " in out and "identity, top 1 of 100 | " in out
  assert Image.open(tmp_path / "out" / "sheet.png").height == 3 * 64, "three emotions of three cases"
  assert Image.open(tmp_path / "out" / "plots.png").width > 500
  first = (tmp_path / "out" / "report.md").read_text()
  # Again: only the video whose file is incomplete is generated.
  gallery, incomplete, *others = sorted((tmp_path / "out" / "measured").iterdir())
  assert len(others) == 2 + 3 + 9 + 1, "labels, true clips, way steps, and its one end that is in no trial"
  incomplete.write_bytes(incomplete.read_bytes()[:100])
  before = [path.stat().st_mtime_ns for path in (incomplete, gallery, *others)]
  assert main(line) == 0
  after = [path.stat().st_mtime_ns for path in (incomplete, gallery, *others)]
  assert before[1:] == after[1:] and before[0] != after[0]
  assert without_times((tmp_path / "out" / "report.md").read_text()) == without_times(first)
  assert main([*line, "--seed", "1"]) == 1
  assert "holds an evaluation with" in capsys.readouterr().err
  # What another network has measured is not taken for this one's.
  untrained(seed=1).save(tmp_path / "network" / "measuring.safetensors")
  assert main(line) == 1
  assert "holds an evaluation with measuring network" in capsys.readouterr().err.replace("\n", " ")


def without_times(text):
  return [line for line in text.splitlines() if not line.startswith("| seconds per video")]


def test_a_store_of_other_settings_is_refused(tmp_path):
  Store(tmp_path, {"seed": 0})
  with pytest.raises(InputError, match="with seed 0, but seed is now 1; give another --out"):
    Store(tmp_path, {"seed": 1})


def test_cases_of_any_source_are_measured_by_what_is_known_of_them(tmp_path):
  """At half the frame rate too; a case that says nothing about the truth counts in no metric that needs it."""
  talker = DiceTalk.load(random_weights(tmp_path / "weights"))
  generation = GenerationConfig(size=64, steps=1, interpolate=False)
  world = World(people=3, size=64, seconds=SECONDS)
  drawn = world.trial_case("label", 0)
  Image.fromarray(drawn.portrait).save(tmp_path / "me.png")
  own = Case("mine", tmp_path / "me.png", drawn.audio, "happy", rest=drawn.portrait, face_box=drawn.face_box)
  cases = Cases({"drawn": [drawn], "mine": [own]}, {}, gallery=drawn.portrait[None], settings={"cases": "mine"})
  evaluation = evaluate(talker, untrained(), cases, tmp_path / "out", generation)
  assert evaluation.trials["drawn"].confusion.sum() == 1 and evaluation.trials["drawn"].top1.count == 1
  mine = evaluation.trials["mine"]
  assert mine.confusion.sum() == mine.top1.count == mine.near.count == 0 and np.isnan(mine.mouth)
  assert evaluation.true is None and evaluation.priors is None and not len(evaluation.ways)
  assert "| mine |" in write_report(evaluation, tmp_path / "out").read_text()


def test_clips_as_emotions_are_left_out_without_an_embedder(tmp_path):
  talker = DiceTalk.load(random_weights(tmp_path / "weights"))
  generation = GenerationConfig(size=64, steps=1, decode_chunk=3)
  drawn = drawn_cases(World(people=3, size=64, seconds=SECONDS), 1)
  evaluation = evaluate(talker, untrained(), dataclasses.replace(drawn, ways=()), tmp_path / "out", generation)
  assert list(evaluation.trials) == ["label"] and evaluation.true.confusion.sum() == 1 and evaluation.priors is None
