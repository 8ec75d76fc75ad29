"""Classifier-free guidance over the image and any number of further conditions.

The network runs once per branch. A branch sees the conditions of the branch before it and some more; the difference
between the two is what these contribute, and a scale multiplies it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from dicetalk_jax.config import GenerationConfig


class Guidance(NamedTuple):
  """branches: for each, whether it sees the image, then each condition. scales: one per pair of neighbours."""

  branches: tuple[tuple[bool, ...], ...]
  scales: tuple[float, ...]


def plan(image_scale: float, condition_scales: Sequence[float | None]) -> Guidance:
  """The branches to run: nothing, the image, then the conditions in order.

  A condition whose scale is None shares the branch of the next one that has a scale, or else of the last branch. The
  release, (None, 6.0) for audio and emotion, has three branches; (audio_scale, 6.0) has four. Branches that cancel in
  the result are left out: with an image scale of 1 the first one, and those between two equal scales.
  """
  total = 1 + len(condition_scales)
  # Branch k sees the image and conditions before ends[k][0].
  ends = [(i + 1, scale) for i, scale in enumerate((image_scale, *condition_scales)) if scale is not None]
  ends[-1] = total, ends[-1][1]
  first = 0
  while ends and ends[0][1] == 1:
    first, _ = ends.pop(0)
  ends = [end for i, end in enumerate(ends) if i + 1 == len(ends) or end[1] != ends[i + 1][1]]
  branches = (tuple(k < end for k in range(total)) for end in (first, *(end for end, _ in ends)))
  return Guidance(tuple(branches), tuple(scale for _, scale in ends))


def of_settings(config: GenerationConfig, conditions: Sequence) -> Guidance:
  """The plan for the settings of a generation and a list of conditions (`inference.conditions`).

  A condition's scale is the setting <name>_scale, if there is one, else its own `scale`.
  """
  return plan(config.identity_scale, [getattr(config, f"{each.name}_scale", each.scale) for each in conditions])


def guide(outputs, scales):
  """outputs[0] + Σ_k scales[k] · (outputs[k+1] − outputs[k]): outputs (k + 1, ...), scales (k,) -> (...).

  With the release's branches u, r, c: u + identity_scale · (r − u) + emotion_scale · (c − r).
  """
  differences = outputs[1:] - outputs[:-1]
  return outputs[0] + jnp.tensordot(scales, differences, axes=1)
