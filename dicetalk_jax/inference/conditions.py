"""The U-Net's conditions as a list: where each one's tokens come from, in training and in generation.

Adapter i of the U-Net attends to the tokens of condition i. DICE-Talk has audio and emotion; weights with
other adapters name their conditions in config.json ("conditions": ["audio"]).
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.diffusion.conditioning import speech_windows
from dicetalk_jax.errors import WeightsError
from dicetalk_jax.media.audio import log_mel
from dicetalk_jax.vocabulary import MODEL_FPS, SAMPLES_PER_FRAME


@functools.partial(jax.jit, static_argnames=("module", "method", "options"))
def run(module, params, *inputs, method=None, options=()):
  """module(*inputs) as one compiled program. options: keyword arguments as a tuple of pairs."""
  return module.apply({"params": params}, *inputs, method=method, **dict(options))


class Networks(Protocol):
  """Networks by name, whose parameters are read when first needed; `DiceTalk` is one. dtype: of tokens."""

  dtype: jnp.dtype

  def module(self, name: str): ...

  def params(self, name: str) -> dict: ...

  def architecture(self, name: str) -> Mapping: ...


def frame_count(samples: int) -> int:
  """Frames at 12.5 per second of a 16 kHz sound. The release drops an incomplete pair at 25 fps."""
  return samples // SAMPLES_PER_FRAME // 2


@dataclasses.dataclass(frozen=True)
class Condition:
  """One condition: one adapter of the U-Net.

  Its network, a module `features (n, ...) -> tokens (n, t, d)`, makes the tokens; those of zero features are the
  unconditional tokens, which guidance subtracts and which replace a dropped condition in training.
  """

  name: str
  """Of the condition. Settings named <name>_scale and drop_<name>, where they exist, go before `scale` and `drop`."""

  network: str
  """The network that makes tokens, by its name in the weights. If it has a method `for_training(features)`, training
  calls that instead; it returns tokens and a loss (n,) that is added to the objective."""

  of_input: Callable[[Networks, Any, int], np.ndarray]
  """of_input(networks, value, frames): what a user gives -> features (frames, ...), at 12.5 frames per second."""

  of_batch: Callable[[Callable, Mapping, jax.Array], jax.Array]
  """of_batch(run, batch, key): a training batch -> features (b, frames or 1, ...). run(network, *inputs) runs one of
  `needs`."""

  needs: tuple[str, ...] = ()
  """Further networks that `of_batch` runs. They are frozen."""

  drop: float = 0.05
  """Share of training samples in which this condition alone is dropped."""

  scale: float | None = None
  """Guidance scale. None: the condition shares the next one's branch, see `diffusion.guidance.plan`."""

  options: tuple[str, ...] = ()
  """Settings of a generation that are passed to the network by name."""

  rows: int = 64
  """Feature rows that the network runs on together in generation: one compilation for every length."""


def whisper_states(module, params, audio: np.ndarray) -> np.ndarray:
  """Whisper's hidden states of a 16 kHz sound: (samples,) -> (positions, layers + 1, d) at 50 Hz.

  Chunks of 30 s are encoded independently. There are 2 · (samples // 640) positions.
  """
  mel = log_mel(audio, {"num_mel_bins": module.num_mel_bins})
  states = np.concatenate([np.asarray(run(module, params, chunk[None])[0]) for chunk in mel])
  return states[: 2 * (len(audio) // SAMPLES_PER_FRAME)]


def _speech(networks, audio, frames):
  states = whisper_states(networks.module("audio_encoder"), networks.params("audio_encoder"), audio)
  return speech_windows(states, 2 * np.arange(frames), networks.architecture("audio_projection")["window"])


def _prior_of_batch(run, batch, key):
  """The emotion prior s (b, 1, 256) of a batch's clips (Eq. 6): drawn from the embedder's Gaussian, or its mean."""
  gaussian = run("emotion_embedder", *(batch[n] for n in ("expression", "expression_mask", "speech", "speech_mask")))
  prior = gaussian.mu if key is None else gaussian.sample(key)
  return jax.lax.stop_gradient(prior)[:, None]


AUDIO = Condition(
  name="audio",
  network="audio_projection",
  of_input=_speech,
  of_batch=lambda run, batch, key: batch["audio"].astype(jnp.float32),
)
EMOTION = Condition(
  name="emotion",
  network="emotion_model",
  of_input=lambda networks, emotion, frames: emotion.at(np.arange(frames) / MODEL_FPS),
  of_batch=_prior_of_batch,
  needs=("emotion_embedder",),
  options=("bank",),
  # Each emotion attends to thousands of tokens, and most videos have a single one.
  rows=4,
)
CONDITIONS = {condition.name: condition for condition in (AUDIO, EMOTION)}


def register_condition(condition: Condition) -> None:
  """Makes a condition known by its name, so that weights can name it."""
  CONDITIONS[condition.name] = condition


def conditions_of(config: Mapping) -> tuple[Condition, ...]:
  """The conditions of weights, from their config.json, in the order of the U-Net's adapters.

  Without an entry "conditions" they are audio and emotion. WeightsError for one that is not registered, and for another
  number than the U-Net has adapters.
  """
  names = config.get("conditions", (AUDIO.name, EMOTION.name))
  if unknown := [name for name in names if name not in CONDITIONS]:
    raise WeightsError(f"config.json names the condition {unknown[0]!r}; known are {', '.join(CONDITIONS)}.")
  adapters = len(config["networks"]["unet"]["adapter_scales"])
  if adapters != len(names):
    raise WeightsError(f"The U-Net has {adapters} adapters, wanted {len(names)}, for {', '.join(names)}.")
  return tuple(CONDITIONS[name] for name in names)


@jax.jit
def _rows(table, index):
  return table[index]


@dataclasses.dataclass(frozen=True)
class TokenTable:
  """Tokens of frames: rows (k, n, d), the last one unconditional, and the row of each frame, index (N,)."""

  rows: jnp.ndarray
  index: np.ndarray

  @property
  def unconditional(self) -> jnp.ndarray:
    return self.rows[-1]

  def __getitem__(self, frames: np.ndarray) -> jnp.ndarray:
    """The tokens of some frames: indices (...) -> (..., n, d)."""
    return _rows(self.rows, self.index[frames])

  def padded(self, frames: int) -> "TokenTable":
    """The table with unconditional frames appended."""
    return TokenTable(self.rows, np.append(self.index, np.full(frames, len(self.rows) - 1)))


def in_batches(function: Callable, rows: np.ndarray, batch: int, dtype) -> jnp.ndarray:
  """function over rows (n, ...) in batches of one shape, joined as `dtype` on the device."""
  results = []
  for first in range(0, len(rows), batch):
    part = rows[first : first + batch]
    padded = np.pad(part, [(0, batch - len(part))] + [(0, 0)] * (part.ndim - 1))
    # Cut and joined on the host, where no length needs a program of its own.
    results.append(np.asarray(function(padded))[: len(part)])
  return jnp.asarray(np.concatenate(results), dtype)


def tabulate(module, params, features: np.ndarray, rows: int = 64, dtype=jnp.float32, **options) -> TokenTable:
  """Features of frames (N, ...) -> `TokenTable`; equal features are computed once. options: of the module's call."""
  keys = [hashlib.blake2b(np.ascontiguousarray(row)).digest() for row in features]
  first = {key: i for i, key in reversed([*enumerate(keys)])}
  distinct = sorted(first.values())
  place = {keys[i]: k for k, i in enumerate(distinct)}
  inputs = np.concatenate([features[distinct], np.zeros_like(features[:1])])
  project = functools.partial(run, module, params, options=tuple(options.items()))
  return TokenTable(in_batches(project, inputs, rows, dtype), np.array([place[key] for key in keys]))


def token_table(networks: Networks, condition: Condition, value, frames: int, config: GenerationConfig) -> TokenTable:
  """The tokens of a condition for the frames of a video, from what a user gives."""
  features = condition.of_input(networks, value, frames)
  module, params = networks.module(condition.network), networks.params(condition.network)
  options = {name: getattr(config, name) for name in condition.options}
  return tabulate(module, params, features, condition.rows, networks.dtype, **options)
