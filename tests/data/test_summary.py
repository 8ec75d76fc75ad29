"""What `dicetalk data inspect` says and draws."""

import numpy as np
import pytest
from makers import one_clip
from PIL import Image

from dicetalk_jax.cli import main
from dicetalk_jax.data.build.runner import Job, build
from dicetalk_jax.data.index import Index, index_path, read_index
from dicetalk_jax.data.sets import Records, write_set
from dicetalk_jax.data.summary import contact_sheet, summarise
from dicetalk_jax.errors import InputError

# (identity, emotion, level, split, frames)
CLIPS = [
  ("clips/ann", "happy", 1, "train", 50),
  ("clips/ann", "happy", 3, "train", 30),
  ("clips/ann", "sad", 2, "train", 30),
  ("clips/ben", None, 0, "train", 30),
  ("clips/cat", "angry", 3, "test", 30),
]


def make(i):
  identity, emotion, level, _, frames = CLIPS[i]
  coefficients = np.ones((frames, 64)) if i == 0 else None
  yield one_clip(f"c{i}", frames, identity=identity, emotion=emotion, level=level, expression=coefficients)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  target = tmp_path_factory.mktemp("set")
  build(target, "clips", [Job(f"c{i}", clip[3], i) for i, clip in enumerate(CLIPS)], make, {}, workers=1)
  return target


def line(text, begins):
  return next(row.split() for row in text.splitlines() if row.startswith(begins))


def test_counts(folder, capsys):
  assert main(["data", "inspect", str(folder)]) == 0
  said = capsys.readouterr().out
  assert "clips, 5 clips, 0.1 minutes" in said
  # clips, minutes, identities, videos, with coefficients
  assert line(said, "train")[1:6] == ["4", "0.1", "2", "1", "1"]
  assert line(said, "test")[1:4] == ["1", "0.0", "1"]
  assert "1.2 to 2.0" in said
  assert "32x32 (5 clips)" in said
  assert line(said, "emotion")[1:] == ["no", "level", "level", "1", "level", "2", "level", "3"]
  assert line(said, "happy")[1:] == ["1", "1"]
  assert line(said, "not known")[2:] == ["1"]
  assert line(said, "clips/ann")[1:] == ["train", "3"]
  assert "WARNING" not in said


def test_a_contact_sheet_has_emotions_across_and_identities_down(folder, tmp_path, capsys):
  assert main(["data", "inspect", str(folder), "--sheet", str(tmp_path / "new/sheet.png")]) == 0
  sheet = np.asarray(Image.open(tmp_path / "new/sheet.png"))
  assert "sheet.png" in capsys.readouterr().err
  # Two identities with two emotions and "not known"; of ann's happy clips the one of the highest level.
  assert sheet.shape == (20 + 2 * 100, 150 + 3 * 292, 3)
  cells = sheet[20 + 48 :: 100, 150 + 48 :][:2]
  cells = np.stack([cells[:, 292 * j : 292 * j + 288 : 96] for j in range(3)], axis=1).astype(int)
  assert cells.shape == (2, 3, 3, 3)  # identities, emotions, frames of a clip, colours
  # The brightness of a frame is 40 + 5 for each frame before it.
  expected = 40 + 5 * np.array([5, 15, 25])[:, None]
  assert np.abs(cells[0, :2] - expected).max() <= 3 and np.abs(cells[1, 2] - expected).max() <= 3
  assert (cells[0, 2] == 255).all() and (cells[1, :2] == 255).all()


def test_a_contact_sheet_names_many_people_in_their_own_letters(tmp_path):
  names = [f"p{i:02d}" for i in range(20)] + ["zoë", "z岩"]
  clips = [one_clip(name, 3, identity=f"clips/{name}") for name in names]
  sheet = np.asarray(contact_sheet(write_set(tmp_path / "set", clips), "train"))
  labels = [sheet[20 + 100 * i : 20 + 100 * (i + 1), :150] for i in range(22)]
  assert len({label.tobytes() for label in labels}) == 22
  plain = np.asarray(contact_sheet(write_set(tmp_path / "e", [one_clip("a", 3, identity="clips/zoe")]), "train"))
  # Pillow's own bitmap font would draw nothing, or a box, for the ë.
  written = (labels[20] < 128).any(axis=-1), (plain[20:120, :150] < 128).any(axis=-1)
  assert written[1].sum() < written[0].sum() < written[1].sum() + 12


def test_the_index_is_made_again_where_it_is_missing_or_damaged(folder):
  records = Records(folder, "train")
  before = read_index(records)
  assert before.level.tolist() == [1, 3, 2, 0]
  assert before.emotion.tolist() == [4, 4, 6, -1]
  path = index_path(folder, "train")
  for content in (None, b"damaged"):
    path.unlink()
    if content:
      path.write_bytes(content)
    again = read_index(records)
    assert all(np.array_equal(getattr(again, name), getattr(before, name)) for name in vars(before))
    assert len(Index.load(path)) == 4


def test_identities_in_both_splits_are_pointed_out(tmp_path):
  jobs = [Job("a", "train", 0), Job("b", "test", 0)]
  build(tmp_path, "clips", jobs, make, {}, workers=1)
  assert summarise(tmp_path).shared_identities == {"clips/ann"}
  assert "WARNING: in more than one split: clips/ann" in str(summarise(tmp_path))


def test_what_is_no_set(tmp_path, capsys):
  for path, said in (
    (tmp_path / "none", "is not a folder"),
    (tmp_path, "has no dataset_info.json; give a folder that"),
  ):
    assert main(["data", "inspect", str(path)]) == 1
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_split_that_is_not_there(folder, tmp_path, capsys):
  assert main(["data", "inspect", str(folder), "--sheet", str(tmp_path / "a.png"), "--split", "dev"]) == 1
  assert "no split 'dev'; it has" in capsys.readouterr().err
  assert main(["data", "inspect", str(folder), "--sheet", str(tmp_path / "a.unknown")]) == 1
  assert "give a name that ends in .png" in capsys.readouterr().err
  with pytest.raises(InputError, match="no split"):
    contact_sheet(folder, "validation")
