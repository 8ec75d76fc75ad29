"""Where a run keeps things: its mesh, its share of the data, the shardings of its state."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from dicetalk_jax.parallel.mesh import (
  MeshConfig,
  batch_share,
  check_batch_size,
  make_mesh,
  place_batch,
)
from dicetalk_jax.parallel.rules import Rule, check_rules, path_name, shardings, shardings_like


@dataclasses.dataclass(frozen=True)
class Placement:
  """A mesh and the sharding rules of parameters."""

  mesh: Mesh
  rules: Sequence[Rule] = ()

  @classmethod
  def of(cls, config: MeshConfig, rows: int, what: str) -> "Placement":
    """On the devices of all hosts; InputError if the mesh does not fit them, or a batch of `rows` (`what`)."""
    placement = cls(make_mesh(config), config.rules)
    check_batch_size(placement.mesh, rows, what)
    return placement

  @classmethod
  def alone(cls) -> "Placement":
    """On this process's first device."""
    return cls(make_mesh(MeshConfig(1, 1, 1), jax.local_devices()[:1]))

  @functools.cached_property
  def share(self) -> dict[str, int]:
    """This process's share of every batch, as arguments of the batch functions."""
    index, count = batch_share(self.mesh)
    return {"process_index": index, "process_count": count}

  def place(self, batch: Mapping, leading: int = 0) -> dict[str, jax.Array]:
    """Makes global arrays from this process's rows: `mesh.place_batch`."""
    return place_batch(self.mesh, batch, leading)

  def parameters(self, shapes: Any) -> Any:
    """Shardings of nested parameters."""
    return shardings(shapes, self.mesh, self.rules)

  def check(self, shapes: Any) -> None:
    """Raises InputError for rules that cannot apply to `shapes`, all parameters of the run."""
    leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
    check_rules(self.rules, {path_name(path): leaf.shape for path, leaf in leaves})

  def state(self, create: Callable[..., Any], *inputs, params: Any) -> tuple[Any, Any]:
    """Compiles and calls create(*inputs), each leaf directly on its devices; returns (state, its shardings).

    params: nested parameters or their shapes. Leaves of the state whose paths end in theirs get their shardings.
    """
    of_params = self.parameters(params)
    where = shardings_like(jax.eval_shape(create, *inputs), params, of_params, self.mesh)
    return jax.jit(create, out_shardings=where)(*inputs), where
