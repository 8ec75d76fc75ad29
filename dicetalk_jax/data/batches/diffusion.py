"""Batches for the diffusion adaptation (§3.3): frames of encoded clips with their conditions."""

import dataclasses
import itertools
from typing import Literal

import numpy as np

from dicetalk_jax.data.batches.sampling import Batches, Run, generator, shuffled
from dicetalk_jax.data.batches.sources import EncodedSets, Folders, RowSource, as_list
from dicetalk_jax.data.batches.windows import Sequences, jittered_box, starts
from dicetalk_jax.data.encode.record import EncodedClip
from dicetalk_jax.diffusion.conditioning import speech_windows
from dicetalk_jax.errors import InputError
from dicetalk_jax.vocabulary import EMOTIONS, FPS, LEVELS, MODEL_FPS

# Keys of the random numbers (see `sampling.generator`).
_EMOTIONAL, _REGULAR, _FRAMES = 2, 3, 4
# Frames of a record for one of the diffusion model.
_STRIDE = round(FPS / MODEL_FPS)
# Whisper's states that a frame sees.
_POSITIONS = 10
_NEUTRAL = EMOTIONS.index("neutral")


@dataclasses.dataclass(frozen=True)
class DiffusionBatchConfig:
  """A batch of clips with their conditions."""

  batch: int = 8
  """Clips in a batch."""

  frames: int = 25
  """Frames of a clip, at 12.5 a second."""

  prior_frames: int = 64
  """Frames of the window that the emotion prior is taken from, at 25 a second."""

  mask_scale: float = 0.1
  """The face box grows or shrinks by up to this share. Training only."""

  mask_shift: float = 0.05
  """The face box moves by up to this share of its size. Training only."""

  reference: Literal["clip", "person"] = "clip"
  """The portrait is a frame of the same clip, or of another clip of the same person. person: the portrait then does not
  show the emotion that the prior has to convey."""

  prior: Literal["clip", "emotion"] = "clip"
  """The prior comes from the clip itself, or in training from any clip of the same emotion and level. emotion: prevents
  a small set from being memorised, because a clip's own prior identifies the clip."""

  min_level: int = 0
  """Train only on clips of this emotion level or higher; clips of lower levels still serve as portraits. Neutral clips
  and clips of unknown level are always used. 0: all levels."""

  @property
  def span(self) -> int:
    """Frames at 25 a second that a window covers, and that a clip needs."""
    return (self.frames - 1) * _STRIDE + 1


def diffusion_batches(
  emotional: Folders = (),
  regular: Folders = (),
  config: DiffusionBatchConfig | None = None,
  split: str = "train",
  workers: int = 0,
  **run,
) -> Batches:
  """Batches for the diffusion adaptation (§3.3): emotional and regular clips alternate, 1 : 1 (§4.1).

  With one of the two empty, all clips come from the other. Clips of fewer than `config.span` frames are left out;
  `source.left_out` counts them. An epoch of a set has every clip once.

  Yields, with b = batch / process_count rows: latents_mean, latents_logvar (b, frames, h, w, 4) float16, unscaled;
  image_latents (b, h, w, 4) float16 and image_embedding (b, d) float16 of the reference frame (`config.reference`);
  audio (b, frames, 10, layers + 1, d) float16, windows as of `diffusion.conditioning.speech_windows`; mask_box (b, 4)
  float32, the face's x, y, w, h in pixels, and image_size (b, 2) int32, height and width; expression
  (b, prior_frames, 64), expression_mask, speech (b, prior_frames, d), speech_mask as of `embedder_batches`, another
  window of the clip (`config.prior`); emotion, level, identity, clip (b,) int32; start (b,) int32, the first frame;
  valid (b,).

  run: the fields of `Run`. training=False: one pass over the clips in order, the middle of each, with its first
  reference frame. With `reference="person"` the portrait is then of the person's first neutral clip, if there is one.
  Raises InputError for data that cannot be used (see `open_encoded`), pictures of several sizes, and a batch that is no
  multiple of process_count.
  """
  return Batches(_Source(emotional, regular, config or DiffusionBatchConfig(), split, Run(**run)), workers)


class _Source(RowSource):
  def __init__(self, emotional, regular, config, split, run):
    _check(config)
    emotional, regular = as_list(emotional), as_list(regular)
    sets = EncodedSets(emotional + regular, split, pictures=True)
    super().__init__("diffusion", config, sets, split, run, config.batch, "clips")
    index, first = self._index, sum(sets.lengths[: len(emotional)])
    self.fingerprint["data"]["emotional"] = first
    usable = (index.num_frames >= config.span) & (index.references > 0)
    low = np.zeros(len(index), bool)
    if run.training and config.min_level:
      low = (index.emotion >= 0) & (index.emotion != _NEUTRAL)
      low &= (index.level > 0) & (index.level < config.min_level)
    self.left_out = {
      f"shorter than {config.span} frames": int((index.num_frames < config.span).sum()),
      "without a reference frame": int((index.references == 0).sum()),
      **({f"below level {config.min_level}": int((low & usable).sum())} if config.min_level else {}),
    }
    # For each part (emotional, regular): the records that may be used, and those that are trained on.
    self._usable, self._trained = [], []
    for folders, (a, b) in zip((emotional, regular), itertools.pairwise((0, first, len(index))), strict=True):
      if a == b:
        continue
      self._usable.append(a + np.flatnonzero(usable[a:b]))
      self._trained.append(a + np.flatnonzero((usable & ~low)[a:b]))
      named = ", ".join(map(str, folders))
      if not len(self._usable[-1]):
        raise InputError(f"{named} has no clip of {config.span} frames or more in '{split}'; use longer clips")
      if not len(self._trained[-1]):
        raise InputError(f"{named} has no clip of level {config.min_level} or more in '{split}'; set a lower min_level")
    self._in_order = np.concatenate(self._usable)
    self._total = len(self._in_order)
    sets.one_size(self._in_order)

  def _slot_rows(self, batch, slot) -> list[dict]:
    sample = batch * self._count + slot
    if not self._run.training:
      record = self._in_order[sample % self._total]
      part = next(i for i, records in enumerate(self._usable) if record <= records[-1])
      return [self._row(part, record, None, sample < self._total)]
    parts = len(self._trained)
    part = sample % parts
    place = shuffled(sample // parts, len(self._trained[part]), self._run.seed, (_EMOTIONAL, _REGULAR)[part])
    return [self._row(part, self._trained[part][place], generator(self._run.seed, _FRAMES, sample), True)]

  def _row(self, part: int, record: int, rng, valid: bool) -> dict:
    """The row of a clip; without a generator its middle, not augmented."""
    config, clip = self._config, self._sets.clip(record)
    start = starts(clip.num_frames, config.span, 1, rng)[0]
    portrait = clip if config.reference == "clip" else self._other_clip(part, record, rng) or clip
    reference = rng.integers(len(portrait.reference_index)) if rng else 0
    prior = self._same_emotion(part, record, rng) if rng and config.prior == "emotion" and clip.emotion >= 0 else clip
    prior_start = starts(prior.num_frames, config.prior_frames, 1, rng)[0]
    frames = start + _STRIDE * np.arange(config.frames)
    return {
      "latents_mean": clip.latents_mean[frames],
      "latents_logvar": clip.latents_logvar[frames],
      "image_latents": portrait.latents_mean[portrait.reference_index[reference]],
      "image_embedding": portrait.image_embedding[reference],
      "audio": speech_windows(clip.states, frames, _POSITIONS),
      "mask_box": jittered_box(clip.face_box, config.mask_scale, config.mask_shift, rng),
      "image_size": np.array([clip.height, clip.width], np.int32),
      **Sequences.of(prior).window(prior_start + np.arange(config.prior_frames)),
      **self._labels(
        emotion=clip.emotion,
        level=clip.level,
        identity=self._identity[record],
        clip=record,
        start=start,
        valid=valid,
      ),
    }

  def _same_emotion(self, part: int, record: int, rng) -> EncodedClip:
    """Any clip of the same part, emotion and level."""
    index, usable = self._index, self._usable[part]
    same = (index.emotion[usable] == index.emotion[record]) & (index.level[usable] == index.level[record])
    candidates = usable[same]
    return self._sets.clip(candidates[rng.integers(len(candidates))])

  def _other_clip(self, part: int, record: int, rng) -> EncodedClip | None:
    """Another clip of the person in the same part, if any; without a generator the first neutral one, if any."""
    usable = self._usable[part]
    others = usable[(self._identity[usable] == self._identity[record]) & (usable != record)]
    if not len(others):
      return None
    if rng:
      return self._sets.clip(others[rng.integers(len(others))])
    neutral = others[self._index.emotion[others] == _NEUTRAL]
    return self._sets.clip((neutral if len(neutral) else others)[0])


def _check(config: DiffusionBatchConfig) -> None:
  if min(config.frames, config.prior_frames) < 1:
    raise InputError(f"frames {config.frames} and prior_frames {config.prior_frames} must be at least 1")
  if not (0 <= config.mask_scale < 1 and config.mask_shift >= 0):
    raise InputError(
      f"mask_scale {config.mask_scale} must be from 0 up to 1, and mask_shift {config.mask_shift} at least 0"
    )
  if config.reference not in ("clip", "person"):
    raise InputError(f"reference '{config.reference}' is not known; choose clip or person")
  if config.prior not in ("clip", "emotion"):
    raise InputError(f"prior '{config.prior}' is not known; choose clip or emotion")
  if config.min_level not in (0, *LEVELS):
    raise InputError(f"min_level {config.min_level} is no level of emotion; those are 1, 2 and 3, 0 for all")
