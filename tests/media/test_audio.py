"""Speech: every container to 16 kHz mono, Whisper's mel, and what cannot be used."""

import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
import soxr
from conftest import GOLDEN, golden, relative_error

from dicetalk_jax.errors import InputError
from dicetalk_jax.media import audio as media
from dicetalk_jax.media import streaming


def chirp(rate, seconds=2.0):
  """A rising tone from 100 to 3000 Hz that fades in and out, float32 in [-0.5, 0.5]."""
  t = np.arange(round(rate * seconds)) / rate
  phase = 2 * np.pi * (100 * t + (3000 - 100) / (2 * seconds) * t**2)
  return (0.5 * np.sin(phase) * np.sin(np.pi * t / seconds)).astype(np.float32)


def encode(path, codec, audio, rate, layout="mono"):
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=rate, layout=layout)
    frame = av.AudioFrame.from_ndarray(np.atleast_2d(audio), format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def lag(ours, reference):
  """Samples by which ours comes later."""
  size = 2 * max(len(ours), len(reference))
  spectrum = np.fft.rfft(ours, size) * np.conj(np.fft.rfft(reference, size))
  best = int(np.argmax(np.fft.irfft(spectrum, size)))
  return best - size if best > size // 2 else best


def agreement(ours, reference):
  n = min(len(ours), len(reference))
  return np.corrcoef(ours[:n], reference[:n])[0, 1]


def test_golden_speech_is_reproduced_bit_for_bit():
  ours = media.read_audio(GOLDEN / "speech.wav")
  assert ours.dtype == np.float32
  np.testing.assert_array_equal(ours, golden("pipeline_tiny")["wav_16k"])


def test_golden_mel_is_reproduced():
  mel = media.log_mel(golden("pipeline_tiny")["wav_16k"])
  assert mel.shape == (1, 3000, 80) and mel.dtype == np.float32
  assert relative_error(mel[0, :160].T, golden("pipeline_tiny")["mel"]) < 2e-6


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # an import of it fails
import numpy as np
from dicetalk_jax.media import audio
sound = audio.read_audio(sys.argv[1])
np.save(sys.argv[2], audio.log_mel(sound))
"""


def test_mel_does_not_depend_on_torch(tmp_path):
  from transformers import WhisperFeatureExtractor

  sound, target = media.read_audio(GOLDEN / "speech.wav"), tmp_path / "mel.npy"
  subprocess.run(
    [sys.executable, "-c", WITHOUT_TORCH, GOLDEN / "speech.wav", target], check=True, cwd=GOLDEN.parents[1]
  )
  ours = media.log_mel(sound)
  np.testing.assert_array_equal(np.load(target), ours)
  theirs = WhisperFeatureExtractor()(sound, sampling_rate=16000).input_features
  # Whisper's own torch and numpy spectrograms differ by float32 rounding.
  assert relative_error(ours.transpose(0, 2, 1), theirs) < 2e-6


def test_mel_chunks_and_bins():
  sound = np.concatenate([chirp(16000, 30), chirp(16000, 1)])
  mel = media.log_mel(sound, {"num_mel_bins": 128})
  assert mel.shape == (2, 3000, 128)
  np.testing.assert_array_equal(mel[0], media.log_mel(sound[: 30 * 16000], {"num_mel_bins": 128})[0])
  np.testing.assert_array_equal(mel[1], media.log_mel(sound[30 * 16000 :], {"num_mel_bins": 128})[0])
  assert np.isfinite(media.log_mel(np.zeros(16000, np.float32))).all()


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 24000, 44100, 48000])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_lossless_files_at_any_rate(tmp_path, rate, suffix):
  left, right = chirp(rate), chirp(rate)[::-1]
  soundfile.write(tmp_path / f"a.{suffix}", np.stack([left, right], axis=1), rate, subtype="PCM_24")
  ours = media.read_audio(str(tmp_path / f"a.{suffix}"))
  assert len(ours) == -(-len(left) * 16000 // rate)
  expected = soxr.resample((left + right) / 2, rate, 16000, quality="HQ")[: len(ours)]
  assert np.abs(ours[: len(expected)] - expected).max() < 2e-6  # of 24 bits


# (file, codec, rate, agreement): what the codec keeps of a tone that reaches 3 kHz.
LOSSY = [
  ("a.mp3", "libmp3lame", 44100, 0.99),
  ("a.m4a", "aac", 48000, 0.99),
  ("a.mp4", "aac", 44100, 0.99),
  ("a.opus", "libopus", 48000, 0.99),
  ("a.mka", "flac", 44100, 0.99),
  ("a.avi", "pcm_s16le", 24000, 0.99),
]


@pytest.mark.parametrize(("name", "codec", "rate", "least"), LOSSY)
@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_compressed_files_are_in_sync(tmp_path, name, codec, rate, least, layout):
  sound = chirp(rate)
  encode(tmp_path / name, codec, sound if layout == "mono" else np.stack([sound, sound]), rate, layout)
  ours, expected = media.read_audio(tmp_path / name), media.read_audio((sound, rate))
  assert agreement(ours, expected) > least
  assert abs(lag(ours, expected)) <= 16  # one millisecond
  assert -16 <= len(ours) - len(expected) < 2048


def test_ogg_vorbis(tmp_path):
  soundfile.write(tmp_path / "a.ogg", chirp(16000), 16000)
  assert agreement(media.read_audio(tmp_path / "a.ogg"), chirp(16000)) > 0.99


def test_a_sound_as_it_is(tmp_path):
  both = np.stack([chirp(44100), -chirp(44100)], axis=1)
  soundfile.write(tmp_path / "a.wav", both, 44100, subtype="FLOAT")
  sound, rate = media.read_sound(tmp_path / "a.wav")
  assert rate == 44100 and sound.dtype == np.float32
  np.testing.assert_array_equal(sound, both)


def test_arrays():
  sound = chirp(16000)
  np.testing.assert_array_equal(media.read_audio(sound), sound)
  np.testing.assert_array_equal(media.read_audio(sound.astype(np.float64)), sound)
  np.testing.assert_array_equal(media.read_audio((np.stack([sound, 0.5 * sound], 1), 16000)), 0.75 * sound)
  assert np.abs(media.read_audio(((sound * 32768).astype(np.int16), 16000)) - sound).max() < 1 / 32768
  assert len(media.read_audio((chirp(44100), 44100))) == 32000


def test_silence_is_no_error():
  quiet = media.read_audio(np.zeros(16000, np.float32))
  assert media.is_silent(quiet) and not media.is_silent(chirp(16000))
  assert media.is_silent(np.full(16000, 1e-4, np.float32))


def test_shortest(tmp_path):
  assert len(media.read_audio(np.zeros(2560, np.float32))) == 2560
  with pytest.raises(InputError, match="at least two frames"):
    media.read_audio(np.zeros(2559, np.float32))
  soundfile.write(tmp_path / "short.wav", np.zeros(2000), 24000)
  with pytest.raises(InputError, match=r"short\.wav lasts 0\.083 s; .*0\.16 s"):
    media.read_audio(tmp_path / "short.wav")


@pytest.mark.parametrize(
  ("source", "said"),
  [
    ((np.array([0.0, np.nan] * 5000), 16000), "5000 samples that are NaN"),
    ((np.array([0.0] * 8000 + [np.inf] * 8000), 16000), r"first at 0\.500 s"),
    (np.zeros(0, np.float32), "0 samples"),
    ((np.zeros((2, 16000)), 16000), r"\(2, 16000\)"),
    ((np.zeros(16000, np.uint8), 16000), "uint8"),
    ((np.zeros(16000), 0), "rate must be positive"),
    ((np.zeros(16000), "fast"), "pair"),
    (None, "pair"),
    (7, "pair"),
  ],
)
def test_arrays_that_are_no_sound(source, said):
  with pytest.raises(InputError, match=said):
    media.read_audio(source)


def test_bad_files_are_one_clear_error(tmp_path, capfd):
  def fails(path, said):
    with pytest.raises(InputError, match=said) as raised:
      media.read_audio(path)
    assert str(path) in str(raised.value)

  fails(tmp_path / "none.wav", "does not exist")
  fails(tmp_path, "is a folder")
  (tmp_path / "empty.wav").touch()
  fails(tmp_path / "empty.wav", "empty")
  (tmp_path / "text.wav").write_text("not a sound " * 50)
  fails(tmp_path / "text.wav", "not a sound|no sound stream")
  for name in ("noise.wav", "noise.mp3", "noise.m4a"):
    (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(20000))
    fails(tmp_path / name, "damaged")
  soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
  fails(tmp_path / "nan.wav", "16000 samples that are NaN")
  soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
  fails(tmp_path / "none.wav", "0 samples")
  encode(tmp_path / "a.m4a", "aac", chirp(48000), 48000)
  whole = (tmp_path / "a.m4a").read_bytes()
  (tmp_path / "cut.m4a").write_bytes(whole[: len(whole) // 2])  # its index was at the end
  fails(tmp_path / "cut.m4a", "damaged")
  assert capfd.readouterr() == ("", "")


def test_a_video_without_sound(tmp_path):
  with av.open(str(tmp_path / "mute.mp4"), "w") as container:
    stream = container.add_stream("libx264", rate=25)
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
    container.mux(stream.encode(None))
  with pytest.raises(InputError, match="no sound stream"):
    media.read_audio(tmp_path / "mute.mp4")


def test_of_a_damaged_file_what_can_be_decoded(tmp_path, capfd):
  encode(tmp_path / "a.mp3", "libmp3lame", chirp(44100), 44100)
  soundfile.write(tmp_path / "a.wav", chirp(44100), 44100)
  for name in ("a.mp3", "a.wav"):
    whole = (tmp_path / name).read_bytes()
    (tmp_path / f"cut_{name}").write_bytes(whole[: len(whole) // 2])
    ours = media.read_audio(tmp_path / f"cut_{name}")
    assert 14000 < len(ours) < 18000
    assert agreement(ours, media.read_audio(tmp_path / name)) > 0.95
  broken = bytearray((tmp_path / "a.mp3").read_bytes())
  for place in range(len(broken) // 4, len(broken), len(broken) // 60):
    broken[place : place + 4] = b"\xff\xfb\x90\x64"  # false frame headers
  (tmp_path / "broken.mp3").write_bytes(broken)
  assert len(media.read_audio(tmp_path / "broken.mp3")) > 8000
  assert capfd.readouterr() == ("", "")


def test_a_stream_that_changes_in_the_middle(tmp_path):
  encode(tmp_path / "a.mp3", "libmp3lame", chirp(44100), 44100)
  encode(tmp_path / "b.mp3", "libmp3lame", np.stack([chirp(48000)] * 2), 48000, "stereo")
  (tmp_path / "ab.mp3").write_bytes((tmp_path / "a.mp3").read_bytes() + (tmp_path / "b.mp3").read_bytes())
  sound, rate = media.read_sound(tmp_path / "ab.mp3")
  assert rate == 44100 and sound.shape[1] == 1
  ours = media.read_audio(tmp_path / "ab.mp3")
  assert abs(len(ours) - 64000) < 3000  # each file begins and ends with some silence
  assert agreement(ours, chirp(16000)) > 0.95
  shift = lag(ours[32000:], chirp(16000))
  assert 0 <= shift < 3000 and agreement(ours[32000 + shift :], chirp(16000)) > 0.95


def test_real_speech_is_read(examples):
  seconds = {
    "German1.wav": 8.712,
    "acknowledgement_english.m4a": 16.575,
    "chinese1_haierlizhi.wav": 13.119,
    "male.wav": 10.152,
    "noisy_audio_cafeter_snr_0.wav": 6.444,
  }
  for name, expected in seconds.items():
    ours = media.read_audio(examples / "speech" / name)
    assert abs(len(ours) / 16000 - expected) < 0.05 and not media.is_silent(ours), name
  head = media.read_audio(examples / "talking_head_with_audio.mp4")
  assert abs(len(head) / 16000 - 26.007) < 0.07 and not media.is_silent(head)


def test_more_channels_than_a_cinema_has(tmp_path):
  path = tmp_path / "many.mkv"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("pcm_s16le", rate=16000, layout="hexadecagonal")
    samples = np.tile(np.arange(1600, dtype=np.int16)[:, None], (1, 16))
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="hexadecagonal")
    frame.rate = 16000
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  sound, rate = media.read_sound(path)
  assert (sound.shape, rate) == ((1600, 16), 16000)
  np.testing.assert_array_equal(sound, samples / np.float32(32768))


def level(sound):
  return 20 * np.log10(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))


def placed(channel, channels):
  sound = np.zeros((32000, channels), np.float32)
  sound[:, channel] = chirp(16000)
  return sound


@pytest.mark.parametrize(
  "channels, channel, loss",
  [(2, 0, 0), (2, 1, 0), (6, 2, 0), (6, 0, 3.01), (6, 4, 0), (8, 2, 0), (16, 5, 0)],
  ids=["left", "right", "centre of 5.1", "left of 5.1", "back of 5.1", "centre of 7.1", "of sixteen"],
)
def test_speech_in_one_channel_keeps_its_level(tmp_path, channels, channel, loss):
  """FFmpeg's weights in 5.1; a channel that would lose more than 5.5 dB is taken alone, and that is said."""
  sound = placed(channel, channels)
  soundfile.write(tmp_path / "a.wav", sound, 16000, subtype="FLOAT")
  for source in ((sound, 16000), tmp_path / "a.wav"):
    notes = []
    assert level(chirp(16000)) - level(media.read_audio(source, notes=notes)) == pytest.approx(loss, abs=0.01)
    assert any("used alone" in note for note in notes) == ((channel in (0, 1) and channels == 2) or channel in (4, 5))


def test_the_low_frequency_channel_is_left_out():
  assert media.is_silent(media.read_audio((placed(3, 6), 16000)))


@pytest.mark.parametrize("other", [-1.0, -0.9, -0.5])
def test_opposite_phases_do_not_cancel(tmp_path, other):
  both = np.stack([chirp(16000), np.float32(other) * chirp(16000)], axis=1)
  notes = []
  np.testing.assert_array_equal(media.read_audio((both, 16000), notes=notes), chirp(16000))
  assert "channel 1" in notes[0]
  soundfile.write(tmp_path / "a.wav", both, 16000, subtype="FLOAT")
  blocks = np.concatenate([block for _, block in streaming.stream_sound(tmp_path / "a.wav")])
  np.testing.assert_array_equal(blocks, chirp(16000))


def test_ordinary_stereo_is_the_mean_to_the_bit():
  other = np.random.default_rng(0).standard_normal(32000).astype(np.float32) * 0.1
  both, notes = np.stack([chirp(16000), other], axis=1), []
  np.testing.assert_array_equal(media.read_audio((both, 16000), notes=notes), both.mean(axis=1))
  assert notes == []


def test_samples_over_full_scale_are_turned_down():
  notes = []
  speech = media.read_audio((4 * chirp(16000), 16000), notes=notes)
  assert np.abs(speech).max() == 1 and agreement(speech, chirp(16000)) > 0.9999
  assert "exceeds full scale by 6.0 dB" in notes[0]


def test_a_header_that_says_length_0(tmp_path):
  """What a recorder leaves that is cut off before it writes the length."""
  soundfile.write(tmp_path / "a.wav", chirp(16000), 16000)
  content = bytearray((tmp_path / "a.wav").read_bytes())
  place = content.index(b"data") + 4
  content[place : place + 4] = content[4:8] = bytes(4)
  (tmp_path / "a.wav").write_bytes(content)
  assert agreement(media.read_audio(tmp_path / "a.wav"), chirp(16000)) > 0.9999


@pytest.mark.parametrize(
  "name", ["a:b.m4a", "colon:0.mkv", "pipe:1.mp4", "concat:a|b.mp4", "data:x.mp4", "-", "50%d.mp4"]
)
def test_names_that_ffmpeg_would_take_for_something_else(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  encode(tmp_path / "plain.mp4", "aac", chirp(48000), 48000)
  (tmp_path / "plain.mp4").rename(name)
  expected = chirp(16000)
  assert agreement(media.read_audio(name), expected) > 0.98
  assert sum(len(block) for _, block in streaming.stream_sound(name)) > 30000


PLAYLISTS = {
  "a.ffconcat": "ffconcat version 1.0\nfile secret.wav\n",
  "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\nsecret.wav\n#EXT-X-ENDLIST\n",
  "a.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\nsecret.wav\n#EXT-X-ENDLIST\n",
  "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_text_that_names_other_files_is_refused(tmp_path, name):
  soundfile.write(tmp_path / "secret.wav", chirp(16000), 16000)
  (tmp_path / name).write_text(PLAYLISTS[name])
  for read in (
    media.read_audio,
    lambda path: next(streaming.stream_pictures(path)),
    lambda path: next(streaming.stream_sound(path)),
  ):
    with pytest.raises(InputError, match="which names other files"):
      read(tmp_path / name)
