"""Clips of the drawn world: a person says a sentence with an emotion. Sound, pictures, and the truth about both."""

import dataclasses
import zlib

import numpy as np

from dicetalk_jax.errors import InputError
from dicetalk_jax.vocabulary import EMOTIONS, SAMPLES_PER_FRAME, TRUTH
from dicetalk_jax.world.acting import act
from dicetalk_jax.world.coefficients import coefficients
from dicetalk_jax.world.expressions import check_emotion, draw_style
from dicetalk_jax.world.identity import Identity, draw_identity
from dicetalk_jax.world.parameters import column
from dicetalk_jax.world.renderer import face_box, mouth_geometry, render
from dicetalk_jax.world.speakers import draw_voice, prosody
from dicetalk_jax.world.visemes import frame_phonemes
from dicetalk_jax.world.voice import Speech, speak


@dataclasses.dataclass(frozen=True)
class Performance:
  """A drawn clip of n frames at 25 a second.

  frames (n, size, size, 3) uint8, None if they were not drawn; audio (n · 640,) float32, 16 kHz; face_box: x, y, w, h
  in pixels; expression (n, 64) float32, like the output of a 3D face tracker; truth (n, len(TRUTH)) float32; parameters
  (n, len(PARAMETERS)) float32. `speech` has the times of the phonemes.
  """

  person: int
  emotion: str
  level: int
  sentence: str
  identity: Identity
  speech: Speech
  frames: np.ndarray | None
  audio: np.ndarray
  face_box: tuple[int, int, int, int]
  expression: np.ndarray
  truth: np.ndarray
  parameters: np.ndarray


def draw_clip(person: int, emotion: str, level: int, sentence: str, take: int = 0, size: int = 128) -> Performance:
  """A clip with its pictures; the same arguments give the same bytes.

  person: seed of face, voice and mannerisms, at least 0. level: 1 to 3, for neutral 1. take: seed of the performance.
  Raises InputError for arguments out of range.
  """
  clip = perform(person, emotion, level, sentence, take, size)
  return dataclasses.replace(clip, frames=render(clip.identity, clip.parameters, size))


def perform(
  person: int,
  emotion: str,
  level: int,
  sentence: str,
  take: int = 0,
  size: int = 128,
  voice: tuple[str, int] | None = None,
) -> Performance:
  """`draw_clip` without pictures, which is much faster.

  voice: emotion and level of the voice, if they differ from those of the face.
  """
  for name, value, least in (("person", person, 0), ("take", take, 0), ("size", size, 32)):
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
      raise InputError(f"{name} {value} cannot be drawn; give a whole number of at least {least}")
  if size % 2:
    raise InputError(f"size {size} cannot be drawn; give an even number of pixels")
  check_emotion(emotion, level)
  voice = voice or (emotion, level)
  check_emotion(*voice)
  seed = _seed(person, emotion, level, sentence, take)
  speech = speak(sentence, draw_voice(person), prosody(*voice, person), seed)
  n = len(speech.audio) // SAMPLES_PER_FRAME
  parameters = act(draw_style(person), emotion, level, speech, n, seed)
  identity = draw_identity(person)
  return Performance(
    person=person,
    emotion=emotion,
    level=level,
    sentence=sentence,
    identity=identity,
    speech=speech,
    frames=None,
    audio=speech.audio,
    face_box=tuple(int(v) for v in face_box(identity, parameters, size)),
    expression=coefficients(person, parameters),
    truth=truth(identity, parameters, frame_phonemes(speech.segments, n)),
    parameters=parameters,
  )


def truth(identity: Identity, parameters: np.ndarray, phonemes: np.ndarray) -> np.ndarray:
  """The truth about each frame: (n, len(TRUTH)) float32.

  mouth_opening and mouth_width are in face heights; phoneme is an index into PHONEMES; lid includes blinks, -1 in the
  middle of one; the others are parameters.
  """
  opening, width = mouth_geometry(identity, parameters).T
  blink = column(parameters, "blink")
  computed = dict(mouth_opening=opening, mouth_width=width, phoneme=phonemes)
  computed["lid"] = (1 - blink) * column(parameters, "lid") - blink
  columns = [computed[name] if name in computed else column(parameters, name) for name in TRUTH]
  return np.stack(columns, 1).astype(np.float32)


def _seed(person, emotion, level, sentence, take) -> int:
  """Seed of a performance, unlikely to be shared by another one."""
  words = [person, EMOTIONS.index(emotion), level, zlib.crc32(sentence.encode()), take]
  return int(np.random.SeedSequence(words).generate_state(1)[0])
