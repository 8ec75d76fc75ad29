"""Which files of a published layout become clips of whom, and which go to the test split."""

import collections
import dataclasses
import itertools
import os

import numpy as np
import pytest

from dicetalk_jax.data.build.folder import ClipsLayout
from dicetalk_jax.data.build.hdtf import HdtfLayout
from dicetalk_jax.data.build.layout import hold_out
from dicetalk_jax.data.build.mead import MeadLayout
from dicetalk_jax.data.build.synthetic import SyntheticLayout
from dicetalk_jax.data.build.voxceleb2 import Voxceleb2Layout
from dicetalk_jax.errors import InputError
from dicetalk_jax.vocabulary import EMOTIONS


def touch(root, *paths):
  """Files that exist: a layout looks at names alone."""
  for path in paths:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).touch()
  return root


def works(listing):
  return {job.name: job.work for job in listing.jobs}


def identities(listing):
  splits = collections.defaultdict(set)
  for job in listing.jobs:
    splits[job.split].add(job.work.identity)
  return splits


def test_mead(tmp_path):
  touch(
    tmp_path,
    "M003/video/front/angry/level_1/001.mp4",
    "M003/video/front/angry/level_1/001.mat",
    "M003/audio/angry/level_1/001.m4a",
    "M003/video/left_30/angry/level_1/001.mp4",
    "W009/video/front/neutral/level_1/004.mp4",
    "W009/video/front/furious/level_1/004.mp4",
    "W009/video/front/happy/level_4/004.mp4",
  )
  listing = MeadLayout().listing(tmp_path)
  found = works(listing)
  assert found.keys() == {"M003/front/angry/level_1/001", "W009/front/neutral/level_1/004"}
  angry = found["M003/front/angry/level_1/001"]
  assert (angry.identity, angry.emotion, angry.level) == ("mead/M003", "angry", 1)
  assert angry.audio == tmp_path / "M003/audio/angry/level_1/001.m4a"
  assert angry.expression == tmp_path / "M003/video/front/angry/level_1/001.mat"
  assert found["W009/front/neutral/level_1/004"].audio is None
  reasons = {rejected.clip: rejected.reason for rejected in listing.rejected}
  assert "emotion 'furious' is none of angry" in reasons["W009/front/furious/level_1/004"]
  assert "level 4 is none of 1, 2, 3" in reasons["W009/front/happy/level_4/004"]
  both = works(MeadLayout(views=("front", "left_30")).listing(tmp_path))
  assert "M003/left_30/angry/level_1/001" in both


def test_mead_inside_a_folder_and_flat(tmp_path):
  touch(tmp_path / "a", "MEAD/M003/video/front/angry/level_1/001.mp4", "MEAD/M003/audio/angry/level_1/001.m4a")
  (source,) = works(MeadLayout().listing(tmp_path / "a")).values()
  assert source.audio.is_file()
  touch(tmp_path / "b", "M030_front_happy_level3_001.mp4", "M030_front_happy_level3_001.mat", "other.mp4")
  (source,) = works(MeadLayout().listing(tmp_path / "b")).values()
  assert (source.clip, source.level, source.emotion) == ("M030/front/happy/level_3/001", 3, "happy")
  assert source.expression.suffix == ".mat"


def test_coefficients_in_a_folder_of_their_own(tmp_path):
  touch(tmp_path / "sets", "M003/video/front/sad/level_2/001.mp4")
  touch(tmp_path / "coefficients", "M003/video/front/sad/level_2/001.npy")
  listing = MeadLayout(expressions=tmp_path / "coefficients").listing(tmp_path / "sets")
  assert listing.jobs[0].work.expression == tmp_path / "coefficients/M003/video/front/sad/level_2/001.npy"


@pytest.mark.parametrize("columns", [64, 257])
@pytest.mark.parametrize("first", [0.0, np.nan])
def test_coefficients_as_text_are_told_from_what_is_said(tmp_path, columns, first):
  touch(tmp_path, "a.mp4", "b.mp4")
  coefficients = np.random.default_rng(0).standard_normal((10, columns))
  coefficients[:, 0] = first  # one that is not finite is named later, not passed over
  np.savetxt(tmp_path / "a.txt", coefficients)
  (tmp_path / "b.txt").write_text("The rain came early.\nIt was 7 o'clock.\n")
  found = works(ClipsLayout().listing(tmp_path))
  assert found["a.mp4"].expression == tmp_path / "a.txt"
  assert found["b.mp4"].expression is None


def test_a_folder_of_coefficients_that_fits_nothing(tmp_path):
  touch(tmp_path / "sets", "M003/video/front/sad/level_2/001.mp4")
  layout = MeadLayout(expressions=tmp_path / "none")
  with pytest.raises(InputError, match="none does not exist; give the folder that holds coefficients"):
    layout.listing(tmp_path / "sets")
  touch(tmp_path / "other", "001.npy")
  layout = MeadLayout(expressions=tmp_path / "other")
  with pytest.raises(InputError, match=r"of none of 1 videos: expected M003/video/front/sad/level_2/001 with .mat"):
    layout.listing(tmp_path / "sets")


def test_a_relative_root(tmp_path, monkeypatch):
  touch(tmp_path, "sets/M003/video/front/sad/level_2/001.mp4", "coefficients/other.npy")
  monkeypatch.chdir(tmp_path)
  layout = MeadLayout(expressions="coefficients")
  with pytest.raises(InputError, match="expected M003/video/front/sad/level_2/001 with"):
    layout.listing("sets")


def test_odd_names_and_links(tmp_path):
  root = tmp_path / "root"
  touch(root, "ann/ONE.MP4", "a b#c,'ü.mov")
  touch(tmp_path / "elsewhere", "two.mp4")
  (root / "linked").symlink_to(tmp_path / "elsewhere")
  (root / "loop").symlink_to(root)
  (root / "gone.mp4").symlink_to(tmp_path / "nothing.mp4")
  with open(os.fsencode(root) + b"/caf\xe9.mp4", "wb"):
    pass
  listing = ClipsLayout().listing(root)
  assert works(listing).keys() == {"ann/ONE.MP4", "a b#c,'ü.mov", "linked/two.mp4"}
  reasons = {rejected.clip: rejected.reason for rejected in listing.rejected}
  assert reasons == {
    "gone.mp4": "it is a link to a file that is not there",
    "caf\\udce9.mp4": "its name is not UTF-8; rename it",
  }
  touch(tmp_path / "mead", "M003/video/front/sad/level_2/001.MP4", "M003/video/front/sad/extra.mp4")
  listing = MeadLayout().listing(tmp_path / "mead")
  assert works(listing).keys() == {"M003/front/sad/level_2/001"}
  assert [rejected.clip for rejected in listing.rejected] == ["M003/video/front/sad/extra.mp4"]


def test_mead_holds_out_five_of_its_identities(tmp_path):
  names = [f"M{i:03d}" for i in range(46)]
  touch(tmp_path, *(f"{name}/video/front/{e}/level_1/001.mp4" for name in names for e in EMOTIONS[:2]))
  first = identities(MeadLayout().listing(tmp_path))
  assert len(first["test"]) == 5
  assert not first["test"] & first["train"]
  assert len(first["train"] | first["test"]) == 46
  assert identities(MeadLayout().listing(tmp_path)) == first
  for held_out, count in ((12, 12), (0.5, 23), (0, 0)):
    assert len(identities(MeadLayout(held_out=held_out).listing(tmp_path))["test"]) == count
  with pytest.raises(InputError, match=r"held_out is 2\.5"):
    MeadLayout(held_out=2.5).listing(tmp_path)


def test_who_is_held_out_does_not_hang_on_who_else_is_there():
  names = dict.fromkeys(map(str, range(100)), 1)
  some = hold_out(names, 20)
  fewer = {name: 1 for name in names if name not in sorted(some)[:3]}
  assert len(hold_out(fewer, 20) & some) == 17
  assert hold_out({"only": 1}, 5) == set(), "somebody must be left to train on"


def test_hdtf(tmp_path):
  touch(
    tmp_path,
    *("WDA_BarackObama0_000.mp4", "WDA_BarackObama1_000.mp4", "clips/WDA_BarackObama1_000_3.mp4"),
    *("RD_Radio1_000.mp4", "RD_Radio10_000.mp4", "RD_Radio1_000.wav", "RD_Radio1_000.txt", "notes.mp4"),
  )
  (tmp_path / "RD_Radio1_000.txt").write_text("0.1 2e-3\n-1 4\n")
  (tmp_path / "RD_Radio10_000.txt").write_text("What she says,\nword for word.\n")
  listing = HdtfLayout().listing(tmp_path)
  found = works(listing)
  assert [rejected.clip for rejected in listing.rejected] == ["notes.mp4", "RD_Radio10_000.txt"]
  assert found["RD_Radio10_000"].expression is None, "a transcript is no expression"
  assert {name: source.identity for name, source in found.items()} == {
    "WDA_BarackObama0_000": "hdtf/WDA_BarackObama",
    "WDA_BarackObama1_000": "hdtf/WDA_BarackObama",
    "clips/WDA_BarackObama1_000_3": "hdtf/WDA_BarackObama",
    "RD_Radio1_000": "hdtf/RD_Radio1",
    "RD_Radio10_000": "hdtf/RD_Radio10",
  }
  assert found["clips/WDA_BarackObama1_000_3"].video == found["WDA_BarackObama1_000"].video
  assert found["WDA_BarackObama0_000"].video != found["WDA_BarackObama1_000"].video
  assert found["RD_Radio1_000"].audio.suffix == ".wav"
  assert found["RD_Radio1_000"].expression.suffix == ".txt"
  assert found["RD_Radio1_000"].emotion is None


def test_hdtf_holds_out_twenty_videos_by_identity(tmp_path):
  touch(tmp_path, *(f"WRA_Person{chr(65 + i // 26)}{chr(65 + i % 26)}_{j:03d}.mp4" for i in range(181) for j in (0, 1)))
  listing = HdtfLayout().listing(tmp_path)
  splits = identities(listing)
  assert not splits["test"] & splits["train"]
  assert len({job.work.video for job in listing.jobs if job.split == "test"}) == 20


def test_voxceleb2(tmp_path):
  touch(
    tmp_path,
    *(f"dev/mp4/id{i:05d}/abc/0000{j}.mp4" for i in range(6) for j in (1, 2)),
    "dev/aac/id00003/abc/00001.m4a",
  )
  listing = Voxceleb2Layout().listing(tmp_path)
  found = works(listing)
  assert len(found) == 12
  source = found["dev/id00003/abc/00001"]
  assert (source.identity, source.video) == ("voxceleb2/id00003", "id00003/abc")
  assert source.audio == tmp_path / "dev/aac/id00003/abc/00001.m4a"
  splits = identities(listing)
  assert len(splits["test"]) == 1
  assert not splits["test"] & splits["train"]
  # Its own test part takes the place of our choice.
  touch(tmp_path, "test/mp4/id00017/abc/00001.mp4", "test/mp4/id00002/abc/00009.mp4")
  splits = identities(Voxceleb2Layout().listing(tmp_path))
  assert splits["test"] == {"voxceleb2/id00017", "voxceleb2/id00002"}
  assert not splits["test"] & splits["train"]


def test_loose_clips_without_labels(tmp_path):
  touch(tmp_path, "anna/one.mp4", "anna/two.MOV", "ben/x/one.mkv", "alone.mp4", ".hidden.mp4", "readme.txt")
  listing = ClipsLayout().listing(tmp_path)
  assert {name: source.identity for name, source in works(listing).items()} == {
    "anna/one.mp4": "clips/anna",
    "anna/two.MOV": "clips/anna",
    "ben/x/one.mkv": "clips/ben",
    "alone.mp4": "clips/alone",
  }
  splits = identities(listing)
  assert len(splits["test"]) == 1
  assert not splits["test"] & splits["train"]


def test_loose_clips_with_labels(tmp_path):
  touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", "coefficients/b.npy")
  (tmp_path / "coefficients/b.npy").write_bytes(b"something")
  (tmp_path / "labels.csv").write_text(
    "file,identity,emotion,level,video,expression,split\n"
    "a.mp4,anna,happy,2,talk,,train\n"
    "b.mp4,ben,,,talk,coefficients/b.npy,test\n"
    "gone.mp4,carl,sad,1,,,\n"
  )
  listing = ClipsLayout().listing(tmp_path)
  found = works(listing)
  assert dataclasses.asdict(found["a.mp4"]) | {"path": None} == dict(
    clip="a.mp4",
    path=None,
    identity="clips/anna",
    video="talk",
    audio=None,
    expression=None,
    emotion="happy",
    level=2,
    split="train",
  )
  assert found["b.mp4"].emotion is None
  assert found["b.mp4"].expression == tmp_path / "coefficients/b.npy"
  assert {job.name: job.split for job in listing.jobs} == {"a.mp4": "train", "b.mp4": "test", "c.mp4": "train"}
  assert [(rejected.clip, "not in" in rejected.reason) for rejected in listing.rejected] == [("gone.mp4", True)]


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("file,emotion\na.mp4,hapy\n", r"line 2: emotion 'hapy' is none of angry, .*surprised"),
    ("file,emotion,level\na.mp4,happy,9\n", "line 2: level 9 is none of 1, 2, 3"),
    ("file,level\na.mp4,high\n", "line 2: level 'high' is not a number"),
    ("file,level\na.mp4,²\n", "line 2: level '²' is not a number"),
    ("file;level\na.mp4;1\n", "no column 'file'; they have file;level; separate them with commas"),
    ("file,level,level\na.mp4,1,2\n", "a column twice"),
    ("file,level\na.mp4,1,2\n", "line 2: expected 2 values"),
    ("name,emotion\na.mp4,happy\n", "no column 'file'; they have name, emotion"),
    ("file,mood\na.mp4,happy\n", "unknown column 'mood'"),
    ("file,split\na.mp4,dev\n", "split 'dev' is none of train, test"),
    ("file\na.mp4\na.mp4\n", "line 3: a.mp4 is listed twice"),
    ("file\nz.mp4\n", r"name none of the 2 videos: they name z.mp4, and a.mp4 exists"),
    ("file,identity,split\na.mp4,x,train\nb.mp4,x,test\n", "clips/x in both splits"),
    ("file,expression\na.mp4,none.npy\n", "none.npy does not exist"),
    ("", "no column 'file'; they have none|is empty"),
    (b"\xff\xfe\x00\x01 rubbish", "not a CSV file in UTF-8"),
  ],
)
def test_labels_that_cannot_be_meant(tmp_path, text, said):
  touch(tmp_path, "a.mp4", "b.mp4")
  (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(InputError, match=said):
    ClipsLayout().listing(tmp_path)


@pytest.mark.parametrize(
  ("layout", "expected"),
  [
    (MeadLayout, "M003/video/front/angry/level_1/001.mp4"),
    (HdtfLayout, "WDA_BarackObama_000.mp4"),
    (Voxceleb2Layout, "dev/mp4/id00012/<video>/00001.mp4"),
    (ClipsLayout, ".mp4, .mov"),
  ],
)
def test_a_wrong_root_says_what_was_expected_and_what_is_there(tmp_path, layout, expected):
  touch(tmp_path, "photos/a.jpg", "b.txt")
  with pytest.raises(InputError) as caught:
    layout().listing(tmp_path)
  assert expected in str(caught.value)
  assert "it holds b.txt, photos/" in str(caught.value)
  with pytest.raises(InputError, match="does not exist; give the folder that holds"):
    layout().listing(tmp_path / "none")
  with pytest.raises(InputError, match="is a file"):
    layout().listing(tmp_path / "b.txt")


def test_the_drawn_world_holds_out_people_and_sentences():
  listing = SyntheticLayout(people=3, test_people=2, takes=2).listing()
  scenes = {split: [job.work for job in listing.jobs if job.split == split] for split in ("train", "test")}
  assert len(scenes["train"]) == 3 * 22 * 2
  assert len(scenes["test"]) == 2 * 22 * 2
  for name in ("person", "sentence"):
    assert not {getattr(s, name) for s in scenes["train"]} & {getattr(s, name) for s in scenes["test"]}
  assert SyntheticLayout(people=3, test_people=2, takes=2).listing() == listing
  more = SyntheticLayout(people=5, test_people=2, takes=2).listing()
  assert {job.work for job in listing.jobs} <= {job.work for job in more.jobs}
  other = SyntheticLayout(people=3, test_people=2, seed=1).listing()
  assert not {job.work.person for job in other.jobs} & {job.work.person for job in more.jobs}


def test_some_scenes_of_each_person_are_spread_over_the_emotions():
  every = {job.work for job in SyntheticLayout(people=30, test_people=0, takes=1).listing().jobs}
  of = {n: SyntheticLayout(people=30, test_people=0, takes=1, scenes=n).listing().jobs for n in (3, 8, 12, 22)}
  for n, jobs in of.items():
    assert {job.work for job in jobs} <= every
    for _, mine in itertools.groupby(jobs, key=lambda job: job.work.person):
      mine = [job.work for job in mine]
      assert len(mine) == len({(scene.emotion, scene.level) for scene in mine}) == n
      assert len({scene.emotion for scene in mine}) == min(n, 8)
  assert {job.work for job in of[22]} == every
  levels = collections.Counter(job.work.level for job in of[8] if job.work.emotion != "neutral")
  assert min(levels.values()) > 30 * 7 / 3 / 2


def test_emotions_of_the_highest_level_alone():
  every = [job.work for job in SyntheticLayout(people=3, test_people=1).listing().jobs]
  strong = [job.work for job in SyntheticLayout(people=3, test_people=1, min_level=3).listing().jobs]
  assert strong == [scene for scene in every if scene.emotion == "neutral" or scene.level == 3]
  some = [job.work for job in SyntheticLayout(people=3, test_people=1, takes=1, min_level=2, scenes=22).listing().jobs]
  assert len(some) == 4 * 15
  few = [job.work for job in SyntheticLayout(people=3, test_people=1, takes=1, min_level=3, scenes=5).listing().jobs]
  assert len(few) == 4 * 5
  assert set(few) <= set(strong)


def test_voices_may_have_emotions_of_their_own():
  own = [job.work for job in SyntheticLayout(people=30, test_people=0, takes=1).listing().jobs]
  assert all(scene.voice == (scene.emotion, scene.level) for scene in own)
  free = [job.work for job in SyntheticLayout(people=30, test_people=0, takes=1, voices="any").listing().jobs]
  assert [dataclasses.replace(scene, voice=None) for scene in free] == [
    dataclasses.replace(scene, voice=None) for scene in own
  ]
  heard = collections.Counter(scene.voice[0] for scene in free)
  assert min(heard.values()) > len(free) / 8 / 2
  # As often the face's own as by chance.
  assert 0.06 < np.mean([scene.voice[0] == scene.emotion for scene in free]) < 0.2
  assert all(level == 1 for emotion, level in (scene.voice for scene in free) if emotion == "neutral")


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("people", 0),
    ("takes", 0),
    ("size", 63),
    ("size", 100001),
    ("seed", -1),
    ("scenes", 0),
    ("scenes", 23),
    ("longest", 1),
    ("min_level", 0),
    ("min_level", 4),
    ("voices", "all"),
  ],
)
def test_a_drawn_world_that_cannot_be(field, value):
  with pytest.raises(InputError, match=f"{field} "):
    SyntheticLayout(**{field: value}).listing()


def test_other_files_in_the_folder_are_listed(tmp_path):
  videos = [f"clip{suffix}" for suffix in (".ts", ".wmv", ".flv", ".mpeg", ".ogv", ".3gp", ".mp4")]
  touch(tmp_path, *videos, "clip.wav", "notes.docx", "sub/photo.jpg", "labels.csv", ".DS_Store")
  (tmp_path / "labels.csv").write_text("file,emotion\nclip.mp4,happy\n")
  listing = ClipsLayout().listing(tmp_path)
  assert works(listing).keys() == set(videos)
  assert [rejected.clip for rejected in listing.rejected] == ["notes.docx", "sub/photo.jpg"]
  assert all("not a video" in rejected.reason for rejected in listing.rejected)
