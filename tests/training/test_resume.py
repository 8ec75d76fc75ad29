"""A run that is killed at random moments and started again is, bit for bit, the run that was never killed."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from training.encoded_clips import write_clips


@pytest.fixture
def start(tmp_path):
  """start(name, steps) -> a process of the run in folder `name`; compiled code is kept, for speed alone."""
  data = write_clips(tmp_path / "data")
  cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  script = str(pathlib.Path(__file__).with_name("resumable.py"))
  begun = []

  def begin(name, steps):
    arguments = [data, tmp_path / name, tmp_path / f"{name}.losses", steps]
    process = subprocess.Popen(
      [sys.executable, script, *map(str, arguments)], env=os.environ | cache, stderr=subprocess.PIPE, text=True
    )
    process.losses, process.folder = tmp_path / f"{name}.losses", tmp_path / name
    begun.append(process)
    return process

  yield begin
  for process in begun:
    if process.poll() is None:
      process.kill()
      process.wait()


def lines(process):
  """Each is written at once: a kill leaves whole ones."""
  return process.losses.read_text().splitlines() if process.losses.exists() else []


def end(process):
  _, said = process.communicate(timeout=600)
  assert process.returncode == 0, said
  return lines(process), dict(np.load(process.folder / "final.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, 20])
def test_killed_at_any_moment_it_is_the_same_run(kills, start):
  steps, rng = 20 * kills, np.random.default_rng([kills])
  undisturbed = start("whole", steps)
  begun = []
  for kill in range(kills):
    process = start("killed", steps)
    before = len(lines(process))
    # Some come in the midst of starting.
    if kill % 4 != 3:
      while len(lines(process)) == before and process.poll() is None:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 1.5))
    # The second is asked to end, and does so by itself.
    process.send_signal(signal.SIGTERM if kill == 1 else signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    found = lines(process)[before:]
    begun += [int(line.split()[0]) for line in found[:1] if " " in line]
    if kill == 1:
      # Where it had finished already there was nobody left to heed the signal.
      assert process.returncode == 0 or lines(process)[-1] == "finished", said
      assert lines(process)[-1] in ("interrupted", "finished")
  found, ours = end(start("killed", steps))
  assert found[-1] == "finished"
  assert begun[0] == 1 and max(begun) > 1, "no start went on where another ended"
  losses, final = end(undisturbed)
  assert losses[-1] == "finished" and len(losses) == steps + 1
  # A step may have come several times, each time with the same loss.
  assert {line for line in found if " " in line} == set(losses[:-1])
  assert ours.keys() == final.keys() and len(ours) > 60
  for name in final:
    np.testing.assert_array_equal(ours[name], final[name], err_msg=name)
