"""Real processes on loopback: training together, one that is killed, and going on with another number of them."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest
from parallel import small_runs

HERE = pathlib.Path(__file__).parent
FEW_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}


def address():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{probe.getsockname()[1]}"


def start(command, index=None, count=1, coordinator=None, **environment):
  """A process that prints to a pipe; with an index one of `count` that belong together."""
  paths = f"{HERE.parents[1]}:{HERE.parent}:{HERE.parent / 'golden'}"
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths} | environment
  if index is not None:
    environment |= {"JAX_COORDINATOR_ADDRESS": coordinator, "JAX_NUM_PROCESSES": str(count)}
    environment |= {"JAX_PROCESS_ID": str(index)}
  return subprocess.Popen(
    [sys.executable, *map(str, command)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


def said(line):
  """What a line of small_runs.py says; None for lines of libraries, which print as they like."""
  return json.loads(line[line.index("{") :]) if "{" in line else None


def losses_of(output):
  lines = filter(None, map(said, output.splitlines()))
  return {line["step"]: line["loss"] for line in lines if "step" in line}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("drawn")
  small_runs.write_data(folder / "data")
  return folder


def program(data, run, mesh, steps, *settings):
  return (HERE / "small_runs.py", "embedder", run, data / "data", "none", mesh, steps, *settings)


@pytest.mark.slow
def test_one_of_two_is_killed_and_another_number_goes_on(data, tmp_path):
  whole, _ = start(program(data, tmp_path / "whole", "1,1,1", 12)).communicate(timeout=600)
  expected = losses_of(whole)
  assert list(expected) == list(range(1, 13))

  command = program(data, tmp_path / "run", "2,2,2", 10**5, "loop.checkpoint_every=2")
  heartbeat = {"DICETALK_HEARTBEAT_TIMEOUT": "10"}
  coordinator = address()
  first, second = (start(command, index, 2, coordinator, **heartbeat) for index in range(2))
  seen, shares = [], set()
  try:
    while not seen or seen[-1] < 7:
      for process in (first, second):
        line = said(process.stdout.readline()) or {}
        shares |= {tuple(line["share"])} if "share" in line else set()
        seen += [line["step"]] if "step" in line and process is first else []
    second.send_signal(signal.SIGKILL)
    _, error = first.communicate(timeout=120)
  finally:
    for process in (first, second):
      process.kill()
  assert shares == {(0, 2), (1, 2)}
  # Its collectives fail at once; it ends with that error or, in the midst of something else, by JAX's heartbeat.
  assert first.returncode != 0 and ("Gloo" in error or "unhealthy" in error)
  saved = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
  assert saved >= 2

  goes_on, error = start(program(data, tmp_path / "run", "1,4,1", 12)).communicate(timeout=600)
  assert '"ended": "finished"' in goes_on, error
  again = losses_of(goes_on)
  assert list(again) == list(range(saved + 1, 13)) and again
  for step, loss in again.items():
    assert abs(loss - expected[step]) < 1e-4 * abs(expected[step]), (step, loss, expected[step])


PRESET = """
from dicetalk_jax.data.batches.embedder import EmbedderBatchConfig
from dicetalk_jax.training.config import *
config = EmbedderConfig(data=({data!r},), batches=EmbedderBatchConfig(groups=8, clips=2, frames=8),
  model=EmbedderModelConfig(features=16, num_layers=1, num_fusion_layers=1, num_heads=2, mlp=16),
  loop=LoopConfig(steps=3), optimizer=OptimizerConfig())
"""


@pytest.fixture
def preset(data, tmp_path):
  (tmp_path / "preset.py").write_text(PRESET.format(data=str(data / "data")))
  return ("-m", "dicetalk_jax.cli", "train", "embedder", "--config", tmp_path / "preset.py", "--out", tmp_path / "run")


def test_hosts_that_mean_different_things(preset):
  coordinator = address()
  settings = [("--set", "optimizer.learning_rate=1e-3"), ("--set", "optimizer.learning_rate=2e-3")]
  processes = [start((*preset, *of), index, 2, coordinator, **FEW_DEVICES) for index, of in enumerate(settings)]
  for process in processes:
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1, error
    assert "process 1 has configuration.optimizer.learning_rate 0.002, and process 0 0.001" in error


def test_no_coordinator(preset):
  where = address()
  process = start(preset, 1, 2, where, DICETALK_CONNECT_TIMEOUT="2")
  _, error = process.communicate(timeout=60)
  assert process.returncode == 1
  assert f"nothing answers at {where}, where process 0 should be within 2 s" in error and "firewall" in error
  assert "Check failure" not in error


@pytest.mark.parametrize(
  "environment, words",
  [
    ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES is set without JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"),
    (dict(JAX_COORDINATOR_ADDRESS="here", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="0"), "'here'; give HOST:PORT"),
    (dict(JAX_COORDINATOR_ADDRESS="h:1", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="2"), "JAX_PROCESS_ID is 2"),
    (dict(JAX_COORDINATOR_ADDRESS="h:1", JAX_NUM_PROCESSES="two", JAX_PROCESS_ID="2"), "JAX_NUM_PROCESSES is 'two'"),
    ({"DICETALK_HOSTS": "yes"}, "DICETALK_HOSTS is 'yes'"),
  ],
)
def test_an_environment_that_makes_no_sense(environment, words, monkeypatch):
  from dicetalk_jax.errors import InputError
  from dicetalk_jax.parallel import hosts

  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(InputError, match=words):
    hosts.connect()
