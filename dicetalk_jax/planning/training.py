"""What a training step takes on a mesh of devices that are not here, from shapes and shardings."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.extend.core

from dicetalk_jax.errors import InputError
from dicetalk_jax.files import readable_size
from dicetalk_jax.parallel.flops import Flops, size
from dicetalk_jax.parallel.mesh import MeshConfig, batch_parts, check_batch_size
from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.parallel.rules import path_name
from dicetalk_jax.planning.devices import (
  DeviceKind,
  Traffic,
  bytes_per_device,
  expected_traffic,
  predict,
  simulated_mesh,
  summed_over_tensor,
)
from dicetalk_jax.planning.outline import Outline, make_outline
from dicetalk_jax.training.config import AdaptationConfig, EmbedderConfig
from dicetalk_jax.training.state import merge


@dataclasses.dataclass(frozen=True)
class Plan:
  """A step on a mesh; str() of it is a table.

  memory: name -> bytes on a device. flops: of a step on all devices, with recomputation. traffic: of a step and device.
  moved: bytes that go through a device's memory at least. compiled: bytes of arguments and temporaries on a device, if
  the step was compiled.
  """

  kind: DeviceKind
  mesh: Mapping[str, int]
  rows: int
  accumulate: int
  memory: Mapping[str, int]
  flops: Flops
  efficiency: float
  traffic: Sequence[Traffic]
  moved: int
  compiled: tuple[int, int] | None = None

  @property
  def devices(self) -> int:
    return math.prod(self.mesh.values())

  def __str__(self):
    kind = self.kind
    shape = " x ".join(f"{name} {size}" for name, size in self.mesh.items())
    clips = f"{self.rows} clips" + (f" in {self.accumulate} parts" if self.accumulate > 1 else "")
    flops = {**self.flops.groups, "all": self.flops.total}
    seconds = predict(kind, self.flops.total / self.devices, self.moved, self.traffic, self.efficiency)
    lines = [
      f"{self.devices} x {kind.name}, {shape}; a step of {clips}",
      "",
      _row("bytes on a device"),
      *(_row(name, readable_size(held)) for name, held in self.memory.items()),
      _row("all", readable_size(sum(self.memory.values()))),
      *self._compiled(),
      "",
      _row("operations of a step, TFLOP", "all devices", "each"),
      *(_row(name, f"{part / 1e12:.4g}", f"{part / self.devices / 1e12:.4g}") for name, part in flops.items()),
      "",
      _row("sent by a device in a step", "bytes", "seconds"),
      *(
        _row(
          f"{one.kind} over {' x '.join(one.axes)} ({one.members} devices, {one.times} times)",
          readable_size(int(one.sent)),
          f"{one.seconds(kind):.4g}",
        )
        for one in self.traffic
      ),
      *([] if self.traffic else ["nothing"]),
      "",
      f"seconds of a step on {kind.name} ({kind.flops / 1e12:.4g} TFLOP/s bfloat16, of which {self.efficiency:.0%}; "
      f"memory {kind.bandwidth / 1e9:.4g} GB/s; {kind.note})",
      *(_row(name, v if isinstance(v, str) else f"{v:.4g}") for name, v in seconds.items()),
    ]
    return "\n".join(lines)

  def _compiled(self):
    if self.compiled is None:
      return ["The insides of blocks in the backward pass are not included; --compile adds them."]
    (arguments, temporaries), limit = self.compiled, self.kind.memory
    needed = arguments + temporaries
    lines = [
      _row("compiled: arguments", readable_size(arguments)),
      _row("compiled: temporaries", readable_size(temporaries)),
      _row("compiled: both", readable_size(needed), f"{needed / limit:.0%} of {limit / 2**30:.4g} GiB"),
      "The temporaries are those of a CPU's program: float32 where an accelerator has bfloat16, and attention without",
      "a fused kernel. It is compiled with remat=apart, the only form that a CPU's compiler keeps.",
    ]
    if needed > limit:
      lines.append(f"WARNING: this is more than the {limit / 2**30:.4g} GiB of a {self.kind.name}")
    return lines


def _row(name, *values) -> str:
  return f"{name:<64}" + "".join(f"{value:>18}" for value in values)


def plan_training(
  config: AdaptationConfig | EmbedderConfig,
  mesh: MeshConfig,
  kind: DeviceKind,
  efficiency: float = 0.4,
  compiled: bool = False,
) -> Plan:
  """The plan of a step of `config` on `mesh` with the rules of `config.mesh`; makes no arrays.

  efficiency: share of the peak that products reach. compiled: also compile the step for simulated devices, minutes at
  full size. Raises InputError for a mesh or rules that cannot be used, and what `make_outline` raises.
  """
  if not 0 < efficiency <= 1:
    raise InputError(f"efficiency is {efficiency}; give a share of the peak, above 0 and at most 1")
  # First: JAX can get so many devices only before it starts.
  placement = Placement(simulated_mesh(mesh, kind), config.mesh.rules)
  if isinstance(config, AdaptationConfig):
    # The default on an accelerator; this process only has a CPU.
    config = dataclasses.replace(config, dtype=config.dtype or "bfloat16")
  outline = make_outline(config)
  check_batch_size(placement.mesh, outline.rows, "clips")
  state, batch = outline.placed(placement)
  accumulate, devices = config.optimizer.accumulate, placement.mesh
  memory = {
    "parameters that train": bytes_per_device(state.params),
    "parameters that do not": bytes_per_device(state.frozen),
    "optimizer": bytes_per_device(state.opt_state),
    "moving average": bytes_per_device(state.ema),
    "batch": bytes_per_device(batch),
    "kept between forward and backward": outline.rows // batch_parts(devices) * _kept(outline),
  }
  remat = bool(getattr(config, "remat", False))
  summed = 0
  if devices.shape["tensor"] > 1:
    params = merge(state.params, state.frozen)
    params = params if outline.setup else {"emotion_embedder": params}
    summed = summed_over_tensor(params, _products(outline, params), devices, 1 + remat)
  traffic = expected_traffic(state.params, state.frozen, devices, kind.joined, 2 + remat, accumulate, summed)
  compiled = outline.with_remat("apart" if remat else False).compiled_memory(placement) if compiled else None
  moved = _moved(state, compiled[1] if compiled else 0, devices, 2 + remat, accumulate)
  rows = accumulate * outline.rows
  return Plan(kind, dict(devices.shape), rows, accumulate, memory, outline.flops, efficiency, traffic, moved, compiled)


def _kept(outline: Outline) -> int:
  """Bytes of a clip that the forward pass keeps for the backward pass, after rematerialisation."""

  def left(rows):
    def pullback(params, frozen, batch):
      return jax.vjp(lambda params: outline.loss(params, frozen, batch), params)[1]

    batch = {name: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype) for name, leaf in outline.batch.items()}
    return size(jax.eval_shape(pullback, outline.params, outline.frozen, batch))

  # The difference leaves out the parameters, which are kept once for any number of clips.
  return left(2) - left(1)


def _moved(state, temporaries, mesh, passes, accumulate) -> int:
  """Lower bound of memory traffic: weights in each pass, the state in and out, temporaries written and read."""
  weights = sum(
    bytes_per_device(leaf) * (mesh.shape["fsdp"] if "fsdp" in leaf.sharding.spec else 1)
    for leaf in jax.tree.leaves((state.params, state.frozen))
  )
  return accumulate * passes * weights + 2 * bytes_per_device(state.replace(frozen=None)) + 2 * temporaries


def _products(outline: Outline, params) -> Iterator[tuple[str, int, int]]:
  """(path of the kernel, bytes of its input, bytes of its output) of each product of the forward pass, of all rows."""
  names = (path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0])
  # The trace names modules by their path within their network.
  kernels = {name.partition("/")[2].removesuffix("/kernel"): name for name in names if name.endswith("/kernel")}

  def walk(program, prefix):
    for equation in program.eqns:
      where = f"{prefix}/{equation.source_info.name_stack}"
      if equation.primitive.name in ("dot_general", "conv_general_dilated"):
        yield where, equation
      for inner in jax.extend.core.jaxprs_in_params(equation.params):
        yield from walk(inner, where)

  def held(value):
    return math.prod(value.aval.shape) * value.aval.dtype.itemsize

  program = jax.make_jaxpr(outline.loss)(outline.params, outline.frozen, outline.batch)
  for where, equation in walk(program.jaxpr, ""):
    parts = [part for part in where.split("/") if part not in ("", "checkpoint", "rematted_computation")]
    name = next((name for i in range(len(parts)) if (name := kernels.get("/".join(parts[i:])))), None)
    if name:
      yield name, held(equation.invars[0]), held(equation.outvars[0])
