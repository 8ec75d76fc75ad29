"""Classifier-free guidance over image, audio and emotion.

The network runs once a branch; the branches differ in which conditions they see, and their differences are what each
condition contributes.
"""

from typing import NamedTuple

import jax.numpy as jnp


class Branch(NamedTuple):
  """Which conditions a branch of the network sees."""

  image: bool
  audio: bool
  emotion: bool


UNCONDITIONAL = Branch(False, False, False)
IMAGE = Branch(True, False, False)
SPEECH = Branch(True, True, False)
FULL = Branch(True, True, True)


def branches(audio_scale=None) -> tuple[Branch, ...]:
  """The release's three branches; with a scale for the audio alone, a fourth between image and all conditions."""
  return (UNCONDITIONAL, IMAGE, FULL) if audio_scale is None else (UNCONDITIONAL, IMAGE, SPEECH, FULL)


def scales(identity_scale=3.0, emotion_scale=6.0, audio_scale=None) -> tuple[float, ...]:
  """What multiplies each difference between a branch and the one before it, in the order of `branches`."""
  return (identity_scale, emotion_scale) if audio_scale is None else (identity_scale, audio_scale, emotion_scale)


def needed(branches: tuple[Branch, ...], scales: tuple[float, ...]) -> tuple[tuple[Branch, ...], tuple[float, ...]]:
  """The branches that what `guide` makes of them depends on, and the scales between those.

  A first difference that counts once makes its second branch the start, and two that count alike are one: with an
  identity_scale of 1 the unconditional branch has no part in the result, and need not be run.
  """
  while scales and scales[0] == 1:
    branches, scales = branches[1:], scales[1:]
  apart = [k for k, scale in enumerate(scales) if k + 1 == len(scales) or scale != scales[k + 1]]
  return (branches[0], *(branches[k + 1] for k in apart)), tuple(scales[k] for k in apart)


def guide(outputs, steps):
  """outputs[0] + Σ_k steps[k] · (outputs[k+1] − outputs[k]).

  outputs (k + 1, ...): the network's, one a branch; steps (k,) from `scales` -> (...). With three branches u, r, c:
  u + identity_scale · (r − u) + emotion_scale · (c − r), the release's rule.
  """
  differences = outputs[1:] - outputs[:-1]
  return outputs[0] + jnp.tensordot(steps, differences, axes=1)
