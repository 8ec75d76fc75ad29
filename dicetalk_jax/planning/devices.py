"""What a step takes on devices that are not here: what each kind of device can do, bytes a device holds, sends, waits.

The numbers of devices are those of their makers' data sheets; nothing here has been measured.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from dicetalk_jax.errors import InputError, MissingDependencyError
from dicetalk_jax.parallel.mesh import AXES, BATCH_AXES, MeshConfig, make_mesh
from dicetalk_jax.parallel.rules import path_name
from dicetalk_jax.planning.collectives import Collective, axes_of, sent_share


@dataclasses.dataclass(frozen=True)
class DeviceKind:
  """What a data sheet says of an accelerator.

  flops: of dense bfloat16 products, a second. memory: bytes. bandwidth: of the memory, bytes a second. link: bytes a
  second that a device sends over the fast network that joins `joined` devices; network: beyond it, none where that is
  not planned. note: what these were made from. shapes: of slices of TPUs, by their chips, as their compiler names them.
  """

  name: str
  flops: float
  memory: float
  bandwidth: float
  link: float
  joined: int
  network: float | None
  note: str
  shapes: Mapping[int, str] = dataclasses.field(default_factory=dict)


_GPU = dict(flops=989e12, memory=80e9, bandwidth=3350e9, link=450e9, joined=8)
_GPU_NOTE = "NVLink 900 GB/s in both directions together, 450 GB/s in one; hosts of 8 joined by Ethernet, 400 Gb/s"
DEVICES = {
  "v5e": DeviceKind(
    "TPU v5e",
    flops=197e12,
    memory=16 * 2**30,
    bandwidth=819e9,
    link=100e9,
    joined=256,
    network=None,
    note="ICI 1600 Gb/s a chip over 4 links; an axis is taken to have 2 of them, 100 GB/s",
    shapes={1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
  ),
  "v5p": DeviceKind(
    "TPU v5p",
    flops=459e12,
    memory=95 * 2**30,
    bandwidth=2765e9,
    link=200e9,
    joined=6144,
    network=None,
    note="ICI 4800 Gb/s a chip over 6 links; an axis is taken to have 2 of them, 200 GB/s",
    shapes={4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"},
  ),
  "h100": DeviceKind("H100 SXM", **_GPU, network=50e9, note=f"{_GPU_NOTE} for each GPU"),
  "h100-node": DeviceKind("H100 SXM", **_GPU, network=50e9 / 8, note=f"{_GPU_NOTE} for each host, shared by its 8"),
}

# What libtpu would else ask a machine that has TPUs; and several programs may describe some at once.
_WITHOUT_TPU = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
}


def device_kind(name: str) -> DeviceKind:
  """Of DEVICES; InputError for one that is not there."""
  if name not in DEVICES:
    raise InputError(f"device '{name}' is not known; choose one of {', '.join(DEVICES)}")
  return DEVICES[name]


def check_joined(config: MeshConfig, kind: DeviceKind) -> None:
  """InputError for a mesh of more devices than can be joined."""
  if kind.network is None and (count := _count(config)) > kind.joined:
    raise InputError(f"a slice of {kind.name} has {kind.joined} chips at most, and the mesh takes {count}")


def simulated_mesh(config: MeshConfig) -> Mesh:
  """A mesh of so many devices, all played by this machine's CPU; before JAX computes anything in this process.

  Raises InputError for a mesh that leaves a size open, or where JAX has begun with fewer devices.
  """
  count = _count(config)
  with contextlib.suppress(RuntimeError):
    # The first is refused where JAX has begun; then the second is left as it is.
    jax.config.update("jax_num_cpu_devices", count)
    jax.config.update("jax_platforms", "cpu")
  if len(jax.devices("cpu")) < count:
    raise InputError(
      f"JAX has begun with {len(jax.devices('cpu'))} devices in this process, and the mesh takes {count}; plan in a "
      "process of its own"
    )
  return make_mesh(config, jax.devices("cpu")[:count])


def described_mesh(config: MeshConfig, kind: DeviceKind) -> Mesh:
  """A mesh of TPUs that are only described: their compiler works without them, and nothing can be run.

  Raises InputError for a number of chips that makes no slice, and MissingDependencyError without libtpu.
  """
  count = _count(config)
  if count not in kind.shapes:
    known = ", ".join(map(str, kind.shapes)) or "none"
    raise InputError(f"{kind.name} has no slice of {count} chips that its compiler is asked for; there are {known}")
  name = f"{kind.name.split()[-1]}:{kind.shapes[count]}"
  for variable, value in _WITHOUT_TPU.items():
    os.environ.setdefault(variable, value)
  from jax.experimental import topologies

  try:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
  except (RuntimeError, ValueError, NotImplementedError) as error:
    said = str(error).strip().splitlines()[0]
    raise MissingDependencyError(
      f"the compiler of TPUs cannot be asked ({said}); install libtpu, as requirements-tpu.txt does, or compile for "
      "simulated devices with --compiler cpu"
    ) from error
  return make_mesh(config, devices)


def _count(config) -> int:
  sizes = [getattr(config, axis) for axis in AXES]
  if min(sizes) < 1:
    raise InputError("the mesh of a plan has to say how many devices each axis has, such as data=4,fsdp=16")
  return math.prod(sizes)


def bytes_per_device(tree: Any) -> int:
  """Of shapes with shardings, those that one device holds."""
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class Traffic:
  """What each device says to others in a step: `sent` bytes in all, over mesh axes, in groups of `members`.

  inside: how many of a group are neighbours on the fast network.
  """

  kind: str
  axes: tuple[str, ...]
  members: int
  inside: int
  sent: float
  times: int = 1

  def seconds(self, kind: DeviceKind) -> float:
    """A ring's time: each of its links carries the same, those between hosts through all neighbours' ports at once."""
    fast = self.sent / kind.link
    return fast if self.inside >= self.members else max(fast, self.sent / (kind.network * self.inside))


def traffic_of(collectives: Sequence[Collective], mesh: Mesh, joined: int) -> list[Traffic]:
  """The operations of a compiled program, those of one kind over the same axes as one."""
  sums = {}
  for one in collectives:
    axes = axes_of(one.groups, mesh.shape)
    key = one.kind, axes, one.members, _inside(one.groups, joined)
    sent, times = sums.get(key, (0, 0))
    sums[key] = sent + one.count * one.sent, times + one.count
  found = [Traffic(*key, *sums[key]) for key in sums]
  return sorted(found, key=lambda traffic: -traffic.sent)


def _inside(groups, joined) -> int:
  """The fewest members of a group that are on the fast network with the one who is alone most."""
  least = math.inf
  for group in groups:
    hosts = [member // joined for member in group]
    least = min(least, max(map(hosts.count, set(hosts))))
  return int(least)


def _groups_along(mesh: Mesh, axes: Sequence[str]):
  """One group of places in the mesh along axes: all others are like it."""
  places = [0]
  strides, stride = {}, 1
  for axis in reversed(AXES):
    strides[axis] = stride
    stride *= mesh.shape[axis]
  for axis in axes:
    places = [place + i * strides[axis] for place in places for i in range(mesh.shape[axis])]
  return (tuple(places),)


def foretold_traffic(
  params: Any, frozen: Any, mesh: Mesh, joined: int, passes: int, accumulate: int = 1, tensor: float = 0
) -> list[Traffic]:
  """What sharding alone says: what a compiler should do, beside what it does.

  Parameters in parts over `fsdp` are gathered in each of `passes` over the network, in the dtype that they are kept in;
  gradients in parts are scattered, then summed over `data`; those of whole parameters are summed over both. tensor:
  bytes of activations that a device of `tensor` has to sum in a pass forward and back. All of it for each of
  `accumulate` parts of a step. params, frozen: shapes with shardings.
  """
  sizes = {"gather": 0, "scatter": 0, "parts": 0, "whole": 0}
  for leaf in jax.tree.leaves((params, frozen)):
    if "fsdp" in leaf.sharding.spec:
      sizes["gather"] += bytes_per_device(leaf) * mesh.shape["fsdp"]
  for leaf in jax.tree.leaves(params):
    held = bytes_per_device(leaf)
    if "fsdp" in leaf.sharding.spec:
      sizes["scatter"] += held * mesh.shape["fsdp"]
      sizes["parts"] += held
    else:
      sizes["whole"] += held
  wanted = (
    ("all-gather", ("fsdp",), passes * sizes["gather"]),
    ("reduce-scatter", ("fsdp",), sizes["scatter"]),
    ("all-reduce", ("data",), sizes["parts"]),
    ("all-reduce", BATCH_AXES, sizes["whole"]),
    ("all-reduce", ("tensor",), tensor),
  )
  found = []
  for kind, axes, size in wanted:
    axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)
    members = math.prod(mesh.shape[axis] for axis in axes)
    if size and members > 1:
      inside = _inside(_groups_along(mesh, axes), joined)
      found.append(Traffic(kind, axes, members, inside, accumulate * size * sent_share(kind, members), accumulate))
  return found


def summed_over_tensor(params: Any, products: Iterable[tuple[str, int, int]], mesh: Mesh, forward: int = 1) -> float:
  """Bytes on a device of what has to be summed over `tensor`, `forward` times forward and once back.

  products: (path of the kernel, bytes of its whole input, of its whole output). Kernels in parts by their inputs give
  parts of a sum; those in parts by their outputs do so going back, to their input. params: nested, with shardings.
  """
  ends = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    spec = leaf.sharding.spec
    ends[path_name(path)] = (*spec, *[None] * (len(leaf.shape) - len(spec)))[-2:]
  total = 0
  for path, taken, given in products:
    total += forward * given if ends[path][0] == "tensor" else taken if ends[path][1] == "tensor" else 0
  return total / math.prod(mesh.shape[axis] for axis in BATCH_AXES)


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Seconds of a step: of products at a share of the peak, of the memory, of what is sent."""

  compute: float
  memory: float
  communication: float

  @property
  def overlapped(self) -> float:
    """Where all goes on at once."""
    return max(self.compute, self.memory, self.communication)

  @property
  def one_after_another(self) -> float:
    """Where products wait for what is sent; memory and products always go on together."""
    return max(self.compute, self.memory) + self.communication

  @property
  def bound(self) -> str:
    """What takes longest."""
    return max(("compute", "memory", "communication"), key=lambda name: getattr(self, name))


def predict(kind: DeviceKind, flops: float, moved: float, traffic: Sequence[Traffic], efficiency: float) -> Prediction:
  """flops, moved (bytes between a device and its memory), traffic: of a step and device."""
  return Prediction(
    flops / (kind.flops * efficiency), moved / kind.bandwidth, sum(one.seconds(kind) for one in traffic)
  )
