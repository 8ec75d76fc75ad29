"""The verb `train`: one sub-verb for each stage."""

import dataclasses
import importlib
import pathlib
from typing import Annotated

import tyro

from dicetalk_jax.cli.groups import verb_group
from dicetalk_jax.cli.terminal import STOPPED, progress_bars, say
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
        say("Compiling the training step. This can take minutes; a later start finds it in the cache.")
      elif what != "compile":
        bars(what, done, total)

    def report(step, metrics):
      if step == 1 or step % every == 0:
        _values(f"step {step}", {name: metrics[name] for name in _SHOWN if name in metrics})

    def validated(step, scalars):
      _values(f"step {step}, held out", scalars)

    _, outcome = train(config, report=report, progress=progress, warn=say, validated=validated)
  if outcome.status == Status.FINISHED:
    print(f"{out}: finished after {outcome.step} steps; {pathlib.Path(result).stem}: {out / result}")
    return 0
  print(f"{out}: stopped after step {outcome.step}, and saved; the same command continues from there")
  return STOPPED


def _values(what: str, values) -> None:
  say(f"{what}: " + ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items()))


def _stage(base, name, settings, train, summary, example, result="weights"):
  """The sub-verb of a stage; settings, train: modules of its configuration and of the function that trains."""
  kind = name.title().replace("-", "")
  return type(
    kind,
    (base,),
    {
      "__doc__": f"{summary}\n\nExample: dicetalk train {name} --config configs/{example}",
      "SETTINGS": f"{settings}:{kind}Config",
      "TRAIN": f"{train}:train_{name.replace('-', '_')}",
      "RESULT": result,
    },
  )


def _foundation(name, summary, example="synthetic_small.py"):
  module = f"training.foundations.{name.replace('-', '_')}"
  return _stage(_Stage, name, "training.foundations.config", module, summary, example)


Train = verb_group(
  "Train",
  """Train one stage. Ctrl-C and SIGTERM save and exit with code 75; the same command continues the run.

  Example: dicetalk train embedder --config configs/embedder.py
  """,
  {
    "embedder": _stage(
      _PlannedStage,
      "embedder",
      "training.config",
      "training.embedder",
      "Stage 1: train the emotion embedder on encoded sets.",
      "embedder.py --set loop.steps=20000",
    ),
    "adaptation": _stage(
      _PlannedStage,
      "adaptation",
      "training.config",
      "training.adaptation",
      "Stage 2: adapt the diffusion model to speech and emotion on encoded sets.",
      "adaptation_512.py --set batches.batch=4",
    ),
    "autoencoder": _foundation("autoencoder", "Train a VAE from nothing on built sets."),
    "audio-encoder": _foundation(
      "audio-encoder", "Train a Whisper encoder from nothing on drawn sets, whose phonemes are known."
    ),
    "image-encoder": _foundation(
      "image-encoder", "Train a CLIP vision encoder from nothing on built sets, to recognise people."
    ),
    "frame-interpolator": _foundation(
      "frame-interpolator",
      "Train RIFE from nothing on built sets, to predict the frame between two others.",
      "synthetic_128.py",
    ),
    "measuring": _stage(
      _Stage,
      "measuring",
      "evaluation.measuring_stage",
      "evaluation.measuring_stage",
      "Train the network that `dicetalk evaluate` measures pictures with, on drawn people.",
      "synthetic_128.py",
      "measuring.safetensors",
    ),
  },
)


def spelt_out(arguments: list[str]) -> list[str]:
  """The command line with `--set` before each of several settings that follow one `--set`."""
  spelt, setting = [], False
  for argument in arguments:
    setting = argument == "--set" or (setting and "=" in argument and not argument.startswith("-"))
    if setting and argument != "--set" and spelt[-1] != "--set":
      spelt.append("--set")
    spelt.append(argument)
  return spelt
