"""All verbs: `dicetalk <verb>` parses, calls and prints."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import inspect
import sys
from typing import Annotated, Union
from unittest import mock

import docstring_parser
import tyro

from dicetalk_jax.cli.app import App
from dicetalk_jax.cli.data import Data
from dicetalk_jax.cli.evaluate import Evaluate
from dicetalk_jax.cli.generate import Generate
from dicetalk_jax.cli.plan import Plan
from dicetalk_jax.cli.priors import Priors
from dicetalk_jax.cli.release import Average, Convert, Download, Export, Info, Pack, Widen
from dicetalk_jax.cli.terminal import say, say_error
from dicetalk_jax.cli.train import Train, spelt_out
from dicetalk_jax.config import GenerationConfig, load_preset
from dicetalk_jax.errors import DiceTalkError, out_of_memory
from dicetalk_jax.parallel.compilation import use_fast_convolutions

_CLASSES = (Download, Convert, Export, Generate, Data, Train, Plan, Priors, Evaluate, Info, Pack, Widen, Average, App)
_VERBS = {verb.__name__.lower(): verb for verb in _CLASSES}
# The verbs whose defaults come from a preset or from weights, with the arguments that have no default.
_GENERATING = {"generate": Generate, "evaluate": functools.partial(Evaluate, out=tyro.MISSING, measuring=tyro.MISSING)}


@dataclasses.dataclass(frozen=True)
class _Sources:
  """The options that name defaults."""

  weights: str | None = None
  config: str | None = None


def _commands(arguments):
  """The verbs for tyro. Verbs that generate take defaults from the preset, or the weights, in the command line."""
  options = {name: {} for name in _VERBS}
  if not arguments or arguments[0].startswith("-"):
    # The list of all verbs: their first sentences only.
    options = {name: {"description": verb.__doc__.partition("\n")[0]} for name, verb in _VERBS.items()}
  elif arguments[0] in _GENERATING:
    options[arguments[0]] = {"default": _GENERATING[arguments[0]](generation=_generation(arguments[1:]))}
  verbs = [Annotated[verb, tyro.conf.subcommand(name=name, **options[name])] for name, verb in _VERBS.items()]
  return Union[tuple(verbs)]  # noqa: UP007 (made at run time)


def _generation(arguments) -> GenerationConfig:
  """The settings in --config, or those of --weights, or of the weights inside the package."""
  from dicetalk_jax.weights.folder import Weights

  try:
    sources, _ = tyro.cli(_Sources, args=arguments, return_unknown_args=True, add_help=False, console_outputs=False)
  except SystemExit:  # reported when the whole line is parsed
    return GenerationConfig()
  if sources.config:
    return load_preset(sources.config, GenerationConfig)
  with contextlib.suppress(DiceTalkError):  # reported by the verb
    return Weights.open(sources.weights or Weights.bundled()).generation
  return GenerationConfig()


def _parse_docstrings(obj, parse=docstring_parser.parse_from_object):
  """`docstring_parser.parse_from_object` without the indentation of a field's docstring, at which tyro breaks lines."""
  docstrings = parse(obj)
  for field in docstrings.params:
    field.description = inspect.cleandoc(field.description or "")
  return docstrings


def run(arguments: list[str]) -> int:
  """`cli.main`."""
  use_fast_convolutions()
  if arguments == ["--version"]:
    print(importlib.metadata.version("dicetalk-jax"))
    return 0
  arguments = spelt_out(arguments)
  try:
    with mock.patch.object(docstring_parser, "parse_from_object", _parse_docstrings):
      command = tyro.cli(
        _commands(arguments), prog="dicetalk", description="Emotional talking portraits in JAX.", args=arguments
      )
    return command.run() or 0
  except DiceTalkError as error:
    say_error(error)
    return 1
  except KeyboardInterrupt:
    say("stopped; files that were complete are untouched")
    return 130
  except (MemoryError, RuntimeError, ValueError) as error:
    if not out_of_memory(error):
      hosts = sys.modules.get("dicetalk_jax.parallel.hosts")
      message = hosts and hosts.lost_process(error)
      if not message:
        raise
    else:
      smaller = "batches.batch, or remat" if arguments[0] == "train" else "--size, --window or --decode-chunk"
      message = f"the device has too little memory; try a smaller {smaller}"
    say_error(message)
    return 1
