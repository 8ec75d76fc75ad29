"""Targets of every verb that writes: nothing of the user's changes, one sentence, a non-zero exit, and nothing slow."""

import contextlib
import json
import os
import subprocess

import pytest
from conftest import GOLDEN
from release import small_release, small_weights

from dicetalk_jax.cli import main

# Command lines of verbs that make a folder and of those that write a file.
FOLDERS = {
  "convert": "convert {release} {out}",
  "export": "export {weights} {out}",
  "pack": "pack {weights} {out}",
  "widen": "widen {weights} {out}",
  "average": "average {weights} {weights} --out {out}",
  "priors": "priors {set} --weights {weights} --out {out}",
  "data build": "data build clips --root {videos} --out {out}",
  "data encode": "data encode {set} {out} --weights {weights}",
  "evaluate": "evaluate --weights {weights} --measuring {measuring} --out {out}",
  "priors --save": "priors {set} --weights {weights} --out {new} --save {out}",
}
FILES = {
  "generate": "generate --image {image} --audio {audio} --emotion {clip}+{clip} --out {out} --weights {weights}",
  "generate --jobs": "generate --jobs {jobs} --weights {weights}",
  "data inspect": "data inspect {set} --sheet {out}",
}
INPUTS = {
  "convert": ["release"],
  "priors": ["set", "weights"],
  "priors --save": ["set", "weights"],
  "data build": ["videos"],
  "data encode": ["set", "weights"],
  "evaluate": ["weights", "measuring"],
  "generate": ["image", "audio", "clip"],
  "generate --jobs": ["image", "audio", "clip"],
  "data inspect": ["image_in_set"],
}


@pytest.fixture
def user(tmp_path, tmp_path_factory):
  """A user's folder: {name: path} of everything that verbs read."""
  home = tmp_path / "home"
  home.mkdir()
  paths = {"release": small_release(tmp_path_factory), "weights": small_weights(tmp_path_factory)}
  # Links: the large folders are the session's, and are read alone.
  for name, path in paths.items():
    (home / name).symlink_to(path)
    paths[name] = home / name
  for name in ("set", "videos", "measuring"):
    paths[name] = home / name
    paths[name].mkdir()
    for file in ("mine.png", "mine.mp4"):
      (paths[name] / file).write_bytes(b"mine")
  for name, source in (("image", "portrait.png"), ("audio", "speech.wav"), ("clip", "speech.wav")):
    # Names of videos: the suffix is no reason to refuse them.
    paths[name] = home / f"{name}.mp4"
    paths[name].write_bytes((GOLDEN / source).read_bytes())
  paths["image_in_set"] = paths["set"] / "mine.png"
  return paths


def run(verb, user, out, capsys):
  """Exit code and output of a verb that writes to `out`."""
  jobs = user["set"].parent / "jobs.jsonl"
  line = {"image": "image.mp4", "audio": "audio.mp4", "emotion": "clip.mp4", "out": str(out)}
  jobs.write_text(json.dumps(line))
  names = {**user, "out": out, "jobs": jobs, "new": out.parent / "new"}
  code = main([word.format(**names) for word in (FOLDERS | FILES)[verb].split()])
  captured = capsys.readouterr()
  jobs.unlink()
  jobs.with_name("jobs.results.jsonl").unlink(missing_ok=True)
  return code, " ".join((captured.out + captured.err).split())


def state(*folders):
  """Every path with what it is, links not followed."""
  return {
    path: os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    for folder in folders
    for path in folder.rglob("*")
  }


def refuses(verb, user, out, capsys, said):
  home = user["set"].parent
  before = state(home)
  code, output = run(verb, user, out, capsys)
  assert code == 1, output
  assert said in output and "Traceback" not in output and len(output) < 700, output
  assert state(home) == before


@pytest.mark.parametrize("verb", INPUTS)
def test_a_target_that_is_an_input_is_refused(verb, user, capsys, tmp_path):
  """By its own name, through a symbolic link and, for a file, by a hard link."""
  for name in INPUTS[verb]:
    out = user[name]
    said = "not an empty folder" if verb in ("convert", "priors") else "itself" if out.is_dir() or verb in FILES else ""
    if verb == "data inspect":
      said = "is inside the data set"
    refuses(verb, user, out, capsys, said)
    link = tmp_path / f"link to {name}.mp4"
    link.symlink_to(out)
    if verb != "data inspect":
      refuses(verb, user, link, capsys, said)
      assert link.is_symlink()
    if out.is_file() and verb != "data inspect":
      hard = tmp_path / f"other {name}.mp4"
      hard.hardlink_to(out)
      refuses(verb, user, hard, capsys, said)


@pytest.mark.parametrize("verb", ["data build", "data encode", "evaluate", "priors --save"])
def test_a_target_inside_an_input_folder_is_refused(verb, user, capsys):
  for name in INPUTS[verb]:
    refuses(verb, user, user[name] / "new", capsys, "is inside the")


@pytest.mark.parametrize("verb", [*FOLDERS, *FILES])
def test_a_thing_of_the_wrong_kind_and_an_impossible_name_are_refused(verb, user, capsys, tmp_path):
  ending = {"data inspect": ".png"}.get(verb, ".mp4")
  file, folder, long = tmp_path / f"file{ending}", tmp_path / f"folder{ending}", tmp_path / f"{'x' * 252}{ending}"
  file.write_bytes(b"mine")
  folder.mkdir()
  (folder / "mine").write_bytes(b"mine")
  refuses(verb, user, file if verb in FOLDERS else folder, capsys, "")
  refuses(verb, user, file / f"new{ending}", capsys, "")
  refuses(verb, user, long, capsys, "File name too long")
  assert file.read_bytes() == (folder / "mine").read_bytes() == b"mine" and not long.parent.joinpath("new").exists()


@contextlib.contextmanager
def disk(path, options):
  """A small file system, where one can be mounted."""
  path.mkdir()
  if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", path], capture_output=True).returncode:
    pytest.skip("no file system can be mounted here")
  try:
    (path / "mine").write_bytes(bytes(1 << 15))
    if options == "ro":
      subprocess.run(["mount", "-o", "remount,ro", path], check=True)
    else:
      with contextlib.suppress(OSError), (path / "filling").open("wb", buffering=0) as file:
        while file.write(bytes(1 << 12)):
          pass
    yield path
  finally:
    subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("verb", [*FOLDERS, *FILES])
@pytest.mark.parametrize("options", ["ro", "full"])
def test_a_disk_that_takes_nothing_is_said(verb, options, user, capsys, tmp_path):
  ending = {"data inspect": ".png"}.get(verb, ".mp4")
  with disk(tmp_path / "disk", options) as folder:
    said = {"ro": "Read-only file system", "full": ""}[options]
    refuses(verb, user, folder / f"new{ending}", capsys, said)
    assert (folder / "mine").read_bytes() == bytes(1 << 15)
    assert not (folder / f"new{ending}").is_file()


def test_a_folder_is_made_at_the_longest_name_and_in_missing_folders(user, capsys, tmp_path):
  for out in (tmp_path / ("x" * 255), tmp_path / "a" / "b"):
    assert run("pack", user, out, capsys)[0] == 0
    assert (out / "config.json").is_file()
