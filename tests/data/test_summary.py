"""What `dicetalk data inspect` says and draws."""

import numpy as np
import pytest
from makers import one_clip
from PIL import Image

from dicetalk_jax.cli import main
from dicetalk_jax.data.build.runner import Job, build
from dicetalk_jax.data.index import Index, index_path, read_index
from dicetalk_jax.data.sets import Records
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
  # Two identities with two emotions; of ann's happy clips the one of the highest level, by its middle frame.
  assert sheet.shape == (18 + 2 * 132, 90 + 2 * 132, 3)
  cells = [[sheet[18 + 132 * i + 64, 90 + 132 * j + 64].tolist() for j in range(2)] for i in range(2)]
  expected = 40 + 5 * 15
  assert np.abs(np.array(cells[0]) - expected).max() <= 3
  assert cells[1] == [[255] * 3] * 2, "ben's emotion is not known: he has no place under one"


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
  assert "give the name of a .png" in capsys.readouterr().err
  with pytest.raises(InputError, match="no split"):
    contact_sheet(folder, "validation")
