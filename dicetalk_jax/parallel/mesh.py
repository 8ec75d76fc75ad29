"""The device mesh, `data` x `fsdp` x `tensor`, and batches on it."""

import collections
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dicetalk_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
# A batch is split over both: FSDP is data parallelism with split parameters.
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Number of devices of each mesh axis. -1 in one axis: all devices that the others leave."""

  data: int = -1
  """Copies of the parameters, each with its own part of the batch."""

  fsdp: int = 1
  """Parts of every parameter, optimizer state and average. The batch is split over these as well."""

  tensor: int = 1
  """Parts of every matrix product, for models that do not fit otherwise. Best within a host."""

  rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
  """Rules that precede those of parallel/rules.py: (regular expression of paths, axis of each dimension)."""

  @classmethod
  def parse(cls, text: str) -> "MeshConfig":
    """Reads "data=8" or "data=2,fsdp=4"; other axes are 1. Raises InputError for anything else."""
    sizes = dict.fromkeys(AXES, 1)
    for part in filter(None, (part.strip() for part in text.split(","))):
      name, _, size = (piece.strip() for piece in part.partition("="))
      if name not in AXES or not size.lstrip("-").isdigit():
        raise InputError(
          f"mesh '{text}' cannot be read; give axes and numbers of devices, such as data=8 or data=2,fsdp=4"
        )
      sizes[name] = int(size)
    return cls(**sizes)

  def sizes(self, devices: int) -> tuple[int, int, int]:
    """Size of each axis with this number of devices; InputError if they do not fit.

    Without a -1, the devices may be a multiple of those that the mesh takes.
    """
    sizes = {name: getattr(self, name) for name in AXES}
    shape = " x ".join(f"{name} {size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
      raise InputError(f"the mesh {shape} is not possible: sizes are at least 1, and -1 (the rest) in one axis at most")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if devices % fixed:
      raise InputError(
        f"the mesh {shape} does not fit: its {fixed} devices do not divide the {devices} available; -1 in one axis "
        "takes the rest"
      )
    if free:
      sizes[free[0]] = devices // fixed
    return tuple(sizes.values())


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh of the devices of all hosts, or of `devices`; InputError if `config` does not fit them.

  One process takes the first devices if it needs fewer than there are; several must take all.

  Neighbours in `tensor`, then in `fsdp`, are neighbours in the machine. Slower networks, between TPU slices or GPU
  hosts, carry `data`, and the other axes only if they must.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = config.sizes(len(devices))
  if (taken := math.prod(sizes)) < len(devices):
    if len({device.process_index for device in devices}) > 1:
      raise InputError(
        f"the mesh takes {taken} of the {len(devices)} devices of all hosts, but every host must take part; set one "
        "axis to -1"
      )
    devices = devices[:taken]
  return Mesh(_arranged(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(sizes: tuple[int, int, int], devices: Sequence[jax.Device]) -> np.ndarray:
  if devices[0].platform != "tpu":
    # Hosts one after another, so that the last axes stay within a host.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return np.array(ordered).reshape(sizes)
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices == 1:
    return mesh_utils.create_device_mesh(sizes, devices)
  # The data centre's network joins slices: `data` spans as many as it can, then `fsdp`.
  over_network = [1, 1, 1]
  left = slices
  for axis in (0, 1):
    over_network[axis] = math.gcd(left, sizes[axis])
    left //= over_network[axis]
  if left > 1:
    raise InputError(
      f"{slices} slices cannot be divided over data {sizes[0]} and fsdp {sizes[1]}; make one of them a multiple"
    )
  within = [size // parts for size, parts in zip(sizes, over_network, strict=True)]
  return mesh_utils.create_hybrid_device_mesh(within, over_network, devices)


def replicated(mesh: Mesh) -> NamedSharding:
  """Replicated on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
  """Rows split over `data` and `fsdp`; the `leading` axes before the rows stay whole."""
  return NamedSharding(mesh, PartitionSpec(*[None] * leading, BATCH_AXES))


def batch_parts(mesh: Mesh) -> int:
  """Number of parts of a batch; its rows must be a multiple of it."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(mesh: Mesh, rows: int, what: str) -> None:
  """Raises InputError if a batch cannot be split over the mesh; `what` names its rows, such as "clips"."""
  if rows % (parts := batch_parts(mesh)):
    shape = ", ".join(f"{name} {mesh.shape[name]}" for name in BATCH_AXES)
    raise InputError(
      f"a batch of {rows} {what} cannot be divided over {parts} parts ({shape}); give a multiple of {parts}, or "
      "another mesh"
    )


@functools.lru_cache(maxsize=8)
def batch_share(mesh: Mesh) -> tuple[int, int]:
  """(index, count): the share of every batch, of `count` equal ones, that this process reads.

  Processes whose devices hold the same parts, as neighbours in `tensor` do, have the same share. Raises InputError for
  a mesh whose hosts hold parts that overlap otherwise.
  """
  held = collections.defaultdict(set)
  for (data, fsdp, _), device in np.ndenumerate(mesh.devices):
    held[device.process_index].add((data, fsdp))
  shares = sorted({tuple(sorted(parts)) for parts in held.values()})
  if len({len(share) for share in shares}) > 1 or sum(map(len, shares)) != batch_parts(mesh):
    raise InputError(
      "the hosts of this mesh hold parts of a batch that overlap; tensor, or fsdp x tensor, must divide the devices of "
      "a host or be a multiple of them"
    )
  return shares.index(tuple(sorted(held[jax.process_index()]))), len(shares)


def place_batch(mesh: Mesh, batch: Mapping[str, np.ndarray], leading: int = 0) -> dict[str, jax.Array]:
  """Makes global arrays on the mesh, split by rows, from this process's rows, after `leading` other axes."""
  sharding, (_, count) = batch_sharding(mesh, leading), batch_share(mesh)

  def place(array):
    shape = list(np.shape(array))
    shape[leading] *= count
    return jax.make_array_from_process_local_data(sharding, np.asarray(array), tuple(shape))

  return {name: place(array) for name, array in batch.items()}


def to_host(tree):
  """Copies arrays of any sharding to NumPy, whole on every process; all processes must call it."""
  from jax.experimental import multihost_utils

  def fetch(leaf):
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
      return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

  return jax.tree.map(fetch, tree)
