"""Speed of making sets: drawing and speech in one process, building with all cores.

    python benchmarks/data_building.py

Frames a second at 128 and 256 pixels, clips a second without pictures, seconds of speech a second; then clips a second
of `dicetalk data build` for the drawn world and for video files (1280x720, 30 frames a second, 4 s), with the start of
its processes.
"""

import argparse
import itertools
import os
import pathlib
import platform
import tempfile
import time

import common
import numpy as np

from dicetalk_jax.data.build.folder import ClipsLayout
from dicetalk_jax.data.build.prepare import PrepareConfig
from dicetalk_jax.data.build.synthetic import SyntheticLayout
from dicetalk_jax.data.build.tfds import build_set
from dicetalk_jax.media.video import write_video
from dicetalk_jax.vocabulary import EMOTIONS
from dicetalk_jax.world.drawing import perform
from dicetalk_jax.world.renderer import render
from dicetalk_jax.world.sentences import sentences
from dicetalk_jax.world.speakers import draw_voice, prosody
from dicetalk_jax.world.voice import speak


def cast():
  """Endless arguments of clips: person, emotion, level, sentence."""
  texts = itertools.cycle(sentences("train"))
  for person in itertools.count():
    emotion = EMOTIONS[person % len(EMOTIONS)]
    yield person, emotion, 1 if emotion == "neutral" else 1 + person % 3, next(texts)


def rate(amounts, seconds):
  """Amount that an iterator yields a second, over about so many seconds; the first item is not counted."""
  next(amounts)
  total, start = 0.0, time.perf_counter()
  while (passed := time.perf_counter() - start) < seconds:
    total += next(amounts)
  return total / passed


def frames(size):
  for person, emotion, level, text in cast():
    clip = perform(person, emotion, level, text, size=size)
    yield len(render(clip.identity, clip.parameters, size))


def clips():
  for arguments in cast():
    perform(*arguments)
    yield 1


def speech():
  for person, emotion, level, text in cast():
    yield speak(text, draw_voice(person), prosody(emotion, level, person), person).duration


def built(layout, folder, root=None):
  """Clips and frames a second of a build."""
  start = time.perf_counter()
  report = build_set(layout, folder, root)
  passed = time.perf_counter() - start
  return sum(report.clips.values()) / passed, 25 * sum(report.seconds.values()) / passed


def write_videos(folder, count):
  """Files like those of a camera: a face in a wide picture, 4 s."""
  for i, (person, emotion, level, text) in zip(range(count), cast(), strict=False):
    clip = perform(person, emotion, level, text)
    # Slowed down to 4 s, which does not matter here.
    times = np.linspace(0, len(clip.parameters) - 1, 120).round().astype(int)
    square = render(clip.identity, clip.parameters[times], 512)
    pictures = np.full((len(times), 720, 1280, 3), 96, np.uint8)
    pictures[:, 104:616, 384:896] = square
    write_video(folder / f"{i}.mp4", pictures, 30, np.resize(clip.audio, 4 * 16000), 16000)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seconds", type=float, default=10, help="seconds for each figure")
  options = parser.parse_args()
  rows = [
    ["frames a second at 128 pixels, sound included", f"{rate(frames(128), options.seconds):.0f}"],
    ["frames a second at 256 pixels, sound included", f"{rate(frames(256), options.seconds):.0f}"],
    ["clips a second without pictures", f"{rate(clips(), options.seconds):.1f}"],
    ["seconds of speech a second", f"{rate(speech(), options.seconds):.0f}"],
  ]
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    (folder / "videos").mkdir()
    write_videos(folder / "videos", 8)
    sets = {
      "drawn, 128 pixels": (SyntheticLayout(people=2, test_people=0, takes=1),),
      "720p files to 256 pixels": (ClipsLayout(prepare=PrepareConfig(size=256)), folder / "videos"),
      "720p files to 512 pixels": (ClipsLayout(prepare=PrepareConfig(size=512)), folder / "videos"),
    }
    for i, (name, (layout, *root)) in enumerate(sets.items()):
      clips_a_second, frames_a_second = built(layout, folder / str(i), *root)
      rows.append([f"built, all cores: clips a second, {name}", f"{clips_a_second:.2f}"])
      rows.append([f"built, all cores: frames a second, {name}", f"{frames_a_second:.0f}"])
  where = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
  common.print_table(f"Making sets ({where})", ("what", "rate"), rows)


if __name__ == "__main__":
  main()
