"""Whole sets, from files in the published layouts to records read back, and the drawn world."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
import soundfile
import tensorflow_datasets as tfds
from video_files import read_video

from dicetalk_jax.cli import main
from dicetalk_jax.data.build.folder import ClipsLayout
from dicetalk_jax.data.build.mead import MeadLayout
from dicetalk_jax.data.build.prepare import PrepareConfig
from dicetalk_jax.data.build.synthetic import SyntheticLayout
from dicetalk_jax.data.build.tfds import Clips, Mead, Synthetic, build_set
from dicetalk_jax.data.build.tracking import cut
from dicetalk_jax.data.records import clip_of, decode_frames
from dicetalk_jax.data.sets import Records
from dicetalk_jax.media.expression import read_expression
from dicetalk_jax.media.video import write_video
from dicetalk_jax.world.drawing import draw_clip

SIZE = 192
# Drawn people whose frontal faces the detector finds at this size.
PEOPLE = {"M003": 1, "W009": 4}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
  """(person, emotion) -> what was drawn, with its video file beside it."""
  folder, clips = tmp_path_factory.mktemp("drawn"), {}
  for name, person in PEOPLE.items():
    for emotion in ("neutral", "happy"):
      clip = draw_clip(person, emotion, 1, "The rain came early.", size=SIZE)
      path = folder / f"{name}_{emotion}.mp4"
      write_video(path, clip.frames, 25, clip.audio, 16000)
      clips[name, emotion] = clip, path
  return clips


def put(path, source):
  path.parent.mkdir(parents=True, exist_ok=True)
  shutil.copy(source, path)
  return path


def clips_in(folder, *splits):
  sources = [Records(folder, split) for split in splits or tfds.builder_from_directory(str(folder)).info.splits]
  return {clip.clip: clip for source in sources for clip in map(clip_of, source)}


def run(*arguments):
  return main([str(argument) for argument in arguments])


def same_pictures(clip, drawn):
  """Peak signal-to-noise ratio in dB of a record's frames against the same crop of what was drawn."""
  frames = decode_frames(clip.frames)
  expected = np.stack([cut(picture, clip.crop, clip.width) for picture in drawn.frames[: len(frames)]])
  return 10 * np.log10(255**2 / np.square(frames[: len(expected)].astype(float) - expected).mean())


def same_sound(clip, drawn):
  n = min(len(clip.audio), len(drawn.audio))
  return np.corrcoef(clip.audio[:n], drawn.audio[:n])[0, 1]


def test_mead(drawn, tmp_path, capsys):
  for (name, emotion), (clip, path) in drawn.items():
    video = put(tmp_path / f"MEAD/{name}/video/front/{emotion}/level_1/001.mp4", path)
    sound = tmp_path / f"MEAD/{name}/audio/{emotion}/level_1/001.wav"
    sound.parent.mkdir(parents=True)
    soundfile.write(sound, clip.audio, 16000)
    scipy.io.savemat(video.with_suffix(".mat"), {"coeff": np.pad(clip.expression, ((0, 0), (80, 113)))})
  broken = tmp_path / "MEAD/M003/video/front/happy/level_1/000.mp4"
  broken.write_bytes(b"this is no video")
  target = tmp_path / "mead"
  assert run("data", "build", "mead", "--root", tmp_path / "MEAD", "--out", target, "--size", SIZE) == 0
  said = capsys.readouterr().out
  assert "4 clips" in said
  assert "left out: 1" in said
  assert "M003/front/happy/level_1/000" in (target / "rejected.csv").read_text()
  clips = clips_in(target)
  assert len(clips) == 4
  for (name, emotion), (made, _) in drawn.items():
    clip = clips[f"{name}/front/{emotion}/level_1/001"]
    assert (clip.identity, clip.emotion, clip.level, clip.source) == (f"mead/{name}", emotion, 1, "mead")
    assert (clip.width, clip.height) == (SIZE, SIZE)
    assert abs(clip.num_frames - len(made.frames)) <= 1
    # Sound is not resampled on the way; pictures are coded twice, and cropped.
    assert same_sound(clip, made) > 0.999
    assert same_pictures(clip, made) > 32
    np.testing.assert_allclose(clip.expression, made.expression[: clip.num_frames], atol=1e-5)
  assert {clip.split for clip in clips.values() if clip.identity == "mead/M003"} != {
    clip.split for clip in clips.values() if clip.identity == "mead/W009"
  }
  # By TFDS' own class and manual_dir: the same records.
  builder = Mead(data_dir=tmp_path / "tfds", layout=MeadLayout(prepare=PrepareConfig(size=SIZE)))
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / "MEAD"))
  again = {clip.clip: clip for split in ("train", "test") for clip in map(clip_of, builder.as_data_source(split))}
  assert {name: clip.frames for name, clip in again.items()} == {name: clip.frames for name, clip in clips.items()}
  assert "tensorflow" not in sys.modules


def test_hdtf_and_voxceleb2(drawn, tmp_path):
  names = {"M003": ("WDA_AnnExample_000", "id00012"), "W009": ("RD_Radio1_000", "id00017")}
  for (name, emotion), (_, path) in drawn.items():
    hdtf, voxceleb = names[name]
    put(tmp_path / f"HDTF/{hdtf}_{emotion}.mp4", path)
    put(tmp_path / f"VoxCeleb2/dev/mp4/{voxceleb}/{emotion}/00001.mp4", path)
  for kind, root in (("hdtf", "HDTF"), ("voxceleb2", "VoxCeleb2")):
    assert run("data", "build", kind, "--root", tmp_path / root, "--out", tmp_path / kind, "--size", 128) == 0
    clips = clips_in(tmp_path / kind)
    assert len(clips) == 4
    assert {(clip.emotion, clip.level, clip.source) for clip in clips.values()} == {(None, 0, kind)}
    for (name, emotion), (made, _) in drawn.items():
      hdtf, voxceleb = names[name]
      clip = clips[f"{hdtf}_{emotion}" if kind == "hdtf" else f"dev/{voxceleb}/{emotion}/00001"]
      assert same_sound(clip, made) > 0.99  # AAC is between the two
      assert same_pictures(clip, made) > 32
      assert clip.video == (hdtf if kind == "hdtf" else f"{voxceleb}/{emotion}")
    by_split = {clip.identity: clip.split for clip in clips.values()}
    assert sorted(by_split.values()) == ["test", "train"]


def test_loose_clips_with_an_unreadable_one_in_the_middle(drawn, tmp_path, capsys):
  for i, (_, path) in enumerate(drawn.values()):
    put(tmp_path / f"mine/{i}.mp4", path)
  whole = (tmp_path / "mine/1.mp4").read_bytes()
  (tmp_path / "mine/1.mp4").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "mine/labels.csv").write_text("file,identity,emotion\n0.mp4,ann,happy\n2.mp4,ben,\n3.mp4,ben,sad\n")
  target = tmp_path / "set"
  assert run("data", "build", "clips", "--root", tmp_path / "mine", "--out", target, "--size", 128) == 0
  clips = clips_in(target)
  assert {name: (clip.identity, clip.emotion) for name, clip in clips.items() if name != "1.mp4"} == {
    "0.mp4": ("clips/ann", "happy"),
    "2.mp4": ("clips/ben", None),
    "3.mp4": ("clips/ben", "sad"),
  }
  assert ("1.mp4" in clips) != ("1.mp4" in (target / "rejected.csv").read_text())
  capsys.readouterr()
  # Other options would make other records: they want a folder of their own.
  assert run("data", "build", "clips", "--root", tmp_path / "mine", "--out", target, "--size", 64) == 1
  assert "was started with" in capsys.readouterr().err


def test_real_mead_clips(examples, tmp_path):
  """Two actors' own frames and coefficients; they have no sound, so each gets a recording of speech."""
  root = tmp_path / "MEAD"
  root.mkdir()
  wanted = {}
  for name in ("M030_front_angry_level3_001", "W009_front_happy_level3_001"):
    for suffix in (".mp4", ".mat"):
      shutil.copy(examples / f"mead/{name}{suffix}", root)
    shutil.copy(examples / "speech/German1.wav", root / f"{name}.wav")
    wanted[name.replace("_front_", "/front/").replace("_level3_", "/level_3/")] = name
  build_set(MeadLayout(prepare=PrepareConfig(size=128)), tmp_path / "set", root)
  clips = clips_in(tmp_path / "set")
  assert clips.keys() == wanted.keys()
  for clip, name in wanted.items():
    coefficients = read_expression(root / f"{name}.mat")
    frames = decode_frames(clips[clip].frames)
    assert len(frames) == clips[clip].num_frames
    assert abs(len(frames) - len(read_video(root / f"{name}.mp4"))) <= 1
    assert abs(len(coefficients) - len(frames)) <= 2
    np.testing.assert_array_equal(clips[clip].expression, coefficients[: len(frames)])


def assert_shows(clip, drawn):
  """What compression changes depends on the clip; a frame's neighbour and other colours are further off."""
  error = decode_frames(clip.frames).astype(int) - drawn
  late = decode_frames(clip.frames)[1:].astype(int) - drawn[:-1]
  # 0.2 to 0.56 over four clips.
  assert np.abs(error.mean(-1)).mean() < 0.7 * np.abs(late.mean(-1)).mean()
  # At most 0.73 there; read as BT.601, at least 2.4.
  assert np.abs(error.mean((0, 1, 2))).max() < 1.5


@pytest.mark.slow
def test_the_drawn_world_is_the_same_bytes_however_it_is_built(tmp_path):
  layout = SyntheticLayout(people=1, test_people=1, takes=1, size=64)
  report = build_set(layout, tmp_path / "a", workers=1)
  assert report.clips == {"train": 22, "test": 22}
  options = {"people": 1, "test-people": 1, "takes": 1, "size": 64, "workers": 2, "out": tmp_path / "b"}
  command = ["data", "build", "synthetic", *(f"--{name}={value}" for name, value in options.items())]
  subprocess.run([sys.executable, "-m", "dicetalk_jax.cli", *command], check=True)
  files = {path.name: path.read_bytes() for path in (tmp_path / "a").glob("*.array_record*")}
  assert {path.name: path.read_bytes() for path in (tmp_path / "b").glob("*.array_record*")} == files
  clips = clips_in(tmp_path / "a", "train")
  clip = clips["p0000000/happy/level_3/000"]
  drawn = draw_clip(0, "happy", 3, clip.sentence, 0, 64)
  assert_shows(clip, drawn.frames)
  np.testing.assert_array_equal(clip.truth, drawn.truth)
  np.testing.assert_array_equal(clip.expression, drawn.expression)
  assert clip.face_box == tuple(drawn.face_box)


def test_a_long_clip_of_the_drawn_world_may_be_cut_with_its_sound(tmp_path):
  build_set(
    SyntheticLayout(people=1, test_people=0, takes=1, size=64, scenes=2, longest=20), tmp_path / "set", workers=1
  )
  clips = clips_in(tmp_path / "set", "train")
  assert len(clips) == 2
  for name, clip in clips.items():
    _, emotion, level, take = name.split("/")
    whole = draw_clip(0, emotion, int(level[-1]), clip.sentence, int(take), 64)
    (start,) = (s for s in range(len(whole.truth) - 19) if np.array_equal(clip.truth, whole.truth[s : s + 20]))
    shown = slice(start, start + 20)
    assert clip.num_frames == 20
    assert_shows(clip, whole.frames[shown])
    np.testing.assert_array_equal(clip.expression, whole.expression[shown])
    np.testing.assert_allclose(clip.audio, whole.audio[640 * start : 640 * (start + 20)], atol=1e-4)


def test_an_unlabelled_world_stands_for_regular_videos(tmp_path):
  builder = Synthetic(
    data_dir=tmp_path, layout=SyntheticLayout(people=1, test_people=0, takes=1, size=64, labelled=False, seed=3)
  )
  builder.download_and_prepare()
  clips = [clip_of(example) for example in builder.as_data_source("train")]
  assert {(clip.emotion, clip.level) for clip in clips} == {(None, 0)}
  assert len({clip.video for clip in clips}) == 22


def test_a_target_inside_the_root_is_refused(tmp_path, capsys):
  assert run("data", "build", "clips", "--root", tmp_path, "--out", tmp_path / "set") == 1
  assert "is inside the folder of videos" in capsys.readouterr().err
  assert not (tmp_path / "set").exists()


def test_a_root_in_the_home_of_nobody(tmp_path, capsys):
  assert run("data", "build", "clips", "--root", "~nobody_of_that_name/videos", "--out", tmp_path / "set") == 1
  assert "in the home folder of a user who does not exist" in capsys.readouterr().err


def test_changed_labels_want_another_folder(drawn, tmp_path, capsys):
  put(tmp_path / "mine/a.mp4", drawn["M003", "happy"][1])
  build = ("data", "build", "clips", "--root", tmp_path / "mine", "--out", tmp_path / "set", "--size", 64)
  for emotion, code in (("happy", 0), ("happy", 0), ("sad", 1)):
    (tmp_path / "mine/labels.csv").write_text(f"file,emotion\na.mp4,{emotion}\n")
    assert run(*build) == code
  assert "splits or labels" in capsys.readouterr().err


def test_a_layout_of_ones_own_settings_reaches_the_builder(tmp_path):
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine/x.mp4").write_bytes(b"nothing")
  builder = Clips(data_dir=tmp_path / "tfds", layout=ClipsLayout(prepare=PrepareConfig(size=64)))
  with pytest.raises(Exception, match="none of 1 files made a clip"):
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / "mine"))
