"""What a step would take on devices that are not here: read from programs, and from shardings alone."""

import os
import subprocess
import sys

import jax
import pytest

from dicetalk_jax.cli import main
from dicetalk_jax.parallel.mesh import MeshConfig
from dicetalk_jax.planning.collectives import axes_of, read_collectives
from dicetalk_jax.planning.devices import DEVICES, Traffic, predict, simulated_mesh

PRESET = """
import dataclasses
from dicetalk_jax.conversion.architectures import RELEASED, small_conditioning, small_unet
from dicetalk_jax.data.batches.diffusion import DiffusionBatchConfig
from dicetalk_jax.data.batches.embedder import EmbedderBatchConfig
from dicetalk_jax.parallel.mesh import MeshConfig
from dicetalk_jax.training.config import AdaptationConfig, EmbedderConfig, EmbedderModelConfig, OptimizerConfig

embedder = EmbedderConfig(
  model=EmbedderModelConfig(features=128, num_layers=1, num_fusion_layers=1, num_heads=4, mlp=256),
  batches=EmbedderBatchConfig(groups=8, clips=2, frames=8),
)
architecture = RELEASED["emotion_embedder"] | dict(speech_features=64, num_layers=1, num_fusion_layers=1, mlp=256)
adaptation = AdaptationConfig(
  weights="none",
  networks={
    "unet": small_unet((128,), head=16),
    "vae": RELEASED["vae"],
    "emotion_embedder": architecture,
    **small_conditioning(128, 128, codes=8, pose_features=(8, 16, 16, 32)),
  },
  size=64,
  trainable=("attention",),
  batches=DiffusionBatchConfig(batch=8, frames=2, prior_frames=8),
  optimizer=OptimizerConfig(accumulate=2),
)
config = dataclasses.replace(adaptation, mesh=MeshConfig(rules=(("no_such/kernel", ("fsdp", None)),)))
"""

# A chain of products, its weights in parts: what training does, so small that all of it can be told by hand.
MATMUL = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from dicetalk_jax.parallel.collectives import axes_of, read_collectives
from dicetalk_jax.parallel.mesh import MeshConfig, batch_sharding
from dicetalk_jax.parallel.plan import foretold_traffic, simulated_mesh

mesh = simulated_mesh(MeshConfig(2, 4, 1))
in_parts = NamedSharding(mesh, P("fsdp", None))
def of(shape, sharding):
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
x = of((512, 128), batch_sharding(mesh))
w = {"first": of((128, 256), in_parts), "second": of((256, 512), in_parts)}

def loss(w, x):
  return jnp.square(jnp.tanh(x @ w["first"]) @ w["second"]).sum()

step = jax.jit(jax.grad(loss), out_shardings=jax.tree.map(lambda leaf: leaf.sharding, w))
found = read_collectives(step.lower(w, x).compile().as_text(), 8)
assert all(one.known for one in found)
def sent(kind, axes):
  return sum(one.count * one.sent for one in found if one.kind == kind and axes_of(one.groups, mesh.shape) == axes)
numbers = 128 * 256 + 256 * 512
(gathered, scattered, summed) = foretold_traffic(w, {}, mesh, 8, passes=1)
assert [one.axes for one in (gathered, scattered, summed)] == [("fsdp",), ("fsdp",), ("data",)]
assert gathered.sent == scattered.sent == 4 * numbers * 3 / 4
assert summed.sent == 2 * 4 * numbers / 4 / 2
print(sent("all-gather", ("fsdp",)) / gathered.sent)
# A CPU's compiler sums in full what is scattered elsewhere: over fsdp and data at once, or one after the other.
print(sum(sent("all-reduce", axes) for axes in (("fsdp",), ("data",), ("data", "fsdp"))) / numbers / 4)
"""


def program(code, *arguments, **options):
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  return subprocess.run(
    [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, **options
  )


def plan(*arguments):
  return program("import sys; from dicetalk_jax.cli import main; sys.exit(main())", "plan", *arguments)


@pytest.fixture(scope="module", autouse=True)
def begun():
  # As it will be for other tests, whichever comes first.
  assert len(jax.devices()) == 8


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
  path = tmp_path_factory.mktemp("preset") / "preset.py"
  path.write_text(PRESET)
  return path


def test_groups_are_read_in_all_ways_that_they_are_written():
  text = """HloModule m
%body (p: f32[4]) -> f32[4] {
  %r = f32[4,8]{1,0} all-reduce(%p), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  ROOT %g = (f32[8]{0}, bf16[8,2]{1,0:T(8,128)(2,1)S(1)}) all-gather(%a, %b), replica_groups={{0,1,2,3},{4,5,6,7}}
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

ENTRY %main.1 (p: f32[4]) -> f32[4] {
  %w = f32[4] while(%p), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %u = f32[4] while(%p), condition=%c, body=%other
  %m = f32[2,2]{1,0} reduce-scatter(%p), replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}
  %s = (f32[2]{0}, f32[16]{0}) all-gather-start(%p), replica_groups=[1,8]<=[8], dimensions={0}
  %d = f32[16]{0} all-gather-done(%s)
  %x = f32[3]{0} collective-permute(%p), source_target_pairs={{0,4},{4,0}}
}

%other (p: f32[4]) -> f32[4] {
  ROOT %t = bf16[4]{0} all-to-all(%p), replica_groups={}
}
"""
  found = read_collectives(text, 8)
  sizes = {"data": 2, "fsdp": 4, "tensor": 1}
  told = [(one.kind, one.count, one.size, one.members, axes_of(one.groups, sizes), one.known) for one in found]
  assert told == [
    ("all-reduce", 5, 128, 2, ("data",), True),
    ("all-gather", 5, 32 + 32, 4, ("fsdp",), True),
    ("all-to-all", 1, 8, 8, ("data", "fsdp"), False),
    ("reduce-scatter", 1, 4 * 16, 4, ("fsdp",), True),
    ("all-gather", 1, 64, 8, ("data", "fsdp"), True),
    ("collective-permute", 1, 12, 2, ("data",), True),
  ]
  # A ring: each device hands on all parts but one, and of a sum twice.
  assert [one.sent for one in found] == [128, 48, 7, 48, 56, 12]


def test_a_program_sends_what_its_shardings_say():
  done = program(MATMUL)
  assert done.returncode == 0, done.stderr
  gathered, summed = map(float, done.stdout.split())
  assert gathered == 1
  # In whole among four, then its part among two; the same as among all eight at once.
  assert summed == 2 * 3 / 4 + 2 * 1 / 2 / 4 == 2 * 7 / 8


def test_a_plan_of_shapes(preset):
  settings = ("--set", "mesh.fsdp=1", "batches.batch=4")
  text = preset.read_text().replace("no_such/kernel", "unet/.*/kernel")
  path = preset.with_name("adaptation.py")
  path.write_text(text)
  mesh = ("--mesh", "data=2,fsdp=2,tensor=2")
  done = plan("--config", path, "--stage", "adaptation", *settings, *mesh, "--no-compile")
  assert done.returncode == 0, done.stderr
  assert "8 x TPU v5e, data 2 x fsdp 2 x tensor 2; a step of 8 clips in 2 parts" in done.stdout
  assert "all-reduce over tensor (2 devices" in done.stdout and "insides of blocks are not among them" in done.stdout
  assert "U-Net: feed-forward" in done.stdout and "bound by" in done.stdout


def test_a_plan_of_a_compiled_step(preset, tmp_path):
  text = tmp_path / "program.txt"
  mesh = ("--mesh", "data=2,fsdp=4", "--device", "h100")
  done = plan("--config", preset, "--stage", "embedder", *mesh, "--text", text)
  assert done.returncode == 0, done.stderr
  assert "8 x H100 SXM" in done.stdout and "WARNING" not in done.stdout
  assert "HloModule" in text.read_text()
  rows = {line[:64].strip(): line[64:].split() for line in done.stdout.splitlines() if line[64:]}
  # What the compiled program takes is what lies on a device, to the last small leaf.
  names = ("all of these", "kept between forward and backward", "compiled: arguments")
  told, kept, taken = (float(rows[name][0]) for name in names)
  assert rows["compiled: arguments"][1] == "MB" and abs(told - kept - taken) <= 0.2
  assert float(rows["compiled: temporaries"][0]) > 0
  program = done.stdout[done.stdout.index("of the compiled program") :]
  assert "all-gather over fsdp (4 devices" in program and "all-reduce over" in program


def test_times_are_those_of_the_slowest_link():
  kind = DEVICES["h100"]
  # Sixteen devices of two hosts in a ring: what goes between the hosts has all eight ports of each.
  assert Traffic("all-gather", ("fsdp",), 16, 8, 400e9).seconds(kind) == 1
  # One device of each of eight hosts: each has its own port alone.
  assert Traffic("all-reduce", ("data",), 8, 1, 400e9).seconds(kind) == 8
  assert Traffic("all-gather", ("fsdp",), 8, 8, 450e9).seconds(kind) == 1
  told = predict(kind, 989e12, 3350e9, [Traffic("all-gather", ("fsdp",), 8, 8, 450e9)], 0.5)
  assert (told.compute, told.memory, told.communication) == (2, 1, 1)
  assert (told.overlapped, told.one_after_another, told.bound) == (2, 3, "compute")


@pytest.mark.parametrize(
  "arguments, said",
  [
    (["--mesh", "data=3"], "cannot be divided over 3 parts"),
    (["--mesh", "data=-1"], "how many devices each axis has"),
    (["--mesh", "rows=2"], "mesh 'rows=2' is none"),
    (["--mesh", "data=2", "--device", "a100x"], "device 'a100x' is not known"),
    (["--mesh", "data=2", "--efficiency", "2"], "efficiency is 2"),
    (["--mesh", "fsdp=512"], "a slice of TPU v5e has 256 chips at most"),
    (["--mesh", "fsdp=64"], "JAX has begun with 8 devices"),
    (["--mesh", "fsdp=2", "--device", "h100", "--compiler", "tpu"], "does not know a H100"),
    (["--mesh", "data=2"], "names none of the"),
  ],
)
def test_what_cannot_be_planned_is_said_in_a_sentence(preset, arguments, said, capfd):
  assert main(["plan", "--config", str(preset), *arguments]) == 1
  error = capfd.readouterr().err
  assert said in error and error.startswith("error: ") and len(error.splitlines()) == 1


def test_a_mesh_of_the_devices_that_jax_has_begun_with():
  mesh = simulated_mesh(MeshConfig(2, 2, 1))
  assert mesh.shape == {"data": 2, "fsdp": 2, "tensor": 1} and mesh.devices.flat[0] in jax.devices()
