"""Batches of speech with the phoneme and mouth of every frame, from drawn sets: pieces of clips, and chunks of 30 s."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from dicetalk_jax.data.batches.sampling import Batches, Run, generator
from dicetalk_jax.data.batches.sources import Cache, ClipSets, Folders, RowSource, limited, stacked
from dicetalk_jax.errors import InputError
from dicetalk_jax.media.audio import CHUNK_SAMPLES, HOP_SAMPLES, log_mel
from dicetalk_jax.vocabulary import FPS, SAMPLES_PER_FRAME, TRUTH

# Video frames (25 fps) of a chunk; rows of the spectrogram and positions of Whisper for each.
CHUNK_FRAMES = CHUNK_SAMPLES // SAMPLES_PER_FRAME
MELS_PER_FRAME = SAMPLES_PER_FRAME // HOP_SAMPLES
POSITIONS_PER_FRAME = MELS_PER_FRAME // 2
# Whisper clips each chunk's spectrogram this far below its maximum, in its own units of 40 dB.
_RANGE = 2.0
_DECIBELS = 40.0
_PHONEME, _MOUTH = TRUTH.index("phoneme"), [TRUTH.index("mouth_opening"), TRUTH.index("mouth_width")]
# Keys of the random numbers (see `sampling.generator`).
_CLIPS, _PIECES, _CHUNKS = range(30, 33)
# Clips that the mean and deviation of the mouth are measured on.
_MEASURED = 64
# Most clips in a chunk, and frames between two of them.
_MOST_CLIPS, _LONGEST_GAP = 10, FPS


@dataclasses.dataclass(frozen=True)
class SpeechBatchConfig:
  """A batch of pieces of clips and of whole chunks."""

  batch: int = 16
  """Pieces in a batch."""

  frames: int = 100
  """Frames of a piece, at 25 a second."""

  chunks: int = 1
  """Chunks of 30 s in a batch; one costs about as much as 15 pieces of 4 s. Training only."""

  gain: float = 6.0
  """The loudness changes by up to so many dB. Training only."""


class _Speech(NamedTuple):
  """A clip of n frames: mel (4n, bins) and its lowest value; phoneme (n,) int32; mouth (n, 2) float32."""

  mel: np.ndarray
  floor: float
  phoneme: np.ndarray
  mouth: np.ndarray

  @property
  def nbytes(self) -> int:
    return self.mel.nbytes + self.phoneme.nbytes + self.mouth.nbytes


def speech_batches(
  data: Folders,
  config: SpeechBatchConfig | None = None,
  split: str = "train",
  workers: int = 0,
  memory_gb: float = 2.0,
  limit: int | None = None,
  num_mel_bins: int = 80,
  **run,
) -> Batches:
  """Batches of speech with its phonemes and mouth.

  Yields, with b = batch / process_count pieces of f = `frames` frames: mel (b, 4f, bins) float32, as of
  `media.audio.log_mel`; offset (b,) int32, the place of the piece in a chunk in Whisper's positions of 50 Hz, either
  its own or a random one; phoneme (b, f) int32, indices into `world.phonemes.PHONEMES`; mouth (b, f, 2) float32,
  opening and width normalised to mean 0 and deviation 1; mask (b, f), false after a clip's end. chunk_mel,
  chunk_phoneme, chunk_mouth and chunk_mask are the same for whole chunks of 750 frames, each with one to ten clips and
  then silence. identity, clip (b,) int32 are indices into `source.identities`, `.clips`; valid (b,) is false in rows
  that fill up the last batch of a pass without training.

  run: the fields of `Run`. memory_gb: how much each worker keeps in memory, for speed. training=False: one pass over
  the clips in order, each at the start of a chunk of its own, as in generation: f = 750 and no chunk_… keys. limit: a
  pass over so many clips, spread over all. Raises InputError for data that cannot be used (see `ClipSets`), clips
  without truth, and a batch that is no multiple of process_count.
  """
  source = _Source(data, config or SpeechBatchConfig(), split, Run(**run), memory_gb, limit, num_mel_bins)
  return Batches(source, workers)


class _Source(RowSource):
  def __init__(self, data, config, split, run, memory_gb, limit, bins):
    if not 1 <= config.frames <= CHUNK_FRAMES or config.chunks < 0 or config.gain < 0:
      raise InputError(
        f"frames {config.frames} must be from 1 to {CHUNK_FRAMES}, and chunks {config.chunks} and gain {config.gain} "
        "must be at least 0"
      )
    sets = ClipSets(data, split)
    super().__init__("speech", config, sets, split, run, config.batch, "pieces")
    self._chunk_slots = run.rows(config.chunks, "chunks") if config.chunks else range(0)
    self._bins = bins
    self._records = np.arange(len(self._index))
    if not run.training:
      self._records = limited(self._records, limit)
    self._total = len(self._records)
    measured = np.unique(np.linspace(0, len(self._index) - 1, _MEASURED).astype(int))
    mouth = np.concatenate([self._truth(record)[:, _MOUTH] for record in measured])
    self.mouth_mean, self.mouth_std = mouth.mean(axis=0), np.maximum(mouth.std(axis=0), 1e-6)
    self._speech = Cache(self._read, memory_gb)

  def __getitem__(self, batch: int) -> dict[str, np.ndarray]:
    arrays = super().__getitem__(batch)
    if self._run.training and len(self._chunk_slots):
      chunks = stacked([self._chunk(batch * self._config.chunks + slot) for slot in self._chunk_slots])
      arrays |= {f"chunk_{name}": array for name, array in chunks.items()}
    return arrays

  def _slot_rows(self, batch, slot) -> list[dict]:
    item, rng, valid = self._item(batch, slot, _CLIPS, _PIECES)
    record = self._records[item]
    return [self._piece(record, rng) | self._labels(identity=self._identity[record], clip=record, valid=valid)]

  def _piece(self, record: int, rng) -> dict:
    """A piece of a clip, with silence after its end; without a generator its first chunk."""
    speech = self._speech[record]
    start, frames, offset, gain = 0, CHUNK_FRAMES, 0, 0.0
    if rng is not None:
      frames = self._config.frames
      # At least half of the piece is inside the clip.
      start = int(rng.integers(0, max(0, len(speech.phoneme) - (frames + 1) // 2) + 1))
      latest = POSITIONS_PER_FRAME * (CHUNK_FRAMES - frames)
      own = min(POSITIONS_PER_FRAME * start, latest)
      offset, gain = rng.choice([own, rng.integers(0, latest + 1)]), rng.uniform(-1, 1) * self._config.gain
    piece = _fill(frames, self._bins, [(0, start, speech)], speech.floor)
    return {**piece, "mel": piece["mel"] + np.float32(gain / _DECIBELS), "offset": np.int32(offset)}

  def _chunk(self, sample: int) -> dict:
    """A chunk of 30 s with several clips one after another."""
    rng, parts, place, top = generator(self._run.seed, _CHUNKS, sample), [], 0, -math.inf
    for record in rng.choice(self._records, rng.integers(1, _MOST_CLIPS + 1)):
      speech = self._speech[record]
      if place < CHUNK_FRAMES:
        parts.append((place, 0, speech))
        top = max(top, float(speech.mel.max()))
      place += len(speech.phoneme) + int(rng.integers(0, _LONGEST_GAP + 1))
    chunk = _fill(CHUNK_FRAMES, self._bins, parts, top - _RANGE)
    gain = rng.uniform(-1, 1) * self._config.gain
    return {**chunk, "mel": chunk["mel"] + np.float32(gain / _DECIBELS)}

  def _truth(self, record: int) -> np.ndarray:
    clip = self._sets.clip(record)
    if clip.truth is None:
      raise InputError(
        f"{self._sets.where}: clip {clip.clip} has no phonemes; the audio encoder trains on drawn clips, as `dicetalk "
        "data build synthetic` makes them"
      )
    return clip.truth

  def _read(self, record: int) -> _Speech:
    clip, truth = self._sets.clip(record), self._truth(record)
    # The chunks of a long clip are joined; each was clipped below its own maximum.
    mel = np.concatenate(list(log_mel(clip.audio, {"num_mel_bins": self._bins})))
    floor = float(mel[: MELS_PER_FRAME * CHUNK_FRAMES].max()) - _RANGE
    mouth = (truth[:, _MOUTH] - self.mouth_mean) / self.mouth_std
    return _Speech(
      mel[: MELS_PER_FRAME * clip.num_frames].copy(),
      floor,
      np.rint(truth[:, _PHONEME]).astype(np.int32),
      mouth.astype(np.float32),
    )


def _fill(frames: int, bins: int, parts: list[tuple[int, int, _Speech]], floor: float) -> dict[str, np.ndarray]:
  """`frames` frames of silence with speech in them; a part is (frame, first frame of the speech, speech)."""
  mel = np.full((MELS_PER_FRAME * frames, bins), floor, np.float32)
  phoneme, mask = np.zeros(frames, np.int32), np.zeros(frames, bool)
  mouth = np.zeros((frames, len(_MOUTH)), np.float32)
  for place, start, speech in parts:
    count = min(frames - place, len(speech.phoneme) - start)
    target, origin = slice(place, place + count), slice(start, start + count)
    mel[_mels(target)] = np.maximum(speech.mel[_mels(origin)], floor)
    phoneme[target], mouth[target], mask[target] = speech.phoneme[origin], speech.mouth[origin], True
  return {"mel": mel, "phoneme": phoneme, "mouth": mouth, "mask": mask}


def _mels(frames: slice) -> slice:
  return slice(MELS_PER_FRAME * frames.start, MELS_PER_FRAME * frames.stop)
