"""Trains CLIP's vision encoder to recognise people, by a contrastive loss."""

import functools
import os

import jax
import numpy as np

from dicetalk_jax.data.batches.pictures import PortraitBatchConfig, portrait_batches
from dicetalk_jax.diffusion.losses import info_nce
from dicetalk_jax.models.image_encoder import ImageEncoder
from dicetalk_jax.training.foundations.common import MEMORY_GB, valid_rows
from dicetalk_jax.training.foundations.config import ImageEncoderConfig
from dicetalk_jax.training.loop import Outcome
from dicetalk_jax.training.stage import Stage, Start
from dicetalk_jax.training.step import LossFn

# ViT-H/14 of the release, in the entries of CLIP's config.json.
_RELEASED = {
  "hidden_size": 1280,
  "intermediate_size": 5120,
  "projection_dim": 1024,
  "num_hidden_layers": 32,
  "num_attention_heads": 16,
  "num_channels": 3,
  "image_size": 224,
  "patch_size": 14,
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-5,
}
# τ of the contrastive loss.
_TEMPERATURE = 0.1
# Pictures of each held-out person, of different clips, and people of a batch of them.
_VALIDATION = PortraitBatchConfig(people=4, pictures=8)


def image_encoder_loss(model: ImageEncoder) -> LossFn:
  """The contrastive loss of embeddings on batches of `portrait_batches`; positives are pictures of one person."""

  def loss_fn(params, batch, key):
    del key
    embedding = model.apply({"params": params}, batch["pixels"])
    loss = info_nce(embedding, batch["group"], batch["valid"], _TEMPERATURE)
    return loss, {"norm": (embedding**2).sum(-1).mean() ** 0.5}

  return loss_fn


def recognition(embedding: np.ndarray, person: np.ndarray, clip: np.ndarray) -> dict[str, float]:
  """How often the nearest picture by cosine shows the same person: embedding (n, d), person (n,), clip (n,).

  retrieval: nearest among one picture of each person, never of the picture's own clip. The gallery takes picture i of
  each person; the mean is over all i. nearest: among all pictures of other clips.
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
    # Skip people whose gallery picture is of the same clip.
    asked = ((person[:, None] == person[shown]) & allowed).any(-1)
    best = shown[np.where(allowed, similarity[:, shown], -np.inf).argmax(-1)]
    right.append((person[best] == person)[asked])
  right = np.concatenate(right)
  has_other = (other_clip & (person[:, None] == person[None, :])).any(-1)
  best = np.where(other_clip, similarity, -np.inf).argmax(-1)
  scores = {"retrieval": right, "nearest": (person[best] == person)[has_other]}
  return {name: float(value.mean()) if len(value) else float("nan") for name, value in scores.items()}


def train_image_encoder(
  config: ImageEncoderConfig, folder: str | os.PathLike | None = None, **listeners
) -> tuple[ImageEncoder, Outcome]:
  """Trains the image encoder in `folder`, by default `config.out`, or continues there; see `loop.train`.

  A finished run leaves `folder`/weights with the moving average. Validation is `recognition` of people of the
  validation split. listeners: see `Stage`. Raises what `loop.train`, `portrait_batches` and `Start.of` raise.
  """
  start = Start.of("image_encoder", _RELEASED | dict(config.model), config)
  model = start.module
  batches = functools.partial(portrait_batches, list(config.data), seed=config.loop.seed, memory_gb=MEMORY_GB)
  training = functools.partial(batches, config=config.batches)
  rows = config.batches.people * config.batches.pictures
  with Stage(config, training, rows, "pictures", folder=folder, **listeners) as stage:
    apply = jax.jit(model.apply)

    def measure(state, held_out, log):
      params = {"params": state.averaged()}

      def embed(batch):
        embedding = apply(params, batch["pixels"])
        return {"embedding": embedding, "person": batch["group"], "clip": batch["clip"]}

      return recognition(**valid_rows(embed, held_out))

    outcome = stage.train(
      image_encoder_loss(model),
      start.params(stage.placement, config.loop.seed),
      frames=rows,
      validate=stage.validation(measure, config=_VALIDATION),
    )
  return start.finish(stage, outcome), outcome
