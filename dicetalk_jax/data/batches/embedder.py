"""Batches for the emotion embedder: groups of windows of encoded clips (§3.1, Eq. 7, 8)."""

import dataclasses
import math
from typing import Literal

import numpy as np

from dicetalk_jax.data.batches.sampling import Batches, Run
from dicetalk_jax.data.batches.sources import Cache, EncodedSets, Folders, RowSource, members_of, spread
from dicetalk_jax.data.batches.windows import Sequences, jittered, starts
from dicetalk_jax.data.index import Index
from dicetalk_jax.errors import InputError

# Keys of the random numbers (see `sampling.generator`).
_ORDER, _WINDOWS = 0, 1
_GROUPS = {"person": "a person with an emotion", "emotion": "an emotion with a level"}


@dataclasses.dataclass(frozen=True)
class EmbedderBatchConfig:
  """A batch of P groups with K windows each."""

  groups: int = 32
  """Groups in a batch (P), all different."""

  clips: int = 4
  """Windows of each group (K), at least 2."""

  frames: int = 64
  """Frames of a window, at 25 a second."""

  speed: float = 0.1
  """Windows are played up to this share faster or slower. Training only."""

  jitter: float = 0.02
  """Noise on the coefficients, in standard deviations of each within the window. Training only."""

  group: Literal["person", "emotion"] = "person"
  """Positive pairs among clips of known emotion. person: same person and emotion, any level (§4.1). emotion: same
  emotion and level, any person, which also brings the priors of different people together."""

  @property
  def span(self) -> int:
    """Most frames at 25 a second that a window covers."""
    return _span(self.frames, 1 + self.speed)


def embedder_batches(
  data: Folders,
  config: EmbedderBatchConfig | None = None,
  split: str = "train",
  workers: int = 0,
  memory_gb: float = 1.0,
  **run,
) -> Batches:
  """Batches of P groups × K windows for the contrastive loss (§3.1, Eq. 7, 8; §4.1 defines a positive pair).

  `config.group` defines the groups of clips with a known emotion; the other clips are grouped by video. The windows of
  a group come from different clips while there are enough, else from disjoint parts of a clip. A group of one clip that
  is too short for two disjoint windows is left out; `source.left_out` counts them.

  Yields, with b = P · K / process_count rows, the rows of a group together: expression (b, frames, 64) float32 and
  expression_mask (b, frames), false where a clip has no coefficients; speech (b, frames, d) float32, Whisper's last
  states averaged in pairs to 25 Hz, and speech_mask (b, frames), false after a clip's end; group, identity, clip (b,)
  int32, indices into `source.groups`, `.identities`, `.clips`; emotion, level (b,) int32, -1 and 0 when unknown; valid
  (b,), false in rows that fill up the last batch of a pass without training.

  run: the fields of `Run`. memory_gb: how much of the data each worker keeps in memory, for speed; a clip of 4 s takes
  about 0.2 MB. training=False: one pass over the groups in order, windows spread evenly, no augmentation. Raises
  InputError for data that cannot be used (see `open_encoded`), too few groups, and P that is no multiple of
  process_count.
  """
  return Batches(_Source(data, config or EmbedderBatchConfig(), split, Run(**run), memory_gb), workers)


class _Source(RowSource):
  def __init__(self, data, config, split, run, memory_gb):
    if config.clips < 2 or config.frames < 1:
      raise InputError(f"{config.clips} clips of {config.frames} frames make no pair; give at least 2 clips of 1 frame")
    if not (0 <= config.speed < 1 and config.jitter >= 0):
      raise InputError(f"speed {config.speed} must be from 0 up to 1, and jitter {config.jitter} at least 0")
    if config.group not in _GROUPS:
      raise InputError(f"group '{config.group}' is not known; choose person or emotion")
    sets = EncodedSets(data, split, pictures=False)
    super().__init__("embedder", config, sets, split, run, config.groups, "groups")
    groups = members_of(_names(self._index, config.group))
    usable = {
      name: members
      for name, members in groups.items()
      if len(members) > 1 or self._index.num_frames[members[0]] >= 2 * config.span
    }
    self.groups, self._members, self._total = list(usable), list(usable.values()), len(usable)
    self.left_out = {"groups of one short clip": len(groups) - len(usable)}
    if self._total < (config.groups if run.training else 1):
      raise InputError(
        f"{sets.where} has {self._total} groups ({_GROUPS[config.group]}, or a video) with at least two clips in "
        f"'{split}', and a batch needs {config.groups} different ones; set fewer groups, or add data"
      )
    self._sequences = Cache(self._read, memory_gb)

  def _read(self, record: int) -> Sequences:
    sequences = Sequences.of(self._sets.clip(record))
    # A view would keep the whole record in memory.
    return Sequences(sequences.expression.copy(), sequences.speech)

  def _slot_rows(self, batch, slot) -> list[dict]:
    config = self._config
    group, rng, valid = self._item(batch, slot, _ORDER, _WINDOWS, whole=True)
    rows = []
    for record, times in spread(self._members[group], config.clips, rng):
      sequences = self._sequences[record]
      emotion, level = self._index.emotion[record], self._index.level[record]
      labels = self._labels(
        group=group, identity=self._identity[record], clip=record, emotion=emotion, level=level, valid=valid
      )
      speeds = 1 + config.speed * rng.uniform(-1, 1, times) if rng else np.ones(times)
      begins = starts(len(sequences.speech), _span(config.frames, speeds.max()), times, rng)
      for start, speed in zip(begins, speeds, strict=True):
        row = sequences.window(start + speed * np.arange(config.frames))
        if rng and config.jitter and row["expression_mask"].any():
          row["expression"] = jittered(row["expression"], row["expression_mask"], config.jitter, rng)
        rows.append(row | labels)
    return [rows[i] for i in rng.permutation(len(rows))] if rng else rows


def _names(index: Index, group: str) -> list[str]:
  """The name of each record's group."""
  columns = (index.source, index.identity, index.video, index.emotion, index.level)
  return [
    f"{source}/{identity}/video {video}"
    if emotion < 0
    else f"emotion {emotion}/level {level}"
    if group == "emotion"
    else f"{source}/{identity}/emotion {emotion}"
    for source, identity, video, emotion, level in zip(*columns, strict=True)
  ]


def _span(frames: int, speed: float) -> int:
  return math.ceil(speed * (frames - 1)) + 1
