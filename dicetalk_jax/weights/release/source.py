"""A folder in a released layout, opened and checked: every tensor has its place."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator

import jax

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.weights.description import check_sampler, read_json
from dicetalk_jax.weights.networks import NETWORKS, Network, network_shapes
from dicetalk_jax.weights.release.layouts import (
  SAFETENSORS,
  TORCH_SUFFIXES,
  Files,
  Layout,
  candidates,
  layout_of,
  shards,
)
from dicetalk_jax.weights.release.names import Entry, plan
from dicetalk_jax.weights.release.readers import CheckpointFile, open_checkpoint
from dicetalk_jax.weights.release.sizes import Checkpoint
from dicetalk_jax.weights.tensors import Shapes

_FLOATS = ("float16", "bfloat16", "float32")
_PARALLEL = "module."


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of a release: the number of its file, its name there, and `entry` where it goes (None: not used)."""

  file: int
  key: str
  spec: jax.ShapeDtypeStruct
  entry: Entry | None


@dataclasses.dataclass(frozen=True)
class ReleasedNetwork:
  """A network of a release: its architecture, and its tensors in the order of the files."""

  name: str
  config: dict
  tensors: list[Tensor]


@dataclasses.dataclass(frozen=True)
class Release:
  """A folder in a released layout. documents: JSON document -> its text."""

  folder: pathlib.Path
  layout: Layout
  files: list[CheckpointFile]
  networks: list[ReleasedNetwork]
  documents: dict[str, str]

  def relative(self, file: int) -> str:
    return self.files[file].path.relative_to(self.folder).as_posix()

  def document(self, path: str | None) -> dict:
    """A JSON document of the release, empty if it has none."""
    return json.loads(self.documents[path]) if path in self.documents else {}


def open_release(folder: pathlib.Path) -> Release:
  """Finds every network in `folder`, reads its architecture and plans where each tensor goes.

  Raises WeightsError for anything missing, damaged, unknown or of a wrong shape.
  """
  layout = layout_of(folder)
  if not folder.is_dir():
    raise WeightsError(f"{folder} is not a folder; give one in the released layout, with {layout.own}/ and others.")
  release = Release(folder, layout, [], [], {})
  for path in (*layout.settings.values(), *layout.documents):
    _add_document(release, path)
  check_sampler(release.document(layout.settings.get("sampler")), folder / layout.settings.get("sampler", ""))
  for network in NETWORKS.values():
    files = network.files.get(layout.name)
    if files and (network.published or _located(release, files.folder, files.base_names())):
      release.networks.append(_open_network(release, network, files))
  return release


def _open_network(release: Release, network: Network, files: Files) -> ReleasedNetwork:
  groups = [_open_files(release, files.written, files.base_names())]
  if files.overlay:
    groups.append(_open_files(release, files.overlay, candidates(files.overlay)))

  specs: dict[str, jax.ShapeDtypeStruct] = {}
  last: dict[str, int] = {}
  for number in itertools.chain(*groups):
    file = release.files[number]
    if all(key.startswith(_PARALLEL) for key in file.specs) and not network.table.knows(_PARALLEL):
      raise WeightsError(
        f"{file.path}: all names begin with '{_PARALLEL}', as torch.nn.DataParallel saves them; save the state dict of "
        "`model.module` instead."
      )
    for key, spec in file.specs.items():
      if network.table.rule(key, str(file.path)).flax is not None and spec.dtype.name not in _FLOATS:
        raise WeightsError(
          f"{file.path}: tensor '{key}' is {spec.dtype.name}; one of {', '.join(_FLOATS)} is required."
        )
      # The last file that has a name fills the parameter.
      specs[key], last[key] = spec, number

  where = " over ".join(str(release.files[group[0]].path) for group in reversed(groups))
  config = _architecture(release, network, files, specs, where)
  try:
    target = network_shapes(network.name, config)
  except WeightsError as error:
    described = release.folder / files.config if files.config_required else where
    raise WeightsError(f"{described}: {error}") from None
  entries = {entry.key: entry for entry in plan(network.table, {k: s.shape for k, s in specs.items()}, target, where)}
  tensors = [
    Tensor(number, key, spec, entries[key] if last[key] == number and entries[key].path else None)
    for number in itertools.chain(*groups)
    for key, spec in release.files[number].specs.items()
  ]
  return ReleasedNetwork(network.name, config, tensors)


def _architecture(release: Release, network: Network, files: Files, specs: Shapes, where: str) -> dict:
  document, path = {}, release.folder / (files.config or "")
  if files.config and (files.config_required or path.is_file()):
    document = read_json(path)
    _add_document(release, files.config)
  others = {other.name: other.config for other in release.networks}
  try:
    return network.read(Checkpoint(network.name, where, specs, document, str(path), others))
  except ValueError as error:
    raise WeightsError(f"{where}: {error}.") from None


def _open_files(release: Release, file: str, names: Iterator[tuple[str, bool]]) -> list[int]:
  """Opens the file, or the shards of an index, that hold a network; their numbers in `release.files`."""
  folder = str(pathlib.PurePosixPath(file).parent)
  if location := _located(release, folder, names):
    path, is_index = location
    return _open_shards(release, path) if is_index else [_open(release, path)]
  raise WeightsError(
    f"{release.folder} has no {file} (nor with .fp16, in shards or with another of the suffixes {SAFETENSORS}, "
    f"{', '.join(TORCH_SUFFIXES)}); `dicetalk download` fetches the released files."
  )


def _located(release: Release, folder: str, names: Iterator[tuple[str, bool]]) -> tuple[pathlib.Path, bool] | None:
  """The file of a network, and whether it is an index of shards."""
  for name, is_index in names:
    if (path := release.folder / folder / name).is_file():
      return path, is_index
  return None


def _open(release: Release, path: pathlib.Path) -> int:
  try:
    release.files.append(open_checkpoint(path))
  except OSError as error:
    raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from None
  return len(release.files) - 1


def _open_shards(release: Release, index: pathlib.Path) -> list[int]:
  names = shards(index)
  numbers = {}
  for name in dict.fromkeys(names.values()):
    if not (index.parent / name).is_file():
      raise WeightsError(f"{index} names {name}, which is not there; download or copy it again.")
    numbers[name] = _open(release, index.parent / name)
  for key, name in names.items():
    if key not in release.files[numbers[name]].specs:
      raise WeightsError(f"{index} says that {name} holds tensor '{key}', but it does not.")
  _add_document(release, index.relative_to(release.folder).as_posix())
  return list(numbers.values())


def _add_document(release: Release, path: str) -> None:
  if (release.folder / path).is_file():
    read_json(release.folder / path)
    release.documents[path] = (release.folder / path).read_text(encoding="utf-8")
