"""Bad parts of a clip are left out and listed; the rest, and every good clip, is kept whole."""

import re

import numpy as np
import pytest
import soundfile
from data.build.test_prepare import mux, noise, scene, source
from video_files import read_video

from dicetalk_jax.data.build.prepare import PrepareConfig, prepare
from dicetalk_jax.data.records import Clip, Rejected, decode_frames
from dicetalk_jax.media.video import write_video

SMALL = PrepareConfig(size=96)
PLACE = (240, 60, 1)


def results(path, config=SMALL, **values):
  """The clip of a file, and the reasons for what is left out."""
  made = list(prepare(source(path, **values), "clips", config))
  clips = [item for item in made if isinstance(item, Clip)]
  assert len(clips) <= 1
  return (clips[0] if clips else None), [item.reason for item in made if isinstance(item, Rejected)]


def film(tmp_path, *shots):
  frames = [frame for shot in shots for frame in shot]
  return write_video(tmp_path / "a.mp4", frames, 25, noise(len(frames) / 25))


def another_person(count):
  """A head at the same place: mirrored, and of another skin and hair."""
  for frame in scene(PLACE, count=count):
    frame = frame.copy()
    head = frame[60:240, 240:380]
    head[:] = np.clip(0.75 * head[:, ::-1, ::-1] + 10, 0, 255).astype(np.uint8)
    yield frame


def left_out(reasons):
  return [tuple(map(float, re.search(r"from ([\d.]+) s to ([\d.]+) s", reason).groups())) for reason in reasons]


def test_two_people_cut_together_at_one_place(tmp_path):
  clip, reasons = results(film(tmp_path, scene(PLACE, count=32), another_person(48)))
  assert clip.num_frames == 48 and left_out(reasons) == [(0, 1.28)]
  assert "another part is longer" in reasons[0]
  # All frames are of the second person.
  frames = decode_frames(clip.frames).astype(int)
  assert np.abs(frames - frames[20]).mean(axis=(1, 2, 3)).max() < 5


def test_two_scenes_at_different_places(tmp_path):
  clip, reasons = results(film(tmp_path, scene((60, 60, 1), count=50), scene((420, 90, 1), count=30)))
  assert clip.num_frames == 50 and left_out(reasons) == [(2, 3.2)]


def test_real_people_cut_together(tmp_path, examples):
  one, other = (
    read_video(examples / "mead" / f"{name}.mp4")
    for name in ("M030_front_angry_level3_001", "W009_front_happy_level3_001")
  )
  clip, reasons = results(film(tmp_path, one[:60], other[20:60]))
  assert clip.num_frames == 60 and left_out(reasons) == [(2.4, 4)]


def test_one_flash_is_not_a_cut(tmp_path):
  frames = list(scene(PLACE, count=50))
  frames[24] = np.clip(frames[24].astype(int) + 90, 0, 255).astype(np.uint8)
  clip, reasons = results(film(tmp_path, frames))
  assert clip.num_frames == 50 and not reasons


@pytest.mark.parametrize("fade", [0, 10])
def test_a_black_start(tmp_path, fade):
  frames = list(scene(PLACE, count=50))
  black = [np.zeros_like(frames[0])] * 20
  fading = [(frame * (i / fade)).astype(np.uint8) for i, frame in enumerate(frames[:fade])]
  clip, reasons = results(film(tmp_path, black, fading, frames))
  assert 50 <= clip.num_frames <= 50 + fade and len(reasons) >= 1
  assert decode_frames(clip.frames, [0]).mean() > 60
  assert left_out(reasons)[0][0] == 0 and 0.8 <= left_out(reasons)[-1][1] <= 1.2


def test_half_of_a_clip_without_a_face(tmp_path):
  background = next(scene(count=1))
  frames = [*scene(PLACE, count=45), *[background] * 45]
  clip, reasons = results(film(tmp_path, frames))
  assert 40 <= clip.num_frames <= 45 and left_out(reasons)[-1][1] == 3.6
  assert all("face" in reason for reason in reasons)


def test_a_person_who_walks_out(tmp_path):
  wide = scene((160, 60, 1), count=60, move=(8, 0), width=800)
  frames = [*scene((160, 60, 1), count=40, width=800), *[frame[:, :620] for frame in wide]]
  frames = [frame[:, :620] for frame in frames]
  clip, reasons = results(film(tmp_path, frames), PrepareConfig(size=96, smallest_face=48))
  # The face, 20 to 120 pixels right of the head's left edge, touches the picture's edge in frame 40 + 42.
  assert clip is None or 40 <= clip.num_frames <= 83, clip.num_frames
  assert reasons and all("face" in reason for reason in reasons)


@pytest.mark.parametrize(("speed", "count"), [(85, 55), (200, 30), (-200, 30)])
def test_a_moving_head_is_whole_in_every_frame(tmp_path, speed, count):
  x = 40 if speed > 0 else 420
  path = film(tmp_path, scene((x, 60, 1), count=count, move=(speed / 25, 0)))
  clip, reasons = results(path)
  assert clip.num_frames == count and not reasons
  left, top, side = clip.crop
  box_x, _, box_w, _ = clip.face_box
  for i in range(count):
    head = x + round(speed / 25 * i)
    assert left <= head and head + 140 <= left + side, (i, head, clip.crop)
    # The face itself is 100 of these pixels wide.
    scale = 96 / side
    assert box_x <= (head + 30 - left) * scale and box_x + box_w >= (head + 110 - left) * scale
  assert top <= 60 and top + side >= 240


def test_a_head_that_moves_too_far_is_listed(tmp_path):
  clip, reasons = results(film(tmp_path, scene((20, 60, 1), count=60, move=(10, 0), width=800)))
  assert clip is None and "moves over" in reasons[0]


def test_sound_pictures_and_coefficients_keep_their_offset(tmp_path):
  """The sound starts 0.36 s after the picture: what is heard, seen and told of a moment stays together."""
  clicks = np.zeros(round(2.64 * 48000), np.float32) + noise(2.64, 48000) / 300
  clicks[round((1.2 - 0.36) * 48000)] = 0.9
  frames = list(scene(PLACE, count=75))
  for frame in frames[30:32]:  # at 1.2 s
    frame[:, :60] = 255 - frame[:, :60]
  path = mux(tmp_path / "a.mkv", np.arange(75) / 25, clicks, 48000, 0.36, frames=frames, audio_codec="pcm_s16le")
  np.save(tmp_path / "a.npy", np.repeat(np.arange(75, dtype=np.float32)[:, None], 64, axis=1))
  clip, _ = results(path, PrepareConfig(size=96, smallest_face=48), expression=tmp_path / "a.npy")
  assert clip.num_frames == 66
  assert abs(np.argmax(np.abs(clip.audio)) / 16000 - (1.2 - 0.36)) < 0.002
  np.testing.assert_allclose(clip.expression[:, 0], np.arange(9, 75), atol=1e-4)


def test_the_track_that_is_not_silent_is_taken(tmp_path):
  import av

  sound = noise(2, 48000)
  with av.open(str(tmp_path / "a.mkv"), "w") as container:
    video = container.add_stream("libx264", rate=25)
    video.height, video.width, video.pix_fmt = 300, 620, "yuv420p"
    tracks = [container.add_stream("pcm_f32le", rate=48000, layout="mono") for _ in range(2)]
    for picture in scene(PLACE, count=50):
      container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(video.encode(None))
    for track, samples in zip(tracks, (0 * sound, 4.2 * sound), strict=True):
      frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
      frame.sample_rate, frame.pts = 48000, 0
      container.mux(track.encode(frame))
      container.mux(track.encode(None))
  clip, _ = results(tmp_path / "a.mkv")
  # It is louder than full scale, which a record is not.
  assert np.abs(clip.audio).max() == 1 and np.abs(clip.audio).mean() > 0.1


def test_channels_that_cancel_out(tmp_path):
  path = film(tmp_path, scene(PLACE, count=50))
  sound = noise(2)
  soundfile.write(tmp_path / "a.wav", np.stack([sound, -sound], axis=1), 16000, "FLOAT")
  clip, _ = results(path, audio=tmp_path / "a.wav")
  np.testing.assert_allclose(clip.audio, sound, atol=1e-6)


def test_every_real_clip_is_kept_whole(examples):
  paths = sorted((examples / "mead").glob("*.mp4"))
  assert len(paths) == 16
  for path in paths:
    clip, reasons = results(path, PrepareConfig(size=64), audio=examples / "speech" / "male.wav")
    assert not reasons, (path.name, reasons)
    assert clip.num_frames == len(read_video(path))
