"""Summary of a set: counts by split, identity, emotion and level, lengths, and a contact sheet."""

import collections
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dicetalk_jax.data.index import Index, read_index
from dicetalk_jax.data.records import clip_of, decode_frames
from dicetalk_jax.data.sets import Records, check_files, open_set
from dicetalk_jax.errors import InputError
from dicetalk_jax.files import readable_size
from dicetalk_jax.media.image import resize
from dicetalk_jax.vocabulary import EMOTIONS, FPS

# Of the contact sheet, in pixels: a picture, the gap between cells, the labels at the left and at the top, letters.
_TILE, _MARGIN, _LEFT, _TOP, _LETTERS = 96, 4, 150, 20, 13
# Pictures of each clip.
_MOMENTS = 3
_UNKNOWN = "not known"


@dataclasses.dataclass(frozen=True)
class Summary:
  """A set and the index of each split; str() is a report."""

  folder: Path
  name: str
  fields: tuple[str, ...]
  bytes: int
  splits: dict[str, Index]

  def __str__(self):
    seconds = {split: index.num_frames.sum() / FPS for split, index in self.splits.items()}
    clips = sum(map(len, self.splits.values()))
    kind = "encoded clips" if "states" in self.fields else "clips"
    minutes = f"{sum(seconds.values()) / 60:.1f} minutes"
    rows = [
      f"{self.folder}: {self.name}, {clips} {kind}, {minutes}, {readable_size(self.bytes)}",
      "",
      f"{'split':<10}{'clips':>8}{'minutes':>10}{'identities':>12}{'videos':>8}{'coefficients':>14}  seconds a clip",
    ]
    for split, index in self.splits.items():
      low, middle, high = np.percentile(index.num_frames / FPS, [0, 50, 100])
      rows.append(
        f"{split:<10}{len(index):>8}{seconds[split] / 60:>10.1f}{len(set(index.identity)):>12}"
        f"{len(set(index.video)):>8}{int(index.has_expression.sum()):>14}"
        f"  {low:.1f} to {high:.1f}, median {middle:.1f}"
      )
    sizes = collections.Counter(
      size for index in self.splits.values() for size in zip(index.width.tolist(), index.height.tolist(), strict=True)
    )
    rows += ["", "frames: " + ", ".join(f"{w}x{h} ({count} clips)" for (w, h), count in sizes.most_common(4))]
    rows += ["", *self._emotions(), "", *self._identities()]
    if shared := self.shared_identities:
      rows += ["", f"WARNING: in more than one split: {', '.join(sorted(shared)[:5])}"]
    return "\n".join(rows)

  @property
  def shared_identities(self) -> set[str]:
    """Identities in more than one split; there should be none."""
    counts = collections.Counter(name for index in self.splits.values() for name in set(index.identity.tolist()))
    return {name for name, count in counts.items() if count > 1}

  def _emotions(self):
    counts = collections.Counter()
    for index in self.splits.values():
      counts.update(zip(index.emotion.tolist(), index.level.tolist(), strict=True))
    levels = sorted({level for _, level in counts})
    rows = [f"{'emotion':<12}" + "".join(f"{f'level {level}' if level else 'no level':>12}" for level in levels)]
    for emotion in range(-1, len(EMOTIONS)):
      if any(counts[emotion, level] for level in levels):
        name = EMOTIONS[emotion] if emotion >= 0 else _UNKNOWN
        rows.append(f"{name:<12}" + "".join(f"{counts[emotion, level] or '':>12}" for level in levels))
    return rows

  def _identities(self, most=12):
    counts, split_of = collections.Counter(), {}
    for split, index in self.splits.items():
      for name in index.identity.tolist():
        counts[name] += 1
        split_of[name] = split
    names = sorted(counts)[:most]
    short = {name: name if len(name) <= 48 else f"{name[:45]}..." for name in names}
    width = max(map(len, short.values()), default=8) + 2
    rows = [f"{'identity':<{width}}{'split':<8}{'clips':>6}"]
    rows += [f"{short[name]:<{width}}{split_of[name]:<8}{counts[name]:>6}" for name in names]
    return rows + ([f"… and {len(counts) - most} more"] if len(counts) > most else [])


def summarise(folder: str | os.PathLike) -> Summary:
  """Reads the indices of a set; InputError for a folder that is not a finished set, or damaged."""
  builder = open_set(folder)
  check_files(builder)
  splits = {
    split: read_index(Records(folder, split)) for split, info in builder.info.splits.items() if info.num_examples
  }
  size = sum(info.num_bytes for info in builder.info.splits.values())
  return Summary(Path(folder), builder.info.name, tuple(builder.info.features), size, splits)


def contact_sheet(
  folder: str | os.PathLike, split: str, columns: int = 8, rows: int = 24, progress: Callable | None = None
) -> Image.Image:
  """Three frames of clips of a split, for `rows` people at most, spread over the set: people down, emotions across.

  Each cell is a clip of the highest level. When no emotion is known, a row has the person's first `columns` clips.
  Raises InputError for a set without pictures.
  """
  records = Records(folder, split)
  if "frames" not in records.features:
    raise InputError(f"{folder} holds encoded clips, which have no pictures; give the set that it was encoded from")
  titles, table = _table(read_index(records), columns, rows)
  width, height = _MOMENTS * _TILE + _MARGIN, _TILE + _MARGIN
  sheet = Image.new("RGB", (_LEFT + width * len(titles), _TOP + height * len(table)), "white")
  for column, title in enumerate(titles):
    _write(sheet, (_LEFT + column * width, 2), title)
  cells = [(i, j, record) for i, (_, row) in enumerate(table) for j, record in enumerate(row) if record is not None]
  for i, (name, _) in enumerate(table):
    _write(sheet, (2, _TOP + i * height + _TILE // 2), name.rpartition("/")[2])
  for done, (i, j, record) in enumerate(cells, 1):
    clip = clip_of(records[record])
    moments = [clip.num_frames * (2 * k + 1) // (2 * _MOMENTS) for k in range(_MOMENTS)]
    for k, picture in enumerate(decode_frames(clip.frames, moments)):
      tile = Image.fromarray(resize(picture, (_TILE, _TILE)))
      sheet.paste(tile, (_LEFT + j * width + k * _TILE, _TOP + i * height))
    if progress:
      progress("contact sheet", done, len(cells))
  return sheet


def _table(index: Index, columns: int, rows: int) -> tuple[list[str], list[tuple[str, list[int | None]]]]:
  """Titles of the columns, and (identity, its record in each column or None) for each row."""
  by_identity = collections.defaultdict(list)
  for record, name in enumerate(index.identity.tolist()):
    by_identity[name].append(record)
  names = sorted(by_identity)
  names = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(rows, len(names))).round().astype(int))]
  emotions = sorted(set(index.emotion.tolist()), key=lambda emotion: (emotion < 0, emotion))
  if emotions == [-1]:
    count = min(columns, max(len(by_identity[name]) for name in names))
    return [""] * count, [(name, [*by_identity[name], *[None] * count][:count]) for name in names]
  # The highest level shows an emotion best.
  best = {(str(index.identity[i]), int(index.emotion[i])): int(i) for i in np.argsort(index.level, kind="stable")}
  titles = [EMOTIONS[emotion] if emotion >= 0 else _UNKNOWN for emotion in emotions]
  return titles, [(name, [best.get((name, emotion)) for emotion in emotions]) for name in names]


def _write(sheet: Image.Image, place: tuple[int, int], text: str) -> None:
  """Draws a label, in a font that has its letters; letters that no font has are escaped."""
  font = next((font for font in _fonts() if all(_has(font, letter) for letter in text)), None)
  if font is None:
    font, text = _fonts()[0], text.encode("ascii", "backslashreplace").decode()
  while font.getlength(text) > _LEFT - 4 and len(text) > 1:
    text = f"{text[:-2]}…" if _has(font, "…") else text[:-1]
  ImageDraw.Draw(sheet).text(place, text, fill="black", font=font)


@functools.cache
def _fonts() -> list[ImageFont.FreeTypeFont]:
  """Pillow's font for Latin letters, and fonts of the system for others."""
  fonts = [ImageFont.load_default(_LETTERS)]
  for name in ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "arial.ttf", "msyh.ttc"):
    with contextlib.suppress(OSError):
      fonts.append(ImageFont.truetype(name, _LETTERS))
  return fonts


def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
  """Whether a font has a letter: it draws missing ones like a code that is no letter."""
  return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))
