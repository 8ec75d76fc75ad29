"""What a step of training would take on a mesh of devices that nobody here has: by shapes, and by its program."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import jax

from dicetalk_jax.errors import InputError, out_of_memory
from dicetalk_jax.files import readable_size
from dicetalk_jax.parallel.flops import Flops, count_flops, programs_within, size
from dicetalk_jax.parallel.mesh import MeshConfig, batch_parts, check_batch_size
from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.parallel.rules import path_name
from dicetalk_jax.planning.collectives import Collective, read_collectives
from dicetalk_jax.planning.devices import (
  DeviceKind,
  Prediction,
  Traffic,
  bytes_per_device,
  check_joined,
  described_mesh,
  foretold_traffic,
  predict,
  simulated_mesh,
  summed_over_tensor,
  traffic_of,
)
from dicetalk_jax.planning.outline import Outline, adaptation_outline, embedder_outline
from dicetalk_jax.training.adaptation import adaptation_loss
from dicetalk_jax.training.config import AdaptationConfig, EmbedderConfig
from dicetalk_jax.training.state import merge

# Nothing is run: no time is spent on making the program fast.
_OPTIONS = {"xla_backend_optimization_level": 0}
Compiler = Literal["none", "cpu", "tpu"]


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled step. arguments, temporaries: bytes on a device; problem: why there is none, in the compiler's words."""

  compiler: Compiler
  arguments: int = 0
  temporaries: int = 0
  results: int = 0
  collectives: tuple[Collective, ...] = ()
  problem: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
  """A step on a mesh; str() of it is for people.

  memory: name -> bytes on a device, of shardings, exact. flops: of a step on all devices, with all that is computed
  again. foretold, read: what is sent, of shardings alone and of the compiled program. moved: bytes that at least go
  through a device's memory.
  """

  kind: DeviceKind
  mesh: Mapping[str, int]
  rows: int
  accumulate: int
  memory: Mapping[str, int]
  flops: Flops
  efficiency: float
  foretold: Sequence[Traffic]
  program: Program | None
  read: Sequence[Traffic]
  moved: int

  @property
  def devices(self) -> int:
    return math.prod(self.mesh.values())

  @property
  def predictions(self) -> dict[str, Prediction]:
    """By what is sent: of shardings alone, of the compiled program where there is one."""
    given = {"shardings": self.foretold} | ({"program": self.read} if self.program and not self.program.problem else {})
    flops = self.flops.total / self.devices
    return {name: predict(self.kind, flops, self.moved, sent, self.efficiency) for name, sent in given.items()}

  @property
  def needed(self) -> int:
    """Bytes on a device: all that is known of."""
    program = self.program
    return program.arguments + program.temporaries if program else sum(self.memory.values())

  def __str__(self):
    shape = " x ".join(f"{name} {size}" for name, size in self.mesh.items())
    clips = f"{self.rows} clips" + (f" in {self.accumulate} parts" if self.accumulate > 1 else "")
    lines = [f"{self.devices} x {self.kind.name}, {shape}; a step of {clips}", ""]
    lines += [*self._memory(), "", *self._flops(), "", *self._traffic(), "", *self._time()]
    return "\n".join(lines)

  def _memory(self):
    lines = [_row("bytes on a device", "", "")]
    lines += [_row(name, readable_size(held)) for name, held in self.memory.items()]
    lines += [_row("all of these", readable_size(sum(self.memory.values())))]
    program, limit = self.program, self.kind.memory
    if program is None:
      return [*lines, "the insides of blocks are not among them: these only a compiled program tells"]
    if program.problem:
      return [*lines, f"WARNING: not compiled: {program.problem}"]
    lines += [_row("compiled: arguments", readable_size(program.arguments))]
    lines += [_row("compiled: temporaries", readable_size(program.temporaries))]
    share = f"{self.needed / limit:.0%} of {limit / 2**30:.4g} GiB"
    lines += [_row("compiled: both", readable_size(self.needed), f"{self.needed / 2**30:.2f} GiB", share)]
    if program.compiler == "cpu":
      lines += [
        "The temporaries are those of a CPU's program: products and much between them are float32 where an accelerator",
        "has bfloat16, attention has no kernel of its own, and remat is apart, which a CPU's compiler leaves in its",
        "place. --compiler tpu asks the compiler of TPUs.",
      ]
    if self.needed > limit:
      lines += [f"WARNING: that is more than the {limit / 2**30:.4g} GiB of a {self.kind.name}"]
    return lines

  def _flops(self):
    lines = [_row("operations of a step, TFLOP", "all devices", "each")]
    for name, flops in {**self.flops.groups, "all": self.flops.total}.items():
      lines += [_row(name, f"{flops / 1e12:.4g}", f"{flops / self.devices / 1e12:.4g}")]
    return lines

  def _traffic(self):
    lines = [_row("sent by a device in a step", "bytes", "seconds")]
    for title, traffic in (("of shardings", self.foretold), ("of the compiled program", self.read)):
      if title == "of shardings" or (self.program and not self.program.problem):
        lines += [f"{title}:" + ("" if traffic else " nothing")]
      for one in traffic:
        name = f"  {one.kind} over {' x '.join(one.axes) or 'none'} ({one.members} devices, {one.times} times)"
        lines += [_row(name, readable_size(int(one.sent)), f"{one.seconds(self.kind):.4g}")]
    if self.program and not all(one.known for one in self.program.collectives):
      lines += ["  some are in loops of which the program does not say how often they turn: counted once"]
    return lines

  def _time(self):
    lines = [
      f"a step on {self.kind.name} ({self.kind.flops / 1e12:.4g} TFLOP/s bfloat16, of it {self.efficiency:.0%}; memory "
      f"{self.kind.bandwidth / 1e9:.4g} GB/s; {self.kind.note}), in seconds"
    ]
    lines += [_row("", *(f"of {name}" for name in self.predictions))]
    columns = {
      "products": lambda one: f"{one.compute:.4g}",
      "memory, at least": lambda one: f"{one.memory:.4g}",
      "communication": lambda one: f"{one.communication:.4g}",
      "a step, all at once": lambda one: f"{one.overlapped:.4g}",
      "a step, one after another": lambda one: f"{one.one_after_another:.4g}",
      "bound by": lambda one: one.bound,
    }
    return lines + [_row(name, *map(value, self.predictions.values())) for name, value in columns.items()]


def _row(name, *values) -> str:
  return f"{name:<64}" + "".join(f"{value:>18}" for value in values)


def plan_training(
  config: AdaptationConfig | EmbedderConfig,
  mesh: MeshConfig,
  kind: DeviceKind,
  compiler: Compiler = "none",
  efficiency: float = 0.4,
  text: Callable[[str], None] | None = None,
) -> Plan:
  """The plan of a step of `config` on `mesh`, whose rules are those of `config.mesh`; makes no arrays.

  compiler: "cpu" for simulated devices, "tpu" for the real one, which libtpu has; at full size each takes minutes.
  text: is given the compiled program. Raises InputError for a mesh or rules that cannot be meant, and for what the
  configuration's training refuses.
  """
  if not 0 < efficiency <= 1:
    raise InputError(f"efficiency is {efficiency}, wanted a share of the peak, above 0 and at most 1")
  mesh = dataclasses.replace(mesh, rules=config.mesh.rules)
  check_joined(mesh, kind)
  # First of all: JAX may begin with so many devices only now.
  simulated = simulated_mesh(mesh)
  placement = Placement(described_mesh(mesh, kind) if compiler == "tpu" else simulated, mesh.rules)
  outline = _outline(config, placement)
  state, batch = outline.placed(placement)
  accumulate = config.optimizer.accumulate
  gradient, inputs = outline.gradient()
  flops = count_flops(gradient, *inputs)
  flops = Flops({name: accumulate * value for name, value in flops.groups.items()})
  memory = {
    "parameters that train": bytes_per_device(state.params),
    "parameters that do not": bytes_per_device(state.frozen),
    "optimizer": bytes_per_device(state.opt_state),
    "moving average": bytes_per_device(state.ema),
    "batch": bytes_per_device(batch),
    "kept between forward and backward": outline.rows // batch_parts(placement.mesh) * _kept(outline),
  }
  remat = bool(getattr(config, "remat", False))
  shape, joined = placement.mesh, kind.joined
  summed = 0
  if shape.shape["tensor"] > 1:
    params = merge(state.params, state.frozen)
    params = params if outline.setup else {"emotion_embedder": params}
    summed = summed_over_tensor(params, _products(outline, params), shape, 1 + remat)
  foretold = foretold_traffic(state.params, state.frozen, shape, joined, 2 + remat, accumulate, summed)
  program = None
  if compiler != "none":
    program = _program(_apart(outline) if compiler == "cpu" and remat else outline, placement, compiler, text)
  read = traffic_of(program.collectives, shape, joined) if program else ()
  moved = _moved(state, program, shape, 2 + remat, accumulate)
  rows = accumulate * outline.rows
  return Plan(kind, dict(shape.shape), rows, accumulate, memory, flops, efficiency, foretold, program, read, moved)


def _outline(config, placement) -> Outline:
  if isinstance(config, EmbedderConfig):
    check_batch_size(placement.mesh, config.batches.groups * config.batches.clips, "clips")
    return embedder_outline(config)
  check_batch_size(placement.mesh, config.batches.batch, "clips")
  # Here is a CPU, there is none.
  return adaptation_outline(dataclasses.replace(config, dtype=config.dtype or "bfloat16"))


def _kept(outline: Outline) -> int:
  """Bytes that the forward pass of a clip leaves for the backward pass, by what is rematerialised and what is not."""

  def left(rows):
    def pullback(params, frozen, batch, key):
      return jax.vjp(lambda params: outline.loss_fn(merge(params, frozen), batch, key)[0], params)[1]

    _, (params, frozen, batch, key) = outline.gradient()
    batch = {name: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype) for name, leaf in batch.items()}
    return size(jax.eval_shape(pullback, params, frozen, batch, key))

  # Parameters are among what is left, once, whatever the batch is.
  return left(2) - left(1)


def _apart(outline: Outline) -> Outline:
  """The same step, with rematerialisation that the CPU's compiler leaves where it is, as those of accelerators do."""
  modules = outline.setup.modules
  setup = dataclasses.replace(outline.setup, modules=modules | {"unet": modules["unet"].clone(remat="apart")})
  return dataclasses.replace(outline, setup=setup, loss_fn=adaptation_loss(setup, outline.config.objective))


def _program(outline, placement, compiler, text) -> Program:
  # What depends on the device, such as the kernel of attention, is to be that device's.
  with jax.default_device(placement.mesh.devices.flat[0]):
    lowered = outline.lowered(placement)
  try:
    compiled = _compiled(lowered, _OPTIONS if compiler == "cpu" else None)
  except jax.errors.JaxRuntimeError as error:
    if not out_of_memory(error):
      raise
    said = re.search(r"Used [\d.]+\w of [\d.]+\w \w+\.", str(error))
    return Program(compiler, problem=said[0] if said else str(error).splitlines()[0])
  found, held = compiled.as_text(), compiled.memory_analysis()
  if text:
    text(found)
  collectives = read_collectives(found, placement.mesh.size)
  return Program(
    compiler,
    held.argument_size_in_bytes,
    held.temp_size_in_bytes,
    held.output_size_in_bytes - held.alias_size_in_bytes,
    tuple(collectives),
  )


def _compiled(lowered, options):
  try:
    return lowered.compile(options)
  except jax.errors.JaxRuntimeError as error:
    # Another version of JAX has other options.
    if options is None or "No such compile option" not in str(error):
      raise
    return lowered.compile()


def _moved(state, program, mesh, passes, accumulate) -> int:
  """Bytes that at least go through a device's memory: weights of each pass, the state once in and out, temporaries."""
  weights = sum(
    bytes_per_device(leaf) * (mesh.shape["fsdp"] if "fsdp" in leaf.sharding.spec else 1)
    for leaf in jax.tree.leaves((state.params, state.frozen))
  )
  kept = bytes_per_device(state.replace(frozen=None))
  temporaries = program.temporaries if program else 0
  return accumulate * passes * weights + 2 * kept + 2 * temporaries


def _products(outline: Outline, params) -> Iterator[tuple[str, int, int]]:
  """(path of its kernel, bytes of its input, of its output) of each product of the forward pass, of all rows."""
  names = (path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0])
  # Modules are named by their places in the network alone.
  kernels = {name.partition("/")[2].removesuffix("/kernel"): name for name in names if name.endswith("/kernel")}

  def loss(params, frozen, batch, key):
    return outline.loss_fn(merge(params, frozen), batch, key)[0]

  def walk(program, prefix):
    for equation in program.eqns:
      where = f"{prefix}/{equation.source_info.name_stack}"
      if equation.primitive.name in ("dot_general", "conv_general_dilated"):
        yield where, equation
      for inner in programs_within(equation.params):
        yield from walk(inner, where)

  def held(value):
    return math.prod(value.aval.shape) * value.aval.dtype.itemsize

  _, inputs = outline.gradient()
  for where, equation in walk(jax.make_jaxpr(loss)(*inputs).jaxpr, ""):
    parts = [part for part in where.split("/") if part not in ("", "checkpoint", "rematted_computation")]
    name = next((name for i in range(len(parts)) if (name := kernels.get("/".join(parts[i:])))), None)
    if name:
      yield name, held(equation.invars[0]), held(equation.outvars[0])
