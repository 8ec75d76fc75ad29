"""The TensorBoard log: what a reader finds in it, and that a full disk costs lines of it alone."""

import pathlib
import runpy
import shutil
import struct

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from dicetalk_jax.training.events import EventLog


def events(folder):
  """All whole events of all files, as a reader takes them: up to the first of a file that is not whole."""
  found = []
  for path in sorted(folder.iterdir()):
    data, place = path.read_bytes(), 0
    while place + 12 <= len(data):
      (size,) = struct.unpack("Q", data[place : place + 8])
      body = data[place + 12 : place + 12 + size]
      checksum = data[place + 12 + size : place + 16 + size]
      if len(checksum) < 4 or struct.unpack("I", checksum)[0] != masked_crc32c(body):
        break
      found.append(Event.FromString(body))
      place += 16 + size
  return found


def test_scalars_and_pictures_are_there_at_once(tmp_path):
  said = []
  with EventLog(tmp_path / "log", 5, said.append) as log:
    log.scalars(5, {"train/loss": 0.25, "train/grad_norm": np.float32(2)})
    log.summaries(6, summary.image("sample", np.zeros((3, 4, 4), np.uint8)))
    found = events(tmp_path / "log")
  assert found[0].file_version == "brain.Event:2"
  assert found[1].step == 5 and found[1].HasField("session_log")
  assert [(e.step, v.tag) for e in found[2:] for v in e.summary.value] == [
    (5, "train/loss"),
    (5, "train/grad_norm"),
    (6, "sample"),
  ]
  assert found[2].summary.value[0].simple_value == 0.25 and not said


def test_a_run_without_scalars_leaves_no_log(tmp_path):
  with EventLog(tmp_path / "log", 1, print):
    pass
  assert not (tmp_path / "log").exists()


def test_a_full_disk_costs_lines_alone(small_disk):
  said, other = [], small_disk / "other"
  with EventLog(small_disk / "log", 1, said.append) as log:
    log.scalars(1, {"loss": 1.0})
    other.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    for step in range(2, 200):
      log.scalars(step, {f"loss/{i}": 1.0 for i in range(10)})
    assert len(said) == 1 and "No space left on device" in said[0]
    other.unlink()
    log.scalars(300, {"loss": 2.0})
  found = [(e.step, e.summary.value[0].simple_value) for e in events(small_disk / "log") if e.summary.value]
  assert found[0] == (1, 1.0) and found[-1] == (300, 2.0)


def test_curves_are_read_back_as_the_last_start_has_them(tmp_path):
  read_scalars = runpy.run_path(pathlib.Path(__file__).parents[2] / "docs" / "draw_curves.py")["read_scalars"]
  for first, offset in ((1, 0.0), (4, 10.0)):
    with EventLog(tmp_path / "log", first, print) as log:
      for step in range(first, first + 5):
        log.scalars(step, {"train/loss": step + offset})
  assert read_scalars(tmp_path / "log") == {
    "train/loss": [(1, 1.0), (2, 2.0), (3, 3.0), *((step, step + 10.0) for step in range(4, 9))]
  }
  # Killed while it wrote.
  last = max((tmp_path / "log").iterdir(), key=lambda path: path.stat().st_mtime_ns)
  last.write_bytes(last.read_bytes()[:-3])
  assert read_scalars(tmp_path / "log")["train/loss"][-1] == (7, 17.0)
  assert read_scalars(tmp_path / "nothing") == {}
