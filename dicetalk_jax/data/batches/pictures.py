"""Batches of pictures: runs of consecutive frames, and several pictures of each of several people.

They are read from sets as building leaves them. Batch i is a pure function of the seed and i: see `sampling`.
"""

import collections
import dataclasses
import math

import numpy as np

from dicetalk_jax.data.batches.clip_sets import ClipSets, Kept
from dicetalk_jax.data.batches.clips import Folders, check_seed, fingerprint_of
from dicetalk_jax.data.batches.sampling import ENDLESS, Batches, Share, generator, shuffled
from dicetalk_jax.data.batches.windows import starts
from dicetalk_jax.errors import InputError
from dicetalk_jax.media.image import clip_pixels

# What a random draw is for: no two share their numbers.
_CLIPS, _RUNS, _PEOPLE, _PICTURES = range(20, 24)


@dataclasses.dataclass(frozen=True)
class FrameBatchConfig:
  """batch: runs; frames: of a run, consecutive at 25 fps; crop: the side in pixels of the square that is cut out of the
  frames, 0 for all of them; faces: the share of these squares that lie on the face, up to half their side off its
  middle, instead of anywhere; flip: the share of runs that are mirrored; recolour: the share of runs whose colours are
  others, so that few people show many. All but the first two are of training alone.
  """

  batch: int = 2
  frames: int = 4
  crop: int = 0
  faces: float = 0.0
  flip: float = 0.5
  recolour: float = 0.0


@dataclasses.dataclass(frozen=True)
class PortraitBatchConfig:
  """people: different ones in a batch; pictures: of each; crop: up to this share of a picture's side is cut away; flip:
  the share of pictures that are mirrored. The last two are of training alone.
  """

  people: int = 32
  pictures: int = 2
  crop: float = 0.15
  flip: float = 0.5


def frame_batches(
  data: Folders,
  config: FrameBatchConfig | None = None,
  split: str = "train",
  seed: int = 0,
  workers: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  training: bool = True,
  memory_gb: float = 2.0,
  limit: int | None = None,
) -> Batches:
  """Batches of short runs of frames. Clips of fewer frames are left out; `source.left_out` counts.

  Yields, b = batch / process_count rows: frames (b, frames, h, w, 3) uint8; start (b,) int32, the first frame;
  identity, clip (b,) int32, indices into `source.identities`, `.clips`; valid (b,), false in rows that fill the last
  batch of a finite one. `source.size` is (height, width) of the frames.

  memory_gb: so much of what was decoded is kept, in each worker, for speed alone. training=False: the middle of every
  clip once, in order, nothing cut or mirrored, then it ends; limit: of so many clips, spread over all, alone. Raises
  InputError for data that cannot be used (see `ClipSets`), frames of several sizes or smaller than the crop, and a
  batch that cannot be divided.
  """
  config = config or FrameBatchConfig()
  source = _FrameSource(data, config, split, seed, process_index, process_count, training, memory_gb, limit)
  return Batches(source, workers)


def portrait_batches(
  data: Folders,
  config: PortraitBatchConfig | None = None,
  split: str = "train",
  seed: int = 0,
  workers: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  training: bool = True,
  memory_gb: float = 2.0,
) -> Batches:
  """Batches of P people × K pictures, a person's of different clips as far as there are so many, whatever the emotion.

  People with a single frame are left out; `source.left_out` counts.

  Yields, b = this process's P · K / process_count rows, those of a person together: pixels (b, 224, 224, 3) float32,
  CLIP's input; group, clip (b,) int32, indices into `source.identities`, `.clips`; valid (b,), false in rows that
  fill the last batch of a finite one.

  memory_gb: so much of what was decoded is kept, in each worker, for speed alone. training=False: every person once, in
  order, clips spread evenly, their middle frames, nothing cut or mirrored, then it ends. Raises InputError for data
  that cannot be used (see `ClipSets`), too few people, and P that cannot be divided over the processes.
  """
  config = config or PortraitBatchConfig()
  source = _PortraitSource(data, config, split, seed, process_index, process_count, training, memory_gb)
  return Batches(source, workers)


class _Frames:
  """Frames of clips: decoded whole and kept while there is room, otherwise only those asked for."""

  def __init__(self, sets: ClipSets, gigabytes: float):
    self._sets = sets
    self._kept = Kept(sets.frames, self._size, gigabytes)

  def __call__(self, record: int, indices: np.ndarray) -> np.ndarray:
    frames = self._kept.get(record)
    return self._sets.frames(record, indices) if frames is None else frames[indices]

  def _size(self, record: int) -> int:
    index = self._sets.index
    return 3 * int(index.num_frames[record]) * int(index.height[record]) * int(index.width[record])


class _FrameSource:
  def __init__(self, data, config, split, seed, process_index, process_count, training, memory_gb, limit):
    check_seed(seed)
    shares = config.faces, config.flip, config.recolour
    if config.frames < 1 or config.crop < 0 or not all(0 <= share <= 1 for share in shares):
      raise InputError(
        f"frames {config.frames}, crop {config.crop}, faces {config.faces}, flip {config.flip} and recolour "
        f"{config.recolour} cannot be used: the first is at least 1, the second at least 0, the others are from 0 to 1"
      )
    self._config, self._seed, self._training = config, seed, training
    self._rows = Share(process_index, process_count).rows(config.batch, "runs")
    sets = ClipSets(data, split)
    index = self._index = sets.index
    self._usable = np.flatnonzero(index.num_frames >= config.frames)
    self.left_out = {f"shorter than {config.frames} frames": len(index) - len(self._usable)}
    if not len(self._usable):
      raise InputError(f"{sets.where} has no clip of {config.frames} frames or more in '{split}'; use shorter runs")
    if not training and limit is not None and limit < len(self._usable):
      self._usable = self._usable[np.linspace(0, len(self._usable) - 1, max(limit, 1)).astype(int)]
    self.size = sets.one_size(self._usable)
    if training and config.crop:
      if config.crop > min(self.size):
        height, width = self.size
        raise InputError(f"crop is {config.crop}, and the frames of {sets.where} are {width}x{height} pixels")
      self.size = (config.crop, config.crop)
    self._frames, self._sets, self._boxes = _Frames(sets, memory_gb), sets, {}
    self.clips = index.clip
    self.identities, self._identity = np.unique(index.identity, return_inverse=True)
    self.fingerprint = fingerprint_of("frames", config, split, seed, training, index)

  def __len__(self):
    return ENDLESS if self._training else math.ceil(len(self._usable) / self._config.batch)

  def __getitem__(self, batch: int) -> dict[str, np.ndarray]:
    rows = [self._row(batch * self._config.batch + row) for row in self._rows]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  def _row(self, sample: int) -> dict:
    config, total = self._config, len(self._usable)
    if self._training:
      record, rng = self._usable[shuffled(sample, total, self._seed, _CLIPS)], generator(self._seed, _RUNS, sample)
    else:
      record, rng = self._usable[sample % total], None
    start = starts(self._index.num_frames[record], config.frames, 1, rng)[0]
    frames = self._frames(record, start + np.arange(config.frames))
    if rng is not None:
      if config.crop:
        frames = _cut(frames, config.crop, self._box(record) if rng.random() < config.faces else None, rng)
      frames = frames[:, :, ::-1] if rng.random() < config.flip else frames
      frames = _recoloured(frames, rng) if rng.random() < config.recolour else frames
    labels = {"start": start, "identity": self._identity[record], "clip": record}
    labels = {name: np.int32(value) for name, value in labels.items()}
    return {"frames": frames, **labels, "valid": np.bool_(self._training or sample < total)}

  def _box(self, record: int) -> tuple[int, int, int, int]:
    if record not in self._boxes:
      self._boxes[record] = self._sets.clip(record).face_box
    return self._boxes[record]


def _cut(frames: np.ndarray, crop: int, box: tuple[int, int, int, int] | None, rng) -> np.ndarray:
  """A square of side `crop` out of (f, h, w, 3): anywhere, or about the middle of a box (x, y, width, height)."""

  def first(size, start, extent):
    if box is None:
      return rng.integers(0, size - crop + 1)
    return np.clip(start + extent // 2 - rng.integers(0, crop + 1), 0, size - crop)

  _, h, w, _ = frames.shape
  x, y, width, height = box or (0, 0, 0, 0)
  top, left = first(h, y, height), first(w, x, width)
  return frames[:, top : top + crop, left : left + crop]


def _recoloured(frames: np.ndarray, rng) -> np.ndarray:
  """uint8 (f, h, w, 3) with its channels in another order, each of another contrast and brightness."""
  contrast, brightness = rng.uniform(0.5, 1.2, 3), rng.uniform(-50, 50, 3)
  levels = np.arange(256)[:, None]
  tables = np.clip(127.5 + contrast * (levels - 127.5) + brightness, 0, 255).astype(np.uint8)  # (level, channel)
  return np.stack([tables[frames[..., c], i] for i, c in enumerate(rng.permutation(3))], axis=-1)


class _PortraitSource:
  def __init__(self, data, config, split, seed, process_index, process_count, training, memory_gb):
    check_seed(seed)
    if config.pictures < 2:
      raise InputError(f"{config.pictures} pictures of a person make no pair; give at least 2")
    if not (0 <= config.crop < 1 and 0 <= config.flip <= 1):
      raise InputError(
        f"crop {config.crop} and flip {config.flip} cannot be used: the first is from 0 up to 1, the second from 0 to 1"
      )
    self._config, self._seed, self._training = config, seed, training
    self._slots = Share(process_index, process_count).rows(config.people, "people")
    sets = ClipSets(data, split)
    index = self._index = sets.index
    self._frames = _Frames(sets, memory_gb)
    self.clips = index.clip
    members = collections.defaultdict(list)
    for record, identity in enumerate(index.identity):
      members[str(identity)].append(record)
    usable = [name for name in sorted(members) if index.num_frames[members[name]].sum() > 1]
    self.left_out = {"people with a single frame": len(members) - len(usable)}
    self.identities, self._members = usable, [np.array(members[name]) for name in usable]
    if len(usable) < (config.people if training else 1):
      raise InputError(
        f"{sets.where} has {len(usable)} people in '{split}', and a batch wants {config.people} different ones; set "
        "fewer people, or add data"
      )
    self.fingerprint = fingerprint_of("portraits", config, split, seed, training, index)

  def __len__(self):
    return ENDLESS if self._training else math.ceil(len(self.identities) / self._config.people)

  def __getitem__(self, batch: int) -> dict[str, np.ndarray]:
    rows = [row for slot in self._slots for row in self._person(batch, slot)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  def _person(self, batch: int, slot: int) -> list[dict]:
    config, people, valid = self._config, len(self.identities), True
    place = batch * config.people + slot
    if self._training:
      # Whole batches alone make an epoch, so that no batch has a person twice.
      epoch, batch = divmod(batch, people // config.people)
      person = shuffled(epoch * people + batch * config.people + slot, people, self._seed, _PEOPLE)
      rng = generator(self._seed, _PICTURES, place)
    else:
      person, valid, rng = place % people, place < people, None
    rows = []
    for record, count in _spread(self._members[person], config.pictures, rng):
      for frame in _moments(self._index.num_frames[record], count, rng):
        picture = self._frames(record, np.array([frame]))[0]
        pixels = clip_pixels(picture if rng is None else _framed(picture, config.crop, config.flip, rng))
        labels = {"group": np.int32(person), "clip": np.int32(record), "valid": np.bool_(valid)}
        rows.append({"pixels": pixels, **labels})
    return rows


def _spread(members: np.ndarray, count: int, rng) -> list[tuple[int, int]]:
  """(record, pictures of it), `count` pictures over as many clips as there are."""
  if rng is not None:
    members = rng.permutation(members)
  elif len(members) > count:
    members = members[np.linspace(0, len(members) - 1, count).astype(int)]
  members = members[:count]
  times, more = divmod(count, len(members))
  return [(int(record), times + (i < more)) for i, record in enumerate(members)]


def _moments(length: int, count: int, rng) -> np.ndarray:
  """`count` frames of a clip, different ones as far as it has so many."""
  if rng is None:
    return ((np.arange(count) + 0.5) * length / count).astype(int)
  return rng.choice(length, count, replace=count > length)


def _framed(picture: np.ndarray, crop: float, flip: float, rng) -> np.ndarray:
  """A somewhat smaller part of a picture (h, w, 3), in its proportions, mirrored now and then."""
  h, w = picture.shape[:2]
  share = 1 - crop * rng.random()
  height, width = max(1, round(share * h)), max(1, round(share * w))
  y, x = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
  picture = picture[y : y + height, x : x + width]
  return np.ascontiguousarray(picture[:, ::-1] if rng.random() < flip else picture)
