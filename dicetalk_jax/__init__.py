"""Emotional talking portraits in JAX."""

import importlib

__version__ = "0.1.0"

_HOMES = {
  "DiceTalk": "dicetalk_jax.inference.pipeline",
  "Emotion": "dicetalk_jax.inference.emotion",
  "Video": "dicetalk_jax.inference.video",
  "Weights": "dicetalk_jax.weights.folder",
}
__all__ = sorted(_HOMES)


def __getattr__(name):
  # Imported on first use, so that --help does not load JAX.
  if name in _HOMES:
    return getattr(importlib.import_module(_HOMES[name]), name)
  raise AttributeError(f"module 'dicetalk_jax' has no attribute '{name}'")


def __dir__():
  return [*globals(), *__all__]
