"""Verbs that have sub-verbs."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Union

import tyro


def verb_group(name: str, doc: str, verbs: Mapping[str, type]) -> type:
  """A verb whose `run` is that of the sub-verb in the command line; doc: its help."""
  union = Union[tuple(Annotated[verb, tyro.conf.subcommand(name=word)] for word, verb in verbs.items())]  # noqa: UP007
  choice = Annotated[tyro.conf.OmitSubcommandPrefixes[union], tyro.conf.arg(name="")]
  methods = {"__doc__": doc, "run": lambda self: self.verb.run()}
  return dataclasses.make_dataclass(name, [("verb", choice)], namespace=methods, frozen=True)
