"""Whisper's encoder from nothing: states from which one reads, by one linear layer, what is said and how it sounds.

Whisper learned its states by writing down what is said. A drawn world knows that frame by frame: linear heads, thrown
away afterwards, read each frame's phoneme, its mouth and its own spectrum from every state. No emotion is told.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import reduce

from dicetalk_jax.data.batches.speech import CHUNK_FRAMES, MELS_PER_FRAME, POSITIONS_PER_FRAME, speech_batches
from dicetalk_jax.models.audio_encoder import AudioEncoder
from dicetalk_jax.training.checkpoints import show
from dicetalk_jax.training.foundations.common import begin, check_weights, finish, fit, held_out, validation
from dicetalk_jax.training.foundations.config import AudioEncoderConfig
from dicetalk_jax.training.loop import Outcome
from dicetalk_jax.training.step import LossFn
from dicetalk_jax.world.phonemes import INDEX, PHONEMES

_SILENCE = INDEX["SIL"]
_MOUTH = ("mouth_opening", "mouth_width")
# Positions stay Whisper's sinusoids, which it never trained either: short pieces teach nothing of most places.
_TRAINABLE = (r"^encoder/(?!embed_positions/)", r"^heads/")


def states_at(model: AudioEncoder, params: Mapping, mel, offset):
  """States of pieces as if they stood elsewhere in a chunk: mel (b, 2n, bins), offset (b,) -> (b, n, layers + 1, d).

  offset: the position, at 50 Hz, of each piece's first. Nothing else of the chunk is heard.
  """
  positions = mel.shape[1] // 2
  piece = model.clone(max_source_positions=positions)
  table = params["embed_positions"]["embedding"]

  def one(mel, offset):
    here = jax.lax.dynamic_slice_in_dim(table, offset, positions)
    return piece.apply({"params": {**params, "embed_positions": {"embedding": here}}}, mel[None])[0]

  return jax.vmap(one)(mel, offset)


def heads(model: AudioEncoder, key) -> dict:
  """Linear heads of every state: {name: {kernel (layers + 1, d, outputs), bias (layers + 1, outputs)}}."""
  states, d = model.encoder_layers + 1, model.d_model
  outputs = {"phoneme": len(PHONEMES), "mouth": len(_MOUTH), "mel": model.num_mel_bins}
  draw = jax.nn.initializers.lecun_normal(batch_axis=0)
  return {
    name: {"kernel": draw(jax.random.fold_in(key, i), (states, d, size)), "bias": jnp.zeros((states, size))}
    for i, (name, size) in enumerate(outputs.items())
  }


def read(of_heads: Mapping, states) -> dict:
  """What the heads make of states (b, n, layers + 1, d): {name: (b, n / 2, layers + 1, outputs)}, at 25 fps."""
  frames = reduce(states, "b (f p) l d -> b f l d", "mean", p=POSITIONS_PER_FRAME)
  return {name: jnp.einsum("bfld,ldo->bflo", frames, head["kernel"]) + head["bias"] for name, head in of_heads.items()}


def spectrum(mel):
  """Each frame's own part of a spectrogram: (b, 4f, bins) -> (b, f, bins)."""
  return reduce(mel, "b (f m) c -> b f c", "mean", m=MELS_PER_FRAME)


def audio_encoder_loss(model: AudioEncoder, config: AudioEncoderConfig) -> LossFn:
  """Cross-entropy of phonemes + squared errors of mouth and spectrum, the mean over frames and over all states.

  Of batches as `speech_batches` gives: pieces at their offsets, and whole chunks.
  """
  weights = {"phoneme": config.phoneme_weight, "mouth": config.mouth_weight, "mel": config.mel_weight}

  def errors(of_heads, states, mel, phoneme, mouth, mask):
    """Sums over frames that are, and their number."""
    found = read(of_heads, states)
    each = {
      "phoneme": optax.softmax_cross_entropy_with_integer_labels(found["phoneme"], phoneme[:, :, None]).mean(-1),
      "mouth": jnp.square(found["mouth"] - mouth[:, :, None]).mean((-2, -1)),
      "mel": jnp.square(found["mel"] - spectrum(mel)[:, :, None]).mean((-2, -1)),
    }
    right = (found["phoneme"][:, :, -1].argmax(-1) == phoneme) & (phoneme != _SILENCE)
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
    means = {name: total[name] / jnp.maximum(total["frames"], 1) for name in weights}
    accuracy = total["right"] / jnp.maximum(total["spoken"], 1)
    return sum(weights[name] * means[name] for name in weights), means | {"accuracy": accuracy}

  return loss_fn


def legibility(model: AudioEncoder, params: Mapping, batches: Iterable[dict], piece: int) -> dict[str, float]:
  """How well the last state's heads read clips that were not in training, from finite batches.

  phoneme_accuracy: of frames in which something is said; frame_accuracy: of all; mouth_opening and mouth_width: their
  correlations with the truth; mel_error: the spectrum's squared error as a share of its variance. All are of clips that
  are padded to 30 s, as when a video is made. piece_accuracy and padded_accuracy are of the first `piece` frames alone,
  without anything after them and with it.
  """
  found = []
  for batch in batches:
    whole = jax.device_get(_read_last(model, params, batch["mel"]))
    short = jax.device_get(_read_last(model, params, batch["mel"][:, : MELS_PER_FRAME * piece]))
    mask = batch["mask"] & batch["valid"][:, None]
    rows = {name: value[mask] for name, value in whole.items()}
    rows |= {"spectrum": np.asarray(spectrum(batch["mel"]))[mask]}
    rows |= {"is_phoneme": batch["phoneme"][mask], "is_mouth": batch["mouth"][mask]}
    first = mask[:, :piece]
    rows |= {"short": short["phoneme"][first], "padded": whole["phoneme"][:, :piece][first]}
    found.append(rows | {"is_first": batch["phoneme"][:, :piece][first]})
  found = {name: np.concatenate([rows[name] for rows in found]) for name in found[0]}

  def accuracy(name, truth):
    said = found[truth] != _SILENCE
    return float((found[name].argmax(-1) == found[truth])[said].mean()) if said.any() else float("nan")

  scalars = {
    "phoneme_accuracy": accuracy("phoneme", "is_phoneme"),
    "frame_accuracy": float((found["phoneme"].argmax(-1) == found["is_phoneme"]).mean()),
    "piece_accuracy": accuracy("short", "is_first"),
    "padded_accuracy": accuracy("padded", "is_first"),
    "mel_error": float(np.square(found["mel"] - found["spectrum"]).mean() / found["spectrum"].var(axis=0).mean()),
  }
  for i, name in enumerate(_MOUTH):
    scalars[name] = float(np.corrcoef(found["mouth"][:, i], found["is_mouth"][:, i])[0, 1])
  return scalars


@functools.partial(jax.jit, static_argnums=0)
def _read_last(model, params, mel):
  """What the heads of the last state read from mel (b, 4f, bins), each row alone: {name: (b, f, outputs)}."""

  def one(mel):
    return read(params["heads"], model.apply({"params": params["encoder"]}, mel[None]))

  # One after another: a chunk's attention fills a small machine's memory.
  found = jax.lax.map(one, mel)
  return {name: value[:, 0, :, -1] for name, value in found.items()}


def train_audio_encoder(
  config: AudioEncoderConfig,
  folder: str | os.PathLike | None = None,
  report: Callable[[int, dict[str, float]], None] | None = None,
  progress: Callable[[str, int, int], None] | None = None,
  warn: Callable[[str], None] = show,
  validated: Callable[[int, Mapping[str, float]], None] | None = None,
) -> tuple[AudioEncoder, Outcome]:
  """Trains the audio encoder in `folder`, by default `config.out`, or goes on; see `loop.train`.

  At its end `folder`/weights holds the moving average, without the heads. Validation is `legibility` of people and
  sentences of the validation split, where the data has one; validated(step, scalars) is called after it. Raises what
  `loop.train`, `speech_batches` and `Weights.open` raise, and InputError for weights of losses below 0.
  """
  check_weights(config, ("phoneme_weight", "mouth_weight", "mel_weight"))
  folder = pathlib.Path(folder or config.out).expanduser()
  loop, batches_config = config.loop, config.batches
  beginning = begin("audio_encoder", _architecture(config), config.weights, loop.seed)
  model, encoder = beginning.module, beginning.params
  if beginning.is_new:
    positions = jnp.asarray(sinusoids(model.max_source_positions, model.d_model))
    encoder = {**encoder, "embed_positions": {"embedding": positions}}
  options = dict(config=batches_config, seed=loop.seed, memory_gb=config.memory_gb, num_mel_bins=model.num_mel_bins)
  with speech_batches(list(config.data), workers=config.workers, **options) as batches:
    outcome = fit(
      {"encoder": encoder, "heads": heads(model, jax.random.fold_in(jax.random.key(loop.seed), 2))},
      audio_encoder_loss(model, config),
      batches,
      config.optimizer,
      loop,
      folder,
      frames=batches_config.batch * batches_config.frames + batches_config.chunks * CHUNK_FRAMES,
      trainable=_TRAINABLE,
      validate=_validation(config, model, options, warn, validated),
      report=report,
      progress=progress,
      warn=warn,
    )
  return finish(beginning, outcome, outcome.state.averaged()["encoder"], folder), outcome


def _architecture(config: AudioEncoderConfig) -> dict:
  """What of Whisper's published config.json is the encoder's, with these sizes."""
  sizes = config.model
  return {
    "num_mel_bins": sizes.num_mel_bins,
    "d_model": sizes.d_model,
    "encoder_layers": sizes.encoder_layers,
    "encoder_attention_heads": sizes.encoder_attention_heads,
    "encoder_ffn_dim": sizes.encoder_ffn_dim,
    "max_source_positions": POSITIONS_PER_FRAME * CHUNK_FRAMES,
    "activation_function": "gelu",
    "scale_embedding": False,
  }


def sinusoids(length: int, channels: int) -> np.ndarray:
  """Whisper's positions, sines then cosines at wavelengths from 2π to 10,000 · 2π: (length, channels) float32."""
  step = np.log(10_000) / max(channels // 2 - 1, 1)
  angles = np.arange(length)[:, None] * np.exp(-step * np.arange(channels // 2))
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _validation(config, model, options, warn, validated):
  unseen = held_out(
    lambda: speech_batches(
      list(config.data), split=config.validation_split, training=False, limit=config.validation_clips, **options
    ),
    warn,
  )
  frames = config.batches.frames
  return validation(unseen, lambda state, log: legibility(model, state.averaged(), unseen, frames), validated)
