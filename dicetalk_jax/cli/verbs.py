"""All verbs: `dicetalk <verb>` parses, calls and prints."""

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
from dicetalk_jax.cli.release import Convert, Download, Export, Info
from dicetalk_jax.cli.terminal import console, use_fast_convolutions
from dicetalk_jax.cli.train import Train, spelt_out
from dicetalk_jax.config import GenerationConfig, load_preset
from dicetalk_jax.errors import DiceTalkError

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
  "app": App,
}


def _commands(arguments):
  """The verbs for tyro, `generate` with the defaults of the preset that the command line names."""
  defaults = {}
  for i, argument in enumerate(arguments):
    name, _, value = argument.partition("=")
    if arguments[0] == "generate" and name == "--config" and (value or i + 1 < len(arguments)):
      preset = load_preset(value or arguments[i + 1], GenerationConfig)
      defaults["generate"] = {"default": Generate(generation=preset)}
  verbs = [Annotated[verb, tyro.conf.subcommand(name=name, **defaults.get(name, {}))] for name, verb in _VERBS.items()]
  return Union[tuple(verbs)]  # noqa: UP007 (made at run time)


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
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
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
