"""What the devices of a compiled program say to each other, read from its text: kind, bytes, how often, which axes."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
# "%name = type kind(operands), attributes"; asynchronous ones are two instructions, of which the first counts.
_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) (?:\(.*\) -> .*)?\{$")
_CALLED = re.compile(r"\b(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_SIZES = {"pred": 1, "token": 0, "opaque": 0}


@dataclasses.dataclass(frozen=True)
class Collective:
  """One of a program's collective operations.

  shape: the largest of its results on a device, of `dtype`. count: how often it runs in a step. size: bytes of the
  whole that a group shares, on one device: what is gathered, reduced, exchanged or sent. groups: of devices, by their
  place in the mesh; of "collective-permute" the pairs (from, to). known: whether the program says how often.
  """

  kind: str
  dtype: str
  shape: tuple[int, ...]
  count: int
  size: int
  groups: tuple[tuple[int, ...], ...]
  known: bool = True

  @property
  def members(self) -> int:
    """Devices in a group."""
    return max(map(len, self.groups), default=1)

  @property
  def sent(self) -> float:
    """Bytes that a device sends each time, in a ring, the best that there is for much data."""
    return self.size * sent_share(self.kind, self.members)


def sent_share(kind: str, members: int) -> float:
  """What a device of a ring of `members` sends, as a share of the whole."""
  if members < 2:
    return 0
  return {"all-reduce": 2 * (members - 1) / members, "collective-permute": 1}.get(kind, (members - 1) / members)


def read_collectives(text: str, devices: int) -> list[Collective]:
  """All collective operations of a compiled program of `devices`, from `compiled.as_text()`.

  Operations in loops count as often as these turn, where the program says it; elsewhere once, and `known` is false.
  """
  bodies = dict(_computations(text))
  entry = next((name for name, (is_entry, _) in bodies.items() if is_entry), None)
  found = []

  def visit(name, times, known):
    _, lines = bodies.get(name, (False, ()))
    for line in lines:
      if match := _INSTRUCTION.match(line):
        found.append(_collective(match, line, name, times, known, devices))
        continue
      trips = _TRIPS.search(line)
      is_loop = " while(" in line
      each = times * (int(trips[1]) if is_loop and trips else 1)
      branches = itertools.chain.from_iterable(re.findall(r"[\w.-]+", group) for group in _BRANCHES.findall(line))
      for called in (*_CALLED.findall(line), *branches):
        visit(called, each, known and (not is_loop or trips is not None))

  if entry is not None:
    visit(entry, 1, True)
  return [collective for collective in found if collective.members > 1]


def _computations(text: str) -> Iterator[tuple[str, tuple[bool, list[str]]]]:
  name, is_entry, lines = None, False, []
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      name, is_entry, lines = match[2], bool(match[1]), []
    elif line.startswith("}") and name is not None:
      yield name, (is_entry, lines)
      name = None
    elif name is not None:
      lines.append(line)


def _collective(match, line, computation, times, known, devices) -> Collective:
  results, kind, started = match.groups()
  shapes = [(dtype, _dimensions(sizes)) for dtype, sizes in _SHAPE.findall(results)]
  size = sum(_size(*shape) for shape in shapes)
  groups = _groups(line, kind, devices)
  members = max(map(len, groups), default=1)
  if started and kind == "all-gather":
    # Its results name what goes in, too.
    size = size * members // (members + 1)
  elif started and kind == "collective-permute":
    size //= 2
  if kind == "reduce-scatter":
    size *= members
  elif kind == "all-reduce" and "all-reduce-scatter" in computation:
    # A TPU's: summed in full, of which a part is taken, as one operation.
    kind = "reduce-scatter"
  dtype, shape = max(shapes, key=lambda of: _size(*of), default=("", ()))
  return Collective(kind, dtype, shape, times, size, groups, known)


def _dimensions(text) -> tuple[int, ...]:
  return tuple(int(size) for size in text.split(",") if size)


def _size(dtype, shape) -> int:
  bits = re.search(r"\d+", dtype)
  each = _SIZES.get(dtype, int(bits[0]) / 8 if bits else 1)
  return int(math.prod(shape) * (2 * each if dtype.startswith("c") and bits else each))


def _groups(line, kind, devices) -> tuple[tuple[int, ...], ...]:
  """Groups as XLA writes them: lists, a reshaped and transposed range, or axes of a mesh of its own."""
  if kind == "collective-permute":
    pairs = re.search(r"source_target_pairs=\{((?:\{[\d,]*\},?)*)\}", line)
    return _listed(pairs[1]) if pairs else ()
  whole = (tuple(range(devices)),)
  if lists := re.search(r"replica_groups=\{((?:\{[\d,]*\},?\s*)*)\}", line):
    return _listed(lists[1]) or whole
  if reshaped := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
    shape, order = _dimensions(reshaped[1]), _dimensions(reshaped[2])
    return _rows(_range(order, _dimensions(reshaped[3] or "")).reshape(shape))
  if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?)\{([^}]*)\}", line):
    return _of_mesh(meshed[1], meshed[2], meshed[3])
  return whole


def _listed(text) -> tuple[tuple[int, ...], ...]:
  return tuple(_dimensions(group) for group in re.findall(r"\{([\d,]*)\}", text))


def _range(sizes, order) -> np.ndarray:
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  return ids.transpose(order) if order else ids


def _rows(array) -> tuple[tuple[int, ...], ...]:
  return tuple(tuple(map(int, row)) for row in array.reshape(-1, array.shape[-1]))


def _of_mesh(axes, ids, chosen) -> tuple[tuple[int, ...], ...]:
  """mesh['a'=4,'b'=2] device_ids=([2,4]T(1,0)) {'a','b':(1)2}: of an axis the part of 2 behind a first of 1."""
  sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
  devices = np.arange(math.prod(sizes.values()))
  if listed := re.search(r"\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", ids):
    devices = _range(_dimensions(listed[1]), _dimensions(listed[2] or "")).reshape(-1)
  parts = {}
  for name, before, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", chosen):
    parts[name] = (int(before), int(size)) if before else (1, sizes[name])
  shape, taken = [], []
  for name, size in sizes.items():
    before, here = parts.get(name, (size, 1))
    for number, is_taken in ((before, False), (here, name in parts), (size // before // here, False)):
      if is_taken:
        taken.append(len(shape))
      shape.append(number)
  rest = [axis for axis in range(len(shape)) if axis not in taken]
  moved = devices.reshape(shape).transpose(*rest, *taken)
  return _rows(moved.reshape(-1, math.prod(shape[axis] for axis in taken)))


def axes_of(groups, sizes: Mapping[str, int]) -> tuple[str, ...]:
  """The axes of a mesh along which the devices of groups differ; sizes: of the mesh, in its order."""
  differing = set()
  for group in groups:
    places = np.unravel_index(np.array(group), tuple(sizes.values()))
    differing |= {name for name, place in zip(sizes, places, strict=True) if len(set(place.tolist())) > 1}
  return tuple(name for name in sizes if name in differing)
