"""Batches of speech with what is known of every frame: pieces of clips, and whole chunks of 30 s as Whisper hears them.

They are read from drawn sets, whose truth is known. Batch i is a pure function of the seed and i: see `sampling`.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from dicetalk_jax.data.batches.clip_sets import ClipSets, Kept
from dicetalk_jax.data.batches.clips import Folders, check_seed, fingerprint_of
from dicetalk_jax.data.batches.sampling import ENDLESS, Batches, Share, generator, shuffled
from dicetalk_jax.errors import InputError
from dicetalk_jax.media.audio import CHUNK_SAMPLES, HOP_SAMPLES, log_mel
from dicetalk_jax.vocabulary import FPS, SAMPLES_PER_FRAME, TRUTH

# Of video frames at 25 fps: of a chunk, and what one is in the spectrogram and in Whisper's positions.
CHUNK_FRAMES = CHUNK_SAMPLES // SAMPLES_PER_FRAME
MELS_PER_FRAME = SAMPLES_PER_FRAME // HOP_SAMPLES
POSITIONS_PER_FRAME = MELS_PER_FRAME // 2
# Whisper cuts each chunk's spectrogram this far below its highest value, in its own units of 40 dB.
_RANGE = 2.0
_DECIBELS = 40.0
_PHONEME, _MOUTH = TRUTH.index("phoneme"), [TRUTH.index("mouth_opening"), TRUTH.index("mouth_width")]
# What a random draw is for: no two share their numbers.
_CLIPS, _PIECES, _CHUNKS = range(30, 33)
# Clips that tell how far mouths move.
_MEASURED = 64
# Clips of a whole chunk, and frames between two of them, at most.
_MOST_CLIPS, _LONGEST_GAP = 10, FPS


@dataclasses.dataclass(frozen=True)
class SpeechBatchConfig:
  """batch: pieces; frames: of a piece, at 25 fps; chunks: whole ones of 30 s beside the pieces, which cost about as
  much as 15 pieces of 4 s; gain: the loudness changes up to so many dB. The last is of training alone.
  """

  batch: int = 16
  frames: int = 100
  chunks: int = 1
  gain: float = 6.0


class _Speech(NamedTuple):
  """A clip of n frames: mel (4n, bins), of the chunk's range; phoneme (n,) int32; mouth (n, 2); all float32."""

  mel: np.ndarray
  floor: float
  phoneme: np.ndarray
  mouth: np.ndarray


def speech_batches(
  data: Folders,
  config: SpeechBatchConfig | None = None,
  split: str = "train",
  seed: int = 0,
  workers: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  training: bool = True,
  memory_gb: float = 2.0,
  limit: int | None = None,
  num_mel_bins: int = 80,
) -> Batches:
  """Batches of speech and what is known of it.

  Yields, b = batch / process_count pieces of f = `frames` frames: mel (b, 4f, bins) float32 as `media.audio.log_mel`
  gives it; offset (b,) int32, the place in a chunk, in Whisper's positions of 50 Hz, that the piece is to be heard at:
  its own, or any other; phoneme (b, f) int32, of `world.phonemes.PHONEMES`; mouth (b, f, 2) float32, opening and width
  in standard deviations about their mean; mask (b, f), false after a clip's end; and the same, but offset, of `chunks`
  whole chunks of 750 frames with one to ten clips in them, then silence: chunk_mel, chunk_phoneme, chunk_mouth,
  chunk_mask. identity, clip (b,) int32 are indices into `source.identities`, `.clips`; valid (b,), false in rows that
  fill the last batch of a finite one.

  memory_gb: spectrograms that are kept, in each worker, for speed alone. training=False: every clip once, in order, at
  the beginning of a chunk of its own and otherwise as it is when a video is made: f = 750, no chunk_…; then it ends.
  limit: so many clips, spread over all, alone. Raises InputError for data that cannot be used (see `ClipSets`), clips
  without truth, and a batch that cannot be divided.
  """
  config = config or SpeechBatchConfig()
  source = _SpeechSource(
    data, config, split, seed, process_index, process_count, training, memory_gb, limit, num_mel_bins
  )
  return Batches(source, workers)


class _SpeechSource:
  def __init__(self, data, config, split, seed, process_index, process_count, training, memory_gb, limit, bins):
    check_seed(seed)
    if not 1 <= config.frames <= CHUNK_FRAMES or config.chunks < 0 or config.gain < 0:
      raise InputError(
        f"frames {config.frames}, chunks {config.chunks} and gain {config.gain} cannot be used: the first is from 1 to "
        f"{CHUNK_FRAMES}, the others at least 0"
      )
    self._config, self._seed, self._training, self._bins = config, seed, training, bins
    share = Share(process_index, process_count)
    self._rows = share.rows(config.batch, "pieces")
    self._chunk_rows = share.rows(config.chunks, "chunks") if config.chunks else range(0)
    self._sets = ClipSets(data, split)
    index = self._index = self._sets.index
    self._records = np.arange(len(index))
    if not training and limit is not None and limit < len(index):
      self._records = np.linspace(0, len(index) - 1, max(limit, 1)).astype(int)
    self.clips = index.clip
    self.identities, self._identity = np.unique(index.identity, return_inverse=True)
    measured = np.unique(np.linspace(0, len(index) - 1, _MEASURED).astype(int))
    mouth = np.concatenate([self._truth(record)[:, _MOUTH] for record in measured])
    self.mouth_mean, self.mouth_std = mouth.mean(axis=0), np.maximum(mouth.std(axis=0), 1e-6)
    self._kept = Kept(
      self._read, lambda record: 4 * int(index.num_frames[record]) * (MELS_PER_FRAME * bins + 3), memory_gb
    )
    self.fingerprint = fingerprint_of("speech", config, split, seed, training, index)

  def __len__(self):
    return ENDLESS if self._training else math.ceil(len(self._records) / self._config.batch)

  def __getitem__(self, batch: int) -> dict[str, np.ndarray]:
    rows = [self._row(batch * self._config.batch + row) for row in self._rows]
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    if self._training and len(self._chunk_rows):
      chunks = [self._chunk(batch * self._config.chunks + row) for row in self._chunk_rows]
      found |= {f"chunk_{name}": np.stack([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return found

  def _row(self, sample: int) -> dict:
    total = len(self._records)
    if self._training:
      record = self._records[shuffled(sample, total, self._seed, _CLIPS)]
      piece = self._piece(record, generator(self._seed, _PIECES, sample))
    else:
      record = self._records[sample % total]
      piece = self._piece(record, None)
    labels = {"identity": np.int32(self._identity[record]), "clip": np.int32(record)}
    return piece | labels | {"valid": np.bool_(self._training or sample < total)}

  def _piece(self, record: int, rng) -> dict:
    """A piece of a clip, with what may come after its end; without a generator its first chunk."""
    speech = self._kept[record]
    start, frames, offset, gain = 0, CHUNK_FRAMES, 0, 0.0
    if rng is not None:
      frames = self._config.frames
      # At least half of it is in the clip.
      start = int(rng.integers(0, max(0, len(speech.phoneme) - (frames + 1) // 2) + 1))
      latest = POSITIONS_PER_FRAME * (CHUNK_FRAMES - frames)
      own = min(POSITIONS_PER_FRAME * start, latest)
      offset, gain = rng.choice([own, rng.integers(0, latest + 1)]), rng.uniform(-1, 1) * self._config.gain
    filled = _fill(frames, self._bins, [(0, start, speech)], speech.floor)
    return {**filled, "mel": filled["mel"] + np.float32(gain / _DECIBELS), "offset": np.int32(offset)}

  def _chunk(self, sample: int) -> dict:
    """A chunk of 30 s with several clips one after another."""
    rng, placed, place, top = generator(self._seed, _CHUNKS, sample), [], 0, -math.inf
    for record in rng.choice(self._records, rng.integers(1, _MOST_CLIPS + 1)):
      speech = self._kept[record]
      if place < CHUNK_FRAMES:
        placed.append((place, 0, speech))
        top = max(top, float(speech.mel.max()))
      place += len(speech.phoneme) + int(rng.integers(0, _LONGEST_GAP + 1))
    filled = _fill(CHUNK_FRAMES, self._bins, placed, top - _RANGE)
    gain = rng.uniform(-1, 1) * self._config.gain
    return {**filled, "mel": filled["mel"] + np.float32(gain / _DECIBELS)}

  def _truth(self, record: int) -> np.ndarray:
    clip = self._sets.clip(record)
    if clip.truth is None:
      raise InputError(
        f"{self._sets.where}: of clip {clip.clip} it is not known what is said when; the audio encoder trains on "
        "drawn clips, as `dicetalk data build synthetic` makes them"
      )
    return clip.truth

  def _read(self, record: int) -> _Speech:
    clip, truth = self._sets.clip(record), self._truth(record)
    # Chunks of a long clip are joined: each is cut below its own highest value.
    mel = np.concatenate(list(log_mel(clip.audio, {"num_mel_bins": self._bins})))
    floor = float(mel[: MELS_PER_FRAME * CHUNK_FRAMES].max()) - _RANGE
    mouth = (truth[:, _MOUTH] - self.mouth_mean) / self.mouth_std
    return _Speech(
      mel[: MELS_PER_FRAME * clip.num_frames].copy(),
      floor,
      np.rint(truth[:, _PHONEME]).astype(np.int32),
      mouth.astype(np.float32),
    )


def _fill(frames: int, bins: int, placed: list[tuple[int, int, _Speech]], floor: float) -> dict[str, np.ndarray]:
  """`frames` frames of silence with speech in them: (frame, first frame of the speech, speech) each."""
  mel = np.full((MELS_PER_FRAME * frames, bins), floor, np.float32)
  phoneme, mask = np.zeros(frames, np.int32), np.zeros(frames, bool)
  mouth = np.zeros((frames, len(_MOUTH)), np.float32)
  for place, start, speech in placed:
    count = min(frames - place, len(speech.phoneme) - start)
    here, there = slice(place, place + count), slice(start, start + count)
    mel[_mels(here)] = np.maximum(speech.mel[_mels(there)], floor)
    phoneme[here], mouth[here], mask[here] = speech.phoneme[there], speech.mouth[there], True
  return {"mel": mel, "phoneme": phoneme, "mouth": mouth, "mask": mask}


def _mels(frames: slice) -> slice:
  return slice(MELS_PER_FRAME * frames.start, MELS_PER_FRAME * frames.stop)
