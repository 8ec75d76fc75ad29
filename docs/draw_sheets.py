"""Draws the pictures of the drawn world for the documentation.

    python docs/draw_sheets.py

Writes world_emotions.png (eight emotions, eight people) and world_sentence.png (a sentence, frame by frame, with its
phonemes) to this folder. Needs matplotlib.
"""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dicetalk_jax.vocabulary import EMOTIONS, FPS, SAMPLE_RATE, TRUTH
from dicetalk_jax.world.drawing import Performance, draw_clip, perform
from dicetalk_jax.world.parameters import column
from dicetalk_jax.world.phonemes import PHONEMES
from dicetalk_jax.world.renderer import render

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PEOPLE = (3, 8, 11, 14, 19, 23, 30, 42)
SENTENCES = ("We bought a map of the old town.", "Please wait for me outside.")
SIDE = 128
DRAWN = 150
SHOWN = 16


def telling_frame(clip: Performance) -> int:
  """Index of a late frame with open eyes and a half-open mouth."""
  opening = clip.truth[:, TRUTH.index("mouth_opening")]
  usable = column(clip.parameters, "blink") < 0.05
  usable[: len(usable) // 3] = usable[-8:] = False
  unlikely = np.abs(opening - 0.5 * opening.max()) + 10 * ~usable
  return int(np.argmin(unlikely))


def faces(clip: Performance, frames: np.ndarray) -> np.ndarray:
  """Crops frames (n, h, w, 3) to the face with a margin: (n, side, side, 3)."""
  scale = frames.shape[1] / DRAWN
  x, y, w, h = (scale * v for v in clip.face_box)
  side = int(SIDE * scale)
  left, top = (int(np.clip(v, 0, frames.shape[1] - side)) for v in (x + w / 2 - side / 2, y + h / 2 - 0.56 * side))
  return frames[:, top : top + side, left : left + side]


def emotions_sheet(path: Path):
  margin, font = 84, ImageFont.load_default(14)
  sheet = Image.new("RGB", (margin + SIDE * len(PEOPLE), SIDE * len(EMOTIONS)), "white")
  draw = ImageDraw.Draw(sheet)
  for row, emotion in enumerate(EMOTIONS):
    draw.text((margin - 8, (row + 0.5) * SIDE), emotion, "black", font, anchor="rm")
    for i, person in enumerate(PEOPLE):
      clip = draw_clip(person, emotion, 1 if emotion == "neutral" else 3, SENTENCES[i % 2], size=DRAWN)
      shown = telling_frame(clip)
      sheet.paste(Image.fromarray(faces(clip, clip.frames[shown : shown + 1])[0]), (margin + i * SIDE, row * SIDE))
  sheet.quantize(256).save(path, optimize=True)


def sentence_sheet(path: Path, person=23, emotion="happy", level=2, sentence=SENTENCES[0]):
  clip = perform(person, emotion, level, sentence, size=DRAWN)
  n = len(clip.truth)
  shown = np.linspace(2, n - 3, SHOWN).round().astype(int)
  frames = faces(clip, render(clip.identity, clip.parameters[shown], DRAWN))
  figure = plt.figure(figsize=(16, 3.8), dpi=110, layout="constrained")
  top, bottom = figure.subfigures(2, 1, height_ratios=(1.3, 2))
  for axis, frame, i in zip(top.subplots(1, SHOWN), frames, shown, strict=True):
    axis.imshow(frame)
    axis.axis("off")
    axis.set_title(PHONEMES[int(clip.truth[i, TRUTH.index("phoneme")])].name, fontsize=11)
  sound, mouth = bottom.subplots(2, 1, sharex=True)
  sound.plot(np.arange(len(clip.audio)) / SAMPLE_RATE, clip.audio, linewidth=0.4)
  sound.set_ylabel("sound")
  mouth.plot((np.arange(n) + 0.5) / FPS, clip.truth[:, TRUTH.index("mouth_opening")], ".-")
  mouth.set(ylabel="mouth\nopening", xlabel="seconds", xlim=(0, n / FPS))
  for segment in clip.speech.segments:
    mouth.axvline(segment.start, color="0.85", linewidth=0.8, zorder=0)
    name = "" if segment.phoneme == "SIL" else segment.phoneme
    sound.annotate(name, ((segment.start + segment.end) / 2, 1), xycoords=("data", "axes fraction"), ha="center")
  for i in shown:
    mouth.plot((i + 0.5) / FPS, clip.truth[i, TRUTH.index("mouth_opening")], "o", color="tab:red", markersize=4)
  figure.suptitle(f"“{sentence}” ({emotion}, level {level})")
  figure.savefig(path)
  plt.close(figure)


if __name__ == "__main__":
  folder = Path(__file__).parent
  emotions_sheet(folder / "world_emotions.png")
  sentence_sheet(folder / "world_sentence.png")
