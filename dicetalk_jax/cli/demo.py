"""`make demo`: a drawn person from no training set says a sentence from no training set, with emotions of your choice.

It uses the small weights inside the package.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Mapping

import numpy as np
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
  line = 14
  sheet = Image.new("RGB", ((columns + 1) * width, len(videos) * (height + line)), "white")
  draw = ImageDraw.Draw(sheet)
  for row, (name, frames) in enumerate(videos.items()):
    top = row * (height + line)
    draw.text((4, top + 1), name, fill="black")
    sheet.paste(portrait.resize((width, height)), (0, top + line))
    for column, n in enumerate(np.linspace(0, len(frames) - 1, columns).astype(int)):
      picture = Image.fromarray(np.rint(255 * frames[n]).astype(np.uint8))
      sheet.paste(picture, ((column + 1) * width, top + line))
  return sheet


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("demo"), help="folder for the videos")
  parser.add_argument("--audio", type=pathlib.Path, help="your own recording instead of synthetic speech")
  parser.add_argument("--person", type=int, default=PERSON, help="number of the drawn person")
  parser.add_argument("--emotion", action="append", help="instead of the demo's emotions; may be repeated")
  arguments = parser.parse_args()
  try:
    run(arguments)
  except DiceTalkError as error:
    sys.exit(f"error: {error}")


def run(arguments):
  use_fast_convolutions()
  keep_compiled_programs()
  arguments.out.mkdir(parents=True, exist_ok=True)
  number = test_person(0, arguments.person)
  person, rest = draw_identity(number), np.zeros((1, len(PARAMETERS)), np.float32)
  portrait = Image.fromarray(render(person, rest, 2 * SIZE)[0])
  portrait.save(arguments.out / "portrait.png")
  audio = arguments.audio or (speak(SENTENCE, draw_voice(number)).audio, SAMPLE_RATE)
  emotions = {name: name for name in arguments.emotion or ()} or EMOTIONS
  talker, videos = DiceTalk.load(), {}
  print("The small weights inside the package were trained on drawn people only, and this is a drawn person.")
  print("For portraits of real people, fetch and convert the published weights: dicetalk download, dicetalk convert.")
  for name, emotion in emotions.items():
    video = talker.generate(portrait, audio, emotion, face_box=face_box(person, rest, 2 * SIZE), size=SIZE)
    videos[name] = video.frames
    print(video.save(arguments.out / f"{re.sub('[^a-z0-9.]+', '_', name.lower())}.mp4"), flush=True)
  sheet = arguments.out / "sheet.png"
  contact_sheet(videos, portrait).save(sheet)
  print(sheet)


if __name__ == "__main__":
  main()
