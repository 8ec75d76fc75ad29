"""Plans of steps on devices that are not here."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dicetalk_jax.cli import main
from dicetalk_jax.parallel.mesh import MeshConfig
from dicetalk_jax.planning.devices import DEVICES, Traffic, expected_traffic, predict, simulated_mesh

PRESET = """
import dataclasses
from dicetalk_jax.weights.architectures import RELEASED, small_conditioning, small_unet
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


def test_what_shardings_send():
  mesh = simulated_mesh(MeshConfig(2, 4, 1), DEVICES["v5e"])

  def shape(sides, *spec):
    return jax.ShapeDtypeStruct(sides, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

  params = {"first": shape((128, 256), "fsdp", None), "second": shape((256, 512), "fsdp", None), "bias": shape((512,))}
  size = 4 * (128 * 256 + 256 * 512)
  gathered, scattered, summed, whole = expected_traffic(params, {}, mesh, 8, passes=3, accumulate=2)
  assert [one.axes for one in (gathered, scattered, summed, whole)] == [
    ("fsdp",),
    ("fsdp",),
    ("data",),
    ("data", "fsdp"),
  ]
  # A ring of n devices sends (n - 1) / n of the whole, and of a sum twice that; all of it for both parts of the step.
  assert gathered.sent == 2 * 3 * size * 3 / 4 and scattered.sent == 2 * size * 3 / 4
  assert summed.sent == 2 * 2 * size / 4 / 2 and whole.sent == 2 * 2 * 4 * 512 * 7 / 8
  assert (gathered.members, summed.members, whole.members, whole.inside) == (4, 2, 8, 8)
  # With two devices a host, the groups of `data`, four places apart, have one device in each host.
  assert [one.inside for one in expected_traffic(params, {}, mesh, 2, passes=1)] == [2, 2, 1, 2]


def test_a_plan_of_shapes(preset):
  settings = ("--set", "mesh.fsdp=1", "batches.batch=4")
  text = preset.read_text().replace("no_such/kernel", "unet/.*/kernel")
  path = preset.with_name("adaptation.py")
  path.write_text(text)
  mesh = ("--mesh", "data=2,fsdp=2,tensor=2")
  done = plan("--config", path, "--stage", "adaptation", *settings, *mesh)
  assert done.returncode == 0, done.stderr
  assert "8 x TPU v5e, data 2 x fsdp 2 x tensor 2; a step of 8 clips in 2 parts" in done.stdout
  assert "all-reduce over tensor (2 devices" in done.stdout and "insides of blocks" in done.stdout
  assert "U-Net: feed-forward" in done.stdout and "bound by" in done.stdout


def test_a_plan_of_a_compiled_step(preset):
  mesh = ("--mesh", "data=2,fsdp=4", "--device", "h100")
  done = plan("--config", preset, "--stage", "embedder", *mesh, "--compile")
  assert done.returncode == 0, done.stderr
  assert "8 x H100 SXM" in done.stdout and "WARNING" not in done.stdout
  table = done.stdout.partition("operations")[0].splitlines()
  rows = {line[:64].strip(): line[64:].split() for line in table if line[64:]}
  # The arguments of the compiled step are the state and the batch, to the last small leaf.
  total, kept, arguments = (
    float(rows[name][0]) for name in ("all", "kept between forward and backward", "compiled: arguments")
  )
  assert rows["compiled: arguments"][1] == "MB" and abs(total - kept - arguments) <= 0.2
  assert float(rows["compiled: temporaries"][0]) > 0
  assert "all-gather over fsdp (4 devices" in done.stdout and "all-reduce over" in done.stdout


def test_times_are_those_of_the_slowest_link():
  kind = DEVICES["h100"]
  # Sixteen devices of two hosts in a ring: what goes between the hosts has all eight ports of each.
  assert Traffic("all-gather", ("fsdp",), 16, 8, 400e9).seconds(kind) == 1
  # One device of each of eight hosts: each has its own port alone.
  assert Traffic("all-reduce", ("data",), 8, 1, 400e9).seconds(kind) == 8
  assert Traffic("all-gather", ("fsdp",), 8, 8, 450e9).seconds(kind) == 1
  step = predict(kind, 989e12, 3350e9, [Traffic("all-gather", ("fsdp",), 8, 8, 450e9)], 0.5)
  assert list(step.values()) == [2, 1, 1, 2, 3, "compute"]


@pytest.mark.parametrize(
  "arguments, said",
  [
    (["--mesh", "data=3"], "cannot be divided over 3 parts"),
    (["--mesh", "data=-1"], "must give the size of each axis"),
    (["--mesh", "rows=2"], "mesh 'rows=2' cannot be read"),
    (["--mesh", "data=2", "--device", "a100x"], "device 'a100x' is unknown"),
    (["--mesh", "data=2", "--efficiency", "2"], "efficiency is 2"),
    (["--mesh", "fsdp=512"], "a slice of TPU v5e has 256 chips at most"),
    (["--mesh", "fsdp=64"], "JAX has started with 8 devices"),
    (["--mesh", "data=2"], "matches none of the"),
  ],
)
def test_what_cannot_be_planned_is_said_in_a_sentence(preset, arguments, said, capfd):
  assert main(["plan", "--config", str(preset), *arguments]) == 1
  error = capfd.readouterr().err
  assert said in error and error.startswith("error: ") and len(error.splitlines()) == 1


def test_a_mesh_of_the_devices_that_jax_has_begun_with():
  mesh = simulated_mesh(MeshConfig(2, 2, 1), DEVICES["v5e"])
  assert mesh.shape == {"data": 2, "fsdp": 2, "tensor": 1} and mesh.devices.flat[0] in jax.devices()
