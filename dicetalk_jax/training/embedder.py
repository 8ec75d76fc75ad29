"""Stage 1: the disentangled emotion embedder, by contrast of people's emotions (§3.1, Eq. 2-8)."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.data.batches.embedder import embedder_batches
from dicetalk_jax.data.encode.networks import check_encoded_with
from dicetalk_jax.diffusion.losses import info_nce
from dicetalk_jax.errors import InputError
from dicetalk_jax.models.emotion_embedder import EmotionEmbedder
from dicetalk_jax.parallel.flops import count_flops
from dicetalk_jax.parallel.mesh import to_host
from dicetalk_jax.training.clustering import centroid_accuracy, clustering_strength
from dicetalk_jax.training.config import EmbedderConfig, check_least
from dicetalk_jax.training.loop import Outcome
from dicetalk_jax.training.plots import prior_plot
from dicetalk_jax.training.result import check_sizes
from dicetalk_jax.training.stage import Stage, Start
from dicetalk_jax.training.step import LossFn
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import build


def embedder_inputs(batch: Mapping) -> list:
  """The embedder's inputs in a batch, in the order of its arguments."""
  return [batch[name] for name in ("expression", "expression_mask", "speech", "speech_mask")]


def drop_modalities(key, expression_mask, speech_mask, drop_video, drop_audio):
  """Masks (b, n) without one modality, never both, in some of the rows that have both."""
  u = jax.random.uniform(key, expression_mask.shape[:1])
  both = expression_mask.any(-1) & speech_mask.any(-1)
  without_video = both & (u < drop_video)
  without_audio = both & (u >= drop_video) & (u < drop_video + drop_audio)
  return expression_mask & ~without_video[:, None], speech_mask & ~without_audio[:, None]


def embedder_loss(model: EmotionEmbedder, temperature: float, drop_video: float, drop_audio: float) -> LossFn:
  """The contrastive loss of sampled priors (Eq. 6-8) on batches of `embedder_batches`."""

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
    # An embedder of video only gets nothing from a clip without coefficients.
    usable = batch["valid"] & has_input(model.inputs, expression_mask, speech_mask)
    loss = info_nce(prior.sample(sample_key), batch["group"], usable, temperature)
    weight = usable / jnp.maximum(usable.sum(), 1)
    norms = {"mu_norm": prior.mu, "sigma_norm": prior.sigma}
    return loss, {name: (jnp.linalg.norm(value, axis=-1) * weight).sum() for name, value in norms.items()}

  return loss_fn


def has_input(inputs: str, expression_mask, speech_mask):
  """Rows with any input of an embedder of `inputs`: masks (b, n) -> (b,) bool."""
  seen, heard = expression_mask.any(-1), speech_mask.any(-1)
  return {"both": seen | heard, "video": seen, "audio": heard}[inputs]


def embed(
  model: EmotionEmbedder,
  params: Mapping,
  batches: Iterable[dict],
  place: Callable[[dict], Mapping[str, jax.Array]] = lambda batch: batch,
) -> dict[str, np.ndarray]:
  """Embeds finite batches: mu (n, features) float32 (μ_s); group, identity, emotion, level, clip (n,) int32.

  Rows without input are left out. place: puts this process's rows on the devices.
  """
  rows = []
  for batch in map(place, batches):
    prior = _apply(model, params, *embedder_inputs(batch))
    usable = batch["valid"] & has_input(model.inputs, batch["expression_mask"], batch["speech_mask"])
    names = ("group", "identity", "emotion", "level", "clip")
    row = to_host({"mu": prior.mu, "usable": usable} | {name: batch[name] for name in names})
    usable = row.pop("usable")
    rows.append({name: value[usable] for name, value in row.items()})
  return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, *inputs):
  return model.apply({"params": params}, *inputs)


def separation(embedded: Mapping[str, np.ndarray]) -> dict[str, float]:
  """clustering_strength, d_inter, d_intra and emotion_accuracy of the result of `embed`, if its people allow them."""
  mu, identity, emotion, clip = (embedded[name] for name in ("mu", "identity", "emotion", "clip"))
  return clustering_strength(mu, identity, emotion) | centroid_accuracy(mu, identity, emotion, clip)


def embedder_model(config: EmbedderConfig, batch: Mapping[str, np.ndarray]) -> EmotionEmbedder:
  """A new embedder with inputs of the sizes in `batch`."""
  sizes = {f"{name}_features": batch[name].shape[-1] for name in ("expression", "speech")}
  return EmotionEmbedder(**dataclasses.asdict(config.model), **sizes)


def train_embedder(
  config: EmbedderConfig,
  folder: str | os.PathLike | None = None,
  *,
  loss: LossFn | None = None,
  **listeners,
) -> tuple[EmotionEmbedder, Outcome]:
  """Trains the embedder in `folder`, by default `config.out`, or continues there; see `loop.train`.

  A finished run leaves `folder`/weights: a copy of `config.weights` with the embedder, or the embedder alone. The
  trained parameters are also in `outcome.state.averaged()`. Validation is `separation` on people of the validation
  split.

  loss: loss(params, batch, key) -> (loss, metrics) instead of `embedder_loss`. listeners: see `Stage`. Raises
  WeightsError for unusable weights, InputError for unusable settings, for data of another Whisper, and for sizes that
  do not fit the weights, and what `loop.train` and `embedder_batches` raise.
  """
  _check(config)
  weights = Weights.open(config.weights) if config.weights else None
  rows = config.batches.groups * config.batches.clips
  open_data = functools.partial(embedder_batches, list(config.data), seed=config.loop.seed)
  with Stage(config, functools.partial(open_data, config=config.batches), rows, folder=folder, **listeners) as stage:
    example = stage.example
    model = _model(config, weights, example)
    start = Start("emotion_embedder", architecture(model), weights, config.init == "seed")
    check_sizes(weights, {start.network: start.architecture})
    if weights is not None:
      check_encoded_with(weights, config.data, ("audio_encoder",))
      if start.is_new and "emotion_embedder" in weights.config["networks"]:
        stage.warn(
          f"A new embedder starts from seed {config.loop.seed}. To fine-tune the one in {config.weights}, set "
          "init=weights."
        )
    loss = loss or embedder_loss(model, config.temperature, config.drop_video, config.drop_audio)
    params = start.params(stage.placement, config.loop.seed)
    flops = count_flops(jax.grad(lambda *of: loss(*of)[0]), params, example, jax.random.key(0)).total
    outcome = stage.train(
      loss,
      params,
      frames=rows * config.batches.frames,
      validate=_validation(stage, model),
      # Counted for this process's rows.
      flops=stage.placement.share["process_count"] * flops,
    )
  start.finish(stage, outcome, facts={"frames": config.batches.frames})
  return model, outcome


def _model(config, weights, example) -> EmotionEmbedder:
  """The embedder of the weights, or a new one."""
  if config.init == "seed":
    return embedder_model(config, example)
  if weights is None or "emotion_embedder" not in weights.config["networks"]:
    raise InputError(
      f"init=weights needs weights with an emotion embedder, and {config.weights or 'weights'} has none; use init=seed"
    )
  model = build("emotion_embedder", weights.config["networks"]["emotion_embedder"])
  if (width := example["speech"].shape[-1]) != model.speech_features:
    raise InputError(
      f"the data has Whisper states of {width} values, and the embedder of {config.weights} takes "
      f"{model.speech_features}; encode the data with these weights"
    )
  return model


def architecture(model: EmotionEmbedder) -> dict:
  """The embedder's entry in a weights folder's config.json."""
  names = [field.name for field in dataclasses.fields(model) if field.name not in ("parent", "name", "dtype")]
  return {name: getattr(model, name) for name in names}


def _validation(stage: Stage, model: EmotionEmbedder):
  def measure(state, held_out, log):
    embedded = embed(model, state.averaged(), held_out, stage.placement.place)
    if plot := prior_plot("priors", embedded):
      log.summaries(int(state.step), plot)
    return separation(embedded)

  # `separation` is of people, whatever the groups in training.
  return stage.validation(measure, config=dataclasses.replace(stage.config.batches, group="person"))


def _check(config: EmbedderConfig) -> None:
  video, audio = config.drop_video, config.drop_audio
  if min(video, audio) < 0 or video + audio > 1:
    raise InputError(f"drop_video is {video} and drop_audio {audio}; give shares of at least 0, of 1 together at most")
  if config.temperature <= 0:
    raise InputError(f"temperature is {config.temperature}; give a number above 0")
  model = config.model
  sizes = ("features", "num_layers", "num_fusion_layers", "num_heads", "mlp")
  check_least(model, dict.fromkeys(sizes, 1) | {"fusion_scale": 0}, "model.")
  if model.features % model.num_heads:
    raise InputError(f"model.features is {model.features}; give a multiple of model.num_heads, {model.num_heads}")
  if not 0 <= model.dropout_rate < 1:
    raise InputError(f"model.dropout_rate is {model.dropout_rate}; give a number from 0 up to 1")
