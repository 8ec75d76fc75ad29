"""The page's emotion controls -> text in the grammar of `dicetalk generate --emotion`."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence

from dicetalk_jax.app.uploads import Upload
from dicetalk_jax.errors import InputError
from dicetalk_jax.inference.emotion import STRONGEST

LABEL, MIX, TIMELINE, CLIP = MODES = ("Label", "Mix", "Timeline", "Clip")
_MOST_KEYFRAMES = 64
# Dark enough on white, light enough on black.
_COLOURS = {
  "angry": "#d64545",
  "contempt": "#8f6fd0",
  "disgusted": "#6c9a2f",
  "fear": "#5a78e0",
  "happy": "#e0a100",
  "neutral": "#8a9099",
  "sad": "#2f93b8",
  "surprised": "#dd6aa6",
}
_OTHERS = ("#c2783a", "#3aa084", "#a2578f", "#7c8a3a")


@dataclasses.dataclass(frozen=True)
class Keyframe:
  """Weights of labels at a time in seconds."""

  time: float
  weights: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Choice:
  """An emotion chosen on the page: `text` in the grammar, or a `clip`; keyframes for the plot."""

  text: str
  keyframes: tuple[Keyframe, ...] = ()
  clip: Upload | None = None

  @property
  def spec(self):
    """What `DiceTalk.generate` takes."""
    return self.text if self.clip is None else self.clip.path


def of_label(label: str | None, strength: float | None = 1.0) -> Choice:
  """A label with a strength in [0, 2]."""
  strength = _number(strength, "strength")
  return Choice(_term(label, strength), (Keyframe(0.0, {label: strength}),))


def of_mix(weights: Mapping[str, float]) -> Choice:
  """Labels with weights, without those of weight 0; InputError where none remains or the sum exceeds 2."""
  weights = {label: _number(weight, label) for label, weight in weights.items()}
  weights = {label: weight for label, weight in weights.items() if weight > 0}
  if not weights:
    raise InputError("the mix is empty: move at least one slider above 0")
  if (total := math.fsum(weights.values())) > STRONGEST + 1e-9:
    raise InputError(f"the mix adds up to {total:g}; it may add up to at most {STRONGEST:g}")
  text = "+".join(f"{label}:{weight:g}" for label, weight in weights.items())
  return Choice(text, (Keyframe(0.0, weights),))


def of_timeline(keyframes: Sequence[Mapping]) -> Choice:
  """Keyframes {time, label, strength} in any order; InputError for none and for two at one time."""
  if not keyframes:
    raise InputError("the timeline is empty: add an emotion to it")
  if len(keyframes) > _MOST_KEYFRAMES:
    raise InputError(f"the timeline has {len(keyframes)} emotions; it may have {_MOST_KEYFRAMES}")
  entries = []
  for keyframe in keyframes:
    if not isinstance(keyframe, Mapping):
      raise InputError("the timeline cannot be read; set it again")
    time, strength = _number(keyframe.get("time"), "time"), _number(keyframe.get("strength", 1), "strength")
    if time < 0:
      raise InputError(f"the timeline begins at 0 s; {time:g} s is before it")
    entries.append((round(time, 3), keyframe.get("label"), strength))
  entries.sort(key=lambda keyframe: keyframe[0])
  for (before, *_), (after, *_) in itertools.pairwise(entries):
    if after <= before:
      raise InputError(f"two emotions are at {before:g} s; move one of them")
  text = ", ".join(f"{time:g}s {_term(label, strength)}" for time, label, strength in entries)
  return Choice(text, tuple(Keyframe(time, {label: strength}) for time, label, strength in entries))


def of_clip(clip: Upload | None) -> Choice:
  """The emotion of a clip; InputError without a clip."""
  if clip is None:
    raise InputError("give a clip, or choose a label")
  return Choice(clip.name, (), clip)


def check_words(text: str):
  """Raises InputError for a text that names files, which would be the server's."""
  if re.search(r"[/\\~]|\.\s*[A-Za-z_]", text):
    raise InputError(f"the emotion {text!r} names a file; use labels here, and upload a clip as a file")


def colours(labels: Sequence[str]) -> dict[str, str]:
  """A colour for each label."""
  others = [label for label in labels if label not in _COLOURS]
  return {label: _COLOURS.get(label) or _OTHERS[others.index(label) % len(_OTHERS)] for label in labels}


def _term(label, strength):
  if not label or not isinstance(label, str):
    raise InputError("choose an emotion")
  return label if strength == 1 else f"{label}:{strength:g}"


def _number(value, name):
  if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
    raise InputError(f"{name} has no number")
  return float(value)
