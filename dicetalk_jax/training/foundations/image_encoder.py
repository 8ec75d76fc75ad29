"""CLIP's vision encoder from nothing: it learns whom a picture shows, by contrast of people."""

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from dicetalk_jax.data.batches.pictures import PortraitBatchConfig, portrait_batches
from dicetalk_jax.diffusion.losses import info_nce
from dicetalk_jax.errors import InputError
from dicetalk_jax.models.image_encoder import ImageEncoder
from dicetalk_jax.training.checkpoints import show
from dicetalk_jax.training.foundations.common import begin, finish, fit, held_out, validation
from dicetalk_jax.training.foundations.config import ImageEncoderConfig
from dicetalk_jax.training.loop import Outcome
from dicetalk_jax.training.step import LossFn


def image_encoder_loss(model: ImageEncoder, temperature: float) -> LossFn:
  """The contrastive loss of embeddings, positives being a person's pictures; of batches as `portrait_batches` gives."""

  def loss_fn(params, batch, key):
    del key
    embedding = model.apply({"params": params}, batch["pixels"])
    loss = info_nce(embedding, batch["group"], batch["valid"], temperature)
    return loss, {"norm": (embedding**2).sum(-1).mean() ** 0.5}

  return loss_fn


def recognition(embedding: np.ndarray, person: np.ndarray, clip: np.ndarray) -> dict[str, float]:
  """How often a picture's nearest, by cosine, is of the same person, of embeddings (n, d), person (n,), clip (n,).

  retrieval: among one picture of each person, the mean over every choice of them that takes the same place in each
  person's list, and never of the picture's own clip; nearest: among all pictures of other clips.
  """
  unit = embedding / np.maximum(np.linalg.norm(embedding, axis=-1, keepdims=True), 1e-12)
  similarity = unit @ unit.T
  other_clip = clip[:, None] != clip[None, :]
  place = np.zeros(len(person), int)
  for one in np.unique(person):
    place[person == one] = np.arange((person == one).sum())
  right = []
  for gallery in np.unique(place):
    shown = np.flatnonzero(place == gallery)
    allowed = other_clip[:, shown]
    # A person whose other picture is of the same clip cannot be found.
    asked = ((person[:, None] == person[shown]) & allowed).any(-1)
    best = shown[np.where(allowed, similarity[:, shown], -np.inf).argmax(-1)]
    right.append((person[best] == person)[asked])
  right = np.concatenate(right)
  has_other = (other_clip & (person[:, None] == person[None, :])).any(-1)
  best = np.where(other_clip, similarity, -np.inf).argmax(-1)
  found = {"retrieval": right, "nearest": (person[best] == person)[has_other]}
  return {name: float(value.mean()) if len(value) else float("nan") for name, value in found.items()}


def embed_pictures(model: ImageEncoder, params: Mapping, batches: Iterable[dict]) -> dict[str, np.ndarray]:
  """Every picture of finite batches: embedding (n, d) float32; group, clip (n,) int32."""
  found = []
  for batch in batches:
    row = {
      "embedding": np.asarray(_apply(model, params, batch["pixels"])),
      "group": batch["group"],
      "clip": batch["clip"],
    }
    found.append({name: value[batch["valid"]] for name, value in row.items()})
  return {name: np.concatenate([row[name] for row in found]) for name in found[0]}


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, pixels):
  return model.apply({"params": params}, pixels)


def train_image_encoder(
  config: ImageEncoderConfig,
  folder: str | os.PathLike | None = None,
  report: Callable[[int, dict[str, float]], None] | None = None,
  progress: Callable[[str, int, int], None] | None = None,
  warn: Callable[[str], None] = show,
  validated: Callable[[int, Mapping[str, float]], None] | None = None,
) -> tuple[ImageEncoder, Outcome]:
  """Trains the image encoder in `folder`, by default `config.out`, or goes on; see `loop.train`.

  At its end `folder`/weights holds the moving average. Validation is `recognition` of people of the validation split,
  where the data has one; validated(step, scalars) is called after it. Raises what `loop.train`, `portrait_batches`
  and `Weights.open` raise, and InputError for a temperature that is none.
  """
  if config.temperature <= 0:
    raise InputError(f"temperature is {config.temperature}, wanted a number above 0")
  folder = pathlib.Path(folder or config.out).expanduser()
  loop, batches_config = config.loop, config.batches
  beginning = begin("image_encoder", _architecture(config), config.weights, loop.seed)
  model = beginning.module
  with portrait_batches(
    list(config.data), batches_config, seed=loop.seed, workers=config.workers, memory_gb=config.memory_gb
  ) as batches:
    outcome = fit(
      beginning.params,
      image_encoder_loss(model, config.temperature),
      batches,
      config.optimizer,
      loop,
      folder,
      frames=batches_config.people * batches_config.pictures,
      validate=_validation(config, model, warn, validated),
      report=report,
      progress=progress,
      warn=warn,
    )
  return finish(beginning, outcome, outcome.state.averaged(), folder), outcome


def _architecture(config: ImageEncoderConfig) -> dict:
  """CLIP's published config.json, with these sizes."""
  sizes = config.model
  return {
    "hidden_size": sizes.hidden_size,
    "intermediate_size": sizes.intermediate_size,
    "projection_dim": sizes.projection_dim,
    "num_hidden_layers": sizes.num_hidden_layers,
    "num_attention_heads": sizes.num_attention_heads,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": sizes.patch_size,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
  }


def _validation(config, model, warn, validated):
  pictures = PortraitBatchConfig(people=4, pictures=config.validation_pictures)
  unseen = held_out(
    lambda: portrait_batches(list(config.data), pictures, split=config.validation_split, training=False), warn
  )

  def evaluate(state, log):
    embedded = embed_pictures(model, state.averaged(), unseen)
    return recognition(embedded["embedding"], embedded["group"], embedded["clip"])

  return validation(unseen, evaluate, validated)
