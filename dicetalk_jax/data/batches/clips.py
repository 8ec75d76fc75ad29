"""Batches of encoded clips: pairs of windows for the emotion embedder, frames with their conditions for the diffusion.

Batch i is a pure function of the seed and i, and each process takes its rows of it: see `sampling`.
"""

import collections
import dataclasses
import hashlib
import itertools
import math
import os
from collections.abc import Sequence
from typing import Literal

import numpy as np

from dicetalk_jax.data.batches.sampling import ENDLESS, Batches, Share, generator, shuffled
from dicetalk_jax.data.batches.windows import Sequences, jittered, jittered_box, speech_windows, starts
from dicetalk_jax.data.encode.record import EncodedClip, encoded_clip, open_encoded
from dicetalk_jax.data.index import Index
from dicetalk_jax.data.settings import Settings
from dicetalk_jax.errors import InputError
from dicetalk_jax.vocabulary import EMOTIONS, LEVELS

Folders = str | os.PathLike | Sequence[str | os.PathLike]
# What a random draw is for: no two share their numbers.
_GROUPS, _WINDOWS, _CLIPS, _REGULAR, _FRAMES = range(5)
_GROUP_WORDS = {"person": "a person with an emotion", "emotion": "an emotion with a level"}


@dataclasses.dataclass(frozen=True)
class EmbedderBatchConfig:
  """groups: in a batch (P); clips: of each (K); frames: of a window, at 25 fps.

  group: what makes windows a positive pair, where their emotion is known: the same "person" and emotion, whatever the
  level (§4.1), or the same "emotion" and level, whoever the person: then priors of an emotion are near each other
  across people, which a person's groups alone do not ask for.
  speed: a window is played up to this share faster or slower; jitter: noise on the coefficients, in standard deviations
  of each within the window. Both are of training alone.
  """

  groups: int = 32
  clips: int = 4
  frames: int = 64
  speed: float = 0.1
  jitter: float = 0.02
  group: Literal["person", "emotion"] = "person"

  @property
  def span(self) -> int:
    """The frames at 25 fps that a window covers at most."""
    return _span(self.frames, 1 + self.speed)


@dataclasses.dataclass(frozen=True)
class DiffusionBatchConfig:
  """batch: clips; frames: of a clip, every `stride`-th of those at 25 fps (25 frames at 12.5 fps); positions: of
  Whisper's states that a frame sees; prior_frames: of the window, at 25 fps, that the emotion prior is taken from.

  mask_scale: the face box grows or shrinks up to this share; mask_shift: it moves up to this share of its size. Both
  are of training alone. reference: the portrait is a frame of the same "clip", or of another clip of the same "person",
  so that it does not show what the emotion's prior has to tell. prior: it is taken from the "clip" itself, or in
  training from any clip of the same "emotion" and level: the prior of a clip tells which clip it is, and a small set is
  soon known by heart. A clip of unknown emotion has its own. min_level: training's clips of an emotion at a lower level
  serve as portraits alone; neutral ones and those of unknown emotion or level stay. 0: all.
  """

  batch: int = 8
  frames: int = 25
  stride: int = 2
  positions: int = 10
  prior_frames: int = 64
  mask_scale: float = 0.1
  mask_shift: float = 0.05
  reference: Literal["clip", "person"] = "clip"
  prior: Literal["clip", "emotion"] = "clip"
  min_level: int = 0

  @property
  def span(self) -> int:
    """The frames at 25 fps that a window covers, so that a clip must have."""
    return (self.frames - 1) * self.stride + 1


def embedder_batches(
  data: Folders,
  config: EmbedderBatchConfig | None = None,
  split: str = "train",
  seed: int = 0,
  workers: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  training: bool = True,
  memory_gb: float = 1.0,
) -> Batches:
  """Batches of P groups × K windows for the contrastive loss (§3.1, Eq. 7, 8; §4.1: what a positive pair is).

  A group is a person with an emotion (its levels together) where the emotion is known, or an emotion with a level
  (`config.group`); where it is not, a video. The P of a batch are different; a group's K windows are of different clips
  as far as it has so many, else different windows of them. A group of one clip that is too short for two disjoint
  windows is left out; `source.left_out` counts.

  Yields, b = this process's P · K / process_count rows, those of a group together: expression (b, frames, 64) float32
  and expression_mask (b, frames), all false where the clip has no coefficients; speech (b, frames, d) float32,
  Whisper's last states averaged in pairs to 25 Hz, and speech_mask (b, frames), false after a clip's end; group,
  identity, clip (b,) int32, indices into `source.groups`, `.identities`, `.clips`; emotion, level (b,) int32, -1 and 0
  where not known; valid (b,), false in rows that fill the last batch of a finite one.

  memory_gb: so much of what was read is kept, in each worker, for speed alone; a clip of 4 s takes about 0.2 MB.
  training=False: every group once, in order, windows spread evenly, nothing augmented, then it ends. Raises InputError
  for data that cannot be used (see `open_encoded`), too few groups, and P that cannot be divided over the processes.
  """
  config = config or EmbedderBatchConfig()
  source = _EmbedderSource(data, config, split, seed, process_index, process_count, training, memory_gb)
  return Batches(source, workers)


def diffusion_batches(
  emotional: Folders = (),
  regular: Folders = (),
  config: DiffusionBatchConfig | None = None,
  split: str = "train",
  seed: int = 0,
  workers: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  training: bool = True,
) -> Batches:
  """Batches for the diffusion adaptation (§3.3), clips with and without known emotion in turn, 1 : 1 (§4.1).

  With one of the two sets empty all clips are of the other. Clips of less than `config.span` frames are left out;
  `source.left_out` counts. Every clip of a set comes once in an epoch of it.

  Yields, b = batch / process_count rows: latents_mean, latents_logvar (b, frames, h, w, 4) float16, unscaled;
  image_latents (b, h, w, 4) float16 and image_embedding (b, d) float16 of a reference frame (`config.reference`); audio
  (b, frames, positions, layers + 1, d) float16 as `inference.conditions.frame_windows` cuts it; mask_box (b, 4)
  float32, the face's x, y, w, h in pixels, and image_size (b, 2) int32, height and width; expression
  (b, prior_frames, 64), expression_mask, speech (b, prior_frames, d), speech_mask as of `embedder_batches`, a window of
  its own of that clip (`config.prior`); emotion, level, identity, clip (b,) int32; start (b,) int32, the first frame;
  valid (b,).

  training=False: every clip once, in order, the middle of it, with the first reference frame, of a person's neutral
  clip where it is of another one and there is one, then it ends. Raises
  InputError for data that cannot be used (see `open_encoded`), pictures of several sizes, and a batch that cannot be
  divided over the processes.
  """
  config = config or DiffusionBatchConfig()
  source = _DiffusionSource(emotional, regular, config, split, seed, process_index, process_count, training)
  return Batches(source, workers)


class _Data:
  """Several encoded folders as one; `index` has a row a record."""

  def __init__(self, folders: Folders, split: str, pictures: bool):
    folders = [folders] if isinstance(folders, str | os.PathLike) else list(folders)
    opened = [open_encoded(folder, split, pictures) for folder in folders]
    self.folders = [records.folder for records, _ in opened]
    self._records = [records for records, _ in opened]
    self._ends = np.cumsum([len(records) for records in self._records], dtype=np.int64)
    self.index = Index.join([index for _, index in opened]) if opened else Index.of([])

  def clip(self, record: int) -> EncodedClip:
    folder = int(np.searchsorted(self._ends, record, side="right"))
    first = self._ends[folder - 1] if folder else 0
    return encoded_clip(self._records[folder][int(record - first)])


class _Kept:
  """The sequences of a record, read once as far as there is room: records are small beside what is read for them."""

  def __init__(self, data: _Data, gigabytes: float):
    self._data, self._limit = data, gigabytes * 1e9
    self._room, self._sequences = self._limit, {}

  def __getitem__(self, record: int) -> Sequences:
    if (found := self._sequences.get(record)) is None:
      found = Sequences.of(self._data.clip(record))
      if self._room >= found.nbytes:
        # Not a view: that would keep the whole record.
        found = Sequences(found.expression.copy(), found.speech)
        self._room -= found.nbytes
        self._sequences[record] = found
    return found

  def __getstate__(self):
    return self.__dict__ | {"_room": self._limit, "_sequences": {}}


class _EmbedderSource:
  def __init__(self, data, config, split, seed, process_index, process_count, training, memory_gb):
    check_seed(seed)
    if config.clips < 2 or config.frames < 1:
      raise InputError(f"{config.clips} clips of {config.frames} frames make no pair; give at least 2 clips of 1 frame")
    if not (0 <= config.speed < 1 and config.jitter >= 0):
      raise InputError(
        f"speed {config.speed} and jitter {config.jitter} cannot be used: speed is from 0 up to 1, jitter at least 0"
      )
    if config.group not in _GROUP_WORDS:
      raise InputError(f"group '{config.group}' is not known; choose person or emotion")
    self._config, self._seed, self._training = config, seed, training
    self._slots = Share(process_index, process_count).rows(config.groups, "groups")
    self._data = _Data(data, split, pictures=False)
    if not self._data.folders:
      raise InputError("no data is given to train the embedder on; give encoded folders")
    self._kept = _Kept(self._data, memory_gb)
    index = self._data.index
    self.clips = index.clip
    self.identities, self._identity = np.unique(index.identity, return_inverse=True)
    self.groups, self._members, self.left_out = _groups(index, config.span, config.group)
    where = ", ".join(map(str, self._data.folders))
    if training and len(self.groups) < config.groups:
      raise InputError(
        f"{where} has {len(self.groups)} groups ({_GROUP_WORDS[config.group]}, or a video) with two clips or more in "
        f"'{split}', and a batch wants {config.groups} different ones; set fewer groups, or add data"
      )
    if not self.groups:
      raise InputError(f"{where} has no two clips of {_GROUP_WORDS[config.group]}, or of one video, in '{split}'")
    self.fingerprint = fingerprint_of("embedder", config, split, seed, training, index)

  def __len__(self):
    return ENDLESS if self._training else math.ceil(len(self.groups) / self._config.groups)

  def __getitem__(self, batch: int) -> dict[str, np.ndarray]:
    rows = [row for slot in self._slots for row in self._group_rows(batch, slot)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  def _group_rows(self, batch, slot) -> list[dict]:
    config, valid = self._config, True
    place = batch * config.groups + slot
    if self._training:
      # Whole batches alone make an epoch, so that no batch has a group twice.
      epoch, batch = divmod(batch, len(self.groups) // config.groups)
      index = epoch * len(self.groups) + batch * config.groups + slot
      group = shuffled(index, len(self.groups), self._seed, _GROUPS)
      rng = generator(self._seed, _WINDOWS, place)
    else:
      group, valid, rng = place % len(self.groups), place < len(self.groups), None
    rows = []
    for record, times in _choose(self._members[group], config.clips, rng):
      sequences = self._kept[record]
      labels = {"group": group, "identity": self._identity[record], "clip": record}
      labels |= {"emotion": self._data.index.emotion[record], "level": self._data.index.level[record]}
      labels = {name: np.int32(value) for name, value in labels.items()} | {"valid": np.bool_(valid)}
      speeds = 1 + config.speed * rng.uniform(-1, 1, times) if rng else np.ones(times)
      begins = starts(len(sequences.speech), _span(config.frames, speeds.max()), times, rng)
      for start, speed in zip(begins, speeds, strict=True):
        row = sequences.window(start + speed * np.arange(config.frames))
        if rng and config.jitter and row["expression_mask"].any():
          row["expression"] = jittered(row["expression"], row["expression_mask"], config.jitter, rng)
        rows.append(row | labels)
    return [rows[i] for i in rng.permutation(len(rows))] if rng else rows


class _DiffusionSource:
  def __init__(self, emotional, regular, config, split, seed, process_index, process_count, training):
    check_seed(seed)
    if min(config.frames, config.stride, config.positions, config.prior_frames) < 1:
      raise InputError("frames, stride, positions and prior_frames must be at least 1")
    if not (0 <= config.mask_scale < 1 and config.mask_shift >= 0):
      raise InputError(
        f"mask_scale {config.mask_scale} and mask_shift {config.mask_shift} cannot be used: the scale is from 0 up to "
        "1, the shift at least 0"
      )
    if config.reference not in ("clip", "person"):
      raise InputError(f"reference '{config.reference}' is not known; choose clip or person")
    if config.prior not in ("clip", "emotion"):
      raise InputError(f"prior '{config.prior}' is not known; choose clip or emotion")
    if config.min_level not in (0, *LEVELS):
      raise InputError(f"min_level {config.min_level} is no level of emotion; those are 1, 2 and 3, 0 for all")
    self._config, self._seed, self._training = config, seed, training
    self._rows = Share(process_index, process_count).rows(config.batch, "clips")
    first, second = _Data(emotional, split, pictures=True), _Data(regular, split, pictures=True)
    self._sets = [data for data in (first, second) if len(data.index)]
    folders = ", ".join(map(str, first.folders + second.folders))
    if not self._sets:
      raise InputError(
        f"there are no clips in '{split}' of {folders or 'no folder'}; give encoded folders that have some"
      )
    index = Index.join([data.index for data in self._sets])
    usable = (index.num_frames >= config.span) & (index.references > 0)
    firsts = np.cumsum([0] + [len(data.index) for data in self._sets])
    # Of each set the numbers of its usable clips, counted over both sets.
    self._usable = [a + np.flatnonzero(usable[a:b]) for a, b in itertools.pairwise(firsts)]
    self._firsts, self._all_usable = firsts, np.concatenate(self._usable)
    self.left_out = {
      f"shorter than {config.span} frames": int((index.num_frames < config.span).sum()),
      "without a reference frame": int((index.references == 0).sum()),
    }
    for data, found in zip(self._sets, self._usable, strict=True):
      if not len(found):
        named = ", ".join(map(str, data.folders))
        raise InputError(f"{named} has no clip of {config.span} frames or more in '{split}'; use longer clips")
    sizes = np.unique(np.stack([index.height, index.width], axis=1)[usable], axis=0)
    if len(sizes) > 1:
      shown = " and ".join(f"{width}x{height}" for height, width in sizes[:2])
      raise InputError(f"{folders} has pictures of {shown} pixels, which make no batch; encode all at one size")
    self._learnt = self._usable
    if training and config.min_level:
      low = (index.emotion >= 0) & (index.emotion != EMOTIONS.index("neutral"))
      low &= (index.level > 0) & (index.level < config.min_level)
      self._learnt = [numbers[~low[numbers]] for numbers in self._usable]
      self.left_out[f"below level {config.min_level}"] = int(low[self._all_usable].sum())
      for data, found in zip(self._sets, self._learnt, strict=True):
        if not len(found):
          named = ", ".join(map(str, data.folders))
          raise InputError(
            f"{named} has no clip of level {config.min_level} or more in '{split}'; set a lower min_level"
          )
    self.clips = index.clip
    self.identities, self._identity = np.unique(index.identity, return_inverse=True)
    self._emotion, self._level = index.emotion, index.level
    self.fingerprint = fingerprint_of("diffusion", config, split, seed, training, index)
    self.fingerprint["data"]["emotional"] = len(first.index)

  def __len__(self):
    return ENDLESS if self._training else math.ceil(len(self._all_usable) / self._config.batch)

  def __getitem__(self, batch: int) -> dict[str, np.ndarray]:
    rows = [self._row(batch * self._config.batch + row) for row in self._rows]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  def _row(self, sample: int) -> dict:
    if self._training:
      which = sample % len(self._sets)
      learnt = self._learnt[which]
      place = shuffled(sample // len(self._sets), len(learnt), self._seed, (_CLIPS, _REGULAR)[which])
      return self._draw(which, learnt[place], generator(self._seed, _FRAMES, sample), True)
    total = len(self._all_usable)
    number = self._all_usable[sample % total]
    which = int(np.searchsorted(self._firsts, number, side="right")) - 1
    return self._draw(which, number, None, sample < total)

  def _draw(self, which: int, number: int, rng, valid: bool) -> dict:
    """A clip's row; without a generator the middle of it, not augmented."""
    config = self._config
    clip = self._sets[which].clip(number - self._firsts[which])
    start = starts(clip.num_frames, config.span, 1, rng)[0]
    portrait = clip if config.reference == "clip" else self._another(which, number, rng) or clip
    reference = rng.integers(len(portrait.reference_index)) if rng else 0
    felt = self._felt_alike(which, number, rng) if rng and config.prior == "emotion" and clip.emotion >= 0 else clip
    prior_start = starts(felt.num_frames, config.prior_frames, 1, rng)[0]
    frames = start + config.stride * np.arange(config.frames)
    labels = {"emotion": clip.emotion, "level": clip.level, "identity": self._identity[number]}
    labels |= {"clip": number, "start": start}
    return {
      "latents_mean": clip.latents_mean[frames],
      "latents_logvar": clip.latents_logvar[frames],
      "image_latents": portrait.latents_mean[portrait.reference_index[reference]],
      "image_embedding": portrait.image_embedding[reference],
      "audio": speech_windows(clip.states, frames, config.positions),
      "mask_box": jittered_box(clip.face_box, config.mask_scale, config.mask_shift, rng),
      "image_size": np.array([clip.height, clip.width], np.int32),
      **Sequences.of(felt).window(prior_start + np.arange(config.prior_frames)),
      **{name: np.int32(value) for name, value in labels.items()},
      "valid": np.bool_(valid),
    }

  def _felt_alike(self, which: int, number: int, rng) -> EncodedClip:
    """A clip of the same set, emotion and level, itself among them."""
    usable = self._usable[which]
    alike = usable[(self._emotion[usable] == self._emotion[number]) & (self._level[usable] == self._level[number])]
    return self._sets[which].clip(alike[rng.integers(len(alike))] - self._firsts[which])

  def _another(self, which: int, number: int, rng) -> EncodedClip | None:
    """Another clip of the same person and set, None where there is none; without a generator a neutral one, if any."""
    usable = self._usable[which]
    others = usable[(self._identity[usable] == self._identity[number]) & (usable != number)]
    if not len(others):
      return None
    if rng:
      chosen = others[rng.integers(len(others))]
    else:
      neutral = others[self._emotion[others] == EMOTIONS.index("neutral")]
      chosen = (neutral if len(neutral) else others)[0]
    return self._sets[which].clip(chosen - self._firsts[which])


def _groups(index: Index, span: int, of: str) -> tuple[list[str], list[np.ndarray], dict[str, int]]:
  """Names of the groups in order, the records of each, and how many were left out for want of a second window."""
  members = collections.defaultdict(list)
  for i in range(len(index)):
    if index.emotion[i] >= 0 and of == "emotion":
      members[f"emotion {index.emotion[i]}/level {index.level[i]}"].append(i)
    elif index.emotion[i] >= 0:
      members[f"{index.source[i]}/{index.identity[i]}/emotion {index.emotion[i]}"].append(i)
    else:
      members[f"{index.source[i]}/{index.identity[i]}/video {index.video[i]}"].append(i)
  usable = [
    name for name in sorted(members) if len(members[name]) > 1 or index.num_frames[members[name][0]] >= 2 * span
  ]
  left_out = {"groups of one short clip": len(members) - len(usable)}
  return usable, [np.array(members[name]) for name in usable], left_out


def _choose(members: np.ndarray, count: int, rng) -> list[tuple[int, int]]:
  """(record, windows of it), `count` windows over as many records as there are."""
  if rng:
    members = rng.permutation(members)
  elif len(members) > count:
    members = members[np.linspace(0, len(members) - 1, count).astype(int)]
  members = members[:count]
  times, more = divmod(count, len(members))
  return [(int(record), times + (i < more)) for i, record in enumerate(members)]


def _span(frames: int, speed: float) -> int:
  return math.ceil(speed * (frames - 1)) + 1


def check_seed(seed):
  if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
    raise InputError(f"seed {seed} cannot be used; give a whole number of at least 0")


def fingerprint_of(kind, config, split, seed, training, index: Index) -> dict:
  """What decides the batches, as JSON."""
  digest = hashlib.sha256()
  for clip, frames, emotion in zip(index.clip, index.num_frames, index.emotion, strict=True):
    digest.update(f"{clip}\0{frames}\0{emotion}\n".encode())
  return {
    "kind": kind,
    "seed": int(seed),
    "split": split,
    "training": bool(training),
    "settings": Settings(config),
    "data": {"clips": len(index), "names": digest.hexdigest()[:16]},
  }
