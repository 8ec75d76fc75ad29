"""The verb `train`: one sub-verb for each stage."""

import dataclasses
import importlib
import pathlib
from typing import Annotated

import tyro

from dicetalk_jax.cli.terminal import STOPPED, console, progress_bars
from dicetalk_jax.config import load_preset

_SHOWN = ("loss", "denoising", "emotion", "vq", "accuracy", "grad_norm", "skipped")


@dataclasses.dataclass(frozen=True)
class _Stage:
  """Options of all stages."""

  config: pathlib.Path
  """Preset: a Python file such as those in configs/."""

  set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="A.B=VALUE")] = ()
  """Change settings of the preset, such as optimizer.learning_rate=1e-4."""

  out: pathlib.Path | None = None
  """Run folder. An existing run continues. Default: the preset's."""

  # "module:name" of the settings and of the function that trains, and what a finished run leaves in its folder.
  SETTINGS = TRAIN = ""
  RESULT = "weights"

  def run(self):
    from dicetalk_jax.parallel.compilation import keep_compiled_programs

    config = self._config()
    keep_compiled_programs()
    return _train(_imported(self.TRAIN), config, self.RESULT)

  def _config(self):
    # Before anything slow is imported, so that a wrong setting is reported at once.
    from dicetalk_jax.training.overrides import override

    config = override(load_preset(self.config, _imported(self.SETTINGS)), self.set)
    return dataclasses.replace(config, out=str(self.out)) if self.out else config


@dataclasses.dataclass(frozen=True)
class _PlannedStage(_Stage):
  """Options of the two stages of the paper, which also run on several hosts."""

  dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
  """Print parameters, memory and FLOP by group, and train nothing."""

  compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
  """With --dry-run: also compile the step, minutes at full size, to include activations in the memory."""

  def run(self):
    if self.dry_run:
      config = self._config()
      from dicetalk_jax.planning.dry_run import training_costs

      print(training_costs(config, self.compile))
      return 0
    from dicetalk_jax.parallel import hosts

    hosts.connect()
    return super().run()


def _imported(name: str):
  module, _, attribute = name.partition(":")
  return getattr(importlib.import_module(f"dicetalk_jax.{module}"), attribute)


def _train(train, config, result: str) -> int:
  """Trains with progress on the terminal; returns the exit code."""
  from dicetalk_jax.parallel.hosts import is_first
  from dicetalk_jax.training.loop import Status

  every, out = config.loop.log_every, pathlib.Path(config.out)
  # The first host's terminal shows what all hosts do together.
  if not is_first():
    _, outcome = train(config, warn=lambda message: None)
    return 0 if outcome.status == Status.FINISHED else STOPPED

  with progress_bars() as bars:

    def progress(what, done, total):
      if (what, done) == ("compile", 0):
        _say("Compiling the training step. This can take minutes; a later start finds it in the cache.")
      elif what != "compile":
        bars(what, done, total)

    def report(step, metrics):
      if step == 1 or step % every == 0:
        _values(f"step {step}", {name: metrics[name] for name in _SHOWN if name in metrics})

    def validated(step, scalars):
      _values(f"step {step}, held out", scalars)

    _, outcome = train(config, report=report, progress=progress, warn=_say, validated=validated)
  if outcome.status == Status.FINISHED:
    print(f"{out}: finished after {outcome.step} steps; {pathlib.Path(result).stem}: {out / result}")
    return 0
  print(f"{out}: stopped after step {outcome.step}, and saved; the same command continues from there")
  return STOPPED


def _say(message: str) -> None:
  console.print(message, soft_wrap=True, markup=False)


def _values(what: str, values) -> None:
  _say(f"{what}: " + ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items()))


@dataclasses.dataclass(frozen=True)
class Embedder(_PlannedStage):
  """Stage 1: train the emotion embedder on encoded sets.

  Example: dicetalk train embedder --config configs/embedder.py --set loop.steps=20000
  """

  SETTINGS, TRAIN = "training.config:EmbedderConfig", "training.embedder:train_embedder"


@dataclasses.dataclass(frozen=True)
class Adaptation(_PlannedStage):
  """Stage 2: adapt the diffusion model to speech and emotion on encoded sets.

  Example: dicetalk train adaptation --config configs/adaptation_512.py --set batches.batch=4
  """

  SETTINGS, TRAIN = "training.config:AdaptationConfig", "training.adaptation:train_adaptation"


@dataclasses.dataclass(frozen=True)
class Autoencoder(_Stage):
  """Train a VAE from nothing on built sets.

  Example: dicetalk train autoencoder --config configs/synthetic_small.py
  """

  SETTINGS = "training.foundations.config:AutoencoderConfig"
  TRAIN = "training.foundations.autoencoder:train_autoencoder"


@dataclasses.dataclass(frozen=True)
class AudioEncoder(_Stage):
  """Train a Whisper encoder from nothing on drawn sets, whose phonemes are known.

  Example: dicetalk train audio-encoder --config configs/synthetic_small.py
  """

  SETTINGS = "training.foundations.config:AudioEncoderConfig"
  TRAIN = "training.foundations.audio_encoder:train_audio_encoder"


@dataclasses.dataclass(frozen=True)
class ImageEncoder(_Stage):
  """Train a CLIP vision encoder from nothing on built sets, to recognise people.

  Example: dicetalk train image-encoder --config configs/synthetic_small.py
  """

  SETTINGS = "training.foundations.config:ImageEncoderConfig"
  TRAIN = "training.foundations.image_encoder:train_image_encoder"


@dataclasses.dataclass(frozen=True)
class FrameInterpolator(_Stage):
  """Train RIFE from nothing on built sets, to predict the frame between two others.

  Example: dicetalk train frame-interpolator --config configs/synthetic_128.py
  """

  SETTINGS = "training.foundations.config:FrameInterpolatorConfig"
  TRAIN = "training.foundations.frame_interpolator:train_frame_interpolator"


@dataclasses.dataclass(frozen=True)
class Measuring(_Stage):
  """Train the network that `dicetalk evaluate` measures pictures with, on drawn people.

  Example: dicetalk train measuring --config configs/synthetic_128.py
  """

  SETTINGS, TRAIN = "evaluation.measuring_stage:MeasuringConfig", "evaluation.measuring_stage:train_measuring"
  RESULT = "measuring.safetensors"


def _subcommand(name, verb):
  return Annotated[verb, tyro.conf.subcommand(name=name)]


@dataclasses.dataclass(frozen=True)
class Train:
  """Train one stage. Ctrl-C and SIGTERM save and exit with code 75; the same command continues the run.

  Example: dicetalk train embedder --config configs/embedder.py
  """

  stage: Annotated[
    tyro.conf.OmitSubcommandPrefixes[
      _subcommand("embedder", Embedder)
      | _subcommand("adaptation", Adaptation)
      | _subcommand("autoencoder", Autoencoder)
      | _subcommand("audio-encoder", AudioEncoder)
      | _subcommand("image-encoder", ImageEncoder)
      | _subcommand("frame-interpolator", FrameInterpolator)
      | _subcommand("measuring", Measuring)
    ],
    tyro.conf.arg(name=""),
  ]

  def run(self):
    return self.stage.run()


def spelt_out(arguments: list[str]) -> list[str]:
  """The command line with `--set` before each of several settings that follow one `--set`."""
  spelt, setting = [], False
  for argument in arguments:
    setting = argument == "--set" or (setting and "=" in argument and not argument.startswith("-"))
    if setting and argument != "--set" and spelt[-1] != "--set":
      spelt.append("--set")
    spelt.append(argument)
  return spelt
