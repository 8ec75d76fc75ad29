"""The verb `generate`."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from dicetalk_jax.cli.terminal import console, interruptible, progress_bars
from dicetalk_jax.config import GenerationConfig


@dataclasses.dataclass(frozen=True)
class Generate:
  """Make a video of a portrait speaking with an emotion.

  Example: dicetalk generate --image me.jpg --audio speech.wav --emotion happy --out me.mp4 --weights weights/

  The emotion is a label (happy), one with a strength (happy:0.7), a mix (happy:0.6+surprised:0.4), a timeline
  ('0s neutral, 2s happy, 5s angry') or a prior file (.npy, .npz, .safetensors). With weights that hold an emotion
  embedder it is also a clip whose emotion to take: a video with sound (and its coefficients of the same name beside
  it), a sound, or coefficients alone (.mat, .npy, .npz, .txt, .csv). Files may stand for labels in mixes and timelines:
  a.mp4:0.5+b.mp4:0.5 is half-way between two clips.
  """

  image: pathlib.Path
  """Portrait: any image that Pillow reads."""

  audio: pathlib.Path
  """Speech: any sound, or video with sound, that FFmpeg reads."""

  emotion: str
  """Label, strength, mix, timeline, prior file or clip."""

  out: pathlib.Path
  """Video to write: .mp4, .m4v, .mov or .mkv."""

  weights: pathlib.Path | None = None
  """Weights folder; default: the small weights inside the package."""

  config: pathlib.Path | None = None
  """Preset with defaults for the options below, such as configs/draft.py."""

  generation: tyro.conf.OmitArgPrefixes[GenerationConfig] = dataclasses.field(default_factory=GenerationConfig)

  keep_resolution: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
  """Resize the video to the portrait's own size."""

  def run(self):
    from dicetalk_jax.inference.pipeline import DiceTalk
    from dicetalk_jax.media.video import check_target, probe

    out = check_target(self.out)
    talker = DiceTalk.load(self.weights)
    options = {field.name: getattr(self.generation, field.name) for field in dataclasses.fields(self.generation)}
    with progress_bars() as show, interruptible() as stop_if_interrupted:

      def progress(stage, done, total):
        stop_if_interrupted()
        show(stage, done, total)

      video = talker.generate(self.image, self.audio, self.emotion, **options, progress=progress)
      for note in video.notes:
        console.print(note, soft_wrap=True)
      video.save(out, self.keep_resolution, lambda done, total: progress("encoding the video", done, total))
    saved = probe(out)
    print(f"{out}: {saved.duration:.2f} s of {saved.width}x{saved.height} at {saved.fps:g} frames a second")
