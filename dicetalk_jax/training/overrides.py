"""`--set a.b=value`: change one field of a configuration, read by the field's type.

tyro cannot do this: it would read `--a.b value` only, want True for true and spaces for commas, and its errors take a
screen.
"""

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
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
  (name, *rest), values = names, _values(group)
  if name not in values:
    close = difflib.get_close_matches(name, values, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(values) or 'none'}"
    here = ".".join(path.split(".")[: -len(names)]) or "the configuration"
    raise InputError(f"--set {path}: {here} has no '{name}'; {hint}")
  value = values[name]
  if isinstance(value, Mapping) or dataclasses.is_dataclass(value):
    if not rest:
      inner = ", ".join(_values(value))
      raise InputError(f"--set {path}: {name} is a group of settings; set one of them, {path}.{{{inner}}}")
    new = _set(value, path, rest, text)
  elif rest:
    single = ".".join(path.split(".")[: -len(rest)])
    raise InputError(f"--set {path}: {name} is a single setting and has no '{rest[0]}'; set {single}")
  else:
    # Entries of a mapping have no declared type: it is that of the value they have.
    words, read = _reader(_kind(value) if isinstance(group, Mapping) else typing.get_type_hints(type(group))[name])
    try:
      new = read(text)
    except (ValueError, KeyError):
      raise InputError(f"--set {path}={text}: '{text}' cannot be used, wanted {words}") from None
  return {**group, name: new} if isinstance(group, Mapping) else dataclasses.replace(group, **{name: new})


def _values(group) -> dict:
  """The settings of a group, by name."""
  if isinstance(group, Mapping):
    return dict(group)
  return {field.name: getattr(group, field.name) for field in dataclasses.fields(group) if field.init}


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


def _reader(kind: Any) -> tuple[str, Callable[[str], Any]]:
  """What the values of a type are called, and a function that reads one; it raises ValueError or KeyError."""
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if kind in _SINGLE:
    return _SINGLE[kind]
  if origin is typing.Literal:
    return "one of " + ", ".join(map(str, arguments)), {str(choice): choice for choice in arguments}.__getitem__
  if origin in (typing.Union, types.UnionType):
    # None is read first, because "none" is also text, and comes last in words.
    none, others = [types.NoneType] * (types.NoneType in arguments), [x for x in arguments if x is not types.NoneType]
    return " or ".join(_reader(x)[0] for x in others + none), lambda text: _first(none + others, text)
  readers = [_reader(option) for option in arguments if option is not Ellipsis]
  fixed = origin is tuple and Ellipsis not in arguments
  words = f"{len(readers)} values separated by commas, " if fixed else "values separated by commas, each "

  def read(text):
    parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
    each = readers if fixed else readers * len(parts)
    return origin(read_part(part) for (_, read_part), part in zip(each, parts, strict=True))

  return words + ", ".join(name for name, _ in readers), read


def _first(options: Iterable, text: str) -> Any:
  """`text` as the first of some types that it is a value of."""
  for option in options:
    with contextlib.suppress(ValueError, KeyError):
      return _reader(option)[1](text)
  raise ValueError
