"""Stage 1: the disentangled emotion embedder, by contrast of people's emotions (§3.1, Eq. 2-8)."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.data.batches.embedder import embedder_batches
from dicetalk_jax.data.encode.networks import check_encoded_with
from dicetalk_jax.diffusion.losses import info_nce
from dicetalk_jax.errors import InputError
from dicetalk_jax.models.emotion_embedder import EmotionEmbedder
from dicetalk_jax.parallel.flops import count_flops, peak_flops
from dicetalk_jax.parallel.hosts import check_agreement
from dicetalk_jax.parallel.mesh import to_host
from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.training.checkpoints import show
from dicetalk_jax.training.clustering import centroid_accuracy, clustering_strength
from dicetalk_jax.training.config import EmbedderConfig
from dicetalk_jax.training.loop import Outcome, Status, Work, train
from dicetalk_jax.training.optimizer import make_optimizer, make_schedule
from dicetalk_jax.training.plots import prior_plot
from dicetalk_jax.training.result import write_result
from dicetalk_jax.training.state import TrainState
from dicetalk_jax.training.step import LossFn, make_step
from dicetalk_jax.weights.folder import Weights


def embedder_inputs(batch: Mapping) -> list:
  """What of a batch the embedder takes, in its order."""
  return [batch[name] for name in ("expression", "expression_mask", "speech", "speech_mask")]


def drop_modalities(key, expression_mask, speech_mask, drop_video, drop_audio):
  """Masks (b, n) with a modality away in some of the rows that have both, and never both: the same two masks."""
  u = jax.random.uniform(key, expression_mask.shape[:1])
  both = expression_mask.any(-1) & speech_mask.any(-1)
  without_video = both & (u < drop_video)
  without_audio = both & (u >= drop_video) & (u < drop_video + drop_audio)
  return expression_mask & ~without_video[:, None], speech_mask & ~without_audio[:, None]


def embedder_loss(model: EmotionEmbedder, temperature: float, drop_video: float, drop_audio: float) -> LossFn:
  """The contrastive loss of priors that are drawn anew each step (Eq. 6-8), of batches as `embedder_batches` gives."""

  def loss_fn(params, batch, key):
    drop_key, dropout_key, sample_key = jax.random.split(key, 3)
    expression_mask, speech_mask = batch["expression_mask"], batch["speech_mask"]
    if model.inputs == "both":
      expression_mask, speech_mask = drop_modalities(drop_key, expression_mask, speech_mask, drop_video, drop_audio)
    prior = model.apply(
      {"params": params},
      batch["expression"],
      expression_mask,
      batch["speech"],
      speech_mask,
      deterministic=False,
      rngs={"dropout": dropout_key},
    )
    # A clip without coefficients says nothing to an embedder of video alone.
    usable = batch["valid"] & has_input(model.inputs, expression_mask, speech_mask)
    loss = info_nce(prior.sample(sample_key), batch["group"], usable, temperature)
    weight = usable / jnp.maximum(usable.sum(), 1)
    norms = {"mu_norm": prior.mu, "sigma_norm": prior.sigma}
    return loss, {name: (jnp.linalg.norm(value, axis=-1) * weight).sum() for name, value in norms.items()}

  return loss_fn


def has_input(inputs: str, expression_mask, speech_mask):
  """Which rows have anything that an embedder of `inputs` takes: masks (b, n) -> (b,)."""
  seen, heard = expression_mask.any(-1), speech_mask.any(-1)
  return {"both": seen | heard, "video": seen, "audio": heard}[inputs]


def embed(
  model: EmotionEmbedder,
  params: Mapping,
  batches: Iterable[dict],
  place: Callable[[dict], Mapping[str, jax.Array]] = lambda batch: batch,
) -> dict[str, np.ndarray]:
  """μ_s of every usable row of finite batches, with its labels; place: of this process's rows to those of all.

  -> mu (n, features) float32; group, identity, emotion, level, clip (n,) int32.
  """
  found = []
  for batch in map(place, batches):
    prior = _apply(model, params, *embedder_inputs(batch))
    names = ("group", "identity", "emotion", "level", "clip")
    inputs = has_input(model.inputs, batch["expression_mask"], batch["speech_mask"])
    row = to_host({"mu": prior.mu, "usable": batch["valid"] & inputs} | {name: batch[name] for name in names})
    usable = row.pop("usable")
    found.append({name: value[usable] for name, value in row.items()})
  return {name: np.concatenate([row[name] for row in found]) for name in found[0]}


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, *inputs):
  return model.apply({"params": params}, *inputs)


def separation(embedded: Mapping[str, np.ndarray]) -> dict[str, float]:
  """clustering_strength, d_inter, d_intra, emotion_accuracy of what `embed` gives, as far as its people allow."""
  mu, identity, emotion, clip = (embedded[name] for name in ("mu", "identity", "emotion", "clip"))
  return clustering_strength(mu, identity, emotion) | centroid_accuracy(mu, identity, emotion, clip)


def embedder_model(config: EmbedderConfig, batch: Mapping[str, np.ndarray]) -> EmotionEmbedder:
  """The module for data such as `batch`."""
  sizes = {name: batch[name].shape[-1] for name in ("expression", "speech")}
  return EmotionEmbedder(
    **dataclasses.asdict(config.model), **{f"{name}_features": size for name, size in sizes.items()}
  )


def train_embedder(
  config: EmbedderConfig,
  folder: str | os.PathLike | None = None,
  report: Callable[[int, dict[str, float]], None] | None = None,
  progress: Callable[[str, int, int], None] | None = None,
  warn: Callable[[str], None] = show,
  validated: Callable[[int, Mapping[str, float]], None] | None = None,
) -> tuple[EmotionEmbedder, Outcome]:
  """Trains the embedder in `folder`, by default `config.out`, or goes on where an earlier run ended; see `loop.train`.

  A run that has finished leaves `folder`/weights: a copy of `config.weights` that has the embedder, or it alone.
  Parameters for use are `outcome.state.averaged()`. Validation is by `separation` of people of the validation split,
  where the data has one; validated(step, scalars) is called after it. Raises WeightsError for weights that are none,
  what `loop.train` and `embedder_batches` raise, and InputError for data that was encoded with another Whisper and for
  settings that make no sense.
  """
  _check(config)
  folder = pathlib.Path(folder or config.out).expanduser()
  weights = Weights.open(config.weights) if config.weights else None
  loop, optimizer_config = config.loop, config.optimizer
  placement = Placement.of(config.mesh, config.batches.groups * config.batches.clips, "clips")
  options = dict(config=config.batches, seed=loop.seed, **placement.share)
  with embedder_batches(list(config.data), workers=config.workers, **options) as batches:
    check_agreement({"configuration": dataclasses.asdict(config), "data": batches.source.fingerprint})
    example = batches.source[0]
    model = embedder_model(config, example)
    if weights is not None:
      _check_weights(weights, model)
      check_encoded_with(weights, config.data, ("audio_encoder",))
    init_key, key = jax.random.split(jax.random.key(loop.seed))
    optimizer = make_optimizer(optimizer_config, loop.steps)
    shapes = [(array.shape, array.dtype) for array in embedder_inputs(example)]

    def draw(key):
      return model.init(key, *(jnp.zeros(*of) for of in shapes))["params"]

    def create(init_key):
      return TrainState.create(draw(init_key), optimizer, key, ema=optimizer_config.ema_decay > 0)

    params = jax.eval_shape(draw, init_key)
    placement.check(params)
    state, where = placement.state(create, init_key, params=params)
    step_fn = make_step(
      embedder_loss(model, config.temperature, config.drop_video, config.drop_audio),
      optimizer,
      make_schedule(optimizer_config, loop.steps),
      optimizer_config.ema_decay,
      optimizer_config.accumulate,
      where.replace(frozen=None),
    )
    accumulate = optimizer_config.accumulate
    rows = config.batches.groups * config.batches.clips * optimizer_config.accumulate
    outcome = train(
      state,
      step_fn,
      batches,
      loop,
      folder,
      accumulate=accumulate,
      place=lambda batch: placement.place(batch, leading=int(accumulate > 1)),
      validate=_validation(config, model, options, placement, warn, validated),
      work=_work(config, model, state, example, rows, placement.share["process_count"]),
      report=report,
      progress=progress,
      warn=warn,
    )
  if outcome.status == Status.FINISHED:
    params = outcome.state.averaged()
    of_clips = {"emotion_embedder": {"frames": config.batches.frames}}
    write_result(
      folder / "weights", weights, {"emotion_embedder": params}, {"emotion_embedder": architecture(model)}, of_clips
    )
  return model, outcome


def architecture(model: EmotionEmbedder) -> dict:
  """The module as a weights folder's config.json has it."""
  names = [field.name for field in dataclasses.fields(model) if field.name not in ("parent", "name", "dtype")]
  return {name: getattr(model, name) for name in names}


def _work(config, model, state, example, rows, shares) -> Work:
  loss_fn = embedder_loss(model, config.temperature, config.drop_video, config.drop_audio)
  key = jax.eval_shape(lambda: jax.random.key(0))
  flops = count_flops(jax.grad(lambda *of: loss_fn(*of)[0]), state.params, example, key)
  # Counted for this process's rows.
  total = shares * config.optimizer.accumulate * flops.total
  return Work(rows * config.batches.frames, total, jax.process_count() * peak_flops(jnp.float32))


def _validation(config, model, options, placement, warn, validated):
  try:
    # `separation` is of people, whatever the groups in training.
    options = options | {"config": dataclasses.replace(config.batches, group="person")}
    held_out = embedder_batches(list(config.data), split=config.validation_split, training=False, **options)
  except InputError as error:
    warn(f"Training goes on without validation: {error}.")
    return None

  def validate(state, log):
    with held_out:
      embedded = embed(model, state.averaged(), held_out, placement.place)
    scalars = separation(embedded)
    if plot := prior_plot("priors", embedded):
      log.summaries(int(state.step), plot)
    if validated:
      validated(int(state.step), scalars)
    return scalars

  return validate


def _check_weights(weights: Weights, model: EmotionEmbedder) -> None:
  if "audio_encoder" not in weights.config["networks"]:
    return
  made = weights.config["networks"]["audio_encoder"]["d_model"]
  if made != model.speech_features:
    raise InputError(
      f"the data has Whisper states of {model.speech_features} values and the weights in {weights.folder} make {made}; "
      "give the weights that the data was encoded with"
    )


def _check(config: EmbedderConfig) -> None:
  video, audio = config.drop_video, config.drop_audio
  if min(video, audio) < 0 or video + audio > 1:
    raise InputError(
      f"drop_video {video} and drop_audio {audio} cannot be used: they are shares of the rows, of 1 together at most"
    )
  if config.temperature <= 0:
    raise InputError(f"temperature is {config.temperature}, wanted a number above 0")
  model = config.model
  for name in ("features", "num_layers", "num_fusion_layers", "num_heads", "mlp"):
    if (value := getattr(model, name)) < 1:
      raise InputError(f"model.{name} is {value}, wanted a whole number of at least 1")
  if model.features % model.num_heads:
    raise InputError(
      f"model.features {model.features} cannot be shared among model.num_heads {model.num_heads}; give a multiple of it"
    )
  if not 0 <= model.dropout_rate < 1 or model.fusion_scale < 0:
    raise InputError(
      f"model.dropout_rate {model.dropout_rate} and model.fusion_scale {model.fusion_scale} cannot be used: the first "
      "is from 0 up to 1, the second at least 0"
    )
