"""Two tasks of a real Slurm, of one node that is this machine, train one run."""

import contextlib
import os
import pathlib
import secrets
import socket
import subprocess

import pytest
from launch.packages import needs
from launch.small_run import SmallRun, process_of, processes, steps, stopped, wait_until

pytestmark = pytest.mark.slow

# cred_expire: how long a job waits at least before it is started again, 120 s by default.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
KillWait=60
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count):
  with contextlib.ExitStack() as sockets:
    opened = [sockets.enter_context(socket.socket()) for _ in range(count)]
    for each in opened:
      each.bind(("127.0.0.1", 0))
    return [each.getsockname()[1] for each in opened]


class Cluster:
  def __init__(self, environment):
    self._environment = environment

  def call(self, program, *arguments, **options):
    done = subprocess.run(
      [program, *map(str, arguments)], env=self._environment, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  def state(self, job):
    shown = self.call("scontrol", "show", "job", job)
    return {word.partition("=")[0]: word.partition("=")[2] for word in shown.split()}


@pytest.fixture
def run(tmp_path):
  return SmallRun(tmp_path / "a checkout")


@pytest.fixture
def cluster(tmp_path, run):
  """munged, slurmctld and slurmd, of a folder of their own and for this test alone."""
  needs("sbatch", "slurm-wlm", "munge")
  if os.geteuid():
    pytest.skip("slurmd wants to be root")
  host = socket.gethostname().partition(".")[0]
  try:
    socket.getaddrinfo(host, None)
  except OSError:
    pytest.skip(f"this machine's name, {host}, has no address, by which the tasks would find each other")
  folder = tmp_path / "slurm"
  for each in (folder, folder / "state", folder / "spool"):
    each.mkdir(mode=0o755)
  key = folder / "munge.key"
  key.write_bytes(secrets.token_bytes(1024))
  key.chmod(0o400)
  configuration = folder / "slurm.conf"
  configuration.write_text(CONFIGURATION.format(host=host, folder=folder, ports=free_ports(2)))
  environment = {**run.environment, "SLURM_CONF": str(configuration)}
  munged = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("key-file", "socket", "pid-file", "log-file")]
  daemons = (
    ["munged", "--foreground", "--force", *munged, f"--seed-file={folder}/munge.seed"],
    ["slurmctld", "-D"],
    ["slurmd", "-D", "-N", host],
  )
  started = []
  try:
    for command in daemons:
      output = (folder / f"{command[0]}.out").open("w")
      started.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
      if command[0] == "munged":
        wait_until(lambda: (folder / "munge.socket").exists(), (folder / "munged.out").read_text, 30)
    ready = Cluster(environment)

    def said():
      return "\n".join(path.read_text()[-2000:] for path in folder.glob("*.out"))

    def idle():
      with contextlib.suppress(AssertionError):
        return "idle" in ready.call("sinfo", "--noheader", "--format=%T")

    wait_until(idle, said, 60)
    yield ready
  finally:
    with contextlib.suppress(AssertionError, OSError):
      # What still runs, with its processes, before those that could end it.
      ready.call("scancel", "--full", "--signal=KILL", "--user=root")
      wait_until(lambda: not ready.call("squeue", "--noheader", "--states=R,CG"), lambda: "jobs do not end", 30)
    for left, _ in processes(run):
      left.kill()
    for daemon in reversed(started):
      daemon.terminate()
      daemon.wait(timeout=30)


def submit(cluster, run, *more):
  options = [f"--chdir={run.folder}", f"--output={run.folder}/said", "--ntasks-per-node=2", "--parsable"]
  return cluster.call("sbatch", *options, "launch/slurm.sh", *run.line, *more, cwd=run.folder).strip()


def test_two_tasks_train_and_go_on_after_whatever_ends_them(cluster, run):
  job = submit(cluster, run)

  def said():
    path = pathlib.Path(run.folder / "said")
    return path.read_text() if path.exists() else ""

  def is_at(step, after=""):
    """Whether the run is told to be at this step, in what was said after `after`."""
    wait_until(lambda: max(steps(said()[len(after) :]), default=0) >= step, said)

  is_at(3)
  # A task that is killed takes the other with it, and the job back into the queue.
  process_of("SLURM_PROCID", 1, run).kill()
  wait_until(lambda: cluster.state(job)["Restarts"] == "1", said)
  before = said()
  assert "another process of this run ended" in before or "unhealthy" in before
  assert stopped(before) == []

  # What preemption does: both save, and it is started again from there.
  is_at(1, before)
  before = said()
  cluster.call("scontrol", "requeue", job)
  saved = wait_until(lambda: stopped(said()), said)[-1]
  before = said()
  is_at(saved + 3, before)
  assert min(steps(said()[len(before) :])) == saved + 1
  assert cluster.state(job)["Restarts"] == "2"

  # What the time limit does.
  cluster.call("scancel", "--batch", "--signal=USR1", job)
  wait_until(lambda: len(stopped(said())) == 2, said)
  wait_until(lambda: cluster.state(job)["Restarts"] == "3", said)
  saved, before = stopped(said())[-1], said()
  is_at(saved + 1, before)
  assert min(steps(said()[len(before) :])) == saved + 1

  # Saved, and ended for good, but not as a job that others may depend on.
  cluster.call("scancel", "--signal=TERM", job)
  wait_until(lambda: cluster.state(job)["JobState"] == "FAILED", said)
  saved = stopped(said())[-1]
  assert len(stopped(said())) == 3 and run.checkpoints()[-1] == saved and run.writers() == 2
  assert {path.name for path in run.run.iterdir()} <= {"checkpoints", "log"}
  # One of the two tasks writes.
  assert len(run.logs()) == 4

  job = submit(cluster, run, "--set", f"loop.steps={saved + 2}")
  wait_until(lambda: cluster.state(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), said)
  assert cluster.state(job)["JobState"] == "COMPLETED", said()
  assert f"finished after {saved + 2} steps" in said()
  assert (run.run / "weights").is_dir()
