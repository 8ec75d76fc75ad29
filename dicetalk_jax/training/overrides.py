"""`--set a.b=value`: change one field of a configuration, read by the field's type.

tyro cannot do this: it would read `--a.b value` only, want True for true and spaces for commas, and its errors take a
screen.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from dicetalk_jax.errors import InputError

Config = TypeVar("Config")


def override(config: Config, settings: Iterable[str]) -> Config:
  """A copy of `config` with every "a.b=value" of `settings` applied.

  The type of the field decides how a value is read: numbers, true or false, one of several words, text, "none" where
  None is allowed, and values separated by commas for tuples. Raises InputError for a path that leads to no field or to
  a group of fields, a value of another type, and a path that is given twice.
  """
  paths = set()
  for setting in settings:
    path, equals, text = (part.strip() for part in setting.partition("="))
    if not equals or not path:
      raise InputError(f"--set {setting} cannot be read; write a.b=value, as in optimizer.learning_rate=1e-4")
    if path in paths:
      raise InputError(f"--set {path} is given twice; give it once")
    paths.add(path)
    config = _set(config, path, path.split("."), text)
  return config


def _set(group, path: str, names: list[str], text: str):
  name, *rest = names
  values = dict(group) if isinstance(group, Mapping) else {f.name: getattr(group, f.name) for f in _fields(group)}
  if name not in values:
    close = difflib.get_close_matches(name, values, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(values) or 'none'}"
    here = ".".join(path.split(".")[: -len(names)]) or "the configuration"
    raise InputError(f"--set {path}: {here} has no '{name}'; {hint}")
  value = values[name]
  if isinstance(value, Mapping) or dataclasses.is_dataclass(value):
    if not rest:
      inner = value if isinstance(value, Mapping) else [field.name for field in _fields(value)]
      raise InputError(f"--set {path}: {name} is a group of settings; set one of them, {path}.{{{', '.join(inner)}}}")
    new = _set(value, path, rest, text)
  elif rest:
    single = ".".join(path.split(".")[: -len(rest)])
    raise InputError(f"--set {path}: {name} is a single setting and has no '{rest[0]}'; set {single}")
  else:
    # Entries of a mapping have no declared type: it is that of the value they have.
    kind = _kind(value) if isinstance(group, Mapping) else typing.get_type_hints(type(group))[name]
    try:
      new = _read(kind, text)
    except (ValueError, KeyError):
      raise InputError(f"--set {path}={text}: '{text}' cannot be used, wanted {_words(kind)}") from None
  return {**group, name: new} if isinstance(group, Mapping) else dataclasses.replace(group, **{name: new})


def _fields(group):
  return [field for field in dataclasses.fields(group) if field.init]


def _kind(value):
  return list[_kind(value[0])] if isinstance(value, list | tuple) and value else type(value)


def _number(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError
  return value


_SINGLE = {
  types.NoneType: ("none", lambda text: {"none": None}[text.lower()]),
  bool: ("true or false", lambda text: {"true": True, "false": False}[text.lower()]),
  int: ("a whole number", int),
  float: ("a number", _number),
  str: ("text", str),
}


def _options(kind: Any) -> tuple:
  """The types of a union, None first; of any other type, itself."""
  options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
  return tuple(sorted(options, key=lambda option: option is not types.NoneType))


def _read(kind: Any, text: str) -> Any:
  """`text` as a value of type `kind`; ValueError or KeyError if it is none."""
  *others, last = _options(kind)
  for option in others:
    try:
      return _read(option, text)
    except (ValueError, KeyError):
      continue
  origin, arguments = typing.get_origin(last), typing.get_args(last)
  if origin is typing.Literal:
    return {str(choice): choice for choice in arguments}[text]
  if origin in (tuple, list):
    parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
    each = arguments if origin is tuple and arguments[-1] is not Ellipsis else arguments[:1] * len(parts)
    return origin(_read(option, part) for option, part in zip(each, parts, strict=True))
  return _SINGLE[last][1](text)


def _words(kind: Any) -> str:
  """What the values of a type are called in an error."""
  if len(options := _options(kind)) > 1:
    return " or ".join(map(_words, (*options[1:], options[0])))
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if origin is typing.Literal:
    return "one of " + ", ".join(map(str, arguments))
  if origin is tuple and arguments[-1] is not Ellipsis:
    return f"{len(arguments)} values separated by commas, {', '.join(map(_words, arguments))}"
  if origin in (tuple, list):
    return f"values separated by commas, each {_words(arguments[0])}"
  return _SINGLE[kind][0]
