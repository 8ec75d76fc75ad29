"""The verbs `train embedder`, `train adaptation`, and those of networks that a release would bring."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import tyro

from dicetalk_jax.cli.terminal import console, progress_bars
from dicetalk_jax.config import load_preset


@dataclasses.dataclass(frozen=True)
class _Training:
  """Shared by all stages."""

  ends_with: ClassVar[str] = "weights"

  config: pathlib.Path
  """Preset, a Python file such as those in configs/."""

  set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="A.B=VALUE")] = ()
  """Change one setting of the preset, such as optimizer.learning_rate=1e-4; as often as wanted."""

  out: pathlib.Path | None = None
  """Folder of the run: new, or one to go on with; default: the preset's."""

  def run(self):
    kind, train = self._stage()
    _run(train, self._config(kind), self.ends_with)

  def _config(self, kind):
    from dicetalk_jax.training.overrides import override

    config = override(load_preset(self.config, kind), self.set)
    return dataclasses.replace(config, out=str(self.out)) if self.out else config

  def _stage(self) -> tuple[type, Callable]:
    """(its configuration, what trains it)."""
    raise AssertionError("each stage has its own")


@dataclasses.dataclass(frozen=True)
class _ForetoldTraining(_Training):
  """Shared by the stages whose costs can be told before."""

  dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
  """Print parameters, memory and operations by group, and end."""

  def run(self):
    if not self.dry_run:
      from dicetalk_jax.parallel import hosts

      hosts.connect(_warn)
      super().run()
      return
    kind, _ = self._stage()
    print(self._costs(self._config(kind)))

  def _costs(self, config):
    raise AssertionError("each stage has its own")


def _run(train: Callable[..., tuple[Any, Any]], config, ends_with: str) -> None:
  from dicetalk_jax.parallel.hosts import is_first
  from dicetalk_jax.training.loop import Status

  every = config.loop.log_every
  # One terminal shows what all hosts do together.
  if not is_first():
    train(config, warn=lambda message: None)
    return

  with progress_bars() as progress:

    def report(step, metrics):
      if step == 1 or step % every == 0:
        shown = ("loss", "denoising", "emotion", "vq", "accuracy", "grad_norm", "skipped")
        _tell(f"step {step}", {name: metrics[name] for name in shown if name in metrics})

    def validated(step, scalars):
      _tell(f"step {step}, held out", scalars)

    _, outcome = train(config, report=report, progress=progress, warn=_warn, validated=validated)
  if outcome.status == Status.FINISHED:
    result = pathlib.Path(config.out) / ends_with
    print(f"{config.out}: finished after {outcome.step} steps; {result.stem}: {result}")
  else:
    print(f"{config.out}: stopped after step {outcome.step}, and saved; the same command goes on from there")


def _warn(message: str) -> None:
  console.print(message, soft_wrap=True, markup=False)


def _tell(what: str, values) -> None:
  text = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
  console.print(f"{what}: {text}", soft_wrap=True, markup=False)


@dataclasses.dataclass(frozen=True)
class Embedder(_ForetoldTraining):
  """Train the emotion embedder on encoded sets (stage 1). Goes on where it was stopped.

  Example: dicetalk train embedder --config configs/embedder.py --set loop.steps=20000
  """

  def _stage(self):
    from dicetalk_jax.training.config import EmbedderConfig
    from dicetalk_jax.training.embedder import train_embedder

    return EmbedderConfig, train_embedder

  def _costs(self, config):
    from dicetalk_jax.planning.dry_run import embedder_costs

    return embedder_costs(config)


@dataclasses.dataclass(frozen=True)
class Adaptation(_ForetoldTraining):
  """Adapt the diffusion model to speech and emotion on encoded sets (stage 2). Goes on where it was stopped.

  Example: dicetalk train adaptation --config configs/adaptation_512.py --set batches.batch=4
  """

  def _stage(self):
    from dicetalk_jax.training.adaptation import train_adaptation
    from dicetalk_jax.training.config import AdaptationConfig

    return AdaptationConfig, train_adaptation

  def _costs(self, config):
    from dicetalk_jax.planning.dry_run import adaptation_costs

    return adaptation_costs(config)


@dataclasses.dataclass(frozen=True)
class Autoencoder(_Training):
  """Train a VAE from nothing on built sets, where no release's is at hand.

  Example: dicetalk train autoencoder --config configs/synthetic_small.py
  """

  def _stage(self):
    from dicetalk_jax.training.foundations.autoencoder import train_autoencoder
    from dicetalk_jax.training.foundations.config import AutoencoderConfig

    return AutoencoderConfig, train_autoencoder


@dataclasses.dataclass(frozen=True)
class AudioEncoder(_Training):
  """Train a Whisper-shaped encoder from nothing on drawn sets, whose phonemes are known.

  Example: dicetalk train audio-encoder --config configs/synthetic_small.py
  """

  def _stage(self):
    from dicetalk_jax.training.foundations.audio_encoder import train_audio_encoder
    from dicetalk_jax.training.foundations.config import AudioEncoderConfig

    return AudioEncoderConfig, train_audio_encoder


@dataclasses.dataclass(frozen=True)
class ImageEncoder(_Training):
  """Train a CLIP-shaped encoder from nothing on built sets: whom a picture shows.

  Example: dicetalk train image-encoder --config configs/synthetic_small.py
  """

  def _stage(self):
    from dicetalk_jax.training.foundations.config import ImageEncoderConfig
    from dicetalk_jax.training.foundations.image_encoder import train_image_encoder

    return ImageEncoderConfig, train_image_encoder


@dataclasses.dataclass(frozen=True)
class FrameInterpolator(_Training):
  """Train RIFE from nothing on built sets: the frame between two.

  Example: dicetalk train frame-interpolator --config configs/synthetic_128.py
  """

  def _stage(self):
    from dicetalk_jax.training.foundations.config import FrameInterpolatorConfig
    from dicetalk_jax.training.foundations.frame_interpolator import train_frame_interpolator

    return FrameInterpolatorConfig, train_frame_interpolator


@dataclasses.dataclass(frozen=True)
class Measuring(_Training):
  """Train the network that `dicetalk evaluate` measures pictures with, on true frames of drawn sets.

  Example: dicetalk train measuring --config configs/synthetic_128.py
  """

  ends_with: ClassVar[str] = "measuring.safetensors"

  def _stage(self):
    from dicetalk_jax.evaluation.measuring import MeasuringConfig, train_measuring

    return MeasuringConfig, train_measuring


def _subcommand(name, verb):
  return Annotated[verb, tyro.conf.subcommand(name=name)]


@dataclasses.dataclass(frozen=True)
class Train:
  """Train the emotion embedder or the diffusion model, or what these stand on. Ctrl-C saves; the same command goes on.

  Example: dicetalk train embedder --config configs/embedder.py
  """

  stage: tyro.conf.OmitSubcommandPrefixes[
    _subcommand("embedder", Embedder)
    | _subcommand("adaptation", Adaptation)
    | _subcommand("autoencoder", Autoencoder)
    | _subcommand("audio-encoder", AudioEncoder)
    | _subcommand("image-encoder", ImageEncoder)
    | _subcommand("frame-interpolator", FrameInterpolator)
    | _subcommand("measuring", Measuring)
  ]

  def run(self):
    self.stage.run()


def spelt_out(arguments: list[str]) -> list[str]:
  """The command line with `--set` before each of several settings that follow one."""
  spelt, setting = [], False
  for argument in arguments:
    setting = argument == "--set" or (setting and "=" in argument and not argument.startswith("-"))
    if setting and argument != "--set" and spelt[-1] != "--set":
      spelt.append("--set")
    spelt.append(argument)
  return spelt
