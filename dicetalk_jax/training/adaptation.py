"""Stage 2: the compositional adaptation of the diffusion model to speech and emotion (§3.3, §4.1, Eq. 14-17)."""

import functools
import os
import pathlib
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.data.batches.diffusion import diffusion_batches
from dicetalk_jax.parallel.flops import Flops
from dicetalk_jax.parallel.hosts import is_first
from dicetalk_jax.parallel.mesh import to_host
from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.training.adaptation_loss import ObjectiveConfig, objective
from dicetalk_jax.training.config import AdaptationConfig
from dicetalk_jax.training.loop import Outcome, Status
from dicetalk_jax.training.networks import Setup, check_batch, load_params, set_up, split_trained
from dicetalk_jax.training.result import write_result
from dicetalk_jax.training.samples import SampleWriter, prior_means
from dicetalk_jax.training.stage import Stage
from dicetalk_jax.training.state import TrainState
from dicetalk_jax.training.step import LossFn, gradient_flops

# A model that follows its conditions denoises worse with those of another clip. The validation logs by how much.
_EXCHANGED = {
  "other_emotion": ("expression", "expression_mask", "speech", "speech_mask"),
  "other_speech": ("audio",),
}
# Batches whose priors initialise the codes of a new emotion bank.
_BANK_BATCHES = 64


def train_adaptation(
  config: AdaptationConfig,
  folder: str | os.PathLike | None = None,
  *,
  networks: Mapping[str, nn.Module] | None = None,
  loss: LossFn | None = None,
  **listeners,
) -> tuple[Setup, Outcome]:
  """Trains in `folder`, by default `config.out`, or continues there; see `loop.train`.

  A finished run leaves `folder`/weights: a copy of `config.weights` in which the moving average replaces what trained.

  Args:
    config: settings of the stage.
    folder: run folder.
    networks: modules to use instead of those of the weights, by name, such as {"emotion_model": MyEmotionModel()}.
      They have the methods and output shapes of the originals; see `networks.set_up`. If their parameters differ, the
      result is `folder`/<network>.safetensors.
    loss: loss(params, batch, key) -> (loss (), metrics {name: ()}) instead of `adaptation_loss`; params is {network:
      nested parameters}, and batch as of `diffusion_batches`.
    listeners: see `Stage`.

  Raises what `loop.train`, `diffusion_batches` and `set_up` raise.
  """
  setup = set_up(config, networks=networks)
  loss = loss or adaptation_loss(setup, config.objective)
  options = dict(emotional=config.emotional, regular=config.regular, config=config.batches, seed=config.loop.seed)
  batches = functools.partial(diffusion_batches, **options)
  with Stage(config, batches, config.batches.batch, folder=folder, **listeners) as stage:
    check_batch(setup, stage.example, config)
    _warn_of_windows(setup, config, stage.warn)
    # All hosts need the same whole batches, not their own rows.
    whole = batches().source
    trained, frozen = initial_params(setup, config, stage.placement, whole)
    flops = training_flops(setup, config.objective, trained, frozen, whole[0]).total
    b, f = whole[0]["latents_mean"].shape[:2]
    outcome = stage.train(
      loss,
      trained,
      frozen,
      frames=b * f,
      validate=_validation(stage, setup),
      flops=flops,
      dtype=setup.dtype,
    )
  if outcome.status == Status.FINISHED:
    save_weights(setup, outcome.state, stage.folder / "weights", stage.placement)
  return setup, outcome


def adaptation_loss(setup: Setup, config: ObjectiveConfig, training: bool = True) -> LossFn:
  """The objective of Eq. 15 as loss(params, batch, key) -> (loss (), metrics {name: ()})."""

  def loss_fn(params, batch, key):
    return objective(
      setup.modules, config, setup.scaling_factor, params, batch, key, training, setup.downscale, setup.conditions
    )

  return loss_fn


def initial_params(setup: Setup, config: AdaptationConfig, placement: Placement, source=None) -> tuple[dict, dict]:
  """Initial parameters that train and that do not, {network: nested}, each leaf where it belongs on the mesh.

  The frozen U-Net has `setup.dtype`. source: whole batches, whose priors initialise the codes of a new emotion bank,
  so that no code lies where no prior ever comes. Raises InputError if `config.trainable` matches nothing, or the
  emotion embedder.
  """
  params = load_params(setup, config.loop.seed, placement)
  is_new = "emotion_model" in setup.missing and "emotion_model" not in setup.replaced
  if is_new and config.conditioning == "bank" and source is not None:
    params["emotion_model"] = with_codes_of(setup, params, source)
  trained, frozen = split_trained(setup, config, params)
  del params
  if "unet" in frozen:
    frozen["unet"] = jax.tree.map(lambda leaf: leaf.astype(setup.dtype), frozen["unet"])
  return trained, frozen


def with_codes_of(setup: Setup, params: Mapping, source) -> dict:
  """The emotion model's parameters with the projected priors of the data as codes (Eq. 9)."""
  emotion_model = params["emotion_model"]
  codes = emotion_model["codebook"]["codebook"]["embedding"]
  priors = []
  for i in range(_BANK_BATCHES):
    priors.append(prior_means(setup.modules, params, source[i]))
    if sum(map(len, priors)) >= len(codes):
      break
  fc = to_host(emotion_model["codebook"]["fc"])
  z = np.concatenate(priors)[: len(codes)] @ fc["kernel"] + fc["bias"]
  # With fewer clips than codes, the clips repeat, with some noise.
  spread = 0.1 * z.std() * jax.random.normal(jax.random.key(0), codes.shape)
  initial = jnp.resize(z, codes.shape) + jnp.where(jnp.arange(len(codes))[:, None] < len(z), 0, spread)
  codes = jax.device_put(np.asarray(initial, codes.dtype), codes.sharding)
  return emotion_model | {"codebook": emotion_model["codebook"] | {"codebook": {"embedding": codes}}}


def save_weights(
  setup: Setup, state: TrainState, folder: str | os.PathLike, placement: Placement | None = None
) -> None:
  """Writes the weights folder of a run: the average of what trained, and everything else bit for bit as in the weights.

  Frozen parameters come from the weights, because the state may hold them in a shorter dtype. A module of the caller
  whose parameters are not those of the architecture is written beside the folder, as <network>.safetensors. placement:
  of the state, if it spans several processes. Raises OutputError if the folder cannot be written.
  """
  trained, networks = flatten_dict(state.params if state.ema is None else state.ema, sep="/"), {}
  shapes, described = setup.shapes, {}
  for name in setup.learning:
    paths = flatten_dict(shapes[name], sep="/").keys()
    if name in setup.replaced and not setup.is_standard(name):
      params = flatten_dict(to_host(state.averaged()[name]), sep="/")
      if is_first():
        safetensors.numpy.save_file(params, pathlib.Path(folder).with_name(f"{name}.safetensors"))
      continue
    described[name] = setup.architectures[name]
    stored = set() if name in setup.missing else set(setup.weights.tensors(name).shapes)
    own = {path: trained[f"{name}/{path}"] for path in paths if f"{name}/{path}" in trained}
    if not own and stored == paths:
      continue
    before = flatten_dict(_stored(setup, name, placement), sep="/") if stored else {}
    initial = flatten_dict(state.frozen.get(name, {}), sep="/")
    sources = (own, before, initial)
    networks[name] = unflatten_dict({path: next(of[path] for of in sources if path in of) for path in paths}, sep="/")
  write_result(folder, setup.weights, networks, described)


def _stored(setup, name, placement):
  """A network as the weights have it: on this host, or split over all hosts."""
  if jax.process_count() == 1:
    return setup.weights.arrays(name)
  return setup.weights.load(name, sharding=lambda shapes: placement.parameters({name: shapes})[name])


def training_flops(setup: Setup, config: ObjectiveConfig, params, frozen, batch) -> Flops:
  """The model's FLOP for one batch: forward, and backward to what trains, without recomputation."""
  return gradient_flops(adaptation_loss(setup.with_remat(False), config), params, frozen, batch)


def _warn_of_windows(setup, config, warn):
  frames = (setup.weights.config.get("emotion_embedder") or {}).get("frames")
  if frames not in (None, config.batches.prior_frames):
    warn(
      f"The emotion embedder learnt from windows of {frames} frames, and generation uses the same, but this run takes "
      f"priors from {config.batches.prior_frames} frames. Set batches.prior_frames={frames} to use the same here."
    )


def _validation(stage: Stage, setup: Setup):
  config, placement = stage.config, stage.placement
  if (held_out := stage.held_out()) is None:
    return None
  # Without drops, two validations differ only by what was learnt.
  loss = adaptation_loss(setup, config.objective, training=False)
  evaluate = jax.jit(lambda params, batch, key: loss(params, batch, key)[1])
  # The same batches each time, spread over all people and sets.
  source = held_out.source
  numbers = np.unique(np.linspace(0, len(source) - 1, config.validation_batches).astype(int))
  samples, shown = None, None
  if config.samples.clips:
    samples = SampleWriter(setup, config.samples, stage.folder / "samples", placement)
    shown = stage.held_out(process_index=0, process_count=1).source[0]

  def measure(params, batch, i):
    with jax.set_mesh(placement.mesh):
      return jax.device_get(evaluate(params, batch, jax.random.fold_in(jax.random.key(0), i)))

  def validate(state, log):
    params, results = state.averaged(), []
    batches = [placement.place(source[int(number)]) for number in numbers]
    for i, batch in enumerate(batches):
      metrics = measure(params, batch, i)
      if len(batches) > 1:
        # Conditions of the previous batch, which is far away in the set: neighbours may be of the same person.
        metrics |= {
          name: measure(params, batch | {key: batches[i - 1][key] for key in keys}, i)["denoising"]
          for name, keys in _EXCHANGED.items()
        }
      results.append((int(batch["valid"].sum()), metrics))
    weight = sum(count for count, _ in results)
    scalars = {name: float(sum(count * m[name] for count, m in results) / weight) for name in results[0][1]}
    scalars |= {name: scalars[name] / scalars["denoising"] - 1 for name in _EXCHANGED if name in scalars}
    if samples:
      samples.write(int(state.step), params, shown, log)
    return scalars

  return validate
