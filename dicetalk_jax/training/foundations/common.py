"""What the stages of the release's networks share: where a network starts, and the weights that a run writes."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import flax.linen as nn
import jax
import numpy as np

from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.training.foundations.config import FoundationConfig
from dicetalk_jax.training.loop import Outcome, Status
from dicetalk_jax.training.result import check_sizes, write_result
from dicetalk_jax.training.stage import Stage
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.initial import init_params, network_key
from dicetalk_jax.weights.networks import build

# Decoded frames or spectrograms to keep in memory, in GB.
MEMORY_GB = 1.0
# Clips of a validation, at most, spread over all of the split.
VALIDATION_CLIPS = 64


@dataclasses.dataclass(frozen=True)
class Start:
  """A network before training: its name, its architecture as in config.json, and the weights folder, if any.

  is_new: the weights do not have it, so its parameters are drawn.
  """

  network: str
  architecture: Mapping
  weights: Weights | None
  is_new: bool

  @classmethod
  def of(cls, network: str, architecture: Mapping, config: FoundationConfig) -> "Start":
    """The weights' own network, or else a new one of `architecture`.

    Raises WeightsError for a folder that is missing or damaged, and InputError if a new network would not fit the
    others in the folder.
    """
    weights = Weights.open(config.weights) if config.weights else None
    if weights is not None and network in weights.config["networks"]:
      return cls(network, weights.config["networks"][network], weights, False)
    check_sizes(weights, {network: architecture})
    return cls(network, architecture, weights, True)

  @property
  def module(self) -> nn.Module:
    return build(self.network, self.architecture)

  def params(self, placement: Placement, seed: int) -> dict:
    """Nested parameters on their devices."""
    if self.is_new:
      return init_params(self.network, self.architecture, network_key(self.network, seed), placement.parameters)
    return self.weights.load(self.network, sharding=placement.parameters)

  def finish(
    self, stage: Stage, outcome: Outcome, params: Mapping | None = None, architecture: Mapping | None = None
  ) -> nn.Module:
    """Writes the result of a finished run, `folder`/weights, and returns the network's module.

    params: the trained network, by default the moving average. architecture: if it has changed. Raises OutputError if
    the folder cannot be written.
    """
    architecture = dict(architecture or self.architecture)
    if outcome.status == Status.FINISHED:
      params = jax.device_get(outcome.state.averaged() if params is None else params)
      write_result(stage.folder / "weights", self.weights, {self.network: params}, {self.network: architecture})
    return build(self.network, architecture)


def valid_rows(measure: Callable[[dict], Mapping], batches: Iterable[dict]) -> dict[str, np.ndarray]:
  """measure(batch) -> {name: (b, ...)} of finite batches, joined, without the rows outside batch["valid"]."""
  rows = [{name: np.asarray(of)[batch["valid"]] for name, of in measure(batch).items()} for batch in batches]
  return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
