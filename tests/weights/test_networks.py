"""A network of one's own through the public registry: one row makes it part of weights folders and releases."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from release import small_release, small_weights, variation
from safetensors.numpy import load_file

from dicetalk_jax.weights import networks
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.initial import init_params
from dicetalk_jax.weights.networks import Network, build, network_shapes, register
from dicetalk_jax.weights.release.convert import convert
from dicetalk_jax.weights.release.export import export
from dicetalk_jax.weights.release.layouts import Files
from dicetalk_jax.weights.release.names import LINEAR, Rule, Table


class Gaze(nn.Module):
  """Gaze directions -> tokens."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, gaze):
    return nn.Dense(self.features, dtype=self.dtype, name="proj")(gaze)


ROW = Network(
  "gaze",
  Gaze,
  Table("gaze", (Rule("{module}.weight", "{module}/kernel", LINEAR), Rule("{module}.bias", "{module}/bias"))),
  inputs=lambda module, config: {"gaze": (1, 2)},
  files={"dicetalk": Files("DICE-Talk/gaze.safetensors", config="DICE-Talk/gaze.json", config_required=True)},
  published=False,
)


@pytest.fixture
def registered():
  register(ROW)
  yield ROW
  del networks.NETWORKS["gaze"]


def test_a_registered_network_is_built_saved_loaded_exported_and_converted(registered, tmp_path_factory, tmp_path):
  config = {"features": 5}
  variables = {"params": init_params("gaze", config, jax.random.key(0))}
  assert build("gaze", config).apply(variables, jnp.ones((3, 2))).shape == (3, 5)
  assert network_shapes("gaze", config)["proj"]["kernel"].shape == (2, 5)

  params = {"proj": {"kernel": np.arange(10, dtype=np.float16).reshape(2, 5), "bias": np.ones(5, np.float16)}}
  small = Weights.open(small_weights(tmp_path_factory))
  weights = small.derive(tmp_path / "weights", {"gaze": params}, {"gaze": config})
  jax.tree.map(np.testing.assert_array_equal, weights.load("gaze"), params)
  assert "gaze" in str(weights.info())

  assert "DICE-Talk/gaze.safetensors" in export(weights.folder, tmp_path / "released")
  state = load_file(tmp_path / "released" / "DICE-Talk" / "gaze.safetensors")
  np.testing.assert_array_equal(state["proj.weight"], params["proj"]["kernel"].T)
  source = variation(small_release(tmp_path_factory), tmp_path / "source")
  for name in ("gaze.safetensors", "gaze.json"):
    (tmp_path / "released" / "DICE-Talk" / name).rename(source / "DICE-Talk" / name)
  again = convert(source, tmp_path / "again", slim=True)
  assert again.config["networks"]["gaze"] == config
  assert {path: leaf.dtype.name for path, leaf in flatten_dict(again.load("gaze"), sep="/").items()} == {
    "proj/kernel": "float16",
    "proj/bias": "float16",
  }
  jax.tree.map(np.testing.assert_array_equal, again.load("gaze"), params)


def test_a_name_is_registered_once(registered):
  with pytest.raises(ValueError, match="'gaze' is already registered"):
    register(ROW)
