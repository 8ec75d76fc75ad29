"""What training the release's networks from nothing has in common: where each begins, and what its end leaves."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax

from dicetalk_jax.errors import InputError
from dicetalk_jax.training.config import LoopConfig, OptimizerConfig
from dicetalk_jax.training.events import EventLog
from dicetalk_jax.training.loop import Data, Outcome, Status, Work, train
from dicetalk_jax.training.optimizer import make_optimizer, make_schedule
from dicetalk_jax.training.result import write_result
from dicetalk_jax.training.state import TrainState
from dicetalk_jax.training.step import LossFn, make_step
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.initial import init_params, network_key
from dicetalk_jax.weights.networks import build


@dataclasses.dataclass(frozen=True)
class Beginning:
  """A network as a stage finds it: its name in a weights folder, architecture and nested parameters.

  weights: the folder, None where there is none yet; is_new: the parameters are drawn, not of that folder.
  """

  network: str
  architecture: Mapping
  params: Mapping
  weights: Weights | None
  is_new: bool

  @property
  def module(self) -> nn.Module:
    return build(self.network, self.architecture)


def begin(network: str, architecture: Mapping, weights: str | os.PathLike, seed: int) -> Beginning:
  """The network of a weights folder; where it has none, or there is no folder, a new one of `architecture`.

  Raises WeightsError for a folder that is none or damaged, and for an architecture that is none.
  """
  opened = Weights.open(weights) if weights else None
  if opened is not None and network in opened.config["networks"]:
    return Beginning(network, opened.config["networks"][network], opened.load(network), opened, False)
  params = init_params(network, architecture, network_key(network, seed))
  return Beginning(network, architecture, params, opened, True)


def fit(
  params: Mapping,
  loss_fn: LossFn,
  batches: Data,
  optimizer_config: OptimizerConfig,
  loop: LoopConfig,
  folder: str | os.PathLike,
  *,
  frames: int,
  trainable: str | Sequence[str] = "",
  **options,
) -> Outcome:
  """Trains `params` on the loop: `loop.train`, to which `options` go, with what every stage gives it in the same way.

  frames: that a batch holds; trainable: as of `state.split`.
  """
  optimizer = make_optimizer(optimizer_config, loop.steps)
  key = jax.random.fold_in(jax.random.key(loop.seed), 1)
  state = TrainState.create(params, optimizer, key, trainable, ema=optimizer_config.ema_decay > 0)
  step_fn = make_step(
    loss_fn,
    optimizer,
    make_schedule(optimizer_config, loop.steps),
    optimizer_config.ema_decay,
    optimizer_config.accumulate,
  )
  return train(
    state,
    step_fn,
    batches,
    loop,
    folder,
    accumulate=optimizer_config.accumulate,
    work=Work(frames=frames * optimizer_config.accumulate),
    **options,
  )


def finish(
  beginning: Beginning,
  outcome: Outcome,
  params: Mapping,
  folder: pathlib.Path,
  architecture: Mapping | None = None,
) -> nn.Module:
  """Writes `folder`/weights, where training has come to its end, and gives the network's module.

  It is the folder that training began with, this network in its place. architecture: where it has changed. Raises
  OutputError where it cannot be written.
  """
  network, architecture = beginning.network, dict(architecture or beginning.architecture)
  if outcome.status == Status.FINISHED:
    params = jax.device_get(params)
    write_result(folder / "weights", beginning.weights, {network: params}, {network: architecture})
  return build(network, architecture)


def validation(
  batches: Data | None,
  evaluate: Callable[[TrainState, EventLog], Mapping[str, float]],
  validated: Callable[[int, Mapping[str, float]], None] | None,
) -> Callable | None:
  """`validate` of `loop.train`: evaluate(state, log) while finite `batches` are open; None where there are none."""
  if batches is None:
    return None

  def validate(state, log):
    with batches:
      scalars = evaluate(state, log)
    if validated:
      validated(int(state.step), scalars)
    return scalars

  return validate


def held_out(make: Callable[[], Data], warn: Callable[[str], None]) -> Data | None:
  """make(), or None, told to `warn`, where the data has no clips or people to validate on."""
  try:
    return make()
  except InputError as error:
    warn(f"Training goes on without validation: {error}.")
    return None


def check_weights(config, names: tuple[str, ...]) -> None:
  """InputError where a loss's weight, a field of `config`, is below 0."""
  for name in names:
    if (value := getattr(config, name)) < 0:
      raise InputError(f"{name} is {value}, wanted a number of at least 0")


def check_downscale(size: tuple[int, int], downscale: int, where: str = "frames") -> None:
  """InputError where a height or width is no multiple of what the VAE makes one latent of."""
  height, width = size
  if height % downscale or width % downscale:
    raise InputError(
      f"{where} of {width}x{height} pixels cannot be encoded: both must be multiples of {downscale}; build the set at "
      "another size, or cut a square with batches.crop"
    )
