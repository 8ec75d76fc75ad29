"""The emotion of a clip: its prior, from the emotion embedder of a weights folder (§3.1, Eq. 2-5)."""

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.data.batches.windows import Sequences, starts
from dicetalk_jax.diffusion.conditioning import speech_at_25
from dicetalk_jax.errors import InputError, WeightsError
from dicetalk_jax.inference.conditions import whisper_states
from dicetalk_jax.inference.recordings import Recording, read_recording
from dicetalk_jax.media.audio import read_audio
from dicetalk_jax.vocabulary import EXPRESSION_DIM
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.priors import Prior, finite

# Frames of a window at 25 fps, for weights that do not say which number they were trained with.
_FRAMES = 64
# Windows per call of the embedder: one compilation for clips of every length.
_BATCH = 16
_TAKEN = ("expression", "expression_mask", "speech", "speech_mask")


def has_embedder(weights: Weights) -> bool:
  """Whether these weights have an emotion embedder."""
  return "emotion_embedder" in weights.config["networks"]


class ClipEmbedder:
  """Emotion priors of clips. `notes` collects remarks for the user on how files were read.

  load: network -> its float32 parameters; default: read from `weights`. Raises WeightsError for weights without an
  embedder, or with one whose sizes do not fit the other networks.
  """

  def __init__(self, weights: Weights, load: Callable[[str], dict] | None = None):
    if not has_embedder(weights):
      raise WeightsError(
        f"{weights.folder} has no emotion_embedder, which the emotion of a clip needs; train one with `dicetalk train "
        "embedder`, or give weights that have one."
      )
    self.weights, self.notes = weights, []
    self.model = weights.module("emotion_embedder")
    self._load = load or functools.cache(lambda network: weights.load(network, jnp.float32))
    self._known: dict[pathlib.Path, Prior] = {}
    networks, settings = weights.config["networks"], weights.config.get("emotion_embedder") or {}
    for network, size, ours in (
      ("emotion_model", "prior_dim", "features"),
      ("audio_encoder", "d_model", "speech_features"),
    ):
      theirs = getattr(weights.module(network), size) if network in networks else None
      if theirs not in (None, getattr(self.model, ours)):
        raise WeightsError(
          f"{weights.folder} has an emotion_embedder of {ours} {getattr(self.model, ours)} and an {network} of {size} "
          f"{theirs}; they must be the same."
        )
    self.frames = settings.get("frames", _FRAMES)
    if type(self.frames) is not int or self.frames < 1:
      raise WeightsError(f"{weights.folder}: emotion_embedder.frames is {self.frames!r}, wanted a whole number.")

  def takes(self, modality: str) -> bool:
    """Whether the embedder uses "video" (the expression coefficients) or "audio"."""
    return self.model.inputs in ("both", modality)

  def prior(self, clip) -> Prior:
    """The prior of one clip: a file (see `read_recording`), or an object with `expression` and `audio`, as `Recording`.

    Raises InputError for a file that cannot be read, and for a clip without a modality that this embedder uses.
    """
    if not isinstance(clip, str | os.PathLike):
      return next(self.priors([self.sequences(Recording(clip.expression, clip.audio), "the clip")]))
    path = pathlib.Path(clip)
    if path not in self._known:
      recording = read_recording(path)
      self._known[path] = next(self.priors([self.sequences(recording, str(path))]))
      if recording.note and self.model.inputs == "both":
        self.notes.append(recording.note)
    return self._known[path]

  def sequences(self, recording: Recording, name: str) -> Sequences:
    """The embedder's input from a recording; speech goes through the weights' Whisper. name: for error messages."""
    expression = np.zeros((0, EXPRESSION_DIM), np.float32)
    speech = np.zeros((0, self.model.speech_features), np.float32)
    if self.takes("video") and recording.expression is not None:
      expression = finite(recording.expression, f"The expression of {name}")
      if expression.ndim != 2 or expression.shape[1] != EXPRESSION_DIM:
        raise InputError(f"The expression of {name} has shape {expression.shape}, wanted (frames, {EXPRESSION_DIM}).")
    if self.takes("audio") and recording.audio is not None:
      audio = read_audio(recording.audio, name=name)
      with jax.default_matmul_precision("highest"):
        states = whisper_states(self.weights.module("audio_encoder"), self._load("audio_encoder"), audio)
      # Encoded sets, which the embedder was trained on, store half precision.
      speech = speech_at_25(states.astype(np.float16))
    if len(expression) and len(speech) and len(expression) != len(speech):
      raise InputError(
        f"{name} has {len(expression)} frames of expression and sound for {len(speech)} at 25 a second; give as many."
      )
    sequences = Sequences(expression, speech)
    if not len(sequences):
      wanted = {"video": "expression coefficients", "audio": "sound"}.get(self.model.inputs, "coefficients or sound")
      raise InputError(f"{name} has no {wanted}, which this emotion embedder needs; give another clip.")
    return sequences

  def taken(self, clip: Sequences) -> Sequences:
    """The clip without the modalities that this embedder does not use."""
    expression, speech = clip.expression, clip.speech
    if not self.takes("video"):
      expression = np.zeros((0, EXPRESSION_DIM), np.float32)
    if not self.takes("audio"):
      speech = np.zeros((0, self.model.speech_features), np.float32)
    return Sequences(expression, speech)

  def priors(self, clips: Iterable[Sequences]) -> Iterator[Prior]:
    """The prior of each clip, in order.

    A clip of n frames is cut into ⌈n / frames⌉ evenly spread windows of the length that the embedder was trained on; a
    short clip is one window, masked after its end. The prior has the mean and variance of an equal mixture of the
    windows' Gaussians, see `pooled`.
    """
    rows, counts = [], []
    for clip in clips:
      begins = starts(len(clip), self.frames, -(-len(clip) // self.frames), rng=None)
      rows += [clip.window(begin + np.arange(self.frames)) for begin in begins]
      counts.append(len(begins))
      if len(rows) >= _BATCH:
        yield from self._pooled(rows, counts)
        rows, counts = [], []
    yield from self._pooled(rows, counts)

  def _pooled(self, rows: list[dict], counts: list[int]) -> Iterator[Prior]:
    gaussians = []
    for first in range(0, len(rows), _BATCH):
      part = rows[first : first + _BATCH]
      part += [part[-1]] * (_BATCH - len(part))
      with jax.default_matmul_precision("highest"):
        batch = [np.stack([row[name] for row in part]) for name in _TAKEN]
        gaussians.append(np.stack(_apply(self.model, self._load("emotion_embedder"), *batch)))
    windows = np.concatenate(gaussians, axis=1) if gaussians else None
    for end, count in zip(np.cumsum(counts), counts, strict=True):
      yield pooled(*windows[:, end - count : end])


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, *inputs):
  return model.apply({"params": params}, *inputs)


def pooled(mu: np.ndarray, sigma: np.ndarray) -> Prior:
  """The Gaussian with the mean and variance of an equal mixture of Gaussians: mu, sigma (k, d) -> (d,) each."""
  mu, variance = np.asarray(mu, np.float64), np.square(np.asarray(sigma, np.float64))
  return Prior(mu.mean(0).astype(np.float32), np.sqrt(variance.mean(0) + mu.var(0)).astype(np.float32))
