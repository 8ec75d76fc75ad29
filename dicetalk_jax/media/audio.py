"""Speech: any sound -> 16 kHz mono, and Whisper's log-mel spectrogram of it."""

import contextlib
import functools
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
import soxr

from dicetalk_jax.errors import InputError
from dicetalk_jax.files import existing_file
from dicetalk_jax.media.channels import is_default, mono, stereo
from dicetalk_jax.media.containers import decoded, open_sound, sound_blocks
from dicetalk_jax.vocabulary import SAMPLE_RATE

# Files that are taken for sounds.
SOUND_SUFFIXES = (".m4a", ".wav", ".mp3", ".flac", ".aac", ".ogg", ".opus")
# Two frames at 12.5 a second, the fewest that make a video.
SHORTEST_SECONDS = 2 / 12.5
SILENCE = 1e-3  # a peak of -60 dBFS

# Whisper's spectrogram (transformers: WhisperFeatureExtractor): 25 ms windows every 10 ms, in chunks of 30 s.
CHUNK_SAMPLES = 30 * SAMPLE_RATE
WINDOW_SAMPLES, HOP_SAMPLES = 400, 160

# WAV and its kin, FLAC, Ogg, AIFF, CAF, AU: libsndfile reads them bit for bit as the release does. It knows mp3 too,
# but prints to the terminal about a damaged one.
_LIBSNDFILE_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"FORM", b"caff", b".snd")


def read_audio(source, rate: int = SAMPLE_RATE, name: str | None = None, notes: list[str] | None = None) -> np.ndarray:
  """Any sound -> (n,) float32 mono at `rate` samples a second.

  source: as in `read_sound`, or an array alone, which is at `rate` already. As the release does: the mean of the
  channels (see `channels.Mono` for exceptions), soxr's HQ filter, n = ⌈samples · rate / source rate⌉. name: of the
  source in errors, where it is an array. notes: gets what a user should know of how the sound was changed. Raises
  InputError as `read_sound` does, and for less than two frames at 12.5 a second (0.16 s).
  """
  if isinstance(source, np.ndarray | list):
    source = (source, rate)
  sound, source_rate = read_sound(source)
  speech, changes = mono(sound)
  if notes is not None:
    notes += changes
  if len(speech) < SHORTEST_SECONDS * source_rate:
    milliseconds = len(speech) * 1000 // source_rate
    raise InputError(
      f"{name or sound_name(source)} lasts {milliseconds / 1000:g} s; a video needs at least two frames, "
      f"{SHORTEST_SECONDS:.2f} s of sound"
    )
  if source_rate == rate:
    return speech
  length = -(-len(speech) * rate // source_rate)
  speech = soxr.resample(speech, source_rate, rate, quality="HQ")[:length]
  return np.pad(speech, (0, length - len(speech)))


def read_sound(source) -> tuple[np.ndarray, int]:
  """A sound as it is: (samples, channels) float32 and its rate.

  source: a path of any audio file, or video file with sound, or a pair (array, rate), the array (n,) or
  (n, channels), float, int16 or int32. Of a file cut short, what can be decoded. Raises InputError for what is missing,
  not decodable or without a sound stream, and for samples that are not finite.
  """
  if isinstance(source, str | Path):
    sound, rate = _read_file(existing_file(source, "audio"))
  else:
    sound, rate = _from_array(source)
  if not len(sound):
    raise InputError(f"{sound_name(source)} holds no sound (0 samples)")
  if bad := np.count_nonzero(~np.isfinite(sound)):
    first = np.argmax(~np.isfinite(sound).all(axis=1)) / rate
    raise InputError(f"{sound_name(source)} has {bad} samples that are NaN or infinite, the first at {first:.3f} s")
  return sound, rate


def is_silent(audio: np.ndarray) -> bool:
  """True where no sample reaches -60 dB of full scale."""
  return bool(np.max(np.abs(audio), initial=0) < SILENCE)


def log_mel(audio: np.ndarray, config: Mapping | None = None) -> np.ndarray:
  """16 kHz mono (n,) -> Whisper's log-mel (chunks, 3000, bins) float32, in chunks of 30 s padded with silence.

  config: the Whisper model's config.json, for its `num_mel_bins` (80). It is computed in numpy whatever else is
  installed, so that it is the same everywhere.
  """
  tools = _audio_utils()
  bins = (config or {}).get("num_mel_bins", 80)
  chunks = max(1, -(-len(audio) // CHUNK_SAMPLES))
  padded = np.pad(audio.astype(np.float32), (0, chunks * CHUNK_SAMPLES - len(audio)))
  mels = []
  for chunk in padded.reshape(chunks, CHUNK_SAMPLES):
    mel = tools.spectrogram(
      chunk,
      tools.window_function(WINDOW_SAMPLES, "hann"),
      frame_length=WINDOW_SAMPLES,
      hop_length=HOP_SAMPLES,
      power=2.0,
      mel_filters=_mel_filters(bins),
      log_mel="log10",
    )[:, :-1]
    mels.append((np.maximum(mel, mel.max() - 8) + 4) / 4)
  return np.stack(mels).transpose(0, 2, 1).astype(np.float32)  # (chunk, bin, time) -> (chunk, time, bin)


@functools.cache
def _mel_filters(bins: int) -> np.ndarray:
  return _audio_utils().mel_filter_bank(
    1 + WINDOW_SAMPLES // 2, bins, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
  )


def _audio_utils():
  # Importing transformers takes a second, which reading a sound should not cost; its advice to install PyTorch is not
  # for those who use this package.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  from transformers import audio_utils

  return audio_utils


def sound_name(source) -> str:
  """What an error calls a sound."""
  return f"audio {source}" if isinstance(source, str | Path) else "the audio array"


def _from_array(source) -> tuple[np.ndarray, int]:
  try:
    array, rate = source
    array, rate = np.asarray(array), int(rate)
  except (TypeError, ValueError):
    raise InputError(
      "audio must be a path, a pair (array, samples a second) or an array at the rate asked for"
    ) from None
  if rate <= 0:
    raise InputError(f"an audio array's rate must be positive; this one is {rate}")
  if array.ndim == 1:
    array = array[:, None]
  if array.ndim != 2 or array.shape[1] > max(array.shape[0], 1):
    raise InputError(f"an audio array must be (samples,) or (samples, channels); this one is {array.shape}")
  if array.dtype in (np.int16, np.int32):
    return array.astype(np.float32) / -float(np.iinfo(array.dtype).min), rate
  if array.dtype.kind != "f":
    raise InputError(f"an audio array must be float in [-1, 1], int16 or int32; this one is {array.dtype}")
  return array.astype(np.float32), rate


def _read_file(path: Path) -> tuple[np.ndarray, int]:
  with path.open("rb") as file:
    known = file.read(4) in _LIBSNDFILE_MAGIC
  if known:
    with contextlib.suppress(soundfile.LibsndfileError):  # such as an AVI, which is RIFF too
      sound, rate = soundfile.read(path.absolute(), dtype="float32", always_2d=True)
      if len(sound) and sound.shape[1] <= 2:
        return sound, rate
      if not len(sound):
        # A recorder that was cut off leaves a length of 0 in the header: FFmpeg looks at the file's own length.
        with contextlib.suppress(InputError):
          return _decode(path)
        return sound, rate
  # Only FFmpeg tells the names of channels.
  return _decode(path)


def _decode(path: Path) -> tuple[np.ndarray, int]:
  """The first sound stream of a file FFmpeg knows, as far as it can be decoded."""
  with open_sound(path) as (container, stream):
    names = tuple(channel.name for channel in stream.layout.channels)
    blocks = list(sound_blocks(decoded(container, stream), one_layout=True))
    if not blocks:
      raise ValueError("nothing in it can be decoded")
    sound, rate = np.concatenate([samples for *_, samples in blocks]), blocks[0][1]
  # Whoever gets an array of so many channels takes it for the default layout.
  return sound if is_default(names) else stereo(sound, names), rate
