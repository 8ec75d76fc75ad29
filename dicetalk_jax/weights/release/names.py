"""PyTorch state dicts <-> Flax parameters: one table of rules per network, used in both directions.

A rule pairs two name templates that share their placeholders. `{module}` matches any run of module names and is
respelt (`down_blocks.0.resnets.1` <-> `down_blocks_0/resnets_1`); `{i}`, `{j}` match a number.
A placeholder may say what it matches: `{module:.*norm}`.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np
from flax.traverse_util import flatten_dict

from dicetalk_jax.errors import WeightsError


@dataclasses.dataclass(frozen=True)
class Transform:
  """A change of layout: PyTorch axes permuted by `axes`, then the axes `squeeze` (of size 1) removed."""

  axes: tuple[int, ...] | None = None
  squeeze: tuple[int, ...] = ()

  def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
    """The Flax shape of a PyTorch tensor's shape; None if the rank does not fit."""
    if self.axes is None:
      return tuple(shape)
    if len(shape) != len(self.axes):
      return None
    permuted = [shape[a] for a in self.axes]
    return tuple(s for a, s in enumerate(permuted) if a not in self.squeeze)

  def torch_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
    """The PyTorch shape of a Flax array's shape."""
    if self.axes is None:
      return tuple(shape)
    expanded = np.expand_dims(np.broadcast_to(0, shape), self.squeeze).shape
    return tuple(expanded[a] for a in np.argsort(self.axes))

  def to_flax(self, tensor):
    if self.axes is not None:
      tensor = np.squeeze(np.transpose(tensor, self.axes), self.squeeze)
    return np.ascontiguousarray(tensor).reshape(tensor.shape)

  def to_torch(self, array):
    if self.axes is not None:
      array = np.transpose(np.expand_dims(array, self.squeeze), np.argsort(self.axes))
    return np.ascontiguousarray(array).reshape(array.shape)


SAME = Transform()
LINEAR = Transform((1, 0))  # (out, in) -> (in, out)
CONV = Transform((2, 3, 1, 0))  # (out, in, h, w) -> (h, w, in, out)
CONV_1D = Transform((2, 1, 0))  # (out, in, n) -> (n, in, out)
CONV_TIME = Transform((2, 3, 4, 1, 0), squeeze=(1, 2))  # (out, in, f, 1, 1) -> (f, in, out)


_PLACEHOLDER = re.compile(r"\{(\w+)(?::([^{}]+))?\}")


def _flax_spelling(names: str) -> str:
  return re.sub(r"\.(\d+)(?=\.|$)", r"_\1", names).replace(".", "/")


def _torch_spelling(names: str) -> str:
  return re.sub(r"_(\d+)(?=(?:_\d+)*(?:/|$))", r".\1", names).replace("/", ".")


def _compile(template: str, narrow: Mapping[str, str]) -> re.Pattern:
  parts, end = [], 0
  for hole in _PLACEHOLDER.finditer(template):
    parts.append(re.escape(template[end : hole.start()]))
    parts.append(f"(?P<{hole[1]}>{narrow[hole[1]]})")
    end = hole.end()
  parts.append(re.escape(template[end:]))
  return re.compile("".join(parts))


@dataclasses.dataclass(frozen=True)
class Rule:
  """One row of a table: PyTorch name template, Flax path template (None: the network does not use it) and transform.

  alias: another spelling of the names in a different row; it is read but never written.
  """

  torch: str
  flax: str | None
  transform: Transform = SAME
  alias: bool = False

  @functools.cached_property
  def _torch_pattern(self):
    default = {name: r"\d+" if len(name) == 1 else r".+" for name, _ in _PLACEHOLDER.findall(self.torch)}
    narrowed = {name: pattern for name, pattern in _PLACEHOLDER.findall(self.torch) if pattern}
    return _compile(self.torch, default | narrowed)

  @functools.cached_property
  def _flax_pattern(self):
    default = {name: r"\d+" if len(name) == 1 else r".+" for name, _ in _PLACEHOLDER.findall(self.torch)}
    return _compile(self.flax, default)

  def path(self, key: str) -> tuple[bool, str | None]:
    """(whether the rule covers this PyTorch name, its Flax path)."""
    match = self._torch_pattern.fullmatch(key)
    if not match:
      return False, None
    if self.flax is None:
      return True, None
    return True, _PLACEHOLDER.sub(lambda hole: _flax_spelling(match[hole[1]]), self.flax)

  def key(self, path: str) -> str | None:
    """The PyTorch name of a Flax path, if this rule makes that path from that name."""
    if self.alias or self.flax is None or not (match := self._flax_pattern.fullmatch(path)):
      return None
    key = _PLACEHOLDER.sub(lambda hole: _torch_spelling(match[hole[1]]), self.torch)
    return key if self.path(key) == (True, path) else None


@dataclasses.dataclass(frozen=True)
class Table:
  """The rules of one network. Exactly one rule covers each PyTorch name and each Flax path."""

  network: str
  rules: tuple[Rule, ...]

  def knows(self, prefix: str) -> bool:
    """Whether a rule is written for PyTorch names that begin with `prefix`."""
    return any(rule.torch.startswith(prefix) for rule in self.rules)

  def rule(self, key: str, source: str = "") -> Rule:
    covering = [rule for rule in self.rules if rule.path(key)[0]]
    if len(covering) != 1:
      rules = "no rule covers it" if not covering else "rules " + ", ".join(r.torch for r in covering) + " cover it"
      raise WeightsError(
        f"{source or self.network}: tensor '{key}' is not one of the {self.network}'s: {rules}; "
        "is this the file of another network or model?"
      )
    return covering[0]

  def key(self, path: str) -> str:
    """The PyTorch name of a Flax path."""
    keys = {key for rule in self.rules if (key := rule.key(path)) is not None}
    if len(keys) != 1:
      raise WeightsError(
        f"{self.network}: parameter '{path}' has {len(keys)} PyTorch names, one is required: {sorted(keys)}"
      )
    return keys.pop()


@dataclasses.dataclass(frozen=True)
class Entry:
  """Where one PyTorch tensor goes: `path` is None for a tensor the network does not use."""

  key: str
  path: str | None
  transform: Transform


def plan(table: Table, shapes: Mapping[str, Sequence[int]], target: Mapping, source: str = "") -> list[Entry]:
  """Pairs every PyTorch tensor with its parameter before any data is read.

  shapes: PyTorch name -> shape. target: the network's parameters as nested dicts of anything with a shape
  (`jax.eval_shape` of its init). Raises WeightsError for a tensor without a rule or without a parameter in the
  network, two tensors for one parameter, a wrong shape, or a parameter without a tensor; the message has the key, its
  shape and the required shape.
  """
  source = source or table.network
  wanted = {path: tuple(leaf.shape) for path, leaf in flatten_dict(target, sep="/").items()}
  entries, filled = [], {}
  for key, shape in shapes.items():
    rule = table.rule(key, source)
    path = rule.path(key)[1]
    entries.append(Entry(key, path, rule.transform))
    if path is None:
      continue
    flax_shape = rule.transform.shape(shape)
    if path not in wanted:
      raise WeightsError(f"{source}: tensor '{key}' {tuple(shape)} has no place in this {table.network} (no '{path}')")
    if flax_shape != wanted[path]:
      raise WeightsError(
        f"{source}: tensor '{key}' has shape {tuple(shape)}, which makes {flax_shape}, but '{path}' of the "
        f"{table.network} has {wanted[path]}; the file and its config.json do not belong together"
      )
    if path in filled:
      raise WeightsError(f"{source}: tensors '{filled[path]}' and '{key}' both fill '{path}' of the {table.network}")
    filled[path] = key
  if missing := [path for path in wanted if path not in filled]:
    names = ", ".join(f"'{table.key(path)}' (for {path} {wanted[path]})" for path in missing[:3])
    raise WeightsError(
      f"{source}: {len(missing)} of the {len(wanted)} tensors of the {table.network} are missing, first {names}"
    )
  return entries
