"""`dicetalk train` as a user types it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from training.encoded_clips import write_clips

from dicetalk_jax.cli import main
from dicetalk_jax.cli.train import spelt_out
from dicetalk_jax.weights.folder import Weights

PRESET = """
from dicetalk_jax.data.batches.embedder import EmbedderBatchConfig
from dicetalk_jax.parallel.mesh import MeshConfig
from dicetalk_jax.training.config import EmbedderConfig, EmbedderModelConfig, LoopConfig, OptimizerConfig

config = EmbedderConfig(
  data=({data!r},),
  model=EmbedderModelConfig(features=16, num_layers=1, num_fusion_layers=1, num_heads=2, mlp=16),
  batches=EmbedderBatchConfig(groups=6, clips=2, frames=8),
  optimizer=OptimizerConfig(learning_rate=3e-3, ema_decay=0.9),
  mesh=MeshConfig(1, 1, 1),
  loop=LoopConfig(steps=1_000_000, log_every=1, validate_every=1000, checkpoint_every=1000),
)
"""


@pytest.fixture
def preset(tmp_path):
  path = tmp_path / "preset.py"
  path.write_text(PRESET.format(data=str(write_clips(tmp_path / "drawn"))))
  return path


def test_it_trains_and_says_what_it_has_left(preset, tmp_path, capfd):
  command = ["train", "embedder", "--config", str(preset), "--set", "loop.steps=3", "optimizer.learning_rate=1e-3"]
  command += ["--set", f"out={tmp_path / 'run'}"]
  assert main(command) == 0
  out, err = capfd.readouterr()
  assert f"finished after 3 steps; weights: {tmp_path / 'run' / 'weights'}" in out
  assert (
    "Compiling the training step" in err and "step 3: loss" in err and "step 3, held out: clustering strength" in err
  )
  made = Weights.open(tmp_path / "run" / "weights")
  assert made.config["networks"]["emotion_embedder"]["speech_features"] == 8
  assert made.config["emotion_embedder"] == {"frames": 8}
  assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoints", "log", "weights"}
  # The same command again has nothing to do, and says so.
  assert main(command) == 0
  assert "finished after 3 steps" in capfd.readouterr().out


def test_a_dry_run_tells_and_trains_nothing(preset, tmp_path, capfd):
  assert main(["train", "embedder", "--config", str(preset), "--dry-run", "--out", str(tmp_path / "run")]) == 0
  out = capfd.readouterr().out
  for words in ("emotion_embedder", "optimizer", "--compile", "TFLOP", "a step takes"):
    assert words in out
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--set", "loop.stepz=3"], "loop has no 'stepz'; did you mean steps"),
    (["--set", "loop.steps=many"], "'many' cannot be used, wanted a whole number"),
    (["--set", "data=nowhere"], "nowhere"),
    (["--set", "weights=nowhere"], "nowhere"),
    (["--set", "batches.groups=100"], "100 different ones"),
  ],
)
def test_what_cannot_be_trained_is_one_sentence(preset, tmp_path, arguments, words, capfd):
  command = ["train", "embedder", "--config", str(preset), "--out", str(tmp_path / "run"), *arguments]
  assert main(command) == 1
  out, err = capfd.readouterr()
  assert words in err and "Traceback" not in err and out == ""
  assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_preset_of_another_stage_is_named(preset, capfd):
  assert main(["train", "adaptation", "--config", str(preset)]) == 1
  assert "must make a AdaptationConfig" in capfd.readouterr().err


def test_ctrl_c_saves_and_the_same_command_goes_on(preset, tmp_path):
  run = tmp_path / "run"
  command = [sys.executable, "-m", "dicetalk_jax.cli", "train", "embedder", "--config", preset, "--out", run]
  process = subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=(tmp_path / "said").open("w"), text=True, start_new_session=True
  )
  until = time.monotonic() + 300
  while "step 2:" not in (tmp_path / "said").read_text() and process.poll() is None and time.monotonic() < until:
    time.sleep(0.05)
  os.killpg(process.pid, signal.SIGINT)
  out, _ = process.communicate(timeout=120)
  said = (tmp_path / "said").read_text()
  assert process.returncode == 75, said
  assert "Traceback" not in said and "Compiling the training step" in said
  step = int(out.partition("stopped after step ")[2].partition(",")[0])
  assert step >= 2 and (run / "checkpoints" / str(step)).is_dir() and not (run / "weights").exists()
  assert main(["train", "embedder", "--config", str(preset), "--out", str(run), "--set", f"loop.steps={step + 1}"]) == 0
  assert (run / "weights").is_dir()


def test_settings_may_follow_one_another():
  words = ["train", "embedder", "--set", "a.b=1", "c=x=y", "--dry-run", "--set", "d=2"]
  assert spelt_out(words) == [
    *("train", "embedder", "--set", "a.b=1", "--set", "c=x=y", "--dry-run", "--set", "d=2"),
  ]
  other = ["generate", "--emotion", "a=b", "--out", "x=y.mp4"]
  assert spelt_out(other) == other
