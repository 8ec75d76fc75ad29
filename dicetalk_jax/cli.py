"""The command line: `dicetalk <verb>`. It parses, calls and prints."""

import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import signal
import sys
import threading
from typing import Annotated, Union

import tyro
from rich.console import Console
from rich.progress import (
  BarColumn,
  DownloadColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)
from rich.text import Text

from dicetalk_jax.config import GenerationConfig, load_preset
from dicetalk_jax.errors import DiceTalkError

_console = Console(stderr=True, highlight=False)


@dataclasses.dataclass(frozen=True)
class Download:
  """Fetch the published files from the hub, resumably; only those that convert reads.

  Example: dicetalk download released/
  """

  target: tyro.conf.Positional[pathlib.Path]
  """Folder that gets the released layout."""

  token: str | None = None
  """Of an account that has accepted the licences; default: that of `hf auth login` or HF_TOKEN."""

  endpoint: str | None = None
  """Of a mirror of the hub."""

  def run(self):
    from dicetalk_jax.inference.download import download

    with _progress(of_bytes=True) as progress:
      download(self.target, token=self.token, endpoint=self.endpoint, progress=progress)
    print(f"{self.target}: complete; next: dicetalk convert {self.target} weights/")


@dataclasses.dataclass(frozen=True)
class Convert:
  """Convert the released PyTorch files into a weights folder.

  Example: dicetalk convert released/ weights/ --priors released/emotion_priors
  """

  source: tyro.conf.Positional[pathlib.Path]
  """Folder in the released layout."""

  weights: tyro.conf.Positional[pathlib.Path]
  """Weights folder to make; it must not exist, or be empty."""

  priors: pathlib.Path | None = None
  """Folder of emotion priors, <label>.npy; default: looked for in SOURCE."""

  slim: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
  """Leave out what only `dicetalk export --all` needs."""

  def run(self):
    from dicetalk_jax.inference.weights import convert_release

    with _progress(of_bytes=True, one_bar=True) as progress:
      weights = convert_release(self.source, self.weights, self.priors, self.slim, progress)
    print(weights.info())


@dataclasses.dataclass(frozen=True)
class Export:
  """Write a weights folder back as PyTorch files of the released layout, bit-equal to what was converted.

  Example: dicetalk export weights/ exported/
  """

  weights: tyro.conf.Positional[pathlib.Path]
  """Weights folder."""

  target: tyro.conf.Positional[pathlib.Path]
  """Folder to write; it must not exist, or be empty."""

  all: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
  """The parts by others too: Stable Video Diffusion, Whisper, RIFE and the emotion priors."""

  def run(self):
    from dicetalk_jax.conversion.export import export

    with _progress(one_bar=True) as progress:
      written = export(self.weights, self.target, self.all, progress)
    print("\n".join(str(self.target / path) for path in written))


@dataclasses.dataclass(frozen=True)
class Info:
  """Print what a weights folder holds.

  Example: dicetalk info weights/
  """

  weights: tyro.conf.Positional[pathlib.Path]
  """Weights folder."""

  def run(self):
    from dicetalk_jax.inference.weights import Weights

    print(Weights.open(self.weights).info())


@dataclasses.dataclass(frozen=True)
class Generate:
  """Make a video of a portrait speaking with an emotion.

  Example: dicetalk generate --image me.jpg --audio speech.wav --emotion happy --out me.mp4 --weights weights/

  The emotion is a label (happy), one with a strength (happy:0.7), a mix (happy:0.6+surprised:0.4), a timeline
  ('0s neutral, 2s happy, 5s angry') or a prior file (.npy, .npz, .safetensors).
  """

  image: pathlib.Path
  """Portrait: any image that Pillow reads."""

  audio: pathlib.Path
  """Speech: any sound, or video with sound, that FFmpeg reads."""

  emotion: str
  """Label, strength, mix, timeline or prior file."""

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
    with _progress() as show, _interruptible() as stop_if_interrupted:

      def progress(stage, done, total):
        stop_if_interrupted()
        show(stage, done, total)

      video = talker.generate(self.image, self.audio, self.emotion, **options, progress=progress)
      for note in video.notes:
        _console.print(note, soft_wrap=True)
      video.save(out, self.keep_resolution, lambda done, total: progress("encoding the video", done, total))
    saved = probe(out)
    print(f"{out}: {saved.duration:.2f} s of {saved.width}x{saved.height} at {saved.fps:g} frames a second")


_VERBS = {
  "download": Download,
  "convert": Convert,
  "export": Export,
  "generate": Generate,
  "info": Info,
}


@contextlib.contextmanager
def _progress(of_bytes=False, one_bar=False):
  """Bars with the time left, one for each stage that calls progress(stage, done, total), or one for all stages."""
  columns = (
    TextColumn("{task.description}"),
    BarColumn(),
    DownloadColumn() if of_bytes else MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
  )
  # Started by the first stage: nothing is drawn for what fails before.
  bars, tasks = Progress(*columns, console=_console), {}

  def progress(stage, done, total):
    if not tasks:
      bars.start()
    bar = None if one_bar else stage
    if bar not in tasks:
      tasks[bar] = bars.add_task(stage, total=total)
    bars.update(tasks[bar], description=stage, completed=done, total=total)

  try:
    yield progress
  finally:
    if tasks:
      bars.stop()


@contextlib.contextmanager
def _interruptible():
  """Gives a function that raises the KeyboardInterrupt of an earlier Ctrl-C.

  One that comes while JAX runs a callback from C++ is raised there, printed and lost.
  """
  interrupted = threading.Event()

  def interrupt(*_):
    interrupted.set()
    raise KeyboardInterrupt

  def stop_if_interrupted():
    if interrupted.is_set():
      raise KeyboardInterrupt

  before = signal.signal(signal.SIGINT, interrupt) if threading.current_thread() is threading.main_thread() else None
  try:
    yield stop_if_interrupted
  finally:
    if before is not None:
      signal.signal(signal.SIGINT, before)


def _use_fast_convolutions():
  """jaxlib's default fusion makes convolutions on a CPU 1.5 times slower; XLA reads this when JAX starts."""
  flags = os.environ.get("XLA_FLAGS", "")
  # XLA ends the process for a flag that it does not know: these versions know it.
  known = importlib.metadata.version("jaxlib").startswith(("0.10.", "0.12."))
  if known and "ynn_fusion" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_experimental_ynn_fusion_type=".strip()


def _commands(arguments):
  """The verbs for tyro, `generate` with the defaults of the preset that the command line names."""
  defaults = {}
  for i, argument in enumerate(arguments):
    name, _, value = argument.partition("=")
    if arguments[0] == "generate" and name == "--config" and (value or i + 1 < len(arguments)):
      preset = load_preset(value or arguments[i + 1], GenerationConfig)
      defaults["generate"] = {"default": Generate(*[tyro.MISSING] * 4, generation=preset)}
  verbs = [Annotated[verb, tyro.conf.subcommand(name=name, **defaults.get(name, {}))] for name, verb in _VERBS.items()]
  return Union[tuple(verbs)]  # noqa: UP007 (made at run time)


def main(arguments: list[str] | None = None) -> int:
  """Runs one verb; returns the exit code: 0, 1 (it could not be done) or 130 (Ctrl-C); a wrong command line exits 2."""
  arguments = sys.argv[1:] if arguments is None else arguments
  _use_fast_convolutions()
  if arguments == ["--version"]:
    print(importlib.metadata.version("dicetalk-jax"))
    return 0
  try:
    command = tyro.cli(
      _commands(arguments), prog="dicetalk", description="Emotional talking portraits in JAX.", args=arguments
    )
    command.run()
  except DiceTalkError as error:
    return _fail(error)
  except KeyboardInterrupt:
    _console.print("stopped before the end; what was complete before is untouched")
    return 130
  except (MemoryError, RuntimeError) as error:
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return _fail("the device has too little memory for this; try a smaller --size, --window or --decode-chunk")
  return 0


def _fail(error) -> int:
  # As plain text: a path may hold what rich takes for markup.
  _console.print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
  return 1


if __name__ == "__main__":
  sys.exit(main())
