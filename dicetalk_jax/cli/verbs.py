"""All verbs: `dicetalk <verb>` parses, calls and prints."""

import contextlib
import functools
import importlib.metadata
from typing import Annotated, Union

import tyro
from rich.text import Text

from dicetalk_jax.cli.app import App
from dicetalk_jax.cli.data import Data
from dicetalk_jax.cli.evaluate import Evaluate
from dicetalk_jax.cli.generate import Generate
from dicetalk_jax.cli.plan import Plan
from dicetalk_jax.cli.priors import Priors
from dicetalk_jax.cli.release import Average, Convert, Download, Export, Info, Pack, Widen
from dicetalk_jax.cli.terminal import console, use_fast_convolutions
from dicetalk_jax.cli.train import Train, spelt_out
from dicetalk_jax.config import GenerationConfig, load_preset
from dicetalk_jax.errors import DiceTalkError, out_of_memory

_VERBS = {
  "download": Download,
  "convert": Convert,
  "export": Export,
  "generate": Generate,
  "data": Data,
  "train": Train,
  "plan": Plan,
  "priors": Priors,
  "evaluate": Evaluate,
  "info": Info,
  "pack": Pack,
  "widen": Widen,
  "average": Average,
  "app": App,
}
_GENERATING = {"generate": Generate, "evaluate": functools.partial(Evaluate, out=tyro.MISSING, measuring=tyro.MISSING)}


def _commands(arguments):
  """The verbs for tyro; those that generate have the defaults of the preset or the weights that the line names."""
  defaults = {}
  if arguments and arguments[0] in _GENERATING:
    verb = _GENERATING[arguments[0]]
    defaults[arguments[0]] = {"default": verb(generation=_generation(arguments))}
  verbs = [Annotated[verb, tyro.conf.subcommand(name=name, **defaults.get(name, {}))] for name, verb in _VERBS.items()]
  return Union[tuple(verbs)]  # noqa: UP007 (made at run time)


def _generation(arguments) -> GenerationConfig:
  """Of --config, or as --weights, or the weights inside the package, are meant to be used."""
  from dicetalk_jax.weights.folder import Weights

  if preset := _given(arguments, "--config"):
    return load_preset(preset, GenerationConfig)
  with contextlib.suppress(DiceTalkError):
    # Weights that cannot be read are told of later, by what needs them.
    return Weights.open(_given(arguments, "--weights") or Weights.bundled()).generation
  return GenerationConfig()


def _given(arguments, option) -> str | None:
  """The value of an option of a command line, `--name value` or `--name=value`."""
  for i, argument in enumerate(arguments):
    name, equals, value = argument.partition("=")
    if name == option and (equals or i + 1 < len(arguments)):
      return value or arguments[i + 1]
  return None


def run(arguments: list[str]) -> int:
  """`cli.main`."""
  use_fast_convolutions()
  if arguments == ["--version"]:
    print(importlib.metadata.version("dicetalk-jax"))
    return 0
  arguments = spelt_out(arguments)
  try:
    command = tyro.cli(
      _commands(arguments), prog="dicetalk", description="Emotional talking portraits in JAX.", args=arguments
    )
    return command.run() or 0
  except DiceTalkError as error:
    return _fail(error)
  except KeyboardInterrupt:
    console.print("stopped before the end; what was complete before is untouched")
    return 130
  except (MemoryError, RuntimeError) as error:
    if not out_of_memory(error):
      # Where another process of this run has ended, that is what is to be told.
      from dicetalk_jax.parallel import hosts

      hosts.wait_for_news()
      raise
    smaller = "batches.batch, or remat" if arguments[0] == "train" else "--size, --window or --decode-chunk"
    return _fail(f"the device has too little memory for this; try a smaller {smaller}")


def _fail(error) -> int:
  # As plain text: a path may hold what rich takes for markup.
  console.print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
  return 1
