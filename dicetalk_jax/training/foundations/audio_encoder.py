"""Trains Whisper's encoder: states from which linear layers read what is said and how it sounds.

Whisper learnt its states by transcription. The drawn world knows what is said frame by frame: linear heads, dropped
after training, read each frame's phoneme, mouth and spectrum from every layer's states. No emotion is supervised.
"""

import functools
import os
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import reduce

from dicetalk_jax.data.batches.speech import CHUNK_FRAMES, MELS_PER_FRAME, POSITIONS_PER_FRAME, speech_batches
from dicetalk_jax.models.audio_encoder import AudioEncoder
from dicetalk_jax.training.foundations.common import MEMORY_GB, VALIDATION_CLIPS
from dicetalk_jax.training.foundations.config import AudioEncoderConfig
from dicetalk_jax.training.loop import Outcome
from dicetalk_jax.training.stage import Stage, Start
from dicetalk_jax.training.state import split
from dicetalk_jax.training.step import LossFn
from dicetalk_jax.world.phonemes import INDEX, PHONEMES

_SILENCE = INDEX["SIL"]
_MOUTH = ("mouth_opening", "mouth_width")
# Whisper's sinusoidal positions stay fixed, as in Whisper: short pieces would train few of them.
_TRAINABLE = (r"^encoder/(?!embed_positions/)", r"^heads/")
# Whisper-tiny, in the entries of its config.json.
_RELEASED = {
  "num_mel_bins": 80,
  "d_model": 384,
  "encoder_layers": 4,
  "encoder_attention_heads": 6,
  "encoder_ffn_dim": 1536,
  "max_source_positions": POSITIONS_PER_FRAME * CHUNK_FRAMES,
  "activation_function": "gelu",
  "scale_embedding": False,
}


def states_at(model: AudioEncoder, params: Mapping, mel, offset):
  """States of pieces at a place in a 30 s chunk: mel (b, 2n, bins), offset (b,) -> (b, n, layers + 1, d).

  offset: position of each piece's start, at 50 Hz. The encoder sees nothing else of the chunk.
  """
  positions = mel.shape[1] // 2
  piece = model.clone(max_source_positions=positions)
  table = params["embed_positions"]["embedding"]

  def one(mel, offset):
    here = jax.lax.dynamic_slice_in_dim(table, offset, positions)
    return piece.apply({"params": {**params, "embed_positions": {"embedding": here}}}, mel[None])[0]

  return jax.vmap(one)(mel, offset)


def heads(model: AudioEncoder, key) -> dict:
  """Linear heads for every layer: {name: {kernel (layers + 1, d, outputs), bias (layers + 1, outputs)}}."""
  states, d = model.encoder_layers + 1, model.d_model
  outputs = {"phoneme": len(PHONEMES), "mouth": len(_MOUTH), "mel": model.num_mel_bins}
  draw = jax.nn.initializers.lecun_normal(batch_axis=0)
  return {
    name: {"kernel": draw(jax.random.fold_in(key, i), (states, d, size)), "bias": jnp.zeros((states, size))}
    for i, (name, size) in enumerate(outputs.items())
  }


def read(of_heads: Mapping, states) -> dict:
  """Outputs of the heads for states (b, n, layers + 1, d): {name: (b, n / 2, layers + 1, outputs)}, at 25 fps."""
  frames = reduce(states, "b (f p) l d -> b f l d", "mean", p=POSITIONS_PER_FRAME)
  return {name: jnp.einsum("bfld,ldo->bflo", frames, head["kernel"]) + head["bias"] for name, head in of_heads.items()}


def spectrum(mel):
  """Mean spectrum of each video frame: (b, 4f, bins) -> (b, f, bins)."""
  return reduce(mel, "b (f m) c -> b f c", "mean", m=MELS_PER_FRAME)


def audio_encoder_loss(model: AudioEncoder) -> LossFn:
  """Cross-entropy of phonemes + squared errors of mouth and spectrum, averaged over frames and layers.

  On batches of `speech_batches`: pieces at their offsets, and whole chunks.
  """

  def errors(of_heads, states, mel, phoneme, mouth, mask):
    """Sums over valid frames, and their number."""
    outputs = read(of_heads, states)
    each = {
      "phoneme": optax.softmax_cross_entropy_with_integer_labels(outputs["phoneme"], phoneme[:, :, None]).mean(-1),
      "mouth": jnp.square(outputs["mouth"] - mouth[:, :, None]).mean((-2, -1)),
      "mel": jnp.square(outputs["mel"] - spectrum(mel)[:, :, None]).mean((-2, -1)),
    }
    right = (outputs["phoneme"][:, :, -1].argmax(-1) == phoneme) & (phoneme != _SILENCE)
    sums = {name: (error * mask).sum() for name, error in each.items()}
    return sums | {"frames": mask.sum(), "right": (right & mask).sum(), "spoken": (mask & (phoneme != _SILENCE)).sum()}

  def loss_fn(params, batch, key):
    del key
    encoder, of_heads = params["encoder"], params["heads"]
    states = states_at(model, encoder, batch["mel"], batch["offset"])
    names = ("mel", "phoneme", "mouth", "mask")
    parts = [errors(of_heads, states, *(batch[name] for name in names))]
    if "chunk_mel" in batch:
      states = model.apply({"params": encoder}, batch["chunk_mel"])
      parts.append(errors(of_heads, states, *(batch[f"chunk_{name}"] for name in names)))
    total = jax.tree.map(lambda *sums: sum(sums), *parts)
    means = {name: total[name] / jnp.maximum(total["frames"], 1) for name in ("phoneme", "mouth", "mel")}
    accuracy = total["right"] / jnp.maximum(total["spoken"], 1)
    return sum(means.values()), means | {"accuracy": accuracy}

  return loss_fn


def legibility(model: AudioEncoder, params: Mapping, batches: Iterable[dict], piece: int) -> dict[str, float]:
  """How well the heads of the last layer read finite batches of held-out clips.

  phoneme_accuracy: over frames with speech. frame_accuracy: over all frames. mouth_opening, mouth_width: correlations
  with the truth. mel_error: squared error of the spectrum divided by its variance. All use clips padded to 30 s, as
  generation does. piece_accuracy and padded_accuracy use the first `piece` frames, without and with what follows.
  """
  parts = []
  for batch in batches:
    mel, mask, phoneme = batch["mel"], batch["mask"] & batch["valid"][:, None], batch["phoneme"]
    whole = jax.device_get(_read_last(model, params, mel))
    short = jax.device_get(_read_last(model, params, mel[:, : MELS_PER_FRAME * piece]))
    rows = whole | {"spectrum": np.asarray(spectrum(mel)), "is_phoneme": phoneme, "is_mouth": batch["mouth"]}
    first = {"short": short["phoneme"], "padded": whole["phoneme"][:, :piece], "is_first": phoneme[:, :piece]}
    rows = {name: value[mask] for name, value in rows.items()}
    parts.append(rows | {name: value[mask[:, :piece]] for name, value in first.items()})
  frames = {name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]}

  def accuracy(name, truth):
    said = frames[truth] != _SILENCE
    return float((frames[name].argmax(-1) == frames[truth])[said].mean()) if said.any() else float("nan")

  scalars = {
    "phoneme_accuracy": accuracy("phoneme", "is_phoneme"),
    "frame_accuracy": float((frames["phoneme"].argmax(-1) == frames["is_phoneme"]).mean()),
    "piece_accuracy": accuracy("short", "is_first"),
    "padded_accuracy": accuracy("padded", "is_first"),
    "mel_error": float(np.square(frames["mel"] - frames["spectrum"]).mean() / frames["spectrum"].var(axis=0).mean()),
  }
  for i, name in enumerate(_MOUTH):
    scalars[name] = float(np.corrcoef(frames["mouth"][:, i], frames["is_mouth"][:, i])[0, 1])
  return scalars


@functools.partial(jax.jit, static_argnums=0)
def _read_last(model, params, mel):
  """Outputs of the last layer's heads for mel (b, 4f, bins): {name: (b, f, outputs)}."""

  def one(mel):
    outputs = read(params["heads"], model.apply({"params": params["encoder"]}, mel[None]))
    return {name: value[0, :, -1] for name, value in outputs.items()}

  # Row by row: the attention of a whole chunk fills the memory of a small machine.
  return jax.lax.map(one, mel)


def train_audio_encoder(
  config: AudioEncoderConfig, folder: str | os.PathLike | None = None, **listeners
) -> tuple[AudioEncoder, Outcome]:
  """Trains the audio encoder in `folder`, by default `config.out`, or continues there; see `loop.train`.

  A finished run leaves `folder`/weights with the moving average, without the heads. Validation is `legibility` of
  people and sentences of the validation split. listeners: see `Stage`. Raises what `loop.train`, `speech_batches` and
  `Start.of` raise.
  """
  start = Start.of("audio_encoder", _RELEASED | dict(config.model), config)
  model, seed, settings = start.module, config.loop.seed, config.batches
  batches = functools.partial(
    speech_batches, list(config.data), settings, seed=seed, memory_gb=MEMORY_GB, num_mel_bins=model.num_mel_bins
  )
  with Stage(config, batches, settings.batch, "pieces", folder=folder, **listeners) as stage:
    encoder = start.params(stage.placement, seed)
    if start.is_new:
      encoder["embed_positions"]["embedding"] = jnp.asarray(sinusoids(model.max_source_positions, model.d_model))
    params = {"encoder": encoder, "heads": heads(model, jax.random.fold_in(jax.random.key(seed), 2))}

    def measure(state, held_out, log):
      return legibility(model, state.averaged(), held_out, settings.frames)

    outcome = stage.train(
      audio_encoder_loss(model),
      *split(params, _TRAINABLE),
      frames=settings.batch * settings.frames + settings.chunks * CHUNK_FRAMES,
      validate=stage.validation(measure, limit=VALIDATION_CLIPS),
    )
  return start.finish(stage, outcome, outcome.state.averaged()["encoder"]), outcome


def sinusoids(length: int, channels: int) -> np.ndarray:
  """Whisper's positions, sines then cosines at wavelengths from 2π to 10,000 · 2π: (length, channels) float32."""
  step = np.log(10_000) / max(channels // 2 - 1, 1)
  angles = np.arange(length)[:, None] * np.exp(-step * np.arange(channels // 2))
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
