"""What visitors give, read within the server's limits."""

import av
import numpy as np
import pytest
import soundfile
from conftest import GOLDEN
from PIL import Image

from dicetalk_jax.app import inputs
from dicetalk_jax.app.drawn import PICTURE_SIDE, draw_portrait, draw_speech, known_face
from dicetalk_jax.app.limits import Limits
from dicetalk_jax.app.uploads import Upload
from dicetalk_jax.errors import InputError

LIMITS = Limits(max_upload_mb=0.5, max_pixels=0.5, max_seconds=2)


def given(path, name=None):
  return Upload(path, name or path.name)


def test_a_portrait_and_its_faces():
  found = inputs.read_portrait(given(GOLDEN / "portrait.png"), Limits())
  assert (found.width, found.height, found.faces) == (300, 200, [(104, 28, 92, 119)])
  assert found.preview.startswith("data:image/jpeg;base64,")


def test_a_speech_and_its_waveform():
  found = inputs.read_speech(given(GOLDEN / "speech.wav"), Limits())
  assert found.seconds == pytest.approx(1.3, abs=0.01)
  assert len(found.peaks) == inputs.PEAKS
  assert max(found.peaks) == 1
  assert not found.silent


def test_a_drawn_person_has_a_known_face(tmp_path):
  portrait = given(draw_portrait(3, tmp_path))
  x, y, w, h = known_face(portrait)
  assert 0 < x < x + w < PICTURE_SIDE
  assert 0 < y < y + h < PICTURE_SIDE
  # Another picture of that name is not taken for it.
  Image.new("RGB", (PICTURE_SIDE, PICTURE_SIDE)).save(tmp_path / "person_4.png")
  assert known_face(given(tmp_path / "person_4.png")) is None


def test_a_drawn_sentence_is_speech(tmp_path):
  assert inputs.read_speech(given(draw_speech("Hello you.", 7, tmp_path)), Limits()).seconds > 0.5
  for text in ("", None, "...", "x" * 1000):
    with pytest.raises(InputError):
      draw_speech(text, 7, tmp_path)
  for seed in (None, -1, 1.5, 2**40):
    with pytest.raises(InputError, match="number is whole"):
      draw_speech("Hello.", seed, tmp_path)


def _mp3(path, seconds):
  with av.open(str(path), "w") as container:
    stream = container.add_stream("mp3", rate=16000)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000 * seconds), np.float32), format="fltp", layout="mono")
    frame.sample_rate = 16000
    container.mux([*stream.encode(frame), *stream.encode(None)])
  return path


def test_each_limit_is_told_with_its_option(tmp_path):
  Image.new("1", (1000, 1000)).save(tmp_path / "large.png")
  Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
  soundfile.write(tmp_path / "long.wav", np.zeros(3 * 8000), 8000)
  (tmp_path / "heavy.png").write_bytes(bytes(600_000))
  portraits = {
    "large.png": r"portrait large.png is 1000x1000.*up to 0.5 million \(--max-pixels\)",
    "bomb.png": r"more than \d+ million pixels",
    "heavy.png": r"heavy.png has 0.6 MB; this server takes up to 0.5 MB \(--max-upload-mb\)",
  }
  for name, said in portraits.items():
    with pytest.raises(InputError, match=f"(?i){said}"):
      inputs.read_portrait(given(tmp_path / name), LIMITS)
  for path in (tmp_path / "long.wav", _mp3(tmp_path / "long.mp3", 3)):
    with pytest.raises(InputError, match=rf"{path.name} lasts 3\S* s; this server takes up to 2 s \(--max-seconds\)"):
      inputs.read_speech(given(path), LIMITS)


def test_messages_have_the_visitors_names(tmp_path):
  (tmp_path / "0f3a.png").write_text("no image")
  with pytest.raises(InputError) as caught:
    inputs.read_portrait(given(tmp_path / "0f3a.png", "me.png"), Limits())
  assert str(caught.value).startswith("Portrait me.png is not an image")
  assert str(tmp_path) not in str(caught.value)


def test_clips_are_measured_before_they_wait(tmp_path):
  prior = tmp_path / "mine.npy"
  np.save(prior, np.ones(256, np.float32))
  inputs.check_clip(given(prior), Limits(), 256, embeds=False)
  sound = given(GOLDEN / "speech.wav")
  inputs.check_clip(sound, Limits(), 256, embeds=True)
  with pytest.raises(InputError, match="needs weights with an emotion embedder"):
    inputs.check_clip(sound, Limits(), 256, embeds=False)
  with pytest.raises(InputError, match="--max-seconds"):
    inputs.check_clip(sound, Limits(max_seconds=1), 256, embeds=True)
  (tmp_path / "note.pdf").write_text("x")
  with pytest.raises(InputError, match=r"note.pdf is not a clip"):
    inputs.check_clip(given(tmp_path / "note.pdf"), Limits(), 256, embeds=True)
