"""Drawn persons and synthesised sentences, as files like those that visitors upload."""

import contextlib
import json
import pathlib

import numpy as np
import soundfile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dicetalk_jax.app.uploads import Upload
from dicetalk_jax.errors import InputError
from dicetalk_jax.media.face import check_box
from dicetalk_jax.vocabulary import SAMPLE_RATE
from dicetalk_jax.world.identity import draw_identity
from dicetalk_jax.world.parameters import PARAMETERS
from dicetalk_jax.world.renderer import face_box, render
from dicetalk_jax.world.speakers import draw_voice
from dicetalk_jax.world.voice import speak

PICTURE_SIDE = 512
_FACE = "dicetalk face"
_LONGEST_TEXT = 600
_LARGEST_SEED = 2**31 - 1
_REST = np.zeros((1, len(PARAMETERS)), np.float32)


def draw_portrait(seed: int, folder: pathlib.Path) -> pathlib.Path:
  """Writes person_<seed>.png; returns its path. InputError for an invalid seed."""
  seed = _checked(seed)
  path, person = folder / f"person_{seed}.png", draw_identity(seed)
  info = PngInfo()
  info.add_text(_FACE, json.dumps([int(side) for side in face_box(person, _REST, PICTURE_SIDE)]))
  Image.fromarray(render(person, _REST, PICTURE_SIDE)[0]).save(path, pnginfo=info)
  return path


def known_face(upload: Upload) -> tuple[int, int, int, int] | None:
  """The face box (x, y, w, h) that `draw_portrait` wrote into its picture; None for any other picture."""
  with contextlib.suppress(Exception), Image.open(upload.path) as image:
    return check_box(json.loads(image.info[_FACE]), *image.size)


def draw_speech(text: str, seed: int, folder: pathlib.Path) -> pathlib.Path:
  """Writes voice_<seed>.wav, 16 kHz, of the person of that seed saying `text`; InputError for an empty text."""
  text = (text or "").strip()
  if len(text) > _LONGEST_TEXT:
    raise InputError(f"the sentence has {len(text)} letters; give up to {_LONGEST_TEXT}")
  sound = speak(text, draw_voice(_checked(seed))).audio
  path = folder / f"voice_{int(seed)}.wav"
  soundfile.write(path, sound, SAMPLE_RATE, subtype="PCM_16")
  return path


def _checked(seed) -> int:
  if seed is None or seed != int(seed) or not 0 <= seed <= _LARGEST_SEED:
    raise InputError(f"a person's number is whole, from 0 to {_LARGEST_SEED}")
  return int(seed)
