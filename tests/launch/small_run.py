"""A run of the embedder that trains in no time, and what a test asks of it."""

import os
import pathlib
import re
import shutil
import sys
import time

import psutil
import pytest
from training.encoded_clips import write_clips

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"

PRESET = """
from dicetalk_jax.data.batches.embedder import EmbedderBatchConfig
from dicetalk_jax.training.config import EmbedderConfig, EmbedderModelConfig, LoopConfig, OptimizerConfig

config = EmbedderConfig(
  data=({data!r},),
  model=EmbedderModelConfig(features=16, num_layers=1, num_fusion_layers=1, num_heads=2, mlp=16),
  batches=EmbedderBatchConfig(groups=4, clips=2, frames=8),
  optimizer=OptimizerConfig(learning_rate=3e-3, ema_decay=0.9),
  loop=LoopConfig(steps=1_000_000, log_every=1, validate_every=1_000_000, checkpoint_every=50),
)
"""


class SmallRun:
  """A folder to start from, as a checkout is one; `line` trains in its folder `run`, without an end."""

  def __init__(self, folder):
    self.folder, self.run = folder, folder / "run"
    (folder / ".venv").mkdir(parents=True)
    (folder / ".venv/bin").symlink_to(pathlib.Path(sys.executable).parent)
    shutil.copytree(LAUNCH, folder / "launch")
    preset = folder / "a preset.py"
    preset.write_text(PRESET.format(data=str(write_clips(folder / "drawn"))))
    self.line = ["train", "embedder", "--config", str(preset), "--out", str(self.run)]

  @property
  def environment(self):
    # One device a process; what this test runs under is not theirs.
    ours = ("SLURM_", "JAX_", "OMPI_", "DICETALK_", "XLA_FLAGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"JAX_PLATFORMS": "cpu", "DICETALK_CONNECT_TIMEOUT": "120", "DICETALK_HEARTBEAT_TIMEOUT": "20"}

  def checkpoints(self):
    return sorted(int(path.name) for path in (self.run / "checkpoints").iterdir() if path.name.isdigit())

  def writers(self):
    """How many processes wrote the newest checkpoint."""
    newest = self.run / "checkpoints" / str(self.checkpoints()[-1])
    return len(list(newest.glob("*/array_metadatas/process_*")))

  def logs(self):
    """Event files of TensorBoard; each start of the run adds one."""
    return list((self.run / "log").rglob("events.*"))


def steps(said):
  """Of which steps something is told, in the order of telling."""
  return list(dict.fromkeys(int(step) for step in re.findall(r"step (\d+): loss", said)))


def stopped(said):
  """After which steps the run said that it stopped and saved."""
  return list(dict.fromkeys(int(step) for step in re.findall(r"stopped after step (\d+), and saved", said)))


def wait_until(true, what, seconds=180):
  """Of `true`, a function, the first true value."""
  until = time.monotonic() + seconds
  while not (value := true()):
    if time.monotonic() > until:
      pytest.fail(f"waited {seconds} s: {what()}", pytrace=False)
    time.sleep(0.1)
  return value


def processes(run):
  """(process, its environment) of every `dicetalk` that trains in this run."""
  for process in psutil.process_iter():
    try:
      command, environment = process.cmdline(), process.environ()
    except psutil.Error:
      continue
    if command and "python" in pathlib.Path(command[0]).name and str(run.run) in command:
      yield process, environment


def process_of(name, value, run):
  """The `dicetalk` of this run whose variable `name` is this number."""
  return next(process for process, environment in processes(run) if environment.get(name) == str(value))
