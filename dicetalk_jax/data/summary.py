"""What a set holds, for people: counts by split, identity, emotion and level, lengths, and a contact sheet."""

import collections
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dicetalk_jax.data.index import Index, read_index
from dicetalk_jax.data.records import clip_of, decode_frames
from dicetalk_jax.data.sets import Records, check_files, open_set
from dicetalk_jax.errors import InputError
from dicetalk_jax.media.image import resize
from dicetalk_jax.vocabulary import EMOTIONS, FPS

_TILE, _MARGIN, _LABEL = 128, 4, 14
_UNKNOWN = "not known"


@dataclasses.dataclass(frozen=True)
class Summary:
  """A set and the index of each of its splits; str() of it is for people."""

  folder: Path
  name: str
  fields: tuple[str, ...]
  bytes: int
  splits: dict[str, Index]

  def __str__(self):
    seconds = {split: index.num_frames.sum() / FPS for split, index in self.splits.items()}
    clips = sum(map(len, self.splits.values()))
    kind = "encoded clips" if "states" in self.fields else "clips"
    rows = [
      f"{self.folder}: {self.name}, {clips} {kind}, {sum(seconds.values()) / 60:.1f} minutes, {_size(self.bytes)}",
      "",
      f"{'split':<10}{'clips':>8}{'minutes':>10}{'identities':>12}{'videos':>8}{'coefficients':>14}  seconds a clip",
    ]
    for split, index in self.splits.items():
      counts = (len(index), len(set(index.identity)), len(set(index.video)), int(index.has_expression.sum()))
      clips, identities, videos, coefficients = counts
      rows.append(
        f"{split:<10}{clips:>8}{seconds[split] / 60:>10.1f}{identities:>12}{videos:>8}{coefficients:>14}"
        f"  {_spread(index.num_frames / FPS)}"
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
    """Those in more than one split, which there should not be."""
    seen = collections.Counter(name for index in self.splits.values() for name in set(index.identity.tolist()))
    return {name for name, count in seen.items() if count > 1}

  def _emotions(self):
    counts = collections.Counter()
    for index in self.splits.values():
      counts.update(zip(index.emotion.tolist(), index.level.tolist(), strict=True))
    levels = sorted({level for _, level in counts})
    rows = [f"{'emotion':<12}" + "".join(f"{_level(level):>12}" for level in levels)]
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
    shown = sorted(counts)[:most]
    short = {name: name if len(name) <= 48 else f"{name[:45]}..." for name in shown}
    width = max(map(len, short.values()), default=8) + 2
    rows = [f"{'identity':<{width}}{'split':<8}{'clips':>6}"]
    rows += [f"{short[name]:<{width}}{split_of[name]:<8}{counts[name]:>6}" for name in shown]
    return rows + ([f"… and {len(counts) - most} more"] if len(counts) > most else [])


def summarise(folder: str | os.PathLike) -> Summary:
  """Raises InputError for a folder that is no finished set, or damaged."""
  builder = open_set(folder)
  check_files(builder)
  splits = {
    split: read_index(Records(folder, split)) for split, info in builder.info.splits.items() if info.num_examples
  }
  size = sum(info.num_bytes for info in builder.info.splits.values())
  return Summary(Path(folder), builder.info.name, tuple(builder.info.features), size, splits)


def contact_sheet(
  folder: str | os.PathLike, split: str, columns: int = 8, rows: int = 8, progress: Callable | None = None
) -> Image.Image:
  """The middle frames of a split's clips: emotions across, identities down, as far as they are known.

  Where emotions are not known each identity has a row of its clips. Raises InputError for a set without pixels.
  """
  records = Records(folder, split)
  if "frames" not in records.features:
    raise InputError(f"{folder} holds encoded clips, which have no pictures to show; give the set it was encoded from")
  table, across = _table(read_index(records), columns, rows)
  cell = _TILE + _MARGIN
  left = 90
  sheet = Image.new("RGB", (left + cell * len(across), _LABEL + _MARGIN + cell * len(table)), "white")
  pen = ImageDraw.Draw(sheet)
  for j, label in enumerate(across):
    pen.text((left + j * cell, 2), label, fill="black")
  todo = [(i, j, record) for i, (_, row) in enumerate(table) for j, record in enumerate(row) if record is not None]
  for i, (name, _) in enumerate(table):
    pen.text((2, _LABEL + _MARGIN + i * cell + _TILE // 2), name.rpartition("/")[2][:14], fill="black")
  for done, (i, j, record) in enumerate(todo, 1):
    clip = clip_of(records[record])
    picture = resize(decode_frames(clip.frames, [clip.num_frames // 2])[0], (_TILE, _TILE))
    sheet.paste(Image.fromarray(picture), (left + j * cell, _LABEL + _MARGIN + i * cell))
    if progress:
      progress("contact sheet", done, len(todo))
  return sheet


def _table(index: Index, columns, rows):
  """[(identity, its records or None)], and what stands above the columns."""
  by_identity = collections.defaultdict(list)
  for record, name in enumerate(index.identity.tolist()):
    by_identity[name].append(record)
  # Spread over the set, so that a sheet of a large one shows all of it.
  names = sorted(by_identity)
  names = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(rows, len(names))).round().astype(int))]
  emotions = sorted(set(index.emotion.tolist()) - {-1})
  if not emotions:
    return [(name, by_identity[name][:columns]) for name in names], [""] * min(
      columns, max(len(by_identity[name]) for name in names)
    )
  # The highest level shows an emotion best.
  best = {}
  for record in np.argsort(index.level, kind="stable").tolist():
    best[str(index.identity[record]), int(index.emotion[record])] = record
  table = [(name, [best.get((name, emotion)) for emotion in emotions]) for name in names]
  return table, [EMOTIONS[emotion] for emotion in emotions]


def _level(level) -> str:
  return f"level {level}" if level else "no level"


def _spread(seconds) -> str:
  low, middle, high = np.percentile(seconds, [0, 50, 100])
  return f"{low:.1f} to {high:.1f}, median {middle:.1f}"


def _size(count: int) -> str:
  return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
