"""Preparing: a clip shows and sounds what its file does at each moment, whatever its rates; bad files say why."""

import functools
import itertools
import re
import subprocess
import sys
import tempfile
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import scipy.io
import soundfile
from conftest import GOLDEN, relative_error
from video_files import probe, read_video

from dicetalk_jax.data.build.prepare import PrepareConfig, prepare
from dicetalk_jax.data.records import Clip, Rejected, Source, decode_frames
from dicetalk_jax.errors import InputError, OutputError
from dicetalk_jax.media.audio import read_audio
from dicetalk_jax.media.face import Face
from dicetalk_jax.media.image import read_image, resize
from dicetalk_jax.media.video import write_video

SIZE = 96
SMALL = PrepareConfig(size=SIZE)


def centred(image):
  """A detector for pictures without a face: one of four fifths of the picture."""
  height, width = image.shape[:2]
  return [Face((width // 10, height // 10, width * 8 // 10, height * 8 // 10), 50.0)]


def numbered(count, height=SIZE, width=SIZE):
  """Frames that show their number below 256: the left half its sixteens, the right half its ones.

  The ones run up and down in turn: a step of a few grey levels is not a cut.
  """
  for number in range(count):
    high, low = divmod(number, 16)
    frame = np.empty((height, width, 3), np.uint8)
    frame[:, : width // 2], frame[:, width // 2 :] = high * 14 + 20, (15 - low if high % 2 else low) * 14 + 20
    yield frame


def numbers(clip):
  frames = decode_frames(clip.frames).astype(float)
  width = frames.shape[2]
  high, low = frames[:, 20:-20, 8 : width // 2 - 8], frames[:, 20:-20, width // 2 + 8 : -8]
  high, low = (np.rint((half.mean(axis=(1, 2, 3)) - 20) / 14).astype(int) for half in (high, low))
  return (16 * high + np.where(high % 2, 15 - low, low)).tolist()


def noise(seconds, rate=16000):
  return np.random.default_rng(0).uniform(-0.3, 0.3, round(seconds * rate)).astype(np.float32)


def clicks(times, seconds, rate):
  """Silence with a short burst at each time, its middle there."""
  sound = np.zeros(round(seconds * rate), np.float32)
  reach = round(0.0015 * rate)
  for time in times:
    middle = round(time * rate)
    sound[middle - reach : middle + reach + 1] += 0.9 * np.hanning(2 * reach + 1).astype(np.float32)
  return sound


def mux(
  path, times, sound=None, rate=48000, sound_start=0.0, frames=None, audio_codec="aac", codec="libx264", **stream
):
  """A file whose pictures begin at `times` in seconds and whose sound begins at sound_start; `ticks` a second."""
  ticks = stream.pop("ticks", 90000)
  with av.open(str(path), "w") as container:
    video = container.add_stream(codec, rate=stream.pop("rate_said", 25))
    video.pix_fmt = stream.pop("pix_fmt", "yuv420p")
    video.codec_context.time_base = Fraction(1, ticks)
    frames = numbered(len(times)) if frames is None else frames
    audio = None if sound is None else container.add_stream(audio_codec, rate=rate, layout="mono")
    for index, (picture, time) in enumerate(zip(frames, times, strict=True)):
      if index == 0:
        video.height, video.width = picture.shape[:2]
        for name, value in stream.items():
          setattr(video.codec_context, name, value)
      frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=video.pix_fmt)
      frame.pts, frame.time_base = round(time * ticks), Fraction(1, ticks)
      container.mux(video.encode(frame))
    container.mux(video.encode(None))
    if audio:
      form = audio.codec_context.format.name
      for start in range(0, len(sound), 1024):
        block = sound[None, start : start + 1024]
        block = (block * 32767).astype(np.int16) if form == "s16" else block
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format=form, layout="mono")
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = start + round(sound_start * rate)
        container.mux(audio.encode(frame))
      container.mux(audio.encode(None))
  return path


def source(path, **values):
  return Source("set/a", path, identity="somebody", video="recording", **values)


def only(path, config=SMALL, detector=centred, **values) -> Clip:
  (clip,) = prepare(source(path, **values), "clips", config, detector)
  assert isinstance(clip, Clip), clip
  clip.example()  # lengths agree
  return clip


def reason(path, config=SMALL, detector=centred, **values) -> str:
  (rejected,) = prepare(source(path, **values), "clips", config, detector)
  assert isinstance(rejected, Rejected) and rejected.clip == "set/a", rejected
  return rejected.reason


def test_a_clip_is_the_file(tmp_path):
  path = write_video(tmp_path / "a.mp4", numbered(50), 25, sound := noise(2))
  clip = only(path, emotion="happy", level=2)
  assert (clip.clip, clip.source, clip.identity, clip.video) == ("set/a", "clips", "somebody", "recording")
  assert (clip.emotion, clip.level, clip.expression, clip.truth) == ("happy", 2, None, None)
  assert (clip.num_frames, clip.height, clip.width) == (50, SIZE, SIZE)
  assert numbers(clip) == list(range(50))
  assert clip.face_box == (9, 9, 76, 76)
  assert clip.audio.dtype == np.float32 and np.corrcoef(clip.audio, sound)[0, 1] > 0.9
  assert only(path).frames == clip.frames  # the same file gives the same bytes


@pytest.mark.parametrize("fps", [30, 24, 50, 12, Fraction(30000, 1001), Fraction(24000, 1001)])
def test_any_rate_becomes_25(tmp_path, fps):
  count = round(2 * fps)
  path = write_video(tmp_path / "a.mp4", numbered(count), fps, noise(2))
  clip = only(path)
  expected = [min(count - 1, int((Fraction(k, 25) + Fraction(1, 1000)) * fps)) for k in range(clip.num_frames)]
  assert 0 <= clip.num_frames - count / fps * 25 < 1 and numbers(clip) == expected


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_rate_becomes_25(tmp_path, suffix):
  steps = np.random.default_rng(3).choice([0.02, 0.033, 0.05, 0.2], 60)
  times = np.concatenate([[0], np.cumsum(steps)])
  path = mux(tmp_path / f"a{suffix}", times, noise(times[-1] + 0.04, 48000))
  clip = only(path, PrepareConfig(size=SIZE, longest=20))
  # A time stamp of Matroska is within a millisecond.
  early, late = (np.searchsorted(times, np.arange(clip.num_frames) / 25 + d) - 1 for d in (-2e-3, 2e-3))
  found = np.array(numbers(clip))
  assert clip.num_frames >= int(times[-1] * 25)
  assert ((found == early) | (found == late)).all() and (early == late).mean() > 0.8


@pytest.mark.parametrize(
  ("suffix", "codec", "rate"),
  [(".mp4", "aac", 44100), (".mkv", "pcm_s16le", 44100), (".mkv", "aac", 48000), (".ts", "mp2", 48000)],
)
@pytest.mark.parametrize("shift", [0.0, 0.12, -0.08])
def test_sound_and_picture_stay_together(tmp_path, suffix, codec, rate, shift):
  """The picture changes at 0.4, 0.8 .. s of the file, and there it clicks, wherever the sound begins."""
  times = 1 + np.arange(50) / 25
  moments = np.arange(10, 50, 10) / 25
  sound = clicks(moments - shift, 2 - shift, rate)
  path = mux(tmp_path / f"a{suffix}", times, sound, rate, 1 + shift, audio_codec=codec)
  clip = only(path)
  assert clip.num_frames == 50 and numbers(clip) == list(range(50))
  for moment in moments:
    first = round((moment - 0.1) * 16000)
    heard = first + np.argmax(np.abs(clip.audio[first : first + 3200]))
    assert abs(heard - moment * 16000) <= 16, (heard / 16000, moment)


@pytest.mark.parametrize(
  ("suffix", "codec", "rate"),
  [(".m4a", "aac", 44100), (".m4a", "aac", 48000), (".mp3", "libmp3lame", 44100), (".ogg", "libopus", 48000)],
)
def test_a_separate_sound_begins_with_the_first_picture(tmp_path, suffix, codec, rate):
  path = mux(tmp_path / "a.mkv", 3 + np.arange(50) / 25)
  with av.open(str(tmp_path / f"a{suffix}"), "w") as container:
    stream = container.add_stream(codec, rate=rate, layout="mono")
    fifo, form = av.AudioFifo(), stream.codec_context.format.name
    block = clicks([0.4, 1.6], 2, rate)[None]
    frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    for piece in av.AudioResampler(format=form, layout="mono", rate=rate).resample(frame):
      fifo.write(piece)
    while piece := fifo.read(960 if codec == "libopus" else 1024, partial=True):
      container.mux(stream.encode(piece))
    container.mux(stream.encode(None))
  clip = only(path, audio=tmp_path / f"a{suffix}")
  assert numbers(clip) == list(range(50))
  for moment in (0.4, 1.6):
    first = round((moment - 0.1) * 16000)
    heard = first + np.argmax(np.abs(clip.audio[first : first + 3200]))
    assert abs(heard - moment * 16000) <= 16, (heard / 16000, moment)


def test_sound_much_later_than_the_picture_begins_the_clip(tmp_path):
  sound = clicks([0.4], 1.6, 48000) + noise(1.6, 48000) / 100
  clip = only(mux(tmp_path / "a.mkv", np.arange(50) / 25, sound, sound_start=0.4, audio_codec="pcm_s16le"))
  assert numbers(clip) == list(range(10, 50))
  assert abs(np.argmax(clip.audio) - 0.4 * 16000) <= 16 and np.abs(clip.audio[:640]).max() > 1e-3


@pytest.mark.parametrize(("seconds", "frames"), [(1.99, 50), (1.85, 50), (1.62, 40), (1.2, 30), (2.5, 50)])
def test_frames_without_sound_are_cut(tmp_path, seconds, frames):
  path = write_video(tmp_path / "a.mp4", numbered(50), 25)
  soundfile.write(tmp_path / "a.wav", noise(seconds, 44100), 44100, "FLOAT")
  clip = only(path, audio=tmp_path / "a.wav")
  assert clip.num_frames == frames and len(clip.audio) == frames * 640
  expected = read_audio(tmp_path / "a.wav")[: len(clip.audio)]
  np.testing.assert_allclose(clip.audio[: len(expected)], expected, atol=1e-6)
  assert not clip.audio[len(expected) :].any()


def test_a_hole_in_the_sound_is_silent(tmp_path):
  """Packets that are missing leave a gap in the time stamps; what follows stays where it belongs."""
  whole, holed = tmp_path / "whole.mkv", tmp_path / "holed.mkv"
  mux(whole, np.arange(75) / 25, clicks([0.4, 2.4], 3, 48000) + noise(3, 48000) / 100, audio_codec="pcm_s16le")
  with av.open(str(whole)) as given, av.open(str(holed), "w") as container:
    streams = {stream.index: container.add_stream_from_template(stream) for stream in given.streams}
    for packet in given.demux():
      sounding = packet.stream.type == "audio"
      if packet.size and not (sounding and 1 <= packet.pts * packet.time_base < 2):
        packet.stream = streams[packet.stream.index]
        container.mux(packet)
  clip = only(holed)
  assert clip.num_frames == 75 and np.abs(clip.audio[17000:31000]).max() < 1e-4
  for time in (0.4, 2.4):
    first = round(time * 16000) - 1600
    assert abs(np.argmax(clip.audio[first : first + 3200]) - 1600) <= 16


def test_a_long_file_is_cut_without_loss_or_overlap(tmp_path):
  path = write_video(tmp_path / "a.mp4", numbered(187), 30, sound := noise(187 / 30))
  clips = list(prepare(source(path), "clips", PrepareConfig(size=SIZE, longest=2), centred))
  whole = only(path)
  assert [clip.clip for clip in clips] == ["set/a/000", "set/a/001", "set/a/002", "set/a/003"]
  assert [clip.num_frames for clip in clips] == [39, 39, 39, 39]
  shown = [number for clip in clips for number in numbers(clip)]
  assert shown == numbers(whole) == [int(k * 1.2 + 0.01) for k in range(156)]
  np.testing.assert_array_equal(np.concatenate([clip.audio for clip in clips]), whole.audio)
  assert np.corrcoef(whole.audio[: len(sound)], sound)[0, 1] > 0.9


def coefficients(path, rows, offset=0.0):
  values = np.zeros((rows, 257), np.float32)
  values[:, 80:144] = np.arange(rows)[:, None] + offset
  scipy.io.savemat(path, {"coeff": values, "transform_params": np.zeros((rows, 5))})
  return path


@pytest.mark.parametrize(("fps", "rows"), [(25, 60), (25, 58), (25, 62), (30, 72), (30, 71), (50, 120)])
def test_expression_follows_the_frames(tmp_path, fps, rows):
  path = write_video(tmp_path / "a.mp4", numbered(round(2.4 * fps)), fps, noise(2.4))
  clips = list(
    prepare(
      source(path, expression=coefficients(tmp_path / "a.mat", rows)), "mead", PrepareConfig(SIZE, longest=2), centred
    )
  )
  assert [clip.num_frames for clip in clips] == [30, 30]
  found = np.concatenate([clip.expression for clip in clips])
  assert found.dtype == np.float32 and found.shape == (60, 64)
  expected = np.minimum(np.arange(60) * fps / 25, rows - 1)
  np.testing.assert_allclose(found, np.repeat(expected[:, None], 64, axis=1), atol=1e-4)


def test_expression_of_a_copy_at_25_frames(tmp_path):
  path = write_video(tmp_path / "a.mp4", numbered(72), 30, noise(2.4))
  clip = only(path, expression=coefficients(tmp_path / "a.mat", 60))
  np.testing.assert_allclose(clip.expression[:, 0], np.arange(60), atol=1e-4)


def test_expression_of_another_recording(tmp_path):
  path = write_video(tmp_path / "a.mp4", numbered(50), 25, noise(2))
  said = reason(path, expression=coefficients(tmp_path / "a.mat", 53))
  assert "53 rows" in said and "50 frames" in said
  (tmp_path / "b.mat").write_bytes(b"no matrix")
  assert "b.mat is damaged" in reason(path, expression=tmp_path / "b.mat")
  assert "c.mat does not exist" in reason(path, expression=tmp_path / "c.mat")


def scene(*faces, height=300, width=620, count=30, move=(0, 0)):
  """Frames with the drawn portrait at each (x, y, scale), moving by so many pixels a frame."""
  portrait = read_image(GOLDEN / "portrait.png")[10:190, 80:220]  # the head: its face is 20, 20, 100, 135
  shades = np.random.default_rng(0).normal((150, 140, 120), 3, (height, width, 3))
  for index in range(count):
    frame = shades.copy()
    for x, y, scale in faces:
      head = resize(portrait, (round(140 * scale), round(180 * scale)))
      left, top = round(x + move[0] * index), round(y + move[1] * index)
      frame[top : top + head.shape[0], left : left + head.shape[1]] = head
    yield np.clip(frame, 0, 255).astype(np.uint8)


def test_the_crop_is_steady_and_holds_the_head(tmp_path):
  path = write_video(tmp_path / "a.mp4", scene((150, 90, 1), move=(3, 1)), 25, noise(1.2))
  clip = only(path, PrepareConfig(size=128), None)
  frames, original = decode_frames(clip.frames), read_video(path)
  # The background does not move, so the crop does not; it is found again by its scale and place.
  assert np.abs(frames[0, :, -6:].astype(float) - frames[-1, :, -6:]).mean() < 6
  x, y, w, h = clip.face_box
  assert 0.35 * 128 < h < 0.8 * 128 and x > 0 and y > 0 and x + w < 128 and y + h < 128
  # The head's whole outline, hair included, is inside in the first and the last frame.
  background = np.median(original[0][:60], axis=(0, 1))
  for frame in (frames[0], frames[-1]):
    away = np.abs(frame.astype(float) - background).max(axis=-1) > 40
    assert away[30:100].any() and not away[:, :2].any() and not away[:2].any() and not away[:, -2:].any()


def test_a_clip_is_one_person(tmp_path):
  path = write_video(tmp_path / "a.mp4", scene((60, 90, 1), (420, 90, 1)), 25, noise(1.2))
  assert "more than one face" in reason(path, detector=None)
  path = write_video(tmp_path / "b.mp4", scene(), 25, noise(1.2))
  assert "no face was found" in reason(path, detector=None)


def test_each_clip_of_a_file_stands_for_itself(tmp_path):
  """A face, then none, then the face at another place: two clips, each with a crop of its own."""
  parts = [*scene((40, 100, 1), count=26), *scene(count=26), *scene((460, 60, 1), count=26)]
  path = write_video(tmp_path / "a.mp4", parts, 25, noise(3.12))
  first, second, third = prepare(source(path), "clips", PrepareConfig(size=96, longest=1.2, shortest=0.5))
  assert isinstance(second, Rejected) and second.clip == "set/a/001" and "no face" in second.reason
  assert [clip.num_frames for clip in (first, third)] == [26, 26]
  for clip in (first, third):
    x, y, w, h = clip.face_box
    skin = decode_frames(clip.frames)[13, y + h // 2 : y + h // 2 + 8, x + w // 4 : x + w // 4 + 8].mean(axis=(0, 1))
    assert 30 < w < 70 and 30 < h < 80 and skin[0] > skin[2] + 30, (clip.face_box, skin)


def test_a_small_face(tmp_path):
  path = write_video(tmp_path / "a.mp4", numbered(30, 480, 640), 25, noise(1.2))

  def far(image):
    height, width = image.shape[:2]
    return [Face((width // 2, height // 2, width // 16, height // 9), 10.0)]

  assert "face is 40x52 pixels; at least 64" in reason(path, detector=far)
  assert only(path, PrepareConfig(size=SIZE, smallest_face=40), far).num_frames == 30


def test_a_lying_picture_is_turned_and_pixels_are_square(tmp_path):
  upright = np.zeros((128, 96, 3), np.uint8)
  upright[:64], upright[64:] = (220, 40, 40), (40, 40, 220)
  flat = write_video(tmp_path / "flat.mp4", [np.rot90(upright)] * 30, 25, noise(1.2))
  turned = tmp_path / "turned.mp4"
  whole = bytearray(flat.read_bytes())
  matrix = whole.find(b"tkhd") + 4 + 40
  one, zero, minus = (1 << 16).to_bytes(4, "big"), bytes(4), (0x100000000 - (1 << 16)).to_bytes(4, "big")
  whole[matrix : matrix + 20] = zero + one + zero + minus + zero  # a quarter clockwise, as phones write it
  turned.write_bytes(whole)
  clip = only(turned)
  frame = decode_frames(clip.frames)[5].astype(int)
  assert np.abs(frame[10, 48] - (220, 40, 40)).max() < 12 and np.abs(frame[-10, 48] - (40, 40, 220)).max() < 12
  seen = []

  def watching(image):
    seen.append(image.shape)
    return centred(image)

  only(turned, detector=watching)
  narrow = mux(
    tmp_path / "narrow.mp4", np.arange(30) / 25, noise(1.2, 48000), frames=numbered(30, 96, 64),
    sample_aspect_ratio=Fraction(3, 2),
  )  # fmt: skip
  only(narrow, detector=watching)
  assert set(seen) == {(128, 96, 3), (96, 96, 3)}


@pytest.mark.parametrize(
  ("suffix", "codec", "pix_fmt", "height", "width"),
  [
    (".mkv", "libx264", "yuv422p10le", 97, 130),
    (".mkv", "libx264", "yuv444p", 97, 131),
    (".avi", "mpeg4", "yuv420p", 90, 110),
    (".webm", "libvpx-vp9", "yuv420p", 101, 99),
    (".mkv", "ffv1", "bgr0", 96, 96),
    (".mov", "mjpeg", "yuvj422p", 96, 120),
  ],
)
def test_any_kind_of_file(tmp_path, suffix, codec, pix_fmt, height, width):
  frames, sound = numbered(30, height, width), noise(1.2, 48000)
  path = mux(
    tmp_path / f"a{suffix}", np.arange(30) / 25, sound, frames=frames, codec=codec, pix_fmt=pix_fmt, ticks=1000,
    audio_codec="libopus" if suffix == ".webm" else "pcm_s16le",
  )  # fmt: skip
  clip = only(path)
  assert clip.num_frames == 30
  assert np.abs(np.array(numbers(clip)) - np.arange(30)).max() == 0


def test_many_channels_and_titles_in_another_encoding(tmp_path):
  path = tmp_path / "a.mkv"
  with av.open(str(path), "w") as container:
    container.metadata["title"] = "Cafe Mueller"
    video = container.add_stream("libx264", rate=25)
    video.width = video.height = SIZE
    audio = container.add_stream("pcm_s16le", rate=16000, layout="hexadecagonal")
    for picture in numbered(30):
      container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    samples = np.repeat((noise(1.2)[:, None] * 32767).astype(np.int16), 16, axis=1)
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="hexadecagonal")
    frame.sample_rate = 16000
    container.mux([*video.encode(None), *audio.encode(frame), *audio.encode(None)])
  path.write_bytes(path.read_bytes().replace(b"Cafe", b"Caf\xe9"))
  clip = only(path)
  assert numbers(clip) == list(range(30))
  np.testing.assert_allclose(clip.audio, noise(1.2), atol=1e-4)


def test_what_cannot_be_used_says_why(tmp_path, capfd):
  good = write_video(tmp_path / "good.mp4", numbered(50), 25, noise(2))
  whole = good.read_bytes()
  (tmp_path / "empty.mp4").touch()
  (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(30000))
  (tmp_path / "text.mp4").write_text("not a video " * 100)
  (tmp_path / "headless.mp4").write_bytes(whole[len(whole) // 2 :])
  write_video(tmp_path / "mute.mp4", numbered(50), 25)
  write_video(tmp_path / "silent.mp4", numbered(50), 25, noise(2) / 1e4)
  write_video(tmp_path / "short.mp4", numbered(20), 25, noise(0.8))
  soundfile.write(tmp_path / "sound.wav", noise(2), 16000)
  mux(tmp_path / "frozen.mkv", [*np.arange(30) / 25, *(4 + np.arange(30) / 25)], noise(5, 48000))
  said = {
    "none.mp4": "does not exist",
    ".": "is a folder",
    "empty.mp4": "empty",
    "noise.mp4": "not a video",
    "text.mp4": "no pictures|not a video",
    "headless.mp4": "not a video",
    "mute.mp4": "has no sound",
    "silent.mp4": "silent",
    "short.mp4": r"0\.8 s",
    "sound.wav": "no pictures",
    "frozen.mkv": r"stands still from 1\.16 s to 4\.00 s",
  }
  for name, text in said.items():
    found = reason(tmp_path / name)
    assert re.search(text, found), (name, found)
    assert "\n" not in found
  assert "none.wav does not exist" in reason(good, audio=tmp_path / "none.wav")
  assert "no sound stream" in reason(good, audio=tmp_path / "mute.mp4")
  bad = noise(2)
  bad[100] = np.nan
  soundfile.write(tmp_path / "nan.wav", bad, 16000, "FLOAT")
  assert "NaN" in reason(good, audio=tmp_path / "nan.wav")
  assert "Traceback" not in capfd.readouterr().err


def test_a_full_temporary_folder_is_told_as_such(tmp_path, monkeypatch):
  video = write_video(tmp_path / "a.mp4", numbered(50), 25, noise(2))
  full = functools.partial(Path("/dev/full").open, "wb")
  monkeypatch.setattr(tempfile, "TemporaryFile", full)
  with pytest.raises(OutputError, match=r"temporary folder .* \(No space left on device\).*TMPDIR"):
    list(prepare(Source("a", video, "i", "v"), "clips", SMALL, centred))


def test_of_a_file_cut_short_what_is_there(tmp_path):
  whole = write_video(tmp_path / "a.mp4", numbered(100), 25, noise(4)).read_bytes()
  kept = []
  for share in (0.05, 0.3, 0.6, 0.9):
    (tmp_path / "cut.mp4").write_bytes(whole[: int(len(whole) * share)])
    (result,) = prepare(source(tmp_path / "cut.mp4"), "clips", SMALL, centred)
    if isinstance(result, Clip):
      # Where the cut took what lies between two pictures, the earlier is held.
      found = np.array(numbers(result))
      assert (found[:-4] == np.arange(len(found) - 4)).all() and (np.diff(found) >= 0).all()
      assert np.abs(result.audio).max() > 0.1
      kept.append(result.num_frames)
    else:
      assert re.search("are needed|not a video that can be read", result.reason), result.reason
  assert len(kept) >= 2 and kept == sorted(kept) and 25 <= kept[0] < kept[-1] < 100


def test_a_file_that_changes_while_it_is_read(tmp_path):
  path = tmp_path / "a.mp4"
  short = write_video(tmp_path / "short.mp4", numbered(30), 25, noise(1.2)).read_bytes()
  for other, said in ((short, ["", "other pictures"]), (b"gone", ["not a video", "not a video"])):
    write_video(path, numbered(60), 25, noise(2.4))

    def replacing(image, other=other):
      (tmp_path / "new").write_bytes(other)
      (tmp_path / "new").replace(path)
      return centred(image)

    results = list(prepare(source(path), "clips", PrepareConfig(size=SIZE, longest=2), replacing))
    assert [result.clip for result in results] == ["set/a/000", "set/a/001"]
    for result, text in zip(results, said, strict=True):
      assert text in result.reason if isinstance(result, Rejected) else text == "", (result, text)


def test_a_mistake_of_ours_is_no_rejection(tmp_path):
  path = write_video(tmp_path / "a.mp4", numbered(30), 25, noise(1.2))

  def broken(image):
    raise ValueError("ours")

  with pytest.raises(ValueError, match="ours"):
    list(prepare(source(path), "clips", SMALL, broken))


def test_damaged_bytes_never_raise(tmp_path):
  whole = write_video(tmp_path / "a.mp4", numbered(40), 25, noise(1.6)).read_bytes()
  generator = np.random.default_rng(7)
  for _ in range(12):
    damaged = np.frombuffer(whole, np.uint8).copy()
    places = generator.integers(0, len(damaged), generator.integers(1, 60))
    damaged[places] = generator.integers(0, 256, len(places))
    (tmp_path / "b.mp4").write_bytes(damaged.tobytes())
    for result in prepare(source(tmp_path / "b.mp4"), "clips", SMALL, centred):
      if isinstance(result, Clip):
        assert len(decode_frames(result.frames)) == result.num_frames
        result.example()
      else:
        assert result.reason


def test_memory_does_not_grow_with_the_file(tmp_path):
  peaks = []
  for seconds in (3, 12):
    frames = itertools.repeat(next(numbered(1, 128, 128)), seconds * 25)
    path = write_video(tmp_path / f"{seconds}.mkv", frames, 25, noise(seconds))
    tracemalloc.start()
    for clip in prepare(source(path), "clips", PrepareConfig(size=SIZE, longest=3), centred):
      assert isinstance(clip, Clip)
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert peaks[1] < peaks[0] + 20 * 128 * 128 * 3 and peaks[1] < 60 * 128 * 128 * 3, peaks


@pytest.mark.parametrize(
  ("values", "said"),
  [
    ({"size": 95}, "even.*95"),
    ({"size": 8}, "at least 32"),
    ({"longest": 1.5}, "twice"),
    ({"shortest": 0}, "frame"),
  ],
)
def test_settings_that_contradict(values, said):
  with pytest.raises(InputError, match=said):
    PrepareConfig(**values)


def test_it_runs_in_a_process_of_its_own_without_the_networks(tmp_path):
  path = write_video(tmp_path / "a.mp4", numbered(30), 25, noise(1.2))
  script = (
    "import sys\n"
    "from pathlib import Path\n"
    "from dicetalk_jax.data.build.prepare import PrepareConfig, prepare\n"
    "from dicetalk_jax.data.records import Source\n"
    f"print(*prepare(Source('a', Path({str(path)!r}), 'b', 'c'), 'clips', PrepareConfig()))\n"
    "print([name for name in ('jax', 'flax', 'torch', 'transformers', 'tensorflow_datasets') if name in sys.modules])\n"
  )
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
  assert done.returncode == 0, done.stderr
  assert "no face was found" in done.stdout and done.stdout.rstrip().endswith("[]"), done.stdout


def test_real_clips_of_mead(tmp_path, examples):
  for name in ("M030_front_angry_level3_001", "W009_front_happy_level3_001"):
    path = examples / "mead" / f"{name}.mp4"
    clip = only(
      path,
      PrepareConfig(size=128),
      None,
      expression=path.with_suffix(".mat"),
      audio=examples / "speech" / "male.wav",
    )
    original, fps = read_video(path), probe(path).fps
    coefficient = scipy.io.loadmat(path.with_suffix(".mat"))["coeff"]
    assert fps == 25 and clip.num_frames == len(original) == len(coefficient)
    np.testing.assert_allclose(clip.expression, coefficient[:, 80:144], atol=1e-5)
    # 256×256 is cut to the face already: all of it is kept.
    expected = np.stack([resize(frame, (128, 128)) for frame in original[::20]])
    assert relative_error(decode_frames(clip.frames, range(0, len(original), 20)), expected) < 0.03
    x, y, w, h = clip.face_box
    assert 15 < x < 35 and 5 < y < 25 and 65 < w < 90 and 85 < h < 115


def test_a_real_talk_at_30_frames(tmp_path, examples):
  path = examples / "talking_head_with_audio.mp4"
  clips = list(prepare(source(path), "clips", PrepareConfig(size=64)))
  assert [clip.num_frames for clip in clips] == [216, 217, 217]
  sound = read_audio(path)
  heard = np.concatenate([clip.audio for clip in clips])
  np.testing.assert_allclose(heard[: len(sound)], sound[: len(heard)], atol=1e-6)
  for clip in clips:
    x, y, w, h = clip.face_box
    assert 5 < x < 20 and 3 < y < 20 and 30 < w < 45 and 35 < h < 50, clip.face_box
