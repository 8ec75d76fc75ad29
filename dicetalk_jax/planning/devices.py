"""Devices that are not here: what each kind can do, and the bytes that a device holds, sends and waits for.

The figures are those of the makers' data sheets; nothing here was measured.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from dicetalk_jax.errors import InputError
from dicetalk_jax.parallel.mesh import AXES, BATCH_AXES, MeshConfig, make_mesh
from dicetalk_jax.parallel.rules import path_name


@dataclasses.dataclass(frozen=True)
class DeviceKind:
  """Data sheet of an accelerator.

  flops: dense bfloat16 FLOP/s. memory: bytes. bandwidth: of the memory, bytes/s. link: bytes/s that a device sends over
  the fast network that joins `joined` devices. network: bytes/s of a device beyond it; None: there is none. note: how
  link and network follow from the data sheet.
  """

  name: str
  flops: float
  memory: float
  bandwidth: float
  link: float
  joined: int
  network: float | None
  note: str


_GPU = dict(name="H100 SXM", flops=989e12, memory=80e9, bandwidth=3350e9, link=450e9, joined=8)
_GPU_NOTE = "NVLink 900 GB/s in both directions, 450 GB/s in one; hosts of 8 joined by Ethernet, 400 Gb/s"
DEVICES = {
  "v5e": DeviceKind(
    "TPU v5e",
    flops=197e12,
    memory=16 * 2**30,
    bandwidth=819e9,
    link=100e9,
    joined=256,
    network=None,
    note="ICI 1600 Gb/s a chip over 4 links; 2 of them for a mesh axis, 100 GB/s",
  ),
  "v5p": DeviceKind(
    "TPU v5p",
    flops=459e12,
    memory=95 * 2**30,
    bandwidth=2765e9,
    link=200e9,
    joined=6144,
    network=None,
    note="ICI 4800 Gb/s a chip over 6 links; 2 of them for a mesh axis, 200 GB/s",
  ),
  "h100": DeviceKind(**_GPU, network=50e9, note=f"{_GPU_NOTE} for each GPU"),
  "h100-node": DeviceKind(**_GPU, network=50e9 / 8, note=f"{_GPU_NOTE} for each host, shared by its 8"),
}


def device_kind(name: str) -> DeviceKind:
  """An entry of DEVICES; InputError for an unknown name."""
  if name not in DEVICES:
    raise InputError(f"device '{name}' is unknown; choose one of {', '.join(DEVICES)}")
  return DEVICES[name]


def simulated_mesh(config: MeshConfig, kind: DeviceKind) -> Mesh:
  """A mesh of simulated CPU devices; call it before JAX computes anything in this process.

  Raises InputError for a mesh with an open size (-1), with more devices than `kind` can join, and if JAX has started
  with fewer devices.
  """
  sizes = [getattr(config, axis) for axis in AXES]
  if min(sizes) < 1:
    raise InputError("the mesh of a plan must give the size of each axis, such as data=4,fsdp=16")
  count = math.prod(sizes)
  if kind.network is None and count > kind.joined:
    raise InputError(f"a slice of {kind.name} has {kind.joined} chips at most, and the mesh has {count}")
  with contextlib.suppress(RuntimeError):
    # JAX refuses the first if it has started; the second then stays unset.
    jax.config.update("jax_num_cpu_devices", count)
    jax.config.update("jax_platforms", "cpu")
  if len(jax.devices("cpu")) < count:
    raise InputError(
      f"JAX has started with {len(jax.devices('cpu'))} devices in this process, and the mesh has {count}; plan in a "
      "process of its own"
    )
  return make_mesh(config, jax.devices("cpu")[:count])


def bytes_per_device(tree: Any) -> int:
  """Bytes on one device of a tree of shapes with shardings."""
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class Traffic:
  """A collective operation of a step: each device sends `sent` bytes in total, in `times` operations.

  axes: mesh axes that it spans, in groups of `members` devices, of which `inside` share the fast network.
  """

  kind: str
  axes: tuple[str, ...]
  members: int
  inside: int
  sent: float
  times: int = 1

  def seconds(self, kind: DeviceKind) -> float:
    """Time of a ring: every link carries the same bytes; links between hosts use the ports of all `inside` devices."""
    fast = self.sent / kind.link
    return fast if self.inside >= self.members else max(fast, self.sent / (kind.network * self.inside))


def _traffic(kind, axes, size, mesh, joined, times) -> Traffic | None:
  """An operation on `size` bytes, `times` a step, along mesh axes; None if these have one device."""
  axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)
  members = math.prod(mesh.shape[axis] for axis in axes)
  if members < 2 or not size:
    return None
  # Share that a device of a ring sends: of a sum, parts go round twice.
  share = (2 if kind == "all-reduce" else 1) * (members - 1) / members
  places, stride = [0], 1
  for axis in reversed(AXES):
    if axis in axes:
      places = [place + i * stride for place in places for i in range(mesh.shape[axis])]
    stride *= mesh.shape[axis]
  hosts = [place // joined for place in places]
  return Traffic(kind, axes, members, min(map(hosts.count, hosts)), times * size * share, times)


def expected_traffic(
  params: Any, frozen: Any, mesh: Mesh, joined: int, passes: int, accumulate: int = 1, tensor: float = 0
) -> list[Traffic]:
  """Traffic that follows from the shardings.

  Parameters split over `fsdp` are gathered in each of `passes` through the network, in the type that they are kept in.
  Their gradients are scattered over `fsdp`, then summed over `data`; gradients of whole parameters are summed over
  both. tensor: bytes of activations that a device sums over `tensor`. All of it happens `accumulate` times a step.
  params, frozen: shapes with shardings.
  """
  sizes = dict.fromkeys(("gather", "scatter", "parts", "whole"), 0)
  for tree, trains in ((params, True), (frozen, False)):
    for leaf in jax.tree.leaves(tree):
      held = bytes_per_device(leaf)
      is_split = "fsdp" in leaf.sharding.spec
      sizes["gather"] += held * mesh.shape["fsdp"] * is_split
      sizes["scatter"] += held * mesh.shape["fsdp"] * is_split * trains
      sizes["parts"] += held * is_split * trains
      sizes["whole"] += held * (not is_split) * trains
  operations = (
    ("all-gather", ("fsdp",), passes * sizes["gather"]),
    ("reduce-scatter", ("fsdp",), sizes["scatter"]),
    ("all-reduce", ("data",), sizes["parts"]),
    ("all-reduce", BATCH_AXES, sizes["whole"]),
    ("all-reduce", ("tensor",), tensor),
  )
  return [one for operation in operations if (one := _traffic(*operation, mesh, joined, accumulate))]


def summed_over_tensor(params: Any, products: Iterable[tuple[str, int, int]], mesh: Mesh, forward: int = 1) -> float:
  """Bytes of activations that a device sums over `tensor`, `forward` times forward and once backward.

  products: (path of the kernel, bytes of its whole input, bytes of its whole output). A kernel split by its inputs
  gives partial sums forward; one split by its outputs gives them backward. params: nested shapes with shardings.
  """
  ends = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    spec = leaf.sharding.spec
    ends[path_name(path)] = (*spec, *[None] * (len(leaf.shape) - len(spec)))[-2:]
  total = 0
  for path, taken, given in products:
    total += forward * given if ends[path][0] == "tensor" else taken if ends[path][1] == "tensor" else 0
  return total / math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def predict(
  kind: DeviceKind, flops: float, moved: float, traffic: Sequence[Traffic], efficiency: float
) -> dict[str, float | str]:
  """Seconds of a step by what takes them, its two bounds, and what takes longest.

  flops, moved (bytes between a device and its memory) and traffic are of a step and a device. efficiency: share of the
  peak that products reach.
  """
  parts = {"compute": flops / (kind.flops * efficiency), "memory": moved / kind.bandwidth}
  parts["communication"] = sum(one.seconds(kind) for one in traffic)
  return {
    "products": parts["compute"],
    "memory, at least": parts["memory"],
    "communication": parts["communication"],
    "a step, all at once": max(parts.values()),
    "a step, one after another": max(parts["compute"], parts["memory"]) + parts["communication"],
    "bound by": max(parts, key=parts.get),
  }
