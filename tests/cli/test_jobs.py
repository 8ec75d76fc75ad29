"""`dicetalk generate --jobs` as a user meets it: whole processes, which are killed, interrupted and started again."""

import collections
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from conftest import GOLDEN
from PIL import Image
from random_weights import random_weights
from video_files import probe, read_video

from dicetalk_jax.cli import main
from dicetalk_jax.media.audio import read_sound

OPTIONS = "--face-box 10 10 40 40 --size 64 --steps 1 --window 4 --shift 2 --no-interpolate"
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
FRAMES = {"short.wav": 4, "longer.wav": 6}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  return random_weights(tmp_path_factory.mktemp("jobs_cli") / "weights").folder


@pytest.fixture
def start(weights, tmp_path, tmp_path_factory):
  """Starts a process that does a list of dicts and texts; what it compiled, the next one need not."""
  Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (64, 1, 3))).save(tmp_path / "me.png")
  sound, rate = read_sound(GOLDEN / "speech.wav")
  for name, frames in FRAMES.items():
    soundfile.write(tmp_path / name, sound[: int(frames / 12.5 * rate)], rate)
  compiled = {
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.getbasetemp() / "jobs_cli_compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
  }
  processes = []

  def run(jobs, **environment):
    path = tmp_path / "jobs.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in jobs))
    command = [
      sys.executable,
      "-m",
      "dicetalk_jax.cli",
      "generate",
      "--jobs",
      path,
      "--weights",
      weights,
      *OPTIONS.split(),
    ]
    process = subprocess.Popen(
      list(map(str, command)),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=os.environ | compiled | environment,
    )
    processes.append(process)
    return process

  yield run
  for process in processes:
    process.kill()
    process.communicate()


def records(folder):
  """Those of whole lines: a process may be writing."""
  path = folder / "jobs.results.jsonl"
  return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def done(folder):
  return [record["out"] for record in records(folder) if record["status"] == "done"]


def wait_for(process, condition, seconds=240):
  deadline = time.monotonic() + seconds
  while not condition():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.01)


@pytest.mark.slow
def test_twenty_jobs_three_bad_killed_twice(start, tmp_path, monkeypatch):
  rng = random.Random(seed := time.time_ns() % 10**6)
  print(f"seed {seed}")
  emotions = ["happy", "sad", "0s neutral, 0.2s angry", "fear:0.5"]
  jobs = [
    {"image": "me.png", "audio": rng.choice(list(FRAMES)), "emotion": emotions[n % 4], "out": f"{n}.mp4", "seed": n}
    for n in range(20)
  ]
  jobs[4]["audio"], jobs[9]["emotion"], jobs[13] = "none.wav", "hapy", '{"image": "me.png", "audio": '
  wrong = {5: "none.wav does not exist", 10: "Did you mean 'happy'?", 14: "this is not JSON"}
  good = [job for n, job in enumerate(jobs) if n + 1 not in wrong]
  stamps = {}
  for _ in range(2):
    process = start(jobs)
    enough = len(done(tmp_path)) + rng.randint(1, 6)
    wait_for(process, lambda enough=enough: len(done(tmp_path)) >= enough)
    time.sleep(rng.uniform(0, 0.6))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    for path in tmp_path.glob("[!.]*.mp4"):
      assert stamps.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
  assert 2 <= len(stamps) < len(good)

  process = start(jobs)
  out, err = process.communicate(timeout=240)
  assert process.returncode == 1
  made = len(good) - len(stamps)
  assert out == f"{made} done, {len(stamps)} already done, 3 failed\n"
  for line, said in wrong.items():
    assert re.search(f"^line {line}: .*{re.escape(said)}", err, re.MULTILINE)
  assert collections.Counter(done(tmp_path)) == {job["out"]: 1 for job in good}
  assert {record["job"] for record in records(tmp_path) if record["status"] == "failed"} == set(wrong)
  for job in good:
    video = probe(tmp_path / job["out"])
    assert (video.frames, video.width, video.height) == (FRAMES[job["audio"]], 64, 64)
    assert len(read_video(tmp_path / job["out"])) == FRAMES[job["audio"]]
  assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
  inputs = {"me.png", "jobs.jsonl", "jobs.results.jsonl", *FRAMES}
  assert {path.name for path in tmp_path.iterdir()} == inputs | {job["out"] for job in good}


@pytest.mark.slow
def test_ctrl_c_ends_the_list_and_keeps_what_is_complete(start, tmp_path):
  jobs = [
    {"image": "me.png", "audio": "short.wav", "emotion": "happy", "out": "a.mp4"},
    {"image": "me.png", "audio": "short.wav", "emotion": "happy", "out": "b.mp4", "steps": 100_000},
    {"image": "me.png", "audio": "short.wav", "emotion": "happy", "out": "c.mp4"},
  ]
  process = start(jobs)
  wait_for(process, lambda: done(tmp_path) == ["a.mp4"])
  time.sleep(1)
  process.send_signal(signal.SIGINT)
  _, said = process.communicate(timeout=120)
  assert process.returncode == 130
  assert "stopped before the end" in said
  assert [record["out"] for record in records(tmp_path)] == ["a.mp4"]
  assert {path.name for path in tmp_path.glob("*.mp4")} == {"a.mp4"}
  assert probe(tmp_path / "a.mp4").frames == 4


@pytest.mark.slow
def test_two_hosts_share_a_list_and_one_goes_on(start, tmp_path):
  with socket.create_server(("127.0.0.1", 0)) as server:
    address = f"127.0.0.1:{server.getsockname()[1]}"
  jobs = [
    {"image": "me.png", "audio": "short.wav", "emotion": "happy", "out": f"{n}.mp4", "seed": n % 3} for n in range(6)
  ]
  jobs[2]["audio"] = "none.wav"
  shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
  hosts = [start(jobs, **shared, JAX_PROCESS_ID=str(index)) for index in range(2)]
  said = [process.communicate(timeout=300) for process in hosts]
  # The one that has failed jobs ends with 1, and takes the other not along.
  assert [process.returncode for process in hosts] == [1, 0], said
  assert "2 done, 0 already done, 1 failed" in said[0][0] and "line 3: audio" in said[0][1]
  assert "3 done, 0 already done, 0 failed" in said[1][0]
  found = [json.loads(line) for line in (tmp_path / "jobs.results.1-of-2.jsonl").read_text().splitlines()]
  assert [(record["job"], record["status"]) for record in found] == [(2, "done"), (4, "done"), (6, "done")]
  # Whoever makes a video, it is the same.
  assert np.array_equal(read_video(tmp_path / "0.mp4"), read_video(tmp_path / "3.mp4"))

  jobs[2]["audio"] = "short.wav"
  alone = start(jobs)
  out, _ = alone.communicate(timeout=240)
  assert (alone.returncode, out) == (0, "1 done, 5 already done, 0 failed\n")


def test_one_video_or_a_list(tmp_path, weights, capsys, subtests):
  one = ["--image", "me.png", "--audio", "a.wav", "--emotion", "happy", "--out", "me.mp4"]
  for name, arguments, said in (
    ("both", [*one, "--jobs", "jobs.jsonl"], "--jobs with --image --audio --emotion --out"),
    ("half of one", one[:4], "--emotion --out missing"),
    ("a list and an out", ["--jobs", "jobs.jsonl", *one[6:]], "--jobs with --out"),
    ("neither", [], "--image --audio --emotion --out missing"),
    ("neither, with a preset", ["--config", str(CONFIGS / "draft.py")], "--image --audio --emotion --out missing"),
  ):
    with subtests.test(name):
      with pytest.raises(SystemExit) as ended:
        main(["generate", *arguments])
      assert ended.value.code == 2
      assert said in capsys.readouterr().err
  assert main(["generate", "--jobs", str(tmp_path / "none.jsonl"), "--weights", str(weights)]) == 1
  assert "none.jsonl does not exist" in " ".join(capsys.readouterr().err.split())
