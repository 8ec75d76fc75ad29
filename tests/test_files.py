"""Writing that leaves the target whole or untouched."""

import multiprocessing
import os
import signal
import threading

import pytest

from dicetalk_jax.errors import InputError, OutputError
from dicetalk_jax.files import (
  check_file,
  check_folder,
  check_new,
  expanded,
  fitting_name,
  interrupts,
  lock,
  new_file,
  new_folder,
  protect_inputs,
  remove_partial,
)

LONGEST = "嗨" * 82 + "12345.mp4"  # 255 bytes


def test_a_file_appears_whole_or_not_at_all(tmp_path):
  path = tmp_path / LONGEST
  check_file(path, "video")
  assert list(tmp_path.iterdir()) == []
  with new_file(path) as temporary:
    temporary.write_text("new")
    assert not path.exists()
  with pytest.raises(ZeroDivisionError), new_file(path) as temporary:
    temporary.write_text("newer")
    raise ZeroDivisionError
  assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_link_is_written_through(tmp_path):
  for name in ("there", "missing"):
    (tmp_path / "links").mkdir(exist_ok=True)
    link, target = tmp_path / "links" / name, tmp_path / name
    link.symlink_to(target)
    if name == "there":
      target.write_text("old")
    check_file(link, "video")
    with new_file(link) as temporary:
      temporary.write_text("new")
    assert link.is_symlink() and target.read_text() == "new"


def test_threads_that_write_one_file_do_not_mix(tmp_path):
  def write(letter):
    with new_file(tmp_path / "a") as temporary:
      temporary.write_text(letter * 100_000)

  threads = [threading.Thread(target=write, args=letter) for letter in "abcd"]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(set((tmp_path / "a").read_text())) == 1 and len(list(tmp_path.iterdir())) == 1


def test_leftovers_of_one_file_are_removed(tmp_path):
  with pytest.raises(OSError), new_file(tmp_path / "a") as temporary:
    temporary.write_text("left")
    os.link(temporary, tmp_path / "copy")
    raise OSError
  (tmp_path / "copy").rename(temporary)
  with new_file(tmp_path / "b") as other:
    other.write_text("being written")
    remove_partial(tmp_path / "a")
  assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("name", ["~home.png", "~", "a~/b", "~x"])
def test_only_a_leading_tilde_and_slash_is_a_home(name, monkeypatch):
  monkeypatch.setenv("HOME", "/somewhere")
  assert str(expanded(name)) == ("/somewhere" if name == "~" else name)
  assert str(expanded("~/a")) == "/somewhere/a"
  with pytest.raises(InputError, match="a user who does not exist"):
    expanded("~nosuchuser/a")
  with pytest.raises(OutputError, match="folder: the path is empty"):
    expanded("", "folder", OutputError)


def test_inputs_are_known_by_any_name(tmp_path):
  recording, folder = tmp_path / "talk.mp4", tmp_path / "weights"
  recording.write_text("mine")
  folder.mkdir()
  (folder / "config.json").write_text("{}")
  (tmp_path / "soft").symlink_to(recording)
  (tmp_path / "hard").hardlink_to(recording)
  (tmp_path / "linked").symlink_to(folder)
  inputs = {"audio": recording, "weights folder": folder, "preset": None, "missing": tmp_path / "none"}
  for target in ("talk.mp4", "soft", "hard", "weights/../talk.mp4"):
    with pytest.raises(InputError, match="is the audio itself"):
      protect_inputs(tmp_path / target, inputs)
  for target in ("weights/config.json", "linked/config.json"):
    with pytest.raises(InputError, match="is inside the weights folder"):
      protect_inputs(tmp_path / target, inputs)
  protect_inputs(tmp_path / "weights" / "new.mp4", inputs)
  with pytest.raises(InputError, match="is inside the weights folder"):
    protect_inputs(tmp_path / "linked" / "deep" / "new", inputs, inside=True)
  protect_inputs(tmp_path / ("x" * 300), inputs)


def test_a_folder_takes_a_link_and_the_longest_name(tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "empty")
  for target in (tmp_path / "link", tmp_path / ("x" * 255), tmp_path / "a" / "b"):
    with new_folder(target) as folder:
      (folder / "file").write_text("new")
    assert (target / "file").read_text() == "new"
  assert (tmp_path / "link").is_symlink()
  with pytest.raises(OutputError, match="File name too long"):
    check_new(tmp_path / ("x" * 256))
  with pytest.raises(OutputError, match="free there"), new_folder(tmp_path / "large", needed=1 << 60):
    pass


def test_a_folder_filled_in_steps_has_its_mark(tmp_path):
  check_folder(tmp_path / "new", "evaluation", "settings.json")
  assert list(tmp_path.iterdir()) == []
  (tmp_path / "report.md").write_text("mine")
  with pytest.raises(InputError, match=r"holds other files \(report.md\) and no evaluation"):
    check_folder(tmp_path, "evaluation", "settings.json")
  (tmp_path / "settings.json").write_text("{}")
  check_folder(tmp_path, "evaluation", "settings.json")


def test_a_name_is_cut_between_characters(tmp_path):
  name = fitting_name(tmp_path, "嗨" * 90, "-frames.npz")
  assert name.endswith("嗨-frames.npz") and 253 <= len(name.encode()) <= 255
  assert fitting_name(tmp_path, "a", ".npz") == "a.npz"


def _hold(path, ready):
  with lock(path, busy="held"):
    ready.set()
    signal.pause()


def test_a_lock_is_one_processs_and_ends_with_it(tmp_path):
  context = multiprocessing.get_context("spawn")
  ready = context.Event()
  other = context.Process(target=_hold, args=(tmp_path, ready))
  other.start()
  assert ready.wait(60)
  with pytest.raises(InputError, match="held"), lock(tmp_path, busy="held"):
    pass
  other.kill()
  other.join()
  with lock(tmp_path, busy="held"), lock(tmp_path / "file", busy=None):
    assert (tmp_path / "file").exists()


def test_the_second_ctrl_c_raises():
  with pytest.raises(KeyboardInterrupt), interrupts() as interrupted:
    signal.raise_signal(signal.SIGINT)
    assert interrupted.is_set()
    signal.raise_signal(signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
