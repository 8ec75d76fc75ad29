"""Stage 2: the compositional adaptation of the diffusion model to speech and emotion (§3.3, §4.1, Eq. 14-17)."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.data.batches.diffusion import diffusion_batches
from dicetalk_jax.errors import InputError
from dicetalk_jax.parallel.flops import Flops, count_flops, peak_flops
from dicetalk_jax.parallel.hosts import check_agreement
from dicetalk_jax.parallel.mesh import to_host
from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.training.adaptation_loss import ObjectiveConfig, objective
from dicetalk_jax.training.checkpoints import show
from dicetalk_jax.training.config import AdaptationConfig
from dicetalk_jax.training.loop import Outcome, Status, Work, train
from dicetalk_jax.training.networks import (
  Setup,
  check_batch,
  check_trained,
  load_params,
  set_up,
  trainable_patterns,
)
from dicetalk_jax.training.optimizer import make_optimizer, make_schedule
from dicetalk_jax.training.result import write_result
from dicetalk_jax.training.samples import SampleWriter, prior_means
from dicetalk_jax.training.state import TrainState, merge, split
from dicetalk_jax.training.step import LossFn, make_step

# What a model that obeys denoises worse with another clip's: the share by which the loss rises.
_EXCHANGED = {
  "other_emotion": ("expression", "expression_mask", "speech", "speech_mask"),
  "other_speech": ("audio",),
}
# Batches from which the codes of a new emotion bank begin.
_BANK_BATCHES = 64


def train_adaptation(
  config: AdaptationConfig,
  folder: str | os.PathLike | None = None,
  report: Callable[[int, dict[str, float]], None] | None = None,
  progress: Callable[[str, int, int], None] | None = None,
  warn: Callable[[str], None] = show,
  validated: Callable[[int, Mapping[str, float]], None] | None = None,
) -> tuple[Setup, Outcome]:
  """Trains in `folder`, by default `config.out`, or goes on where an earlier run of it ended; see `loop.train`.

  A run that has finished leaves `folder`/weights: a weights folder with the average of what trained in the place of
  what it was, and everything else as it was. validated(step, scalars) is called after each validation. Raises what
  `loop.train`, `diffusion_batches` and `set_up` raise.
  """
  folder = pathlib.Path(folder or config.out).expanduser()
  setup = set_up(config)
  loop, optimizer_config = config.loop, config.optimizer
  placement = Placement.of(config.mesh, config.batches.batch, "clips")
  options = dict(emotional=config.emotional, regular=config.regular, config=config.batches, seed=loop.seed)
  with diffusion_batches(workers=config.workers, **options, **placement.share) as batches:
    check_agreement({"configuration": dataclasses.asdict(config), "data": batches.source.fingerprint})
    example = batches.source[0]
    check_batch(setup, example, config)
    _tell_of_windows(setup, config, warn)
    optimizer = make_optimizer(optimizer_config, loop.steps)
    # The codes of a new bank begin at the same priors on every host.
    alone = placement.share["process_count"] == 1
    whole = batches.source if alone else diffusion_batches(**options).source
    state, where = initial_state(setup, config, optimizer, placement, whole)
    loss_fn = adaptation_loss(setup, config.objective)
    step_fn = make_step(
      loss_fn,
      optimizer,
      make_schedule(optimizer_config, loop.steps),
      optimizer_config.ema_decay,
      optimizer_config.accumulate,
      where,
    )
    accumulate = optimizer_config.accumulate
    outcome = train(
      state,
      step_fn,
      batches,
      loop,
      folder,
      accumulate=accumulate,
      place=lambda batch: placement.place(batch, leading=int(accumulate > 1)),
      validate=_validation(setup, config, options, placement, folder, warn, validated),
      work=_work(setup, config, state, whole[0]),
      report=report,
      progress=progress,
      warn=warn,
    )
  if outcome.status == Status.FINISHED:
    save_weights(setup, outcome.state, folder / "weights", placement)
  return setup, outcome


def adaptation_loss(setup: Setup, config: ObjectiveConfig, training: bool = True) -> LossFn:
  """`objective` for `make_step`: loss_fn(params, batch, key) -> (loss, metrics)."""

  def loss_fn(params, batch, key):
    return objective(
      setup.modules, config, setup.scaling_factor, params, batch, key, training, setup.downscale, setup.conditions
    )

  return loss_fn


def initial_state(
  setup: Setup, config: AdaptationConfig, optimizer, placement: Placement | None = None, source=None
) -> tuple[TrainState, TrainState]:
  """The state before the first step, each leaf straight where it belongs, and the shardings of all but frozen leaves.

  What trains is float32, the frozen U-Net of `setup.dtype`. placement: this process's first device where none is given.
  source: of whole batches; the codes of a new emotion bank begin at priors of its clips, so that none lies where no
  prior ever comes. Raises InputError for `config.trainable` that names nothing, or the emotion embedder, and for rules
  of `config.mesh` that cannot be meant.
  """
  placement = placement or Placement.alone()
  placement.check(setup.shapes)
  params = load_params(setup, config.loop.seed, placement)
  if "emotion_model" in setup.missing and config.conditioning == "bank" and source is not None:
    params["emotion_model"] = with_codes_of(setup, params, source)
  trained, frozen = split(params, trainable_patterns(config))
  check_trained(trained, setup)
  del params
  if "unet" in frozen:
    frozen["unet"] = jax.tree.map(lambda leaf: leaf.astype(setup.dtype), frozen["unet"])
  key = jax.random.fold_in(jax.random.key(config.loop.seed), 1)

  def create(params):
    return TrainState.create(params, optimizer, key, ema=config.optimizer.ema_decay > 0).replace(frozen=None)

  state, where = placement.state(create, trained, params=trained)
  return state.replace(frozen=frozen), where


def with_codes_of(setup: Setup, params: Mapping, source) -> dict:
  """The emotion model's parameters with codes where priors of the data are projected to (Eq. 9)."""
  emotion_model = params["emotion_model"]
  codes = emotion_model["codebook"]["codebook"]["embedding"]
  priors = []
  for i in range(_BANK_BATCHES):
    priors.append(prior_means(setup.modules, params, source[i]))
    if sum(map(len, priors)) >= len(codes):
      break
  fc = to_host(emotion_model["codebook"]["fc"])
  z = np.concatenate(priors)[: len(codes)] @ fc["kernel"] + fc["bias"]
  # Where there are fewer clips than codes they are gone through again, a little apart.
  spread = 0.1 * z.std() * jax.random.normal(jax.random.key(0), codes.shape)
  begun = jnp.resize(z, codes.shape) + jnp.where(jnp.arange(len(codes))[:, None] < len(z), 0, spread)
  codes = jax.device_put(np.asarray(begun, codes.dtype), codes.sharding)
  return emotion_model | {"codebook": emotion_model["codebook"] | {"codebook": {"embedding": codes}}}


def save_weights(
  setup: Setup, state: TrainState, folder: str | os.PathLike, placement: Placement | None = None
) -> None:
  """Writes the weights folder of a run: the average of what trained, and all else bit for bit as it was in the weights.

  What was frozen is not taken from `state`, which may hold it in a shorter dtype. placement: of the state, where it is
  over several processes. Raises OutputError where it cannot be written.
  """
  trained, networks = flatten_dict(state.params if state.ema is None else state.ema, sep="/"), {}
  for name, shapes in setup.shapes.items():
    if name not in setup.learning:
      continue
    ours = flatten_dict(shapes, sep="/")
    held = set() if name in setup.missing else set(setup.weights.tensors(name).shapes)
    learnt = {path: trained[f"{name}/{path}"] for path in ours if f"{name}/{path}" in trained}
    if not learnt and held == ours.keys():
      continue
    given = flatten_dict(_given(setup, name, placement), sep="/") if held else {}
    drawn = flatten_dict(state.frozen.get(name, {}), sep="/")
    networks[name] = unflatten_dict(
      {path: next(of[path] for of in (learnt, given, drawn) if path in of) for path in ours}, sep="/"
    )
  write_result(folder, setup.weights, networks, {name: setup.architectures[name] for name in setup.learning})


def _given(setup, name, placement):
  """A network as the weights have it: on this host, or, where there are several, in parts on all of them."""
  if jax.process_count() == 1:
    return setup.weights.arrays(name)
  return setup.weights.load(name, sharding=lambda shapes: placement.parameters({name: shapes})[name])


def training_flops(setup, objective_config, params, frozen, batch) -> Flops:
  """The model's operations in a step of the adaptation: forward, and backward to what trains, nothing computed twice.

  params, frozen, batch: arrays or their shapes.
  """

  unet = setup.modules["unet"].clone(remat=False, remat_policy=None)
  loss_fn = adaptation_loss(dataclasses.replace(setup, modules=setup.modules | {"unet": unet}), objective_config)

  def step(params, frozen, batch, key):
    return jax.grad(lambda params: loss_fn(merge(params, frozen), batch, key)[0])(params)

  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, frozen, batch))
  return count_flops(step, *shapes, jax.eval_shape(lambda: jax.random.key(0)))


def _tell_of_windows(setup, config, warn):
  learnt = (setup.weights.config.get("emotion_embedder") or {}).get("frames")
  if learnt not in (None, config.batches.prior_frames):
    warn(
      f"The emotion embedder has learnt from windows of {learnt} frames, as generation takes them, and training takes "
      f"priors from {config.batches.prior_frames}: batches.prior_frames={learnt} would be the same."
    )


def _work(setup, config, state, example) -> Work:
  b, f = example["latents_mean"].shape[:2]
  accumulate = config.optimizer.accumulate
  flops = training_flops(setup, config.objective, state.params, state.frozen, example)
  return Work(accumulate * b * f, accumulate * flops.total, jax.process_count() * peak_flops(setup.dtype))


def _validation(setup, config, options, placement, folder, warn, validated):
  try:
    held_out = diffusion_batches(split=config.validation_split, training=False, **options, **placement.share)
  except InputError as error:
    warn(f"Training goes on without validation: {error}.")
    return None
  # Nothing is dropped, so that two validations differ by what was learnt alone.
  loss_fn = adaptation_loss(setup, config.objective, training=False)
  evaluate = jax.jit(lambda params, batch, key: loss_fn(params, batch, key)[1])
  samples = SampleWriter(setup, config.samples, folder / "samples", placement) if config.samples.clips else None
  # The same ones each time, of all people and sets.
  source = held_out.source
  shown = diffusion_batches(split=config.validation_split, training=False, **options).source[0] if samples else None
  numbers = np.unique(np.linspace(0, len(source) - 1, config.validation_batches).astype(int))

  def measured(params, given, i):
    with jax.set_mesh(placement.mesh):
      return jax.device_get(evaluate(params, given, jax.random.fold_in(jax.random.key(0), i)))

  def validate(state, log):
    params, found = state.averaged(), []
    batches = [placement.place(source[int(number)]) for number in numbers]
    for i, batch in enumerate(batches):
      metrics = measured(params, batch, i)
      if len(batches) > 1:
        # Those of the batch before, which lies far off in the set; neighbours in a batch may be of one person.
        metrics |= {
          name: measured(params, batch | {key: batches[i - 1][key] for key in keys}, i)["denoising"]
          for name, keys in _EXCHANGED.items()
        }
      found.append((int(batch["valid"].sum()), metrics))
    weight = sum(count for count, _ in found)
    scalars = {name: float(sum(count * m[name] for count, m in found) / weight) for name in found[0][1]}
    scalars |= {name: scalars[name] / scalars["denoising"] - 1 for name in _EXCHANGED if name in scalars}
    if samples:
      samples.write(int(state.step), params, shown, log)
    if validated:
      validated(int(state.step), scalars)
    return scalars

  return validate
