"""Any folder of videos, with labels in a CSV if there are any."""

import csv
import dataclasses
from pathlib import Path
from typing import ClassVar

from dicetalk_jax.data.build.layout import (
  SOUNDS,
  VIDEOS,
  Listing,
  VideoLayout,
  check_label,
  existing_root,
  hold_out,
  job_of,
  videos_in,
  with_suffix_of,
  wrong_root,
)
from dicetalk_jax.data.records import Rejected, Source
from dicetalk_jax.errors import InputError
from dicetalk_jax.files import existing_file

LABELS = "labels.csv"
_COLUMNS = ("file", "identity", "emotion", "level", "video", "audio", "expression", "split")
_SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class ClipsLayout(VideoLayout):
  """Any folder of videos.

  Without labels a video's identity is the first folder that it lies in, or itself where it lies in none. Labels are a
  CSV with a column `file` (path in the folder) and any of identity, emotion, level, video (the recording it was cut
  from), audio and expression (paths of files), split (train, test).
  """

  name: ClassVar[str] = "clips"
  description: ClassVar[str] = "A folder of one's own clips."

  labels: Path | None = None
  """The CSV; default: labels.csv in the folder, if there."""

  held_out: float = 0.1
  """Share of the identities for the test split, where the labels do not say it; at least one of two or more."""

  split_seed: int = 0
  """Of the choice of those identities."""

  def listing(self, root: Path) -> Listing:
    """Raises InputError for a folder without videos and for labels that cannot be meant."""
    root = existing_root(root, "your videos")
    if not 0 <= self.held_out < 1:
      raise InputError(f"held_out {self.held_out:g} is no share; give one from 0 up to 1, such as 0.1")
    rejected: list[Rejected] = []
    videos = {path.relative_to(root).as_posix(): path for path in videos_in(root, rejected)}
    if not videos:
      raise wrong_root(root, "videos", f"files that end in {', '.join(VIDEOS)}, in it or in folders of it")
    path = self.labels or (root / LABELS if (root / LABELS).exists() else None)
    rows = _read_labels(path, videos) if path else {}
    rejected += [Rejected(file, f"it is in {path.name}, but not in {root}") for file in rows if file not in videos]
    sources, splits = [], {}
    for file, video in videos.items():
      row = rows.get(file, {})
      source = self._source(root, file, video, row, path)
      sources.append(source)
      if row.get("split") and splits.setdefault(source.identity, row["split"]) != row["split"]:
        raise InputError(f"{path} puts {source.identity} in both splits; a split goes by identity, give it one")
    identities = {source.identity for source in sources}
    free = sorted(identities - splits.keys())
    if not splits:
      wanted = max(1, round(self.held_out * len(free))) if self.held_out > 0 else 0
      chosen = hold_out(dict.fromkeys(free, 1), wanted, self.split_seed)
      splits = dict.fromkeys(chosen, "test")
    return Listing([job_of(source, splits.get(source.identity, "train")) for source in sources], rejected)

  def _source(self, root, file, video, row, labels):
    name = Path(file).with_suffix("").as_posix()
    first = Path(file).parts[0] if "/" in file else name
    other = {key: _file_of(root, labels, row.get(key), key) for key in ("audio", "expression")}
    return Source(
      # The suffix tells a.mp4 from a.mov.
      clip=file,
      path=video,
      identity=f"clips/{row.get('identity') or first}",
      video=row.get("video") or name,
      audio=other["audio"] or with_suffix_of(video, SOUNDS),
      expression=other["expression"] or self.expression_of(video, root),
      emotion=row.get("emotion") or None,
      level=int(row.get("level") or 0),
    )


def _file_of(root, labels, value, what) -> Path | None:
  return existing_file(root / value, f"{what} of {labels.name}") if value else None


def _read_labels(path, videos) -> dict[str, dict[str, str]]:
  path = existing_file(path, "labels")
  try:
    with path.open(newline="", encoding="utf-8-sig") as file:
      reader = csv.DictReader(file)
      columns = tuple(name.strip() for name in reader.fieldnames or ())
      reader.fieldnames = columns
      _check_columns(path, columns)
      rows = {}
      for row in reader:
        if None in row or None in row.values():
          raise InputError(f"labels {path}, line {reader.line_num}: wanted {len(columns)} values, as in the first line")
        row = {key: value.strip() for key, value in row.items()}
        _check_row(path, reader.line_num, row, rows)
        rows[Path(row["file"]).as_posix()] = row
  except (UnicodeDecodeError, csv.Error) as error:
    raise InputError(f"labels {path} are not a CSV in UTF-8 ({error})") from error
  if not rows.keys() & videos.keys():
    named = next(iter(rows), "nothing")
    raise InputError(
      f"labels {path} name none of the {len(videos)} videos: they say {named}, there is {next(iter(videos))}"
    )
  return rows


def _check_columns(path, columns):
  if "file" not in columns:
    advice = "; separate them with commas" if len(columns) == 1 and not columns[0].isidentifier() else ""
    raise InputError(f"labels {path} have no column 'file'; they have {', '.join(columns) or 'none'}{advice}")
  if len(set(columns)) != len(columns):
    raise InputError(f"labels {path} have a column twice: {', '.join(columns)}")
  if unknown := [name for name in columns if name not in _COLUMNS]:
    raise InputError(f"labels {path} have an unknown column '{unknown[0]}'; known are {', '.join(_COLUMNS)}")


def _check_row(path, line, row, rows):
  level = row.get("level") or "0"
  number = level.isdecimal() and level.isascii()
  wrong = check_label(row.get("emotion") or None, int(level)) if number else f"level '{level}' is no number"
  if not row["file"]:
    wrong = "file is empty"
  elif Path(row["file"]).as_posix() in rows:
    wrong = f"{row['file']} is there twice"
  elif row.get("split") and row["split"] not in _SPLITS:
    wrong = f"split '{row['split']}' is none of {', '.join(_SPLITS)}"
  if wrong:
    raise InputError(f"labels {path}, line {line}: {wrong}")
