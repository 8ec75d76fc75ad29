"""Both stages on eight devices, however they are arranged: the same losses, and parameters in parts."""

import jax
import pytest
from conftest import quick_compilation
from flax.traverse_util import flatten_dict
from parallel import small_runs

from dicetalk_jax.errors import InputError
from dicetalk_jax.parallel.mesh import MeshConfig
from dicetalk_jax.weights.folder import Weights

MESHES = [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 8, 1)]


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly(tmp_path_factory):
  with quick_compilation(tmp_path_factory.mktemp("cache")):
    yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("made")
  small_runs.write_data(folder / "data")
  small_runs.write_weights(folder / "weights")
  return folder


def trained(stage, made, folder, mesh, steps, settings=()):
  losses = []
  config = small_runs.configuration(stage, made / "data", made / "weights", MeshConfig(*mesh), steps, settings)
  _, outcome = small_runs.train(stage, config, folder, lambda step, metrics: losses.append(metrics["loss"]))
  return losses, outcome.state


def bytes_of_a_device(tree):
  device = jax.devices()[0]
  shards = (shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards if shard.device == device)
  return sum(shard.data.nbytes for shard in shards)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["embedder", "adaptation"])
def test_every_mesh_gives_the_same_losses(stage, made, tmp_path):
  expected, state = trained(stage, made, tmp_path / "one", (1, 1, 1), 10)
  whole = bytes_of_a_device((state.params, state.opt_state, state.ema))
  assert len(expected) == 10
  for mesh in MESHES:
    losses, state = trained(stage, made, tmp_path / str(mesh), mesh, 10)
    assert losses == pytest.approx(expected, rel=1e-4), mesh
    held = bytes_of_a_device((state.params, state.opt_state, state.ema))
    # A few per cent are too small to be split.
    assert whole / mesh[1] * 0.5 < held < whole / mesh[1] + 0.05 * whole, mesh


def test_parameters_in_parts_train_as_whole_ones(made, tmp_path):
  expected, _ = trained("embedder", made, tmp_path / "one", (1, 1, 1), 3)
  losses, state = trained("embedder", made, tmp_path / "parts", (2, 2, 2), 3)
  assert losses == pytest.approx(expected, rel=1e-4)
  (kernel,) = [
    leaf for path, leaf in flatten_dict(state.params, sep="/").items() if path == "audio/layers_0/linear1/kernel"
  ]
  assert kernel.addressable_shards[0].data.size == kernel.size / 4
  # What it leaves is whole again.
  saved = Weights.open(tmp_path / "parts" / "weights").load("emotion_embedder")
  averaged = flatten_dict(state.averaged(), sep="/")
  for path, leaf in flatten_dict(saved, sep="/").items():
    assert (jax.device_get(averaged[path]) == leaf).all(), path


@pytest.mark.parametrize(
  "mesh, settings, words",
  [
    ((3, 1, 1), (), "3 devices do not divide the 8"),
    ((8, 1, 1), ("batches.groups=6",), "a batch of 12 clips cannot be divided over 8 parts"),
  ],
)
def test_what_does_not_fit(mesh, settings, words, made, tmp_path):
  with pytest.raises(InputError, match=words):
    trained("embedder", made, tmp_path, mesh, 3, settings)
