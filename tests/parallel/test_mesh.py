"""The mesh, what a process reads of a batch, and which rule decides where a parameter lies."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from dicetalk_jax.errors import InputError
from dicetalk_jax.parallel.mesh import (
  MeshConfig,
  batch_sharding,
  batch_share,
  check_batch_size,
  make_mesh,
  place_batch,
  to_host,
)
from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.parallel.rules import RULES, SMALLEST, check_rules, shardings, spec_of
from dicetalk_jax.training.state import TrainState
from dicetalk_jax.weights.architectures import RELEASED
from dicetalk_jax.weights.networks import network_shapes

FULL_SIZE = {
  f"{name}/{path}": leaf.shape
  for name in ("unet", "audio_projection", "emotion_model", "pose_guider", "emotion_embedder")
  for path, leaf in flatten_dict(network_shapes(name, RELEASED[name]), sep="/").items()
}


@pytest.mark.parametrize(
  "config, sizes",
  [
    (MeshConfig(), (8, 1, 1)),
    (MeshConfig(1, -1, 1), (1, 8, 1)),
    (MeshConfig(-1, 2, 2), (2, 2, 2)),
    (MeshConfig(1, 1, 1), (1, 1, 1)),
    (MeshConfig.parse("data=2, fsdp=4"), (2, 4, 1)),
    (MeshConfig.parse("tensor=8"), (1, 1, 8)),
    (MeshConfig.parse("fsdp=-1"), (1, 8, 1)),
  ],
)
def test_a_mesh_takes_devices(config, sizes):
  assert tuple(make_mesh(config).shape.values()) == sizes


@pytest.mark.parametrize(
  "config, words",
  [
    (MeshConfig(3), "3 devices do not divide the 8"),
    (MeshConfig(-1, 3), "3 devices do not divide the 8"),
    (MeshConfig(16), "16 devices do not divide the 8"),
    (MeshConfig(-1, -1), "is not possible"),
    (MeshConfig(0), "is not possible"),
    ("data", "'data' cannot be read"),
    ("date=8", "'date=8' cannot be read"),
    ("data=two", "'data=two' cannot be read"),
  ],
)
def test_a_mesh_that_does_not_fit(config, words):
  with pytest.raises(InputError, match=words):
    make_mesh(MeshConfig.parse(config) if isinstance(config, str) else config)


def test_a_batch_that_does_not_fit():
  mesh = make_mesh(MeshConfig(2, 4))
  check_batch_size(mesh, 16, "clips")
  with pytest.raises(InputError, match="a batch of 12 clips cannot be divided over 8 parts"):
    check_batch_size(mesh, 12, "clips")


@pytest.mark.parametrize("leading", [0, 1])
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_a_batch_lies_over_data_and_fsdp_in_order(sizes, leading):
  mesh = make_mesh(MeshConfig(*sizes))
  assert batch_share(mesh) == (0, 1)
  batch = {"x": np.arange(48).reshape(3, 16) if leading else np.arange(16), "y": np.ones((3, 16, 2)[1 - leading :])}
  placed = place_batch(mesh, batch, leading)
  for name, array in batch.items():
    np.testing.assert_array_equal(to_host(placed[name]), array)
    assert placed[name].sharding.is_equivalent_to(batch_sharding(mesh, leading), array.ndim)
    assert placed[name].addressable_shards[0].data.shape[leading] == 16 // (sizes[0] * sizes[1])


def test_every_large_parameter_has_a_rule_and_every_rule_a_parameter():
  decided = {}
  for path, shape in FULL_SIZE.items():
    rule = next(rule for rule in RULES if re.search(rule[0], path))
    decided.setdefault(rule, []).append((math.prod(shape), path))
  assert decided.keys() == set(RULES)
  default = [of for of in decided[RULES[-1]] if of[0] >= SMALLEST]
  assert all("queries" in path or "query" in path for _, path in default), default


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 64, 1), (8, 8, 8), (2, 16, 4)])
def test_parameters_are_split_evenly_over_fsdp(sizes):
  mesh = jax.sharding.AbstractMesh(sizes, ("data", "fsdp", "tensor"))
  held = total = 0
  for path, shape in FULL_SIZE.items():
    spec = spec_of(path, shape, mesh)
    for axis, dim in zip(spec, shape, strict=False):
      assert axis is None or dim % mesh.shape[axis] == 0, (path, shape, spec)
    held += math.prod(shape) / math.prod(mesh.shape[axis] for axis in spec if axis)
    total += math.prod(shape)
  # What is too small to be split, or has no dimension that divides, is a hundredth at most.
  assert held / total < 1.05 / sizes[1] + 0.01


def test_specs():
  mesh = jax.sharding.AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"))
  assert spec_of("unet/a/attn1/to_q/kernel", (64, 128), mesh) == P("fsdp", "tensor")
  assert spec_of("unet/a/attn1/to_out_0/kernel", (64, 128), mesh) == P("tensor", "fsdp")
  assert spec_of("unet/a/conv1/kernel", (3, 3, 64, 128), mesh) == P(None, None, "fsdp", "tensor")
  # 6 inputs cannot be split in four: the outputs are.
  assert spec_of("unet/conv_in/kernel", (3, 3, 6, 320), mesh) == P(None, None, None, "fsdp")
  assert spec_of("unet/a/norm/scale", (64,), mesh) == P()
  assert spec_of("unet/a/to_q/kernel", (8, 8), mesh) == P()
  assert spec_of("unet/a/to_q/kernel", (64, 128), mesh, ((r"to_q", (None, "fsdp")), *RULES)) == P(None, "fsdp")
  assert spec_of("unet/a/to_q/kernel", (63, 129), mesh) == P(None, None)


def test_optimizer_and_average_lie_beside_their_parameters():
  placement = Placement(make_mesh(MeshConfig(1, 8)))
  params = {"a": {"kernel": jnp.ones((64, 128))}, "b": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}}
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
  state, where = placement.state(
    lambda params: TrainState.create(params, optimizer, jax.random.key(0)), params, params=params
  )
  kernels = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (64, 128)]
  assert len(kernels) == 4  # parameter, two moments, average
  assert all(leaf.addressable_shards[0].data.shape == (8, 128) for leaf in kernels)
  assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state) if leaf.shape != (64, 128))
  jax.tree.map(lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim), state, where)


@pytest.mark.parametrize(
  "rule, words",
  [
    ((r"to_z/kernel$", ("fsdp",)), "matches none of the 2 parameters, such as 'a/kernel'"),
    ((r"(", ("fsdp",)), "is not a regular expression"),
    ((r"kernel", ("model", None)), "names axis 'model'"),
    ((r"kernel", ("fsdp", "fsdp")), "names one axis twice"),
    ((r"", ("fsdp", None)), "names 2 dimensions, and 'a/bias' has 1"),
  ],
)
def test_rules_that_cannot_be_meant(rule, words):
  with pytest.raises(InputError, match=words):
    check_rules([rule], {"a/kernel": (4, 4), "a/bias": (4,)})


def test_rules_of_a_configuration_are_asked_first():
  mesh = make_mesh(MeshConfig(1, 8))
  found = shardings({"a": {"kernel": jnp.ones((64, 128))}}, mesh, [(r"^a/kernel$", (None, "fsdp"))])
  assert found["a"]["kernel"].spec == P(None, "fsdp")
