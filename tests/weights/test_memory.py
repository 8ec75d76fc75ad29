"""Host memory of loading a full-size float16 U-Net, 3 GB, from a weights folder."""

import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dicetalk_jax.weights.architectures import RELEASED
from dicetalk_jax.weights.folder import describe
from dicetalk_jax.weights.networks import network_shapes
from dicetalk_jax.weights.tensors import size_of, write_network

CHILD = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
from dicetalk_jax.parallel.mesh import MeshConfig, make_mesh
from dicetalk_jax.parallel.rules import shardings
from dicetalk_jax.weights.folder import Weights
mesh = make_mesh(MeshConfig(data=1, fsdp=int(sys.argv[2])))
where = lambda shapes: shardings({"unet": shapes}, mesh)["unet"]
params = Weights.open(sys.argv[1]).load("unet", sharding=where if int(sys.argv[2]) > 1 else None)
print(sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_peak_memory_is_at_most_1_3_times_the_network(tmp_path, devices):
  """For one device, and in total for eight CPU devices with fsdp=8; Python and JAX, 0.4 GB, are included."""
  shapes = flatten_dict(network_shapes("unet", RELEASED["unet"]), sep="/")
  shapes = {path: jax.ShapeDtypeStruct(leaf.shape, np.float16) for path, leaf in shapes.items()}
  write_network(tmp_path, "unet", shapes, (np.full(leaf.shape, 0.5, np.float16) for leaf in shapes.values()))
  describe(tmp_path, {"networks": {"unet": RELEASED["unet"]}}, {})
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
  command = [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path), str(devices)]
  run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
  assert run.returncode == 0, run.stderr
  size, peak = int(run.stdout.split()[0]), 1024 * int(run.stdout.split()[1])
  print(f"{devices} devices: {size / 1e9:.2f} GB loaded, peak {peak / 1e9:.2f} GB, {peak / size:.2f} times")
  assert size == size_of(shapes) > 2.9e9
  assert peak <= 1.3 * size, f"{peak / 1e9:.2f} GB for {size / 1e9:.2f} GB"
