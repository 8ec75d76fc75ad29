"""`--set a.b=value`: one field of a configuration of frozen dataclasses, by its path, as strict as its type."""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from dicetalk_jax.errors import InputError

Config = TypeVar("Config")


def override(config: Config, settings: Iterable[str]) -> Config:
  """`config` with every "a.b=value" of `settings` in it; `config` itself stays as it is.

  A value is read as its field's type says: numbers, true or false, one of several words, text as it stands, "none"
  where there may be nothing, and values separated by commas for a tuple. Raises InputError for a path that leads to no
  field or to a group of them, for a value of another type, and for a path that is given twice.
  """
  given = set()
  for setting in settings:
    path, equals, text = setting.partition("=")
    path = path.strip()
    if not equals or not path:
      raise InputError(f"--set {setting} cannot be read; write a.b=value, as in optimizer.learning_rate=1e-4")
    if path in given:
      raise InputError(f"--set {path} is given twice; give it once")
    given.add(path)
    config = _set(config, path, path.split("."), text.strip())
  return config


def _set(config, path: str, names: list[str], text: str):
  name, *rest = names
  known = {field.name: field for field in dataclasses.fields(config) if field.init}
  here = ".".join(path.split(".")[: -len(names)]) or "the configuration"
  if name not in known:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    raise InputError(f"--set {path}: {here} has no '{name}'; {hint}")
  value = getattr(config, name)
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    if not rest:
      fields = ", ".join(field.name for field in dataclasses.fields(value))
      raise InputError(f"--set {path}: {name} is a group of settings; set one of them, {path}.{{{fields}}}")
    return dataclasses.replace(config, **{name: _set(value, path, rest, text)})
  if rest:
    single = ".".join(path.split(".")[: -len(rest)])
    raise InputError(f"--set {path}: {name} is a single setting and has no '{rest[0]}'; set {single}")
  kind = typing.get_type_hints(type(config))[name]
  if typing.get_origin(kind) is Mapping:
    raise InputError(f"--set {path}: {name} has too many parts for a command line; write it in a preset")
  try:
    return dataclasses.replace(config, **{name: _read(kind, text)})
  except ValueError:
    raise InputError(f"--set {path}={text}: '{text}' cannot be used, wanted {_words(kind)}") from None


def _read(kind: Any, text: str) -> Any:
  """`text` as a value of type `kind`; ValueError where it is none."""
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if origin in (typing.Union, types.UnionType):
    if type(None) in arguments and text.lower() == "none":
      return None
    for option in arguments:
      if option is not type(None):
        try:
          return _read(option, text)
        except ValueError:
          continue
    raise ValueError
  if origin is typing.Literal:
    return {str(choice): choice for choice in arguments}[text] if text in map(str, arguments) else _refuse()
  if origin is tuple:
    parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
    of = arguments[:1] * len(parts) if arguments[-1] is Ellipsis else arguments
    return tuple(_read(option, part) for option, part in zip(of, parts, strict=True))
  if kind is bool:
    return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _refuse()
  if kind is int:
    return int(text) if re.fullmatch(r"[+-]?\d+(_\d+)*", text) else _refuse()
  if kind is float:
    value = float(text)
    return value if math.isfinite(value) else _refuse()
  if kind is str:
    return text
  raise TypeError(f"settings of type {kind} cannot be given as text")


def _refuse():
  raise ValueError


def _words(kind: Any) -> str:
  """What a person would call the values of a type."""
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if origin in (typing.Union, types.UnionType):
    rest = [_words(option) for option in arguments if option is not type(None)]
    return " or ".join(rest + ["none"] * (type(None) in arguments))
  if origin is typing.Literal:
    return "one of " + ", ".join(map(str, arguments))
  if origin is tuple:
    if arguments[-1] is Ellipsis:
      return f"values separated by commas, each {_words(arguments[0])}"
    return f"{len(arguments)} values separated by commas, {', '.join(map(_words, arguments))}"
  return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(kind, str(kind))
