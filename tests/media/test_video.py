"""Videos: what is written plays, in full and in sync, or is not there at all; what is read is what is seen."""

import contextlib
import os
import resource
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import relative_error
from video_files import probe, read_video

from dicetalk_jax.errors import InputError, OutputError
from dicetalk_jax.media import video as media
from dicetalk_jax.media.audio import read_audio, read_sound
from dicetalk_jax.media.streaming import stream_pictures

# crf 18, and colours at half the resolution, leave 2.5% of these frames; a wrong turn, order or colour 20% and more.
NEAR = 0.03


def moving(n=12, height=64, width=96):
  """(n, height, width, 3) float32 in [0, 1]: smooth colours that drift, so that the codec keeps them."""
  t, y, x = np.meshgrid(np.arange(n) / n, np.arange(height) / height, np.arange(width) / width, indexing="ij")
  return np.stack([(1 + np.sin(6 * x + 6 * t)) / 2, (1 + np.cos(5 * y - 6 * t)) / 2, (x + y) / 2], -1).astype(
    np.float32
  )


def speech(seconds, rate=16000):
  """Filtered noise in syllables, float32: its onsets show any shift."""
  generator = np.random.default_rng(0)
  n = round(seconds * rate)
  noise = np.convolve(generator.standard_normal(n + 15), np.hanning(16) / 8, mode="valid")[:n]
  return (0.2 * noise * (np.sin(2 * np.pi * 2.5 * np.arange(n) / rate) > 0)).astype(np.float32)


def lag(ours, reference):
  """Samples by which ours comes later."""
  size = 2 * max(len(ours), len(reference))
  spectrum = np.fft.rfft(ours, size) * np.conj(np.fft.rfft(reference, size))
  best = int(np.argmax(np.fft.irfft(spectrum, size)))
  return best - size if best > size // 2 else best


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A target folder, and another as the current one."""
  (tmp_path / "here").mkdir()
  (tmp_path / "out").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  return tmp_path / "out"


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov", ".mkv"])
def test_pictures_come_back(tmp_path, suffix):
  frames = moving()
  path = media.write_video(tmp_path / f"new/folder/a{suffix}", frames, 25)
  info = probe(path)
  assert (info.width, info.height, info.fps, info.frames) == (96, 64, 25, 12)
  assert (info.video_codec, info.pixel_format, info.has_audio) == ("h264", "yuv420p", False)
  assert info.duration == pytest.approx(12 / 25, abs=2e-3)
  read, fps = read_video(path), probe(path).fps
  assert fps == 25 and read.dtype == np.uint8
  assert relative_error(read / 255, frames) < NEAR
  assert list(path.parent.iterdir()) == [path]


def test_colours_are_kept(tmp_path):
  colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [210, 160, 140], [0, 0, 0], [255, 255, 255]], np.uint8)
  frame = np.repeat(np.repeat(colours[None], 32, axis=1), 64, axis=0)
  read = read_video(media.write_video(tmp_path / "a.mp4", frame[None].repeat(3, 0), 25))
  assert np.abs(read[1, 32, 16::32].astype(int) - colours).max() <= 3
  with av.open(str(tmp_path / "a.mp4")) as container:
    context = container.streams.video[0].codec_context
    assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)


@pytest.mark.parametrize("kind", ["uint8", "float16", "list", "iterator"])
def test_kinds_of_frames(tmp_path, kind):
  frames = moving(5)
  given = {
    "uint8": np.rint(frames * 255).astype(np.uint8),
    "float16": frames.astype(np.float16),
    "list": list(frames),
    "iterator": iter(frames),
  }[kind]
  seen = []
  path = media.write_video(tmp_path / "a.mp4", given, 25, progress=lambda done, total: seen.append((done, total)))
  read = read_video(path)
  assert relative_error(read / 255, frames) < NEAR
  assert seen == [(k, None if kind == "iterator" else 5) for k in range(1, 6)]


def test_odd_sizes_repeat_the_last_row_and_column(tmp_path):
  frames = moving(3, 65, 97)
  read = read_video(media.write_video(tmp_path / "a.mp4", frames, 25))
  assert read.shape == (3, 66, 98, 3)
  assert relative_error(read[:, :65, :97] / 255, frames) < NEAR
  assert np.abs(read[:, 65].astype(int) - read[:, 64]).max() < 8


def test_size_resizes(tmp_path):
  path = media.write_video(tmp_path / "a.mp4", moving(3), 25, size=(192, 128))
  assert relative_error(read_video(path)[:, ::2, ::2] / 255, moving(3)) < 0.05


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("rate", [16000, 24000, 44100, 48000, 22050])
def test_sound_is_whole_and_in_sync(tmp_path, suffix, rate):
  sound = speech(1.3, rate)
  path = media.write_video(tmp_path / f"a{suffix}", moving(31), 25, sound, rate)
  decoded = read_audio(path)
  expected = read_audio((sound, rate))
  assert abs(lag(decoded, expected)) <= 16  # one millisecond
  assert np.corrcoef(decoded[: len(expected)], expected)[0, 1] > 0.99
  info = probe(path)
  assert info.audio_codec == "aac"
  assert 0 <= len(decoded) - len(expected) < 0.04 * 16000
  assert -1e-3 <= info.duration - 1.3 < 0.04  # mkv counts in milliseconds
  assert abs(info.audio_duration - 1.3) < 0.04


@pytest.mark.parametrize(
  ("samples", "frames", "expected"),
  [
    (20800, 31, 33),  # 1.3 s: the released frames end 60 ms early
    (20480, 31, 32),  # exactly 32 frames of 640 samples
    (20481, 31, 33),
    (2560, 40, 40),  # a longer picture is not cut either
  ],
)
def test_the_last_frame_is_held_while_there_is_sound(tmp_path, samples, frames, expected):
  path = media.write_video(tmp_path / "a.mp4", moving(frames), 25, speech(samples / 16000))
  info = probe(path)
  assert info.frames == expected and info.duration == pytest.approx(expected / 25, abs=1e-3)
  read = read_video(path)
  for held in read[frames:]:
    assert np.abs(held.astype(int) - read[frames - 1]).mean() < 2


def test_time_stamps_rise_evenly_and_the_index_is_in_front(tmp_path):
  path = media.write_video(tmp_path / "a.mp4", moving(40), 25, speech(1.6))
  with av.open(str(path)) as container:
    shown = [frame.pts * frame.time_base for frame in container.decode(video=0)]
  assert shown == [Fraction(k, 25) for k in range(40)]
  with av.open(str(path)) as container:
    for stream in (container.streams.video[0], container.streams.audio[0]):
      stamps = [packet.dts for packet in container.demux(stream) if packet.dts is not None]
      assert stamps == sorted(set(stamps))
      container.seek(0)
  whole = path.read_bytes()
  assert 0 < whole.find(b"moov") < whole.find(b"mdat")


def test_stereo_and_more_channels(tmp_path):
  both = np.stack([speech(1), np.zeros(16000, np.float32)], axis=1)
  sound, _ = read_sound(media.write_video(tmp_path / "a.mp4", moving(25), 25, both))
  assert sound.shape[1] == 2 and np.abs(sound[:, 0]).max() > 0.1 and np.abs(sound[:, 1]).max() < 0.01
  six = np.repeat(speech(1)[:, None], 6, axis=1)
  assert read_sound(media.write_video(tmp_path / "b.mp4", moving(25), 25, six))[0].shape[1] == 2


def test_an_existing_video_is_replaced_only_by_a_whole_one(tmp_path):
  path = media.write_video(tmp_path / "a.mp4", moving(3), 25)
  before = path.read_bytes()

  def interrupted():
    yield from moving(5)
    raise KeyboardInterrupt

  for target in (path, tmp_path / "new.mp4"):
    with pytest.raises(KeyboardInterrupt):
      media.write_video(target, interrupted(), 25, speech(1))
  assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
  media.write_video(path, moving(7), 25)
  assert probe(path).frames == 7


@pytest.mark.parametrize(
  ("path", "frames", "fps", "audio", "said"),
  [
    ("a.avi", moving(2), 25, None, r"'\.avi'.*\.mp4"),
    ("a", moving(2), 25, None, r"\.mp4"),
    (".", moving(2), 25, None, r"\.mp4"),
    ("a.mp4", moving(0), 25, None, "at least one frame"),
    ("a.mp4", moving(2)[..., :1], 25, None, r"\(64, 96, 1\)"),
    ("a.mp4", (255 * moving(2)).astype(int), 25, None, "int64"),
    ("a.mp4", moving(2), 0, None, "frames a second"),
    ("a.mp4", moving(2), float("nan"), None, "frames a second"),
    ("a.mp4", moving(2), 25, np.zeros((2, 2, 2)), r"\(2, 2, 2\)"),
    ("a.mp4", moving(2), 25, np.full(16000, np.nan), "finite"),
  ],
)
def test_what_makes_no_video(folder, path, frames, fps, audio, said):
  with pytest.raises(InputError, match=said):
    media.write_video(folder / path, frames, fps, audio)
  assert not list(folder.iterdir())


def test_check_target(tmp_path):
  assert media.check_target(str(tmp_path / "new/a.MP4")) == tmp_path / "new/a.MP4"
  assert not list((tmp_path / "new").iterdir())
  (tmp_path / "b.mp4").mkdir()
  with pytest.raises(InputError, match="is a folder"):
    media.check_target(tmp_path / "b.mp4")
  (tmp_path / "file").touch()
  for target in (tmp_path / "file/a.mp4", tmp_path / "file/new/a.mp4"):
    with pytest.raises(OutputError, match="file"):
      media.check_target(target)
  for target in ("/proc/a.mp4", "/proc/new/a.mp4"):  # nobody can write there
    with pytest.raises(OutputError, match="cannot be written"):
      media.check_target(target)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(folder):
  folder.chmod(0o500)
  with pytest.raises(OutputError, match="Permission denied"):
    media.check_target(folder / "a.mp4")


def restored(path):
  with np.load(path, allow_pickle=False) as kept:
    return dict(kept)


@pytest.mark.parametrize("kind", [np.asarray, iter])
def test_frames_are_kept_elsewhere_where_the_target_fails(folder, kind):
  frames = np.rint(moving(4) * 255).astype(np.uint8)
  for name in ("a-frames.npz", "a-frames-2.npz"):
    with pytest.raises(OutputError, match=f"cannot be written.*kept in .*here/{name}"):
      media.write_video("/proc/none/a.mp4", kind(frames), 25, speech(0.2), 16000)
    kept = restored(name)
    np.testing.assert_array_equal(kept["frames"], frames)
    np.testing.assert_array_equal(kept["audio"], speech(0.2))
    assert (kept["fps"], kept["sample_rate"]) == (25, 16000)


@contextlib.contextmanager
def files_of_at_most(size):
  """Every write past this many bytes of a file fails, as on a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_space(folder):
  noise = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)
  with files_of_at_most(20_000), pytest.raises(OutputError, match=r"a\.mp4 cannot be written.*not be kept anywhere"):
    media.write_video(folder / "a.mp4", noise, 25)
  assert not list(folder.iterdir()) and not os.listdir()
  # The frames fit, the video with its long sound does not.
  sound = np.random.default_rng(0).uniform(-1, 1, 44100).astype(np.float32)
  with files_of_at_most(10_000 + noise[:1].nbytes + sound[:4000].nbytes), pytest.raises(OutputError) as raised:
    media.write_video(folder / "a.mp4", noise[:1], 25, sound[:4000], sample_rate=2000)
  assert str(folder / "a-frames.npz") in str(raised.value)
  assert [path.name for path in folder.iterdir()] == ["a-frames.npz"]
  np.testing.assert_array_equal(restored(folder / "a-frames.npz")["frames"], noise[:1])


def test_a_lying_picture_is_turned(tmp_path):
  frames = moving(3)
  path = media.write_video(tmp_path / "a.mp4", frames, 25)
  whole = bytearray(path.read_bytes())
  matrix = whole.find(b"tkhd") + 4 + 40  # after version, times, id, duration, layer, volume
  one, zero = (1 << 16).to_bytes(4, "big"), bytes(4)
  minus = (0x100000000 - (1 << 16)).to_bytes(4, "big")
  assert whole[matrix : matrix + 4] == one
  whole[matrix : matrix + 20] = zero + one + zero + minus + zero  # a quarter clockwise, as phones write it
  path.write_bytes(whole)
  read = read_video(path)
  assert read.shape == (3, 96, 64, 3)
  assert relative_error(read / 255, np.rot90(frames, -1, (1, 2))) < NEAR


def test_bad_videos_are_one_clear_error(tmp_path, capfd):
  path = media.write_video(tmp_path / "a.mp4", moving(30), 25, speech(1.2))
  whole = path.read_bytes()
  (tmp_path / "empty.mp4").touch()
  (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20000))
  (tmp_path / "text.mp4").write_text("not a video " * 100)
  (tmp_path / "headless.mp4").write_bytes(whole[len(whole) // 2 :])
  with av.open(str(tmp_path / "sound.m4a"), "w") as container:
    stream = container.add_stream("aac", rate=16000, layout="mono")
    frame = av.AudioFrame.from_ndarray(speech(1)[None], format="fltp", layout="mono")
    frame.sample_rate = 16000
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  cases = {
    "none.mp4": "does not exist",
    ".": "is a folder",
    "empty.mp4": "empty",
    "noise.mp4": "damaged",
    "text.mp4": "no pictures|damaged",
    "headless.mp4": "damaged",
    "sound.m4a": "no pictures",
  }
  for name, said in cases.items():
    with pytest.raises(InputError, match=said):
      next(stream_pictures(tmp_path / name))
  (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 7 // 10])  # its index is in front
  assert 0 < len(read_video(tmp_path / "cut.mp4")) < 30
  assert "Traceback" not in capfd.readouterr().err


def test_real_video_is_read(examples):
  path = examples / "talking_head_with_audio.mp4"
  info = probe(path)
  assert (info.width, info.height, info.fps, info.frames, info.has_audio) == (256, 256, 30, 780, True)
  assert info.duration == pytest.approx(26, abs=1e-6)
  assert next(stream_pictures(path)).pixels.shape == (256, 256, 3)


def test_real_speech_is_written(examples, tmp_path):
  for source in sorted((examples / "speech").iterdir()):
    sound, rate = read_sound(source)
    speech_16k = read_audio(source)
    count = len(speech_16k) // 640 // 2 * 2 - 1
    path = media.write_video(tmp_path / "a.mp4", moving(1, 32, 32).repeat(count, 0), 25, sound, rate)
    info, decoded = probe(path), read_audio(path)
    assert 0 <= info.duration - len(sound) / rate < 0.04
    assert 0 <= len(decoded) - len(speech_16k) < 0.04 * 16000
    assert abs(lag(decoded, speech_16k)) <= 16
    assert np.corrcoef(decoded[: len(speech_16k)], speech_16k)[0, 1] > 0.99


def flat_video(path, colour, matrix, full, primaries=1, trc=1, bits=8):
  """A video of one colour (R'G'B' of its own primaries), its YCbCr computed here."""
  kr, kb = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}[matrix]
  red, green, blue = colour
  y = kr * red + (1 - kr - kb) * green + kb * blue
  cb, cr = (blue - y) / (2 - 2 * kb), (red - y) / (2 - 2 * kr)
  top = 2**bits - 1
  low, luma, chroma = (0, top, top) if full else (16 << bits - 8, 219 << bits - 8, 224 << bits - 8)
  levels = [round(low + luma * y), *(round((128 << bits - 8) + chroma * c) for c in (cb, cr))]
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=25, options={"crf": "0"})
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv444p" if bits == 8 else "yuv444p10le"
    context = stream.codec_context
    context.colorspace, context.color_range = matrix, 2 if full else 1
    context.color_primaries, context.color_trc = primaries, trc
    for i in range(2):
      frame = av.VideoFrame(64, 64, stream.pix_fmt)
      for plane, value in zip(frame.planes, levels, strict=True):
        kind = np.uint8 if bits == 8 else "<u2"
        plane.update(np.full((64, plane.line_size // np.dtype(kind).itemsize), value, kind).tobytes())
      frame.pts, frame.time_base, frame.colorspace, frame.color_range = i, Fraction(1, 25), matrix, 2 if full else 1
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_matrix_range_and_primaries_of_a_file_are_applied(tmp_path, wide, full, bits):
  """Two levels of 255: 8 bits are rounded when stored and when read."""
  colour = np.array([0.8, 0.55, 0.4])
  stored = colour
  if wide:
    # BT.709 -> BT.2020 in linear light (ITU-R BT.2087).
    to_wide = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    stored = (to_wide @ colour**2.4) ** (1 / 2.4)
  flat_video(tmp_path / "a.mp4", stored, 9 if wide else 1, full, 9 if wide else 1, 14 if wide else 1, bits)
  frames = read_video(tmp_path / "a.mp4")
  assert np.abs(frames[0, 32, 32] - 255 * colour).max() <= 2
  picture = next(iter(stream_pictures(tmp_path / "a.mp4")))
  assert np.abs(picture.pixels[32, 32] - 255 * colour).max() <= 2


def test_hdr_is_said(tmp_path):
  flat_video(tmp_path / "a.mp4", (0.5, 0.4, 0.3), 9, False, 9, 16, 10)
  with pytest.raises(InputError, match=r"HDR \(PQ\): convert the video to SDR first"):
    read_video(tmp_path / "a.mp4")


def test_the_longest_name_is_written_and_its_frames_are_kept(tmp_path):
  """255 bytes: the temporary file and the kept frames have names of their own."""
  path = tmp_path / ("嗨" * 82 + "12345.mp4")
  assert probe(media.write_video(path, moving(3), 25)).frames == 3
  assert list(tmp_path.iterdir()) == [path]
  kept = media.keep_frames(np.zeros((2, 8, 8, 3), np.uint8), path, 25)
  assert kept.parent == tmp_path and len(os.fsencode(kept.name)) <= 255


def test_a_sound_over_full_scale_is_turned_down(tmp_path):
  loud = 10 * speech(1)
  saved = read_audio(media.write_video(tmp_path / "a.mp4", moving(25), 25, loud))[:16000]
  assert np.corrcoef(saved, loud)[0, 1] > 0.95 and np.abs(saved).max() < 1.1
