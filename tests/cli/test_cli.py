"""The command line as a user meets it: every bad input is one sentence and a non-zero exit, and writes nothing."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import GOLDEN
from PIL import Image
from release import load_tensors, small_release, small_weights
from talkers import minute_talker
from video_files import probe

import dicetalk_jax
from dicetalk_jax.cli import main, verbs
from dicetalk_jax.cli.terminal import interruptible_bars
from dicetalk_jax.inference.pipeline import DiceTalk

BOX = ["--face-box", "100", "30", "100", "135"]
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  return minute_talker(tmp_path_factory).weights.folder


@pytest.fixture
def generate(weights, tmp_path, capsys):
  """Runs `dicetalk generate` with good inputs but for what is given -> (exit code, what it said)."""

  def run(*options, **changes):
    inputs = {"image": GOLDEN / "portrait.png", "audio": GOLDEN / "speech.wav", "emotion": "happy"}
    inputs |= {"out": tmp_path / "out" / "video.mp4", "weights": weights} | changes
    arguments = [word for name, value in inputs.items() for word in (f"--{name}", str(value))]
    code = main(["generate", *arguments, "--size", "64", "--steps", "1", "--window", "6", *options])
    captured = capsys.readouterr()
    return code, " ".join((captured.out + captured.err).split())

  return run


def write(path, content):
  path.write_bytes(content)
  return path


def bad_inputs(tmp_path):
  """name -> (what is given, what the message must say)."""
  text = write(tmp_path / "text.png", b"this is not an image")
  empty = write(tmp_path / "empty.wav", b"")
  soundfile.write(tmp_path / "short.wav", np.zeros(1600), 16000)
  with_nan = np.zeros(16000, np.float32)
  with_nan[800] = np.nan
  soundfile.write(tmp_path / "nan.wav", with_nan, 16000, subtype="FLOAT")
  Image.new("RGB", (200, 200), "gray").save(tmp_path / "wall.png")
  Image.new("RGB", (20, 200), "gray").save(tmp_path / "strip.png")
  hostile = write(tmp_path / "hostile.npy", _hostile_prior())
  return {
    "missing portrait": ({"image": tmp_path / "none.png"}, "none.png does not exist"),
    "text as portrait": ({"image": text}, "text.png"),
    "empty portrait": ({"image": write(tmp_path / "empty.png", b"")}, "empty"),
    "missing audio": ({"audio": tmp_path / "none.wav"}, "none.wav does not exist"),
    "empty audio": ({"audio": empty}, "empty"),
    "no sound in it": ({"audio": GOLDEN / "portrait.png"}, "sound"),
    "short audio": ({"audio": tmp_path / "short.wav"}, "short.wav lasts 0.1 s; a video needs at least two frames"),
    "a strip": ({"image": tmp_path / "strip.png", "options": ["--face-box", "0", "0", "20", "20"]}, "20x200"),
    "audio with NaN": ({"audio": tmp_path / "nan.wav"}, "NaN"),
    "unknown emotion": ({"emotion": "hapy"}, "Did you mean 'happy'?"),
    "malformed mix": ({"emotion": "happy:0.6+"}, "happy:0.6+"),
    "times out of order": ({"emotion": "2s happy, 1s sad"}, "must rise"),
    "missing prior": ({"emotion": tmp_path / "none.npy"}, "none.npy"),
    "hostile prior": ({"emotion": hostile}, "hostile.npy"),
    "emotion from a clip": ({"emotion": write(tmp_path / "clip.mp4", b"x")}, "embedder"),
    "missing weights": ({"weights": tmp_path / "none"}, "none"),
    "unknown container": ({"out": tmp_path / "video.txt"}, "video.txt"),
    "no face": ({"image": tmp_path / "wall.png", "box": False}, "--face-box"),
    "box outside": ({"options": ["--face-box", "400", "10", "50", "50"]}, "outside the image of 300x200"),
    "nobody's home": ({"image": "~nosuchuser/me.png"}, "~nosuchuser/me.png"),
    "no ending": ({"out": tmp_path / "video"}, "has no ending; give a name that ends in .mp4"),
    "long name": ({"out": tmp_path / ("x" * 300 + ".mp4")}, "name too long"),
    "size 0": ({"options": ["--size", "0"]}, "size 0"),
    "overlap": ({"options": ["--overlap", "6"]}, "overlap 6"),
    "steps 0": ({"options": ["--steps", "0"]}, "steps 0"),
    "missing preset": ({"options": ["--config", str(tmp_path / "none.py")]}, "none.py does not exist"),
  }


def _hostile_prior():
  """A .npy whose pickle would run a command."""
  import io
  import pickle

  class Command:
    def __reduce__(self):
      return os.system, ("echo ran > ran.txt",)

  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
  return header.getvalue() + pickle.dumps(Command())


def test_every_bad_input_is_one_sentence_and_an_exit_code(generate, tmp_path, monkeypatch, subtests):
  monkeypatch.chdir(tmp_path)
  for name, (changes, said) in bad_inputs(tmp_path).items():
    with subtests.test(name):
      given = set(tmp_path.rglob("*"))
      changes = dict(changes)
      options, box = changes.pop("options", []), changes.pop("box", True)
      code, output = generate(*(BOX if box and "--face-box" not in options else []), *options, **changes)
      assert code == 1
      assert said in output
      assert "Traceback" not in output
      assert len(output) < 500
      assert set(tmp_path.rglob("*")) - given <= {tmp_path / "out"}


def test_generates_with_a_preset_and_keeps_the_sound(generate, tmp_path, weights):
  code, output = generate(*BOX, "--config", str(CONFIGS / "draft.py"))
  assert code == 0, output
  video = probe(tmp_path / "out" / "video.mp4")
  assert (video.width, video.height, video.fps) == (128, 64, 12.5)  # the preset's rate, the command line's size
  assert abs(video.duration - 1.3) <= 0.08
  assert "1.36 s of 128x64 at 12.5 frames per second" in output


def test_keeps_the_portraits_resolution(generate, tmp_path):
  code, output = generate(*BOX, "--keep-resolution")
  assert code == 0, output
  video = probe(tmp_path / "out" / "video.mp4")
  assert (video.width, video.height, video.fps) == (300, 200, 25)
  assert abs(video.duration - 1.3) <= 0.04


def test_what_cannot_be_saved_is_kept(generate, tmp_path, monkeypatch):
  """The disk is full when the video is written: the frames stay, and the message says where."""
  import errno

  import av

  def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(av, "open", full)
  code, output = generate(*BOX, audio=GOLDEN / "speech.wav")
  assert code == 1
  kept = tmp_path / "out" / "video-frames.npz"
  assert str(kept) in output
  assert np.load(kept)["frames"].shape == (31, 64, 128, 3)


def test_ctrl_c_while_generating_leaves_no_video(weights, tmp_path):
  command = [sys.executable, "-m", "dicetalk_jax.cli", "generate", "--image", GOLDEN / "portrait.png"]
  command += ["--audio", GOLDEN / "speech.wav", "--emotion", "happy", "--out", tmp_path / "video.mp4"]
  command += ["--weights", weights, *BOX, "--size", "64", "--window", "6", "--steps", "100000"]
  # FORCE_COLOR: Rich draws progress bars as on a terminal.
  environment, output = os.environ | {"FORCE_COLOR": "1"}, b""
  process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, env=environment)
  try:
    while b"denoising" not in output:
      output += (part := os.read(process.stderr.fileno(), 4096))
      assert part, output
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=240)
  finally:
    process.kill()
  assert process.returncode == 130
  assert b"stopped" in rest
  assert not list(tmp_path.iterdir())


def test_a_ctrl_c_that_was_swallowed_counts_at_the_next_stage():
  with pytest.raises(KeyboardInterrupt), interruptible_bars(shown=False) as progress:
    progress("denoising", 0, 2)
    with contextlib.suppress(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
    progress("denoising", 1, 2)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_converts_exports_and_describes(tmp_path_factory, tmp_path, capsys):
  source = small_release(tmp_path_factory)
  assert main(["convert", str(source), str(tmp_path / "weights")]) == 0
  assert "happy" in capsys.readouterr().out
  assert main(["info", str(tmp_path / "weights")]) == 0
  assert "unet" in capsys.readouterr().out
  assert main(["export", str(tmp_path / "weights"), str(tmp_path / "exported")]) == 0
  files = sorted(path.relative_to(source) for path in (source / "DICE-Talk").glob("*.pth"))
  assert len(files) == 4
  for file in files:
    theirs, ours = load_tensors(source / file), load_tensors(tmp_path / "exported" / file)
    assert list(theirs) == list(ours)
    assert all(theirs[key].dtype == ours[key].dtype and theirs[key].equal(ours[key]) for key in theirs)


def test_a_damaged_or_newer_weights_folder_is_refused(generate, tmp_path_factory, tmp_path):
  for name, damage in (("newer", '"version": 2'), ("foreign", '"format"')):
    folder = tmp_path / name
    shutil.copytree(small_weights(tmp_path_factory), folder)
    config = (folder / "config.json").read_text()
    assert damage in config
    (folder / "config.json").write_text(config.replace(damage, '"version": 99' if name == "newer" else '"other"'))
    code, output = generate(*BOX, weights=folder)
    assert code == 1
    assert str(folder) in output


def test_says_its_version(capsys):
  assert main(["--version"]) == 0
  assert capsys.readouterr().out.strip() == dicetalk_jax.__version__


def test_help_gives_an_example_for_every_verb(capsys):
  for verb in ("download", "convert", "export", "generate", "info"):
    with pytest.raises(SystemExit, match=r"^0$"):
      main([verb, "--help"])
    assert f"Example: dicetalk {verb} " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"]])
def test_a_reader_that_ends_first_is_no_error(arguments):
  reader, writer = os.pipe()
  os.close(reader)
  ended = subprocess.run(
    [sys.executable, "-m", "dicetalk_jax.cli", *arguments], stdout=writer, stderr=subprocess.PIPE, text=True
  )
  os.close(writer)
  assert ended.stderr == "" and ended.returncode in (1, 141)


def test_the_command_line_and_the_python_interface_have_the_same_defaults():
  assert verbs._generation([]) == DiceTalk.load().settings()
