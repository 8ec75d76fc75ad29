"""`make demo`: a drawn person from no training set says a sentence from no training set, with emotions of your choice.

It uses the small weights inside the package.
"""

import pathlib
import re
import sys
from collections.abc import Mapping

import numpy as np
import tyro
from PIL import Image, ImageDraw

from dicetalk_jax.data.build.synthetic import test_person
from dicetalk_jax.errors import DiceTalkError
from dicetalk_jax.inference.pipeline import DiceTalk
from dicetalk_jax.parallel.compilation import keep_compiled_programs, use_fast_convolutions
from dicetalk_jax.vocabulary import SAMPLE_RATE
from dicetalk_jax.world.identity import draw_identity
from dicetalk_jax.world.parameters import PARAMETERS
from dicetalk_jax.world.renderer import face_box, render
from dicetalk_jax.world.speakers import draw_voice
from dicetalk_jax.world.voice import speak

# A person and a sentence that no training set has.
PERSON, SENTENCE = 7, "The boats came back before the storm."
SIZE = 128
EMOTIONS = {"neutral": "neutral", "happy": "happy", "angry": "angry", "timeline": "0s neutral, 0.8s happy, 1.6s angry"}


def contact_sheet(videos: Mapping[str, np.ndarray], portrait: Image.Image, columns: int = 8) -> Image.Image:
  """One row per video: its name, the portrait, and `columns` frames spread over its length.

  videos: name -> frames (n, h, w, 3) in [0, 1].
  """
  height, width = next(iter(videos.values())).shape[1:3]
  rows = []
  for name, frames in videos.items():
    line = Image.new("RGB", ((columns + 1) * width, 14), "white")
    ImageDraw.Draw(line).text((4, 1), name, fill="black")
    chosen = np.rint(255 * frames[np.linspace(0, len(frames) - 1, columns).astype(int)]).astype(np.uint8)
    # (n, h, w, 3) -> (h, n w, 3)
    rows += [line, np.concatenate([portrait.resize((width, height)), *chosen], axis=1)]
  return Image.fromarray(np.concatenate(rows))


def demo(
  out: pathlib.Path = pathlib.Path("demo"),
  audio: pathlib.Path | None = None,
  person: int = PERSON,
  emotion: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
):
  """Generates the videos.

  Args:
    out: Folder for the videos.
    audio: Your own recording instead of synthetic speech.
    person: Number of the drawn person.
    emotion: Instead of the demo's emotions; may be repeated.
  """
  use_fast_convolutions()
  keep_compiled_programs()
  out.mkdir(parents=True, exist_ok=True)
  number = test_person(0, person)
  identity, rest = draw_identity(number), np.zeros((1, len(PARAMETERS)), np.float32)
  portrait = Image.fromarray(render(identity, rest, 2 * SIZE)[0])
  portrait.save(out / "portrait.png")
  speech = audio or (speak(SENTENCE, draw_voice(number)).audio, SAMPLE_RATE)
  talker, videos = DiceTalk.load(), {}
  print("The small weights inside the package were trained on drawn people only, and this is a drawn person.")
  print("For portraits of real people, fetch and convert the published weights: dicetalk download, dicetalk convert.")
  for name, text in ({text: text for text in emotion} or EMOTIONS).items():
    video = talker.generate(portrait, speech, text, face_box=face_box(identity, rest, 2 * SIZE), size=SIZE)
    videos[name] = video.frames
    print(video.save(out / f"{re.sub('[^a-z0-9.]+', '_', name.lower())}.mp4"), flush=True)
  contact_sheet(videos, portrait).save(out / "sheet.png")
  print(out / "sheet.png")


if __name__ == "__main__":
  try:
    tyro.cli(demo, description=__doc__)
  except DiceTalkError as error:
    sys.exit(f"error: {error}")
