"""Many videos from a list: what a line may be, what is done again and what is not, and what ends the work."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import av
import jax
import numpy as np
import pytest
import soundfile
from conftest import GOLDEN, quick_compilation
from PIL import Image
from random_weights import random_weights
from video_files import probe, read_video

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import InputError, WeightsError
from dicetalk_jax.inference.jobs.reader import BadLine, Job, read_jobs
from dicetalk_jax.inference.jobs.results import results_path
from dicetalk_jax.inference.jobs.runner import run_jobs, weights_identity
from dicetalk_jax.inference.pipeline import DiceTalk
from dicetalk_jax.inference.video import Video
from dicetalk_jax.media.audio import read_sound
from dicetalk_jax.weights.folder import Weights

# Four frames of 64×64.
SMALL = GenerationConfig(face_box=(10, 10, 40, 40), size=64, steps=1, window=4, shift=2, interpolate=False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  return random_weights(tmp_path_factory.mktemp("jobs") / "weights")


@pytest.fixture(scope="module")
def talker(weights, tmp_path_factory):
  with quick_compilation(tmp_path_factory.getbasetemp() / "jobs_compiled"):
    yield DiceTalk.load(weights)


@pytest.fixture
def folder(tmp_path):
  """A folder with a portrait and a sound, to make lists in."""
  Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (64, 1, 3))).save(tmp_path / "me.png")
  sound, rate = read_sound(GOLDEN / "speech.wav")
  soundfile.write(tmp_path / "speech.wav", sound[: int(0.32 * rate)], rate)
  return tmp_path


def job(out, emotion="happy", **changes):
  return {"image": "me.png", "audio": "speech.wav", "emotion": emotion, "out": out} | changes


def write(folder, *lines):
  """A list of dicts, and of texts as they are."""
  path = folder / "jobs.jsonl"
  path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
  return path


def records(folder):
  return [
    json.loads(line) for path in sorted(folder.glob("jobs.results*.jsonl")) for line in path.read_text().splitlines()
  ]


def done(folder):
  """The outs of all records of something done."""
  return sorted(record["out"] for record in records(folder) if record["status"] == "done")


def stamps(folder):
  return {path: path.stat().st_mtime_ns for path in folder.rglob("*.m[pk][4v]")}


@pytest.fixture
def pretend(monkeypatch):
  """Lets `DiceTalk.generate` fail or make grey frames at once; gives the faults, by emotion, and what was asked for."""
  faults, asked = {}, []

  def generate(self, image, audio, emotion, progress, **options):
    asked.append((image.name, emotion, options))
    progress("denoising", 1, 1)
    if emotion in faults:
      raise faults[emotion]
    frames = np.full((4, 64, 64, 3), 0.5, np.float32)
    return Video(frames, 12.5, np.zeros((8, 8, 8, 4), np.float32), np.zeros((5120, 1), np.float32), 16000, (80, 80))

  monkeypatch.setattr(DiceTalk, "generate", generate)
  return faults, asked


def test_a_line_overrides_the_defaults_and_paths_start_at_the_list(tmp_path):
  lines = (
    "\ufeff" + json.dumps(job("a.mp4", size=128, face_box=[1, 2, 3, 4.5], crop=True, bank="nearest")),
    "  \r",
    json.dumps(job("sub/b.mkv", image="/abs/me.png", audio_scale=3, keep_resolution=True)) + "\r",
    json.dumps(job("c.mp4", audio_scale=None, face_box=None)),
  )
  first, second, third = read_jobs(write(tmp_path, *lines), GenerationConfig(steps=7, seed=3, audio_scale=2.0))
  assert [first.line, second.line, third.line] == [1, 3, 4]
  assert first.generation == GenerationConfig(
    steps=7, seed=3, audio_scale=2.0, size=128, face_box=(1, 2, 3, 4.5), crop=True, bank="nearest"
  )
  assert (first.image, first.audio, first.out) == tuple(tmp_path / name for name in ("me.png", "speech.wav", "a.mp4"))
  assert not first.keep_resolution
  assert (second.image, second.out) == (pathlib.Path("/abs/me.png"), tmp_path / "sub/b.mkv")
  assert second.generation.audio_scale == 3.0 and second.keep_resolution
  assert third.generation.audio_scale is None


BAD_LINES = {
  "not JSON": ('{"image": "me.png"', "this is not JSON"),
  "no object": ('["me.png"]', 'this is ["me.png"], wanted a JSON object with image, audio, emotion, out'),
  "not text": ("\x00", "this is not JSON"),
  "deep": ("[" * 100_000, "this is not JSON"),
  "NaN": ('{"size": NaN}', "NaN is no number of JSON"),
  "misspelt": (job("a.mp4", stpes=3), '"stpes" is not a key of a job; did you mean steps?'),
  "as on the command line": (job("a.mp4", **{"face-box": 3}), "did you mean face_box?"),
  "unheard of": (job("a.mp4", xyzzy=3), '"xyzzy" is not a key of a job; a job has image, audio'),
  "missing": ({"image": "me.png", "out": "a.mp4"}, "audio and emotion missing"),
  "number for text": (job(3), "out is 3, wanted text"),
  "text for a number": (job("a.mp4", steps="ten"), 'steps is "ten", wanted a whole number'),
  "half a step": (job("a.mp4", steps=2.5), "steps is 2.5, wanted a whole number"),
  "true for a number": (job("a.mp4", size=True), "size is true, wanted a number"),
  "number for a truth": (job("a.mp4", crop=1), "crop is 1, wanted true or false"),
  "endless": ('{"image": "a", "audio": "b", "emotion": "c", "out": "d.mp4", "size": 1e999}', "wanted a number"),
  "huge": (job("a.mp4", size=10**400), "wanted a number"),
  "box of three": (job("a.mp4", face_box=[1, 2, 3]), "face_box is [1, 2, 3], wanted 4 numbers or null"),
  "no such bank": (job("a.mp4", bank="some"), 'bank is "some", wanted "all" or "nearest"'),
  "no name": (job(""), "out: the path is empty"),
  "no possible name": (job("a\0.mp4"), "cannot be the name of a file"),
}


def test_bad_lines_are_told_one_by_one(tmp_path, subtests):
  for name, (line, said) in BAD_LINES.items():
    with subtests.test(name):
      before, bad, after = read_jobs(write(tmp_path, job("before.mp4"), line, job("after.mp4")))
      assert isinstance(bad, BadLine) and bad.line == 2
      assert said in bad.error
      assert len(bad.error) < 400
      assert (before.line, after.line) == (1, 3)


def test_an_input_of_any_line_is_no_out(folder):
  """Under any name, and of a file that a mix of emotions names."""
  (folder / "linked.mp4").hardlink_to(folder / "me.png")
  for name in ("clip.mp4", "jobs.jsonl"):
    (folder / name).write_bytes(b"a clip")
  own, others, lists, good = read_jobs(
    write(
      folder,
      job("speech.wav", "0s clip.mp4:0.5, 2s happy+./clip.mp4"),
      job("clip.mp4"),
      job("jobs.jsonl", image="linked.mp4"),
      job("new.mp4"),
    )
  )
  assert "speech.wav is the audio itself" in own.error and own.out == "speech.wav"
  assert isinstance(others, Job)  # line 1 is no job, so that it reads nothing
  assert "jobs.jsonl is the list of jobs itself" in lists.error and isinstance(good, Job)
  _, of_line_1, of_line_4, _ = read_jobs(
    write(folder, job("a.mp4", "0s clip.mp4:0.5, 2s happy"), job("clip.mp4"), job("me.png"), job("b.mp4"))
  )
  assert "is an input of line 1" in of_line_1.error and "is the image itself" in of_line_4.error


def test_of_two_jobs_with_one_out_the_later_is_bad(tmp_path):
  first, wrong, second, third = read_jobs(
    write(tmp_path, job("a.mp4"), job("b.mp4", crop=3), job("x/../a.mp4", seed=2), job("b.mp4"))
  )
  assert (
    isinstance(second, BadLine) and "out x/../a.mp4 is that of line 1" in second.error and second.out == "x/../a.mp4"
  )
  assert isinstance(wrong, BadLine) and not isinstance(first, BadLine) and not isinstance(third, BadLine)


def test_no_list(tmp_path, talker):
  for name, said in (("none.jsonl", "does not exist"), ("empty.jsonl", "is empty"), ("blank.jsonl", "holds no job")):
    if "none" not in name:
      (tmp_path / name).write_text("" if name == "empty.jsonl" else "\n \n")
    with pytest.raises(InputError, match=said):
      run_jobs(talker, tmp_path / name)
  with pytest.raises(InputError, match="no host 2 of 2"):
    run_jobs(talker, tmp_path / "blank.jsonl", host=(2, 2))
  assert not list(tmp_path.glob("*results*"))


def test_the_digest_is_of_what_decides_the_video(tmp_path):
  def digest(defaults=None, weights="w", **changes):
    return read_jobs(write(tmp_path, job(**{"out": "a.mp4"} | changes)), defaults)[0].digest(weights)

  plain = digest()
  # 512 is the default, and how many windows lie side by side changes speed and memory alone.
  assert (
    plain == digest(size=512) == digest(size=512.0, windows_at_once=3) == digest(GenerationConfig(windows_at_once=2))
  )
  assert digest(size=64) == digest(GenerationConfig(size=64)) == digest(GenerationConfig(size=64.0))
  others = [digest(size=64), digest(seed=1), digest(image="you.png"), digest(keep_resolution=True), digest(weights="x")]
  others += [digest(emotion="sad"), digest(out="b.mp4"), digest(face_box=[1, 2, 3, 4])]
  assert len({plain, *others}) == 1 + len(others)


def test_weights_are_known_wherever_they_lie(weights, tmp_path):
  shutil.copytree(weights.folder, tmp_path / "copy")
  assert weights_identity(Weights.open(tmp_path / "copy")) == weights_identity(weights)
  trained = jax.tree.map(lambda leaf: leaf + 0.001, weights.arrays("unet"))
  assert weights_identity(weights.derive(tmp_path / "derived", {"unet": trained})) != weights_identity(weights)


def test_what_is_made_stays_and_what_failed_or_changed_is_done(folder, talker, tmp_path_factory, monkeypatch):
  monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
  np.savez(folder / "mine.npz", mu=np.linspace(-1, 1, 256, dtype=np.float32))
  jobs = [job("a.mp4"), job("b.mkv", "mine.npz:0.5+sad:0.5", seed=2), job("c.mp4", audio="later.wav"), job("d.mp4")]
  told = []
  outcome = run_jobs(talker, write(folder, *jobs), SMALL, report=told.append)
  assert str(outcome) == "3 done, 0 already done, 1 failed"
  ((line, error),) = outcome.failed
  assert line == 3 and "later.wav does not exist" in error
  assert [(result.job, result.status) for result in told] == [(1, "done"), (2, "done"), (3, "failed"), (4, "done")]
  found = records(folder)
  assert [(record["job"], record["out"], record["status"]) for record in found] == [
    *((1, "a.mp4", "done"), (2, "b.mkv", "done"), (3, "c.mp4", "failed"), (4, "d.mp4", "done")),
  ]
  assert all(record["error"] is None for record in found if record["status"] == "done") and found[2]["error"] == error
  assert all(record["seconds"] > 0 and len(record["digest"]) == 32 for record in found)
  alone = talker.generate(folder / "me.png", folder / "speech.wav", "happy", **vars(SMALL)).save(folder / "alone.mp4")
  assert np.array_equal(read_video(alone), read_video(folder / "a.mp4"))
  assert not np.array_equal(read_video(alone), read_video(folder / "b.mkv"))

  before = stamps(folder)
  assert str(run_jobs(talker, write(folder, *jobs), SMALL)) == "0 done, 3 already done, 1 failed"
  assert stamps(folder) == before

  shutil.copy(folder / "speech.wav", folder / "later.wav")  # mended
  (folder / "a.mp4").unlink()  # lost
  jobs[3] = job("d.mp4", "sad")  # changed
  assert str(run_jobs(talker, write(folder, *jobs), SMALL)) == "3 done, 1 already done, 0 failed"
  assert stamps(folder)[folder / "b.mkv"] == before[folder / "b.mkv"]
  for out in ("a.mp4", "b.mkv", "c.mp4", "d.mp4"):
    assert probe(folder / out).frames == 4
  jobs[3] = job("d.mp4")  # as it was at first: that it is recorded as done was of another video
  assert str(run_jobs(talker, write(folder, *jobs), SMALL)) == "1 done, 3 already done, 0 failed"
  assert str(run_jobs(talker, write(folder, *jobs), SMALL)) == "0 done, 4 already done, 0 failed"


def test_moved_lines_worked_on_videos_and_lost_results_make_nothing_again(folder, talker, pretend):
  faults, asked = pretend
  run_jobs(talker, write(folder, job("a.mp4"), job("b.mp4", seed=1)), SMALL)
  with av.open(str(folder / "a.mp4")) as source, av.open(str(folder / "new.mp4"), "w") as target:
    stream = target.add_stream_from_template(source.streams.video[0])
    for packet in source.demux(video=0):
      if packet.dts is not None:
        packet.stream = stream
        target.mux(packet)
  os.replace(folder / "new.mp4", folder / "a.mp4")
  moved = write(folder, "", job("b.mp4", seed=1), job("a.mp4"))
  assert str(run_jobs(talker, moved, SMALL)) == "0 done, 2 already done, 0 failed"
  os.remove(results_path(moved))
  # b still says whose it is; a, worked on since, does not.
  assert str(run_jobs(talker, moved, SMALL)) == "1 done, 1 already done, 0 failed"
  assert len(asked) == 3 and asked[-1][1] == "happy" and done(folder) == ["a.mp4", "b.mp4"]


def test_each_job_has_its_own_options(folder, talker, pretend):
  faults, asked = pretend
  jobs = write(folder, job("a.mp4", dtype="bfloat16", keep_resolution=True), job("b.mp4", steps=3), job("c.mp4"))
  run_jobs(talker, jobs, SMALL)
  assert [options["dtype"] for _, _, options in asked] == ["bfloat16", None, None]
  assert [options["steps"] for _, _, options in asked] == [1, 3, 1]
  assert [probe(folder / f"{name}.mp4").width for name in "abc"] == [80, 64, 64]


def test_what_is_not_foreseen_fails_one_job(folder, talker, pretend):
  faults, asked = pretend
  faults |= {"sad": RuntimeError("RESOURCE_EXHAUSTED: out of memory"), "fear": ZeroDivisionError("a mistake of ours")}
  jobs = [job("a.mp4", "sad"), job("b.mp4"), job("c.mp4", "fear"), job("/proc/none/d.mp4"), job("e.mp4", "angry")]
  outcome = run_jobs(talker, write(folder, *jobs), SMALL)
  assert str(outcome) == "2 done, 0 already done, 3 failed" and outcome.stopped is None
  said = dict(outcome.failed)
  assert "too little memory" in said[1] and said[3] == "ZeroDivisionError: a mistake of ours" and "/proc" in said[4]
  traces = {record["job"]: record.get("trace") for record in records(folder)}
  assert "in generate" in traces[3] and not any(traces[line] for line in (1, 2, 4, 5))

  # Those that failed come last, so that what kept failing keeps nothing waiting.
  asked.clear()
  faults.clear()
  outcome = run_jobs(talker, write(folder, *jobs, job("f.mp4", "neutral")), SMALL)
  assert [emotion for _, emotion, _ in asked] == ["neutral", "sad", "fear"]
  assert str(outcome) == "3 done, 2 already done, 1 failed"


def test_what_would_fail_every_job_ends_the_work(folder, talker, pretend, monkeypatch, subtests):
  faults, asked = pretend
  jobs = write(folder, job("good.mp4", "happy"), *[job(f"{n}.mp4", "sad") for n in range(9)])

  with subtests.test("damaged weights"):
    faults["sad"] = WeightsError("weights/unet is damaged")
    outcome = run_jobs(talker, jobs, SMALL)
    assert str(outcome) == "1 done, 0 already done, 1 failed, 8 not tried"
    assert outcome.stopped == "every other job would fail as well"
    assert outcome.failed == [(2, "weights/unet is damaged")]

  with subtests.test("no memory for any"):
    faults["sad"] = MemoryError()
    outcome = run_jobs(talker, jobs, SMALL)
    assert str(outcome) == "0 done, 1 already done, 3 failed, 6 not tried"
    assert outcome.stopped == "3 jobs in a row failed alike"

  with subtests.test("missing inputs are each job's own"):
    faults["sad"] = InputError("portrait none.png does not exist")
    outcome = run_jobs(talker, jobs, SMALL)
    assert str(outcome) == "0 done, 1 already done, 9 failed" and outcome.stopped is None

  with subtests.test("full disk"):
    faults.clear()
    before = len(records(folder))

    def full(path, mode="r", **_):
      raise OSError(errno.ENOSPC, "No space left on device") if mode == "w" else FileNotFoundError(path)

    def no_room(file, data):
      raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
      patch.setattr(av, "open", full)
      patch.setattr(os, "write", no_room)
      outcome = run_jobs(talker, jobs, SMALL)
    assert str(outcome) == "0 done, 1 already done, 1 failed, 8 not tried"
    assert "No space left" in outcome.failed[0][1] and outcome.stopped == "every other job would fail as well"
    assert len(records(folder)) == before

  with subtests.test("room again"):
    assert str(run_jobs(talker, jobs, SMALL)) == "9 done, 1 already done, 0 failed"
    assert done(folder) == sorted(["good.mp4", *(f"{n}.mp4" for n in range(9))])


KILLED = """
import os, signal, sys
import numpy as np
from dicetalk_jax.config import GenerationConfig
from dicetalk_jax import files
from dicetalk_jax.inference.jobs import runner as jobs
from dicetalk_jax.inference.pipeline import DiceTalk
from dicetalk_jax.inference.video import Video

def kill(*_):
  os.kill(os.getpid(), signal.SIGKILL)

def half(file, data, write=os.write):
  # The first record of this run is whole, of the second there is a part.
  half.calls = getattr(half, "calls", 0) + 1
  if half.calls == 1:
    return write(file, data)
  write(file, data[: len(data) // 2])
  kill()

where, path, weights = sys.argv[1:]

def generate(self, image, audio, emotion, **_):
  if emotion == where:
    kill()
  return Video(
    np.full((4, 64, 64, 3), 0.5, np.float32), 12.5, None, np.zeros((5120, 1), np.float32), 16000, (80, 80)
  )

DiceTalk.generate = generate
if where == "named":
  jobs._to_disk = kill
elif where == "recorded":
  os.write = half
elif where == "written":
  files.os = type("os", (), dict(vars(os), replace=kill))
jobs.run_jobs(DiceTalk.load(weights), path, GenerationConfig(size=64))
"""


def test_kills_where_they_hurt(folder, talker, weights, pretend):
  """Before a video takes its name, between that and its record, and within the record."""
  path = write(folder, job("a.mp4"), job("b.mp4", "sad"), job("c.mp4"))

  def killed(where):
    ended = subprocess.run([sys.executable, "-c", KILLED, where, path, weights.folder], timeout=120)
    assert ended.returncode == -signal.SIGKILL
    return sorted(found.name for found in folder.glob("[!.]*.mp4"))

  # A hidden file is left, and no video.
  assert killed("written") == [] and len(list(folder.glob(".*.partial"))) == 1
  # The job at which the process died comes last now.
  assert killed("named") == ["b.mp4"] and done(folder) == []
  before = stamps(folder)
  assert killed("recorded") == ["b.mp4", "c.mp4"] and results_path(path).read_bytes()[-1:] != b"\n"
  before = stamps(folder) | before
  # Another host reads the part of a record that it may not mend.
  outcome = run_jobs(talker, path, GenerationConfig(size=64), host=(1, 3))
  assert str(outcome) == "0 done, 1 already done, 0 failed"
  outcome = run_jobs(talker, path, GenerationConfig(size=64))
  assert str(outcome) == "1 done, 2 already done, 0 failed"
  assert done(folder) == ["a.mp4", "b.mp4", "c.mp4"] and len(records(folder)) == 3
  assert {file.name for file in stamps(folder)} == {"a.mp4", "b.mp4", "c.mp4"}
  assert all(stamps(folder)[folder / name] == before[folder / name] for name in ("b.mp4", "c.mp4"))
  assert {found.name for found in folder.glob(".*")} == set()


def test_jobs_that_kill_the_process_keep_no_other_waiting(folder, talker, weights, pretend):
  path = write(folder, *[job(f"{emotion}.mp4", emotion) for emotion in ("sad", "fear", "happy", "angry")])

  def killed_by(emotion):
    ended = subprocess.run([sys.executable, "-c", KILLED, emotion, path, weights.folder], timeout=120)
    assert ended.returncode == -signal.SIGKILL

  killed_by("sad")
  killed_by("fear")
  assert done(folder) == []
  killed_by("sad")
  assert done(folder) == ["angry.mp4", "happy.mp4"]
  assert str(run_jobs(talker, path, GenerationConfig(size=64))) == "2 done, 2 already done, 0 failed"
  assert {found.name for found in folder.glob(".*")} == set()


def test_hosts_share_a_list_and_another_number_of_them_goes_on(folder, talker, pretend):
  faults, asked = pretend
  path = write(folder, job("0.mp4"), "nonsense", job("2.mp4"), job("3.mp4"), "", job("4.mp4"), job("5.mp4"))
  assert str(run_jobs(talker, path, SMALL, host=(0, 2))) == "3 done, 0 already done, 0 failed"  # places 0, 2, 4
  assert done(folder) == ["0.mp4", "2.mp4", "4.mp4"]
  assert [record["job"] for record in records(folder)] == [1, 3, 6]
  assert str(run_jobs(talker, path, SMALL, host=(1, 3))) == "0 done, 1 already done, 1 failed"  # places 1 and 4
  assert str(run_jobs(talker, path, SMALL)) == "2 done, 3 already done, 1 failed"
  assert len(asked) == 5 and done(folder) == [f"{n}.mp4" for n in (0, 2, 3, 4, 5)]
  names = {found.name for found in folder.glob("jobs.results*")}
  assert names == {"jobs.results.0-of-2.jsonl", "jobs.results.1-of-3.jsonl", "jobs.results.jsonl"}


HOLDS = """
import sys, time
from pathlib import Path
from dicetalk_jax.inference.jobs.results import records_of
with records_of(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])):
  print("begun", flush=True)
  time.sleep(60)
"""


def test_one_process_a_place(folder, talker, pretend):
  path = write(folder, job("a.mp4"), job("b.mp4"))
  command = [sys.executable, "-c", HOLDS, path, "1", "2"]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
    try:
      assert other.stdout.readline() == "begun\n"
      for host in ((1, 2), (0, 1), (0, 3)):
        with pytest.raises(InputError, match=r"another process works on .* and writes .*1-of-2\.jsonl"):
          run_jobs(talker, path, SMALL, host=host)
      assert run_jobs(talker, path, SMALL, host=(0, 2)).done == 1
    finally:
      other.kill()
  assert str(run_jobs(talker, path, SMALL)) == "1 done, 1 already done, 0 failed"
