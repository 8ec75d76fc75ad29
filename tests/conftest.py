"""Golden outputs and stand-in weights, as tests/golden/README.md describes them."""

import contextlib
import gc
import json
import os
import pathlib
import signal
import sys
import tempfile
import zlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  # What takes a second or more to compile is compiled once a run, for all its processes and theirs.
  compiled = tempfile.TemporaryDirectory(prefix="dicetalk_tests_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

GOLDEN = pathlib.Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
sys.path.insert(0, str(GOLDEN.parent))
sys.path.insert(0, str(GOLDEN.parents[1] / "benchmarks"))

# A shell starts background commands with Ctrl-C ignored, and its children inherit that; tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")

# Tracing allocates many objects and few cycles: with the default thresholds, garbage collection slows it down.
gc.set_threshold(50_000, 20, 50)


def draw(name, shape):
  """The golden inputs: in(name, shape) of golden/README.md, in PyTorch's layout."""
  generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"in1:{name}".encode())))
  return generator.standard_normal(shape, dtype=np.float32)


def stand_in(network, seed=0):
  """Stand-in state_dict of a network of manifests.json: name -> float32 array."""
  import weights

  return {name: weights.tensor(name, tuple(shape), seed) for name, shape in manifest(network).items()}


def manifest(network):
  return json.loads((GOLDEN / "manifests.json").read_text())[network]


def config_json(part, size="tiny"):
  configs = json.loads((GOLDEN / "configs.json").read_text())
  return configs[size][part] if part in configs[size] else configs[part]


def golden(name):
  with np.load(GOLDEN / f"{name}.npz") as stored:
    return dict(stored)


def relative_error(ours, reference):
  """‖ours − reference‖ / ‖reference‖ in float64."""
  ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
  assert ours.shape == reference.shape, (ours.shape, reference.shape)
  return np.linalg.norm(ours - reference) / np.linalg.norm(reference)


@contextlib.contextmanager
def quick_compilation(cache=None):
  """Programs that run a few times are not made fast; those that `cache`, a folder, has are not made again."""
  settings = {"jax_disable_most_optimizations": True}
  if cache:
    settings |= {"jax_compilation_cache_dir": str(cache), "jax_persistent_cache_min_compile_time_secs": 0.0}
  before = {name: jax.config.values[name] for name in settings}
  try:
    for name, value in settings.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def examples():
  """Real portraits and speech, where a checkout has them beside it."""
  folder = pathlib.Path(__file__).parents[2] / "shared" / "examples"
  if not folder.is_dir():
    pytest.skip("no real examples beside the checkout")
  return folder
