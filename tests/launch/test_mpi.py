"""Two processes of a real Open MPI on this machine train one run."""

import os
import signal
import subprocess

import pytest
from launch.packages import needs
from launch.small_run import SmallRun, process_of, processes, steps, stopped, wait_until

pytestmark = pytest.mark.slow

OPTIONS = ["-n", "2", "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]


@pytest.fixture
def run(tmp_path):
  needs("mpirun", "openmpi-bin")
  return SmallRun(tmp_path / "a checkout")


def start(run, *more):
  said = run.folder / "said"
  command = ["bash", "launch/mpi.sh", *OPTIONS, "--", *run.line, *more]
  with said.open("w") as file:
    process = subprocess.Popen(command, cwd=run.folder, env=run.environment, stdout=file, stderr=subprocess.STDOUT)
  return process, said.read_text


def test_two_processes_train_are_stopped_and_go_on(run):
  process, said = start(run)
  try:
    wait_until(lambda: max(steps(said()), default=0) >= 3 or process.poll() is not None, said)
    assert process.poll() is None, said()
    # To the script alone, as a batch system or a terminal does it.
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75, said()
    (saved,) = stopped(said())
    assert run.checkpoints()[-1] == saved and run.writers() == 2
    assert {path.name for path in run.run.iterdir()} <= {"checkpoints", "log"}

    # The death of one ends the other.
    process, said = start(run)
    wait_until(lambda: max(steps(said()), default=0) >= saved + 3 or process.poll() is not None, said)
    assert min(steps(said())) == saved + 1
    process_of("JAX_PROCESS_ID", 1, run).kill()
    assert process.wait(timeout=120) != 0
    assert "another process of this run ended" in said() or "unhealthy" in said()
    wait_until(lambda: not list(processes(run)), said)

    last = max(run.checkpoints()[-1], saved) + 2
    process, said = start(run, "--set", f"loop.steps={last}")
    assert process.wait(timeout=240) == 0, said()
    assert steps(said()) == [last - 1, last]
    assert (run.run / "weights").is_dir() and len(run.logs()) == 3
  finally:
    for left, _ in processes(run):
      left.kill()
    process.wait(timeout=60)
