"""Any folder of videos, with or without labels in a CSV file."""

import csv
import dataclasses
from pathlib import Path

from dicetalk_jax.data.build.layout import VideoLayout, check_label, sound_of, videos_in
from dicetalk_jax.data.records import Rejected, Source
from dicetalk_jax.errors import InputError
from dicetalk_jax.files import existing_file
from dicetalk_jax.media.video import VIDEO_SUFFIXES

LABELS = "labels.csv"
_COLUMNS = ("file", "identity", "emotion", "level", "video", "audio", "expression", "split")
_SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class ClipsLayout(VideoLayout):
  """Any folder of videos.

  Without labels, the identity of a video is the first folder that it lies in, or its own name. Labels are a CSV file
  with a column `file` (path in the folder) and any of identity, emotion, level, video (the recording it was cut from),
  audio and expression (paths of files), split (train, test).
  """

  name, title = "clips", "your videos"
  description = "A folder of one's own clips."
  expected = f"files that end in {', '.join(VIDEO_SUFFIXES)}, in it or in subfolders"

  labels: Path | None = None
  """CSV file with labels. Default: labels.csv in the folder, if it exists."""

  def sources(self, root, rejected):
    videos = {path.relative_to(root).as_posix(): path for path in videos_in(root, rejected)}
    path = self.labels or (root / LABELS if (root / LABELS).exists() else None)
    rows = _read_labels(path, videos) if path and videos else {}
    rejected += [Rejected(file, f"it is in {path.name}, but not in {root}") for file in rows if file not in videos]
    for file, video in videos.items():
      row = rows.get(file, {})
      name = Path(file).with_suffix("").as_posix()
      first = Path(file).parts[0] if "/" in file else name
      audio, expression = (
        existing_file(root / row[key], f"{key} of {path.name}") if row.get(key) else None
        for key in ("audio", "expression")
      )
      yield Source(
        clip=file,  # with its suffix, which tells a.mp4 from a.mov
        path=video,
        identity=f"clips/{row.get('identity') or first}",
        video=row.get("video") or name,
        audio=audio or sound_of(video),
        expression=expression or self.expression_of(video, root),
        emotion=row.get("emotion") or None,
        level=int(row.get("level") or 0),
        split=row.get("split") or "",
      )

  def test_identities(self, sources):
    splits = {}
    for source in sources:
      if source.split and splits.setdefault(source.identity, source.split) != source.split:
        raise InputError(f"the labels put {source.identity} in both splits; give each identity one split")
    if not splits:
      return super().test_identities(sources)
    return {identity for identity, split in splits.items() if split == "test"}

  def ignores(self, path):
    return path.name == (LABELS if self.labels is None else self.labels.name)


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
          raise InputError(
            f"labels {path}, line {reader.line_num}: expected {len(columns)} values, as in the first line"
          )
        row = {key: value.strip() for key, value in row.items()}
        _check_row(path, reader.line_num, row, rows)
        rows[Path(row["file"]).as_posix()] = row
  except (UnicodeDecodeError, csv.Error) as error:
    raise InputError(f"labels {path} are not a CSV file in UTF-8 ({error})") from error
  if not rows.keys() & videos.keys():
    first = next(iter(rows), "nothing")
    raise InputError(
      f"labels {path} name none of the {len(videos)} videos: they name {first}, and {next(iter(videos))} exists"
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
  wrong = check_label(row.get("emotion") or None, int(level)) if number else f"level '{level}' is not a number"
  if not row["file"]:
    wrong = "file is empty"
  elif Path(row["file"]).as_posix() in rows:
    wrong = f"{row['file']} is listed twice"
  elif row.get("split") and row["split"] not in _SPLITS:
    wrong = f"split '{row['split']}' is none of {', '.join(_SPLITS)}"
  if wrong:
    raise InputError(f"labels {path}, line {line}: {wrong}")
