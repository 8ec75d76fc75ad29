"""A build that is interrupted, crowded out or given bad files loses nothing and repeats nothing."""

import csv
import dataclasses
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from makers import make, one_clip

from dicetalk_jax.cli import main
from dicetalk_jax.data.build import runner as building
from dicetalk_jax.data.build.layout import Listing
from dicetalk_jax.data.build.mead import MeadLayout
from dicetalk_jax.data.build.prepare import PrepareConfig
from dicetalk_jax.data.build.runner import REPORT, Job, build
from dicetalk_jax.data.build.synthetic import SyntheticLayout
from dicetalk_jax.data.records import clip_of, decode_frames
from dicetalk_jax.data.sets import Records, open_set
from dicetalk_jax.data.settings import as_json, difference
from dicetalk_jax.errors import InputError, OutputError

TESTS = Path(__file__).parents[2]


def jobs(kinds, split="train"):
  return [Job(f"{split}{i:03d}", split, (f"{split}{i:03d}", kind)) for i, kind in enumerate(kinds)]


def names(folder, split="train"):
  source = Records(folder, split)
  return [clip_of(source[i]).clip for i in range(len(source))]


@pytest.fixture
def small_shards(monkeypatch):
  monkeypatch.setattr(building, "LEAST_JOBS_PER_SHARD", 4)


def test_build_makes_a_tfds_set_that_reads_back_equal(tmp_path, small_shards):
  calls = []
  work = jobs(["one", "two", "reject", "one", "reject", "one"]) + jobs(["one"], "test")
  report = build(tmp_path / "set", "clips", work, make, {}, workers=2, progress=lambda *call: calls.append(call))
  assert report.clips == {"train": 5, "test": 1}
  assert "left out: 2" in str(report)
  with (tmp_path / "set" / REPORT).open() as file:
    assert list(csv.DictReader(file)) == [{"clip": f"train00{i}", "reason": "it shows no face"} for i in (2, 4)]
  assert calls[0] == ("making clips", 0, 7)
  assert calls[-1] == ("making clips", 7, 7)
  # By tfds' own means, as a user may.
  builder = tfds.builder_from_directory(str(tmp_path / "set"))
  assert {split: info.num_examples for split, info in builder.info.splits.items()} == {"train": 5, "test": 1}
  assert names(tmp_path / "set") == ["train000/0", "train001/0", "train001/1", "train003/0", "train005/0"]
  clip = clip_of(Records(tmp_path / "set", "test")[0])
  made = one_clip("test000/0")
  assert clip.split == "test"
  np.testing.assert_array_equal(clip.audio, made.audio)
  np.testing.assert_array_equal(decode_frames(clip.frames), decode_frames(made.frames))
  assert {p.name for p in (tmp_path / "set").iterdir()} >= {"dataset_info.json", "features.json", REPORT}
  assert not (tmp_path / "set" / "parts").exists()
  assert "tensorflow" not in sys.modules


def test_a_second_run_makes_nothing_again(tmp_path):
  work = jobs(["one", "reject", "two"])
  first = build(tmp_path, "clips", work, make, {}, workers=1)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.array_record*")}
  # Were any job run again it would fail.
  again = build(tmp_path, "clips", work, _fail, {}, workers=1)
  assert again == first
  assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.array_record*")} == before


def _fail(work):
  raise AssertionError(work)


def test_killed_at_any_moment_it_goes_on_without_loss_or_repetition(tmp_path):
  script = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from dicetalk_jax.data.build import runner as building
from makers import make
building.LEAST_JOBS_PER_SHARD = 4
jobs = [building.Job(f"train{{i:03d}}", "train", (f"train{{i:03d}}", "slow")) for i in range(16)]
if __name__ == "__main__":
  print(building.build(Path({str(tmp_path / "set")!r}), "clips", jobs, make, {{}}, workers=2))
"""
  path = tmp_path / "build.py"
  path.write_text(script)
  kept = []
  for _ in range(3):
    process = subprocess.Popen([sys.executable, path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    done = _done(tmp_path / "set")
    deadline = time.monotonic() + 60
    while _done(tmp_path / "set") < done + 3 and time.monotonic() < deadline and process.poll() is None:
      time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept.append(_done(tmp_path / "set"))
  assert kept == sorted(kept)
  assert kept[0] >= 3
  assert kept[-1] < 16, "it was over before it was killed for the last time: nothing was shown"
  with pytest.raises(InputError, match="is not finished"):
    open_set(tmp_path / "set")
  subprocess.run([sys.executable, path], check=True, stdout=subprocess.DEVNULL)
  assert names(tmp_path / "set") == [f"train{i:03d}/0" for i in range(16)]


def _done(folder):
  parts = len(list(folder.glob("parts/*/*.zip")))
  return parts + 4 * len(list(folder.glob("shards/*.json")))


def test_workers_of_a_killed_build_end_too(tmp_path):
  script = f"""
import os, sys
sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from dicetalk_jax.data.build import runner as building
from makers import make
if __name__ == "__main__":
  jobs = [building.Job(str(i), "train", (str(i), "slow")) for i in range(200)]
  building.build(Path({str(tmp_path / "set")!r}), "clips", jobs, make, {{}}, workers=2)
"""
  path = tmp_path / "build.py"
  path.write_text(script)
  process = subprocess.Popen([sys.executable, path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  _wait(lambda: _done(tmp_path / "set") >= 1)
  children = _children(process.pid)
  assert len(children) >= 2
  process.kill()
  process.wait()
  _wait(lambda: not any(_alive(child) for child in children))


def _children(pid):
  return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid):
  try:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except OSError:
    return False


def _wait(condition, seconds=60):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, "it did not come about in time"
    time.sleep(0.05)


def test_a_file_that_kills_its_reader_is_left_out_alone(tmp_path):
  work = jobs(["one", "die", "one", "two", "one", "die", "one"])
  report = build(tmp_path, "clips", work, make, {}, workers=2)
  assert report.clips == {"train": 6}
  assert [rejected.clip for rejected in report.rejected] == ["train001", "train005"]
  assert "died" in report.rejected[0].reason


def test_a_full_disk_keeps_what_is_finished(tmp_path, small_shards):
  work = jobs(["one"] * 8 + ["full"] + ["one"] * 3)
  with pytest.raises(OutputError, match="disk is full"):
    build(tmp_path, "clips", work, make, {}, workers=1)
  whole = {p: p.read_bytes() for p in tmp_path.glob("*.array_record*")}
  assert len(whole) == 2
  mended = [Job(job.name, job.split, (job.name, "one")) for job in work]
  assert build(tmp_path, "clips", mended, make, {}, workers=1).clips == {"train": 12}
  assert {p: p.read_bytes() for p in whole} == whole


def test_a_file_that_was_left_out_is_tried_again_when_it_has_been_mended(tmp_path, small_shards):
  kinds = ["one", "one", "reject", "one", "one", "reject"]
  first = [Job(job.name, job.split, job.work, "as it was") for job in jobs(kinds)]
  assert build(tmp_path, "clips", first, make, {}, workers=1).clips == {"train": 4}
  before = {p.name: p.read_bytes() for p in tmp_path.glob("*.array_record*")}
  mended = [*first[:2], Job("train002", "train", ("train002", "one"), "mended"), *first[3:]]
  report = build(tmp_path, "clips", mended, make, {}, workers=1)
  assert report.clips == {"train": 5}
  assert [rejected.clip for rejected in report.rejected] == ["train005"]
  assert names(tmp_path) == [f"train00{i}/0" for i in range(5)]
  after = {p.name: p.read_bytes() for p in tmp_path.glob("*.array_record*")}
  assert [after[name] == before[name] for name in sorted(before)] == [False, True]


def test_a_split_that_comes_out_empty_is_told(tmp_path):
  report = build(tmp_path, "clips", jobs(["one"]) + jobs(["reject"], "test"), make, {}, workers=1)
  assert "WARNING: nothing of the test split" in str(report)


@pytest.mark.parametrize("workers", [0, -3])
def test_workers_that_cannot_be(tmp_path, workers):
  with pytest.raises(InputError, match=f"{workers} workers"):
    build(tmp_path / "set", "clips", jobs(["one"]), make, {}, workers=workers)
  assert not (tmp_path / "set").exists()


def test_a_file_in_the_place_of_the_folder(tmp_path):
  (tmp_path / "set").write_text("")
  with pytest.raises(InputError, match="is a file; give the name of a folder"):
    build(tmp_path / "set", "clips", jobs(["one"]), make, {})


def test_ctrl_c_ends_it_in_one_line_at_any_moment(tmp_path):
  command = [sys.executable, "-m", "dicetalk_jax.cli", "data", "build", "synthetic", "--size", "64"]
  moments = {
    "starting workers": lambda folder: (folder / "build.json").exists(),
    "working": lambda folder: _done(folder) >= 2,
  }
  for moment, come in moments.items():
    folder = tmp_path / moment
    process = subprocess.Popen(
      [*command, "--out", folder, "--people", "2"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    _wait(lambda: come(folder))  # noqa: B023 (used at once)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, moment
    assert "stopped; files that were complete" in said, moment
    assert not re.search("Traceback|Warning|ignored", said), (moment, said)


def test_a_ctrl_c_that_python_loses_is_heeded_all_the_same(tmp_path, capsys, monkeypatch):
  class Tidied:
    def __del__(self):
      signal.raise_signal(signal.SIGINT)

  def listing(self, root):
    Tidied()  # an exception that is raised in there is printed, and lost
    return Listing(jobs(["one"]))

  monkeypatch.setattr(SyntheticLayout, "listing", listing)
  monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
  assert main(["data", "build", "synthetic", "--out", str(tmp_path / "set")]) == 130
  assert "stopped; files that were complete" in capsys.readouterr().err


def test_a_ctrl_c_in_code_that_was_made_at_run_time_ends_with_the_same_code():
  """As dataclasses are made; Python then would end by the signal."""
  script = "from dicetalk_jax import cli; cli.main = lambda: exec('raise KeyboardInterrupt'); cli.entry()"
  ended = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, timeout=60)
  assert (ended.returncode, ended.stderr) == (130, "stopped\n")


def test_a_disk_that_really_is_full(tmp_path):
  """A file system of 3 MB, where mounting one is allowed."""
  disk = tmp_path / "disk"
  disk.mkdir()
  if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", disk], capture_output=True).returncode:
    pytest.skip("no file system can be mounted here")
  try:
    work = jobs(["one"] * 40)
    with pytest.raises(OutputError, match=r"free there.*make space"):
      build(disk / "set", "clips", work, make, {}, workers=1)
    kept = _done(disk / "set")
    assert 0 < kept < 40
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    assert build(disk / "set", "clips", work, make, {}, workers=1).clips == {"train": 40}
  finally:
    subprocess.run(["umount", disk], check=True)


def test_two_builds_at_once_the_second_is_refused(tmp_path):
  with (tmp_path / ".lock").open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another process is writing"):
      build(tmp_path, "clips", jobs(["one"]), make, {}, workers=1)


@pytest.mark.parametrize(
  ("name", "kinds", "settings", "said"),
  [
    ("mead", ["one"], {"size": 64}, "started with the set clips, and this is mead"),
    ("clips", ["one"], {"size": 128}, "started with size 64, and this has 128"),
    ("clips", ["one", "one"], {"size": 64}, "started with 1 files, and there are 2 now"),
  ],
)
def test_a_folder_keeps_to_what_it_was_begun_with(tmp_path, name, kinds, settings, said):
  build(tmp_path, "clips", jobs(["one"]), make, {"size": 64}, workers=1)
  with pytest.raises(InputError, match=said):
    build(tmp_path, name, jobs(kinds), make, settings, workers=1)


def test_a_folder_begun_before_a_setting_existed_goes_on_with_its_default(tmp_path):
  layout, options = SyntheticLayout(people=2), dict(defaults=as_json(SyntheticLayout()), workers=1)
  build(tmp_path, "clips", jobs(["one"]), make, as_json(layout), **options)
  plan = json.loads((tmp_path / "build.json").read_text())
  assert plan["settings"].pop("min_level") == 1
  (tmp_path / "build.json").write_text(json.dumps(plan))
  assert build(tmp_path, "clips", jobs(["one"]), make, as_json(layout), **options).clips == {"train": 1}
  with pytest.raises(InputError, match="started with min_level 1, and this has 3"):
    build(tmp_path, "clips", jobs(["one"]), make, as_json(dataclasses.replace(layout, min_level=3)), **options)


def test_a_nested_setting_may_be_missing_too():
  defaults, now = as_json(MeadLayout()), as_json(MeadLayout(prepare=PrepareConfig(size=256)))
  begun = json.loads(json.dumps(now))
  del begun["prepare"]["shortest"]
  assert difference(begun, now, defaults) is None
  begun["prepare"]["crf"] = 12.0  # a setting of an older version
  assert difference(begun, now, defaults) is None
  del begun["prepare"]
  assert difference(begun, now, defaults) == "size 512, and this has 256"
  assert difference(begun, defaults, defaults) is None


def test_labels_that_were_changed_are_not_passed_over(tmp_path):
  happy, sad = (dataclasses.replace(jobs(["one"])[0], labels=label) for label in ("happy", "sad"))
  build(tmp_path, "clips", [happy], make, {}, workers=1)
  with pytest.raises(InputError, match="other names, splits or labels"):
    build(tmp_path, "clips", [sad], make, {}, workers=1)


def test_a_folder_with_other_things_is_not_written_into(tmp_path):
  (tmp_path / "thesis.txt").write_text("years of work")
  with pytest.raises(InputError, match=r"other files \(thesis.txt"):
    build(tmp_path, "clips", jobs(["one"]), make, {}, workers=1)


def test_nothing_usable_says_why(tmp_path):
  with pytest.raises(InputError, match=r"none of 2 files made a clip.*it shows no face"):
    build(tmp_path, "clips", jobs(["reject", "reject"]), make, {}, workers=1)
  assert len((tmp_path / REPORT).read_text().splitlines()) == 3


def test_our_own_mistake_is_not_hidden(tmp_path):
  with pytest.raises(ZeroDivisionError) as caught:
    build(tmp_path, "clips", jobs(["bug"]), make, {}, workers=1)
  assert "train000" in "".join(caught.value.__notes__)


def test_a_shard_cut_short_is_named_and_made_again(tmp_path):
  work = jobs(["one"] * 3)
  build(tmp_path, "clips", work, make, {}, workers=1)
  (shard,) = tmp_path.glob("*.array_record*")
  whole = shard.read_bytes()
  shard.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(InputError, match=rf"{shard.name} is damaged or cut short"):
    names(tmp_path)
  build(tmp_path, "clips", work, make, {}, workers=1)
  assert shard.read_bytes() == whole
  shard.unlink()
  with pytest.raises(InputError, match=f"lacks its file {shard.name}"):
    open_set(tmp_path)
