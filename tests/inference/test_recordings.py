"""Files that an emotion is told from: which are such, and that they are read as data sets are made of them."""

import re

import numpy as np
import pytest
import scipy.io
import soundfile
from conftest import GOLDEN, draw

from dicetalk_jax.data.build.prepare import PrepareConfig, prepare
from dicetalk_jax.data.records import Source
from dicetalk_jax.errors import InputError
from dicetalk_jax.inference.recordings import is_recording, read_recording
from dicetalk_jax.media.audio import read_audio
from dicetalk_jax.media.face import Face
from dicetalk_jax.media.video import write_video

SPEECH = GOLDEN / "speech.wav"


def video(path, seconds=1.2, fps=30, sound=True, loudness=0.3):
  """A film of grey pictures, with noise."""
  frames = np.random.default_rng(0).integers(0, 255, (round(seconds * fps), 64, 64, 3)).astype(np.float32) / 255
  noise = loudness * np.random.default_rng(1).standard_normal((round(seconds * 16000), 1)).astype(np.float32)
  write_video(path, frames, fps, noise if sound else None, 16000 if sound else None)
  return path


def coefficients(path, rows):
  whole = draw("coefficients", (rows, 257))
  scipy.io.savemat(path, {"coeff": whole}) if path.suffix == ".mat" else np.save(path, whole)
  return whole[:, 80:144]


@pytest.mark.parametrize("suffix", [".mat", ".npy"])
def test_a_video_with_coefficients_is_read_as_a_data_set_is_made_of_it(tmp_path, suffix):
  path = video(tmp_path / "a.mp4")
  coefficients(tmp_path / f"a{suffix}", 36)
  found = read_recording(path)
  source = Source("a", path, "a", "a", expression=path.with_suffix(suffix))
  (clip,) = prepare(source, "clips", PrepareConfig(size=32, smallest_face=8), lambda image: [Face((8, 8, 48, 48), 9.0)])
  assert found.expression.shape == (30, 64) and found.note == ""
  np.testing.assert_array_equal(found.expression, clip.expression)
  np.testing.assert_array_equal(found.audio, clip.audio)


def test_real_films_without_sound(examples):
  for path in sorted((examples / "mead").glob("*.mp4"))[:4]:
    film, rows = read_recording(path), read_recording(path.with_suffix(".mat"))
    assert film.audio is None and rows.note == "" and f"{path.name} is silent" in film.note
    assert abs(len(film.expression) - len(rows.expression)) <= 2
    np.testing.assert_array_equal(film.expression[:40], rows.expression[:40])


def test_one_modality_alone(tmp_path):
  path = video(tmp_path / "a.mp4", fps=25)
  (tmp_path / "a.txt").write_text("what she says here\n")
  alone = read_recording(path)
  assert alone.expression is None and re.search("a.mp4 has no coefficients .* from its sound alone", alone.note)
  np.testing.assert_array_equal(alone.audio, read_audio(path))
  np.testing.assert_array_equal(read_recording(SPEECH).audio, read_audio(SPEECH))

  rows = coefficients(tmp_path / "b.npy", 30)
  for file in (tmp_path / "b.npy", video(tmp_path / "b.mp4", fps=25, sound=False)):
    found = read_recording(file)
    assert found.audio is None
    np.testing.assert_array_equal(found.expression, rows)
  assert "b.mp4 is silent" in found.note
  coefficients(tmp_path / "c.npy", 30)
  assert "c.mp4 is silent" in read_recording(video(tmp_path / "c.mp4", fps=25, loudness=0)).note


def test_what_cannot_be_used_is_told(tmp_path):
  with pytest.raises(InputError, match=r"a.mp4 has neither sound nor coefficients of its name beside it \(\.mat"):
    read_recording(video(tmp_path / "a.mp4", sound=False))
  coefficients(tmp_path / "b.npy", 20)
  with pytest.raises(InputError, match=r"b\.npy has 20 rows and its video 36 frames"):
    read_recording(video(tmp_path / "b.mp4"))
  soundfile.write(tmp_path / "c.wav", np.zeros(16000), 16000)
  for file in (tmp_path / "c.wav", video(tmp_path / "d.mp4", loudness=0)):
    with pytest.raises(InputError, match="silent throughout"):
      read_recording(file)
  (tmp_path / "e.mp4").write_bytes(b"nothing of a film")
  with pytest.raises(InputError, match=r"e\.mp4"):
    read_recording(tmp_path / "e.mp4")


@pytest.mark.parametrize(
  ("name", "array", "wanted"),
  [
    ("a.mp4", None, True),
    ("A.MOV", None, True),
    ("a.mat", None, True),
    ("a.txt", None, True),
    ("a.wav", None, True),
    ("a.opus", None, True),
    ("a.safetensors", None, False),
    ("a.png", None, False),
    ("a.npy", np.zeros((40, 64)), True),
    ("a.npy", np.zeros((1, 257)), True),
    ("a.npy", np.zeros(256), False),
    ("a.npy", np.zeros((1, 256)), False),
    ("a.npy", np.zeros((4, 64)), False),  # a prior of 256 numbers in another shape is refused as such
    ("a.npy", np.array({"mu": np.zeros((1, 256))}, dtype=object), False),
    ("a.npz", {"mu": np.zeros(256)}, False),
    ("a.npz", {"coeff": np.zeros((9, 257))}, True),
  ],
)
def test_which_files_are_recordings(tmp_path, name, array, wanted):
  path = tmp_path / name
  if array is None:
    path.write_bytes(b"x")
  elif isinstance(array, dict):
    np.savez(path, **array)
  else:
    np.save(path, array, allow_pickle=True)
  assert is_recording(path) is wanted


def test_a_damaged_array_is_left_to_the_reader_of_priors(tmp_path):
  for name in ("a.npy", "a.npz"):
    (tmp_path / name).write_bytes(b"\x93NUMPY broken")
    assert not is_recording(tmp_path / name)
  assert not is_recording(tmp_path / "absent.npy")
