"""The page's emotion controls -> text in the grammar of `dicetalk generate --emotion`, which checks it."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from dicetalk_jax.app.uploads import Upload
from dicetalk_jax.errors import InputError

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
class Choice:
  """An emotion chosen on the page: `text` in the grammar, or a `clip`.

  keyframes: for the plot, {time: seconds, weights: {label: strength}}.
  """

  text: str
  keyframes: tuple[Mapping, ...] = ()
  clip: Upload | None = None

  @property
  def spec(self):
    """What `DiceTalk.generate` takes."""
    return self.text if self.clip is None else self.clip.path


def of_label(label: str | None, strength: float | None = 1.0) -> Choice:
  """A label with a strength in [0, 2]."""
  return Choice(_term(label, strength), ({"time": 0.0, "weights": {label: strength}},))


def of_mix(weights: Mapping[str, float | None]) -> Choice:
  """Labels with weights, without those of weight 0; InputError where none remains."""
  weights = {label: weight for label, weight in weights.items() if weight}
  if not weights:
    raise InputError("the mix is empty: move at least one slider above 0")
  text = "+".join(f"{label}:{weight:g}" for label, weight in weights.items())
  return Choice(text, ({"time": 0.0, "weights": weights},))


def of_timeline(keyframes: Sequence[Mapping]) -> Choice:
  """Keyframes {time, weights: {label: strength}} in any order; InputError where there are none or too many."""
  if not 0 < len(keyframes) <= _MOST_KEYFRAMES:
    raise InputError(f"the timeline has {len(keyframes)} emotions; it may have 1 to {_MOST_KEYFRAMES}")
  try:
    keyframes = sorted(keyframes, key=lambda keyframe: keyframe["time"])
    texts = [f"{round(frame['time'], 3):g}s {_term(*next(iter(frame['weights'].items())))}" for frame in keyframes]
  except (AttributeError, KeyError, StopIteration, TypeError):
    raise InputError("the timeline cannot be read; set it again") from None
  return Choice(", ".join(texts), tuple(keyframes))


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
  if not label:
    raise InputError("choose an emotion")
  if not isinstance(strength, int | float):
    raise InputError("strength has no number")
  return label if strength == 1 else f"{label}:{strength:g}"
