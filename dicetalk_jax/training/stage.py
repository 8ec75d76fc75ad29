"""What every training stage does: open the data, agree with the other hosts, train on the loop.

A stage is a configuration, batches, initial parameters and a loss; then a validation and a result. `train_embedder`,
`train_adaptation` and the stages of `foundations` define these and leave the rest to `Stage`.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from dicetalk_jax.data.batches.sampling import Batches
from dicetalk_jax.errors import InputError
from dicetalk_jax.parallel.flops import peak_flops
from dicetalk_jax.parallel.hosts import check_agreement
from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.training.checkpoints import show
from dicetalk_jax.training.config import StageConfig
from dicetalk_jax.training.events import EventLog
from dicetalk_jax.training.loop import Outcome, Status, Work, check_loop, train
from dicetalk_jax.training.optimizer import make_optimizer, make_schedule
from dicetalk_jax.training.result import check_sizes, write_result
from dicetalk_jax.training.state import TrainState, merge
from dicetalk_jax.training.step import LossFn, Step, make_step
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.initial import init_params, network_key
from dicetalk_jax.weights.networks import build

Validate = Callable[[TrainState, EventLog], Mapping[str, float]]


class Stage:
  """A run of one stage: its folder, devices and training batches. Use it as a context manager, which closes the data.

  Every `train_*` function takes the listeners below as keyword arguments and passes them on.

  Args:
    config: settings of the stage.
    batches: opens the data, such as a partial `embedder_batches`; called with `workers`, `process_index` and
      `process_count`, and for validation with `split` and `training=False`.
    rows: rows of a global batch; `unit` names them in errors.
    folder: run folder, by default `config.out`.
    report: called with (step, metrics) after every step.
    progress: called with (what, done, total); what is "compile" before the first step, then "train".
    warn: called with a message.
    validated: called with (step, scalars) after every validation.

  Raises InputError for settings that cannot be used, data that cannot be read, a batch that cannot be split over the
  devices, and hosts with different configurations or data.
  """

  def __init__(
    self,
    config: StageConfig,
    batches: Callable[..., Batches],
    rows: int,
    unit: str = "clips",
    *,
    folder: str | os.PathLike | None = None,
    report: Callable[[int, dict[str, float]], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    warn: Callable[[str], None] = show,
    validated: Callable[[int, Mapping[str, float]], None] | None = None,
  ):
    check_loop(config.loop)
    self.config, self.folder = config, pathlib.Path(folder or config.out).expanduser()
    self.report, self.progress, self.warn, self.validated = report, progress, warn, validated
    make_optimizer(config.optimizer, config.loop.steps)  # raises for settings that cannot be used
    self.placement = Placement.of(config.mesh, rows, unit)
    self._open = batches
    self.batches = batches(workers=config.workers, **self.placement.share)
    check_agreement({"configuration": dataclasses.asdict(config), "data": self.batches.source.fingerprint})

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.batches.close()

  @property
  def example(self) -> dict:
    """The first batch: this process's rows."""
    return self.batches.source[0]

  def held_out(self, **options) -> Batches | None:
    """Finite batches of the validation split; None, with a warning, where the data has none."""
    try:
      return self._open(split=self.config.validation_split, training=False, **self.placement.share | options)
    except InputError as error:
      self.warn(f"Training continues without validation: {error}.")
      return None

  def validation(
    self, measure: Callable[[TrainState, Batches, EventLog], Mapping[str, float]], **options
  ) -> Validate | None:
    """validate(state, log) that returns measure(state, held-out batches, log); None if there are none."""
    held_out = self.held_out(**options)

    def validate(state, log):
      with held_out:
        return measure(state, held_out, log)

    return validate if held_out else None

  def train(
    self,
    loss: LossFn,
    params: Mapping,
    frozen: Mapping | None = None,
    *,
    frames: int,
    validate: Validate | None = None,
    flops: float = 0.0,
    dtype: jnp.dtype = jnp.float32,
  ) -> Outcome:
    """Trains `params`, or continues the run in `self.folder`: see `loop.train`.

    frozen: parameters that do not train; the two have no leaf in common. frames: video frames of a global batch.
    validate(state, log) returns scalars. flops: model operations of a global batch, and `dtype`, in which they are
    computed, for the logged utilisation.
    """
    state, where = initial_state(params, frozen or {}, self.config, self.placement)
    del params, frozen
    step = step_of(self.config, loss, where)

    def measure(state, log):
      scalars = validate(state, log)
      if self.validated:
        self.validated(int(state.step), scalars)
      return scalars

    times = self.config.optimizer.accumulate
    return train(
      state,
      step,
      self.batches,
      self.config.loop,
      self.folder,
      accumulate=times,
      place=lambda batch: self.placement.place(batch, leading=int(times > 1)),
      validate=measure if validate else None,
      work=Work(times * frames, times * flops, jax.process_count() * peak_flops(dtype) if flops else 0.0),
      report=self.report,
      progress=self.progress,
      warn=self.warn,
    )


def initial_state(
  params: Mapping, frozen: Mapping, config: StageConfig, placement: Placement
) -> tuple[TrainState, TrainState]:
  """The state before the first step, each leaf where it belongs on the mesh, and the shardings of all but `frozen`.

  params: nested parameters that train, copied as float32. frozen: the others, used as they are. Raises InputError for
  mesh rules that fit no parameter.
  """
  placement.check(merge(params, frozen))
  state, where = placement.state(state_maker(config), params, params=params)
  return state.replace(frozen=frozen), where


def state_maker(config: StageConfig) -> Callable[[Mapping], TrainState]:
  """Makes create(params): the state before the first step, without frozen parameters."""
  optimizer = make_optimizer(config.optimizer, config.loop.steps)
  key = jax.random.fold_in(jax.random.key(config.loop.seed), 1)
  ema = config.optimizer.ema_decay > 0
  return lambda params: TrainState.create(params, optimizer, key, ema=ema).replace(frozen=None)


def step_of(config: StageConfig, loss: LossFn, where: TrainState) -> Step:
  """The step of a stage; where: the shardings of its state, `frozen` None."""
  optimizer, steps = config.optimizer, config.loop.steps
  update, schedule = make_optimizer(optimizer, steps), make_schedule(optimizer, steps)
  return make_step(loss, update, schedule, optimizer.ema_decay, optimizer.accumulate, where)


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
  def of(cls, network: str, architecture: Mapping, config: StageConfig) -> "Start":
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
    self,
    stage: Stage,
    outcome: Outcome,
    params: Mapping | None = None,
    architecture: Mapping | None = None,
    facts: Mapping | None = None,
  ) -> nn.Module:
    """Writes the result of a finished run, `folder`/weights, and returns the network's module.

    params: the trained network, by default the moving average. architecture: if it has changed. facts: the network's
    own entry in config.json, such as the frames that it saw. Raises OutputError if the folder cannot be written.
    """
    architecture = dict(architecture or self.architecture)
    if outcome.status == Status.FINISHED:
      networks = {self.network: outcome.state.averaged() if params is None else params}
      facts = {self.network: facts} if facts else None
      write_result(stage.folder / "weights", self.weights, networks, {self.network: architecture}, facts)
    return build(self.network, architecture)
