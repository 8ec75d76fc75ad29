"""The scripts of launch/, with what they call replaced by programs that write down how they were called."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))
LINE = ["train", "embedder", "--config", "my presets/it's $HOME.py", "--set", "data=[a, b]", "", "*", 'a "b"\\']

# Lasts FAKE_SECONDS and exits with FAKE_CODE. A signal is written down and makes it exit with 75 after a while, as a
# run that saves does.
RECORDER = """#!{python}
import json, os, signal, sys, time
name = os.path.basename(sys.argv[0])
def write(**said):
  with open({log!r}, "a") as log:
    log.write(json.dumps(dict(name=name, **said)) + "\\n")
def told(number, frame):
  write(signal=signal.Signals(number).name)
  time.sleep(0.5)
  write(saved=True)
  sys.exit(75)
for number in (signal.SIGTERM, signal.SIGUSR1):
  if signal.getsignal(number) is not signal.SIG_IGN:
    signal.signal(number, told)
write(arguments=sys.argv[1:], environment=dict(os.environ), folder=os.getcwd())
if name in {lasting!r}:
  time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
  sys.exit(int(os.environ.get("FAKE_CODE", 0)))
"""

# The host at the other end of gcloud: a home folder, and python3, which makes environments.
GCLOUD = """
import subprocess
arguments = sys.argv[1:]
if "scp" in arguments:
  subprocess.run(["cp", arguments[arguments.index("scp") + 1], {home!r}], check=True)
else:
  command = arguments[arguments.index("--command") + 1]
  sys.exit(subprocess.run(["bash", "-c", command], cwd={home!r}).returncode)
"""
PYTHON = """
import shutil
os.makedirs(".venv/bin")
for program in ("pip", "dicetalk"):
  shutil.copy({recorder!r}, f".venv/bin/{{program}}")
"""

# Process 1 of 2, as Open MPI would start it.
MPIRUN = """
import subprocess
os.environ.update(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_LOCAL_RANK="1")
sys.exit(subprocess.run(sys.argv[sys.argv.index("bash"):]).returncode)
"""


class Checkout:
  """A copy of launch/ whose `dicetalk`, and the tools on PATH, only write down how they were called."""

  def __init__(self, folder):
    self.folder, self._log = folder, folder / "log"
    shutil.copytree(LAUNCH, folder / "launch")
    self.tools, self.home = folder / "tools", folder / "home"
    self.home.mkdir()
    for name in ("srun", "scontrol", "scancel"):
      self._record(self.tools / name)
    self._record(folder / ".venv/bin/dicetalk")
    self._record(self.tools / "mpirun", MPIRUN)
    self._record(self.tools / "gcloud", GCLOUD.format(home=str(self.home)))
    self._record(self.tools / "python3", PYTHON.format(recorder=str(folder / ".venv/bin/dicetalk")))

  def _record(self, path, then=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    lasting = ("srun", "dicetalk")
    path.write_text(RECORDER.format(python=sys.executable, log=str(self._log), lasting=lasting) + then)
    path.chmod(0o755)

  def start(self, script, *arguments, **environment):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_", "OMPI_"))}
    env |= {"PATH": f"{self.tools}:{self.folder / '.venv/bin'}:{os.environ['PATH']}", **environment}
    command = ["bash", f"launch/{script}", *arguments]
    return subprocess.Popen(command, cwd=self.folder, env=env, text=True, stderr=subprocess.PIPE)

  def run(self, script, *arguments, **environment):
    process = self.start(script, *arguments, **environment)
    _, said = process.communicate(timeout=60)
    return process.returncode, said

  def log(self, name=None):
    lines = [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []
    return [line for line in lines if name in (None, line["name"])]

  def wait_for(self, name):
    until = time.monotonic() + 30
    while not self.log(name):
      assert time.monotonic() < until, f"{name} was not called"
      time.sleep(0.02)


@pytest.fixture
def checkout(tmp_path):
  return Checkout(tmp_path)


JOB = dict(SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="2", SLURM_NTASKS="2")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_shell_reads_it(script):
  assert os.access(LAUNCH / script, os.X_OK)
  subprocess.run(["bash", "-n", LAUNCH / script], check=True)
  assert "set -euo pipefail" in (LAUNCH / script).read_text()
  if shutil.which("shellcheck"):
    subprocess.run(["shellcheck", LAUNCH / script], check=True)


@pytest.mark.parametrize(
  "script, arguments, environment",
  [
    ("tpu.sh", [], {}),
    ("tpu.sh", ["pod", "us-west4-a"], {}),
    ("slurm.sh", [], JOB),
    ("slurm.sh", ["train"], {}),
    ("mpi.sh", [], {}),
    ("mpi.sh", ["-n", "2", "train"], {}),
    ("mpi.sh", ["-n", "2", "--"], {}),
  ],
)
def test_wrong_use_is_told_and_starts_nothing(checkout, script, arguments, environment):
  code, said = checkout.run(script, *arguments, **environment)
  assert code == 2 and said.startswith("usage: ") and script in said
  assert checkout.log() == []


def test_every_script_has_its_wrong_use_tested():
  assert {"tpu.sh", "slurm.sh", "mpi.sh"} == set(SCRIPTS)


def test_a_slurm_step_gets_the_line_as_it_is(checkout):
  assert checkout.run("slurm.sh", *LINE, **JOB) == (0, "")
  (call,) = checkout.log()
  options, line = call["arguments"][: -len(LINE) - 1], call["arguments"][-len(LINE) - 1 :]
  assert call["name"] == "srun" and line == ["dicetalk", *LINE]
  assert "--kill-on-bad-exit=1" in options
  assert call["environment"]["PATH"].startswith(f"{checkout.folder}/.venv/bin:")


@pytest.mark.parametrize(
  "environment, seen",
  [
    (dict(SLURM_GPUS_ON_NODE="4"), "0,1,2,3"),
    (dict(SLURM_GPUS_ON_NODE="4", SLURM_NTASKS="8"), None),
    ({}, None),
  ],
)
def test_one_slurm_task_a_node_sees_all_of_its_gpus(checkout, environment, seen):
  checkout.run("slurm.sh", "info", **JOB | environment)
  assert checkout.log("srun")[0]["environment"].get("JAX_LOCAL_DEVICE_IDS") == seen


@pytest.mark.parametrize(
  "code, environment, again",
  [(0, {}, False), (1, {}, False), (75, {}, False), (137, {}, True), (134, {"SLURM_RESTART_COUNT": "20"}, False)],
)
def test_only_a_slurm_job_that_was_killed_goes_back_into_the_queue(checkout, code, environment, again):
  assert checkout.run("slurm.sh", *LINE, FAKE_CODE=str(code), **JOB, **environment)[0] == code
  assert [call["arguments"] for call in checkout.log("scontrol")] == ([["requeue", "7"]] if again else [])


@pytest.mark.parametrize("code, again", [(75, True), (0, False), (1, False)])
def test_near_its_time_limit_a_slurm_job_saves_and_queues_again(checkout, code, again):
  process = checkout.start("slurm.sh", *LINE, FAKE_SECONDS="2", FAKE_CODE=str(code), **JOB)
  checkout.wait_for("srun")
  process.send_signal(signal.SIGUSR1)
  checkout.wait_for("scancel")
  assert checkout.log("scontrol") == []  # not before the step has saved
  _, said = process.communicate(timeout=60)
  assert process.returncode == code, said
  assert [call["arguments"] for call in checkout.log("scancel")] == [["--signal=TERM", "7"]]
  assert [call["arguments"] for call in checkout.log("scontrol")] == ([["requeue", "7"]] if again else [])


def test_what_slurm_is_asked_for():
  asked = [line.split()[1] for line in (LAUNCH / "slurm.sh").read_text().splitlines() if line.startswith("#SBATCH")]
  for option in ("--ntasks-per-node=1", "--requeue", "--open-mode=append", "--signal=B:USR1@300"):
    assert option in asked
  # Slurm stops reading at the first command.
  assert "#SBATCH" not in (LAUNCH / "slurm.sh").read_text().partition("set -euo")[2]


def test_a_process_of_open_mpi_gets_the_line_and_knows_who_it_is(checkout):
  options = ["-n", "2", "--hostfile", "my hosts"]
  environment = dict(XLA_FLAGS="--one --two", NCCL_DEBUG="INFO", UNRELATED="x", DICETALK_HEARTBEAT_TIMEOUT="20")
  assert checkout.run("mpi.sh", *options, "--", *LINE, **environment) == (0, "")
  (mpirun,), (dicetalk,) = checkout.log("mpirun"), checkout.log("dicetalk")
  told = mpirun["arguments"]
  told = told[: told.index("bash")]
  assert told[:2] == ["--bind-to", "none"] and told[2:6] == options
  exported = told[6:]
  assert exported[::2] == ["-x"] * (len(exported) // 2)
  wanted = {"PATH", "JAX_COORDINATOR_ADDRESS", "XLA_FLAGS", "NCCL_DEBUG", "DICETALK_HEARTBEAT_TIMEOUT"}
  assert wanted <= set(exported[1::2]) and "UNRELATED" not in exported
  assert dicetalk["arguments"] == LINE
  assert dicetalk["environment"]["JAX_NUM_PROCESSES"] == "2"
  assert dicetalk["environment"]["JAX_PROCESS_ID"] == "1"
  assert dicetalk["environment"]["JAX_LOCAL_DEVICE_IDS"] == "1"
  host, _, port = mpirun["environment"]["JAX_COORDINATOR_ADDRESS"].rpartition(":")
  assert host == subprocess.check_output(["hostname"], text=True).strip() and 1024 < int(port) < 32768


def test_open_mpi_keeps_what_the_user_has_set(checkout):
  ours = dict(JAX_COORDINATOR_ADDRESS="other:1234", JAX_LOCAL_DEVICE_IDS="0,1,2,3")
  checkout.run("mpi.sh", "--", "info", **ours)
  assert ours.items() <= checkout.log("dicetalk")[0]["environment"].items()


def test_open_mpi_failures_are_passed_on(checkout):
  assert checkout.run("mpi.sh", "--", "info", FAKE_CODE="3")[0] == 3


def test_every_tpu_host_gets_the_tracked_files_and_runs_the_line(checkout):
  (checkout.folder / "requirements-tpu.txt").write_text(".\n")
  (checkout.folder / "weights").write_text("not tracked")
  git = ["git", "-C", checkout.folder, "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
  for command in (["init", "--quiet"], ["add", "launch", "requirements-tpu.txt"], ["commit", "--quiet", "-m", "a"]):
    subprocess.run([*git, *command], check=True)
  assert checkout.run("tpu.sh", "my-pod", "us-west4-a", *LINE) == (0, "")
  calls = checkout.log("gcloud")
  assert [call["arguments"][3] for call in calls] == ["scp", "ssh", "ssh"]
  for call in calls:
    rest = " ".join(call["arguments"])
    assert rest.startswith("compute tpus tpu-vm ") and "--zone us-west4-a --worker all" in rest and "my-pod" in rest
  with tarfile.open(checkout.home / "dicetalk_jax.tar") as archive:
    names = {name.removeprefix("dicetalk_jax/") for name in archive.getnames() if not name.endswith("/")}
  assert {"launch/tpu.sh", "requirements-tpu.txt"} <= names and "weights" not in names
  assert not pathlib.Path(calls[0]["arguments"][4]).exists()
  (pip,), (dicetalk,) = checkout.log("pip"), checkout.log("dicetalk")
  assert pip["arguments"] == ["install", "--quiet", "-r", "requirements-tpu.txt"]
  assert dicetalk["arguments"] == LINE and dicetalk["environment"]["DICETALK_HOSTS"] == "auto"
  assert pip["folder"] == dicetalk["folder"] == str(checkout.home / "dicetalk_jax")


def test_what_a_tpu_host_cannot_do_is_a_failure(checkout):
  # Not a git checkout: nothing to copy.
  code, _ = checkout.run("tpu.sh", "my-pod", "us-west4-a", "info")
  assert code not in (0, 2) and checkout.log() == []
