"""Batches of pictures from built sets: runs of consecutive frames, and several pictures of each of several people."""

import dataclasses

import numpy as np

from dicetalk_jax.data.batches.sampling import Batches, Run
from dicetalk_jax.data.batches.sources import Cache, ClipSets, Folders, RowSource, limited, members_of, spread
from dicetalk_jax.data.batches.windows import starts
from dicetalk_jax.errors import InputError
from dicetalk_jax.media.image import clip_pixels

# Keys of the random numbers (see `sampling.generator`).
_CLIPS, _RUNS, _PEOPLE, _PICTURES = range(20, 24)
# Augmentation of portraits: most of a side that is cut away, and the share that is mirrored.
_PORTRAIT_CROP, _PORTRAIT_FLIP = 0.15, 0.5


@dataclasses.dataclass(frozen=True)
class FrameBatchConfig:
  """A batch of runs of consecutive frames."""

  batch: int = 2
  """Runs in a batch."""

  frames: int = 4
  """Frames of a run, at 25 a second."""

  crop: int = 0
  """Side in pixels of a square cut out of the frames; 0: whole frames. Training only."""

  faces: float = 0.0
  """Share of these squares that lie on the face instead of anywhere. Training only."""

  flip: float = 0.5
  """Share of runs that are mirrored. Training only."""

  recolour: float = 0.0
  """Share of runs with changed colours, so that few people show many colours. Training only."""


@dataclasses.dataclass(frozen=True)
class PortraitBatchConfig:
  """A batch of several pictures of each of several people."""

  people: int = 32
  """People in a batch, all different."""

  pictures: int = 2
  """Pictures of each person, at least 2."""


def frame_batches(
  data: Folders,
  config: FrameBatchConfig | None = None,
  split: str = "train",
  workers: int = 0,
  memory_gb: float = 2.0,
  limit: int | None = None,
  **run,
) -> Batches:
  """Batches of short runs of frames. Shorter clips are left out; `source.left_out` counts them.

  Yields, with b = batch / process_count rows: frames (b, frames, h, w, 3) uint8; start (b,) int32, the first frame;
  identity, clip (b,) int32, indices into `source.identities`, `.clips`; valid (b,), false in rows that fill up the last
  batch of a pass without training. `source.size` is (height, width) of the frames.

  run: the fields of `Run`. memory_gb: how much of the decoded data each worker keeps in memory, for speed.
  training=False: one pass over the clips in order, the middle of each, no augmentation. limit: a pass over so many
  clips, spread over all. Raises InputError for data that cannot be used (see `ClipSets`), frames of several sizes or
  smaller than the crop, and a batch that is no multiple of process_count.
  """
  return Batches(_FrameSource(data, config or FrameBatchConfig(), split, Run(**run), memory_gb, limit), workers)


def portrait_batches(
  data: Folders,
  config: PortraitBatchConfig | None = None,
  split: str = "train",
  workers: int = 0,
  memory_gb: float = 2.0,
  **run,
) -> Batches:
  """Batches of P people × K pictures, from different clips of a person while there are enough, whatever the emotion.

  People with a single frame are left out; `source.left_out` counts them.

  Yields, with b = P · K / process_count rows, the rows of a person together: pixels (b, 224, 224, 3) float32, CLIP's
  input; group, clip (b,) int32, indices into `source.identities`, `.clips`; valid (b,), false in rows that fill up the
  last batch of a pass without training.

  run: the fields of `Run`. memory_gb: how much of the decoded data each worker keeps in memory, for speed.
  training=False: one pass over the people in order, clips spread evenly, their middle frames, no augmentation. Raises
  InputError for data that cannot be used (see `ClipSets`), too few people, and P that is no multiple of process_count.
  """
  return Batches(_PortraitSource(data, config or PortraitBatchConfig(), split, Run(**run), memory_gb), workers)


class _Frames:
  """Frames of clips. A clip is decoded whole and kept while there is room; else only the frames asked for are."""

  def __init__(self, sets: ClipSets, memory_gb: float):
    self._sets, self._cache = sets, Cache(sets.frames, memory_gb)

  def __call__(self, record: int, indices: np.ndarray) -> np.ndarray:
    index = self._sets.index
    size = 3 * int(index.num_frames[record]) * int(index.height[record]) * int(index.width[record])
    return self._cache[record][indices] if self._cache.holds(record, size) else self._sets.frames(record, indices)


class _FrameSource(RowSource):
  def __init__(self, data, config, split, run, memory_gb, limit):
    shares = config.faces, config.flip, config.recolour
    if config.frames < 1 or config.crop < 0 or not all(0 <= share <= 1 for share in shares):
      raise InputError(
        f"frames {config.frames} must be at least 1, crop {config.crop} at least 0, and faces {config.faces}, flip "
        f"{config.flip} and recolour {config.recolour} from 0 to 1"
      )
    sets = ClipSets(data, split)
    super().__init__("frames", config, sets, split, run, config.batch, "runs")
    usable = np.flatnonzero(self._index.num_frames >= config.frames)
    self.left_out = {f"shorter than {config.frames} frames": len(self._index) - len(usable)}
    if not len(usable):
      raise InputError(f"{sets.where} has no clip of {config.frames} frames or more in '{split}'; use shorter runs")
    self._usable = usable if run.training else limited(usable, limit)
    self._total = len(self._usable)
    self.size = sets.one_size(self._usable)
    if run.training and config.crop:
      if config.crop > min(self.size):
        height, width = self.size
        raise InputError(f"crop is {config.crop}, and the frames of {sets.where} are {width}x{height} pixels")
      self.size = (config.crop, config.crop)
    self._frames, self._boxes = _Frames(sets, memory_gb), {}

  def _slot_rows(self, batch, slot) -> list[dict]:
    config = self._config
    item, rng, valid = self._item(batch, slot, _CLIPS, _RUNS)
    record = self._usable[item]
    start = starts(self._index.num_frames[record], config.frames, 1, rng)[0]
    frames = self._frames(record, start + np.arange(config.frames))
    if rng is not None:
      if config.crop:
        frames = _crop(frames, config.crop, self._box(record) if rng.random() < config.faces else None, rng)
      frames = frames[:, :, ::-1] if rng.random() < config.flip else frames
      frames = _recolour(frames, rng) if rng.random() < config.recolour else frames
    return [{"frames": frames, **self._labels(start=start, identity=self._identity[record], clip=record, valid=valid)}]

  def _box(self, record: int) -> tuple[int, int, int, int]:
    if record not in self._boxes:
      self._boxes[record] = self._sets.clip(record).face_box
    return self._boxes[record]


def _crop(frames: np.ndarray, side: int, box: tuple[int, int, int, int] | None, rng) -> np.ndarray:
  """A square out of (f, h, w, 3): anywhere, or up to half its side off the centre of a box (x, y, width, height)."""

  def first(size, start, extent):
    if box is None:
      return rng.integers(0, size - side + 1)
    return np.clip(start + extent // 2 - rng.integers(0, side + 1), 0, size - side)

  _, h, w, _ = frames.shape
  x, y, width, height = box or (0, 0, 0, 0)
  top, left = first(h, y, height), first(w, x, width)
  return frames[:, top : top + side, left : left + side]


def _recolour(frames: np.ndarray, rng) -> np.ndarray:
  """(f, h, w, 3) uint8 with its channels in another order, each with another contrast and brightness."""
  contrast, brightness = rng.uniform(0.5, 1.2, 3), rng.uniform(-50, 50, 3)
  levels = np.arange(256)[:, None]
  tables = np.clip(127.5 + contrast * (levels - 127.5) + brightness, 0, 255).astype(np.uint8)  # (level, channel)
  return np.stack([tables[frames[..., c], i] for i, c in enumerate(rng.permutation(3))], axis=-1)


class _PortraitSource(RowSource):
  def __init__(self, data, config, split, run, memory_gb):
    if config.pictures < 2:
      raise InputError(f"{config.pictures} pictures of a person make no pair; give at least 2")
    sets = ClipSets(data, split)
    super().__init__("portraits", config, sets, split, run, config.people, "people")
    people = members_of(self._index.identity)
    usable = {name: members for name, members in people.items() if self._index.num_frames[members].sum() > 1}
    self.left_out = {"people with a single frame": len(people) - len(usable)}
    self.identities, self._members, self._total = list(usable), list(usable.values()), len(usable)
    if self._total < (config.people if run.training else 1):
      raise InputError(
        f"{sets.where} has {self._total} people in '{split}', and a batch needs {config.people} different ones; set "
        "fewer people, or add data"
      )
    self._frames = _Frames(sets, memory_gb)

  def _slot_rows(self, batch, slot) -> list[dict]:
    person, rng, valid = self._item(batch, slot, _PEOPLE, _PICTURES, whole=True)
    rows = []
    for record, count in spread(self._members[person], self._config.pictures, rng):
      for frame in _moments(self._index.num_frames[record], count, rng):
        picture = self._frames(record, np.array([frame]))[0]
        pixels = clip_pixels(picture if rng is None else _augment(picture, rng))
        rows.append({"pixels": pixels, **self._labels(group=person, clip=record, valid=valid)})
    return rows


def _moments(length: int, count: int, rng) -> np.ndarray:
  """`count` frames of a clip, different ones if it has so many."""
  if rng is None:
    return ((np.arange(count) + 0.5) * length / count).astype(int)
  return rng.choice(length, count, replace=count > length)


def _augment(picture: np.ndarray, rng) -> np.ndarray:
  """A slightly smaller part of a picture (h, w, 3) with the same proportions, mirrored at random."""
  h, w = picture.shape[:2]
  share = 1 - _PORTRAIT_CROP * rng.random()
  height, width = max(1, round(share * h)), max(1, round(share * w))
  y, x = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
  picture = picture[y : y + height, x : x + width]
  return np.ascontiguousarray(picture[:, ::-1] if rng.random() < _PORTRAIT_FLIP else picture)
