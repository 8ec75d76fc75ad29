"""What an emotion may be: a label, a strength, a mix, a timeline, a file or an array -> `Emotion`."""

import dataclasses
import difflib
import itertools
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping

import numpy as np

from dicetalk_jax.errors import InputError
from dicetalk_jax.inference.recordings import is_recording
from dicetalk_jax.vocabulary import MODEL_FPS
from dicetalk_jax.weights.priors import SUFFIXES, Prior, finite, read_prior, vector

STRONGEST = 2.0
_FORMS = "a label, happy:0.7, happy:0.6+surprised:0.4, '0s neutral, 2s happy', a prior file, a clip or an array"
_KEYFRAME = re.compile(
  r"(?P<time>(?P<sign>[+-]?)(?:(?P<minutes>\d+):)?(?P<amount>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>ms|s)?)(?:\s+(?P<mix>.*))?",
  re.DOTALL | re.ASCII,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Emotion:
  """An emotion over time, as keyframes of the emotion prior's mean.

  seconds (k,): times of the keyframes, rising from 0 or later. mu (k, d): the prior at each. text: what a person reads.
  smooth: move between two keyframes by 3u² − 2u³, u being the share of the time between them that has passed, instead
  of u. Raises InputError where the times do not rise, shapes disagree or a number is not finite.
  """

  seconds: np.ndarray
  mu: np.ndarray
  text: str = "given priors"
  smooth: bool = True

  def __post_init__(self):
    mu, seconds = finite(self.mu, "The emotion's mu"), np.array(self.seconds, np.float64)
    if mu.ndim != 2 or seconds.shape != mu.shape[:1] or not mu.size:
      raise InputError(f"An emotion has times (k,) and priors (k, d); found {seconds.shape} and {mu.shape}.")
    if not np.isfinite(seconds).all() or seconds[0] < 0:
      raise InputError(f"An emotion's times are seconds from 0 on; the first of {self.text!r} is {seconds[0]:g}s.")
    for before, after in itertools.pairwise(seconds):
      if after <= before:
        raise InputError(f"An emotion's times must rise; in {self.text!r} {before:g}s is followed by {after:g}s.")
    mu.flags.writeable = seconds.flags.writeable = False
    object.__setattr__(self, "mu", mu)
    object.__setattr__(self, "seconds", seconds)

  def __str__(self):
    return self.text

  def at(self, seconds) -> np.ndarray:
    """The prior at times (n,) -> (n, d) float32; before the first and after the last keyframe it holds."""
    seconds = np.asarray(seconds, np.float64)
    if len(self.seconds) == 1:
      return np.broadcast_to(self.mu[0], (*seconds.shape, self.mu.shape[1])).copy()
    i = np.clip(np.searchsorted(self.seconds, seconds, side="right") - 1, 0, len(self.seconds) - 2)
    u = np.clip((seconds - self.seconds[i]) / (self.seconds[i + 1] - self.seconds[i]), 0, 1)
    if self.smooth:
      u = u * u * (3 - 2 * u)
    return ((1 - u)[..., None] * self.mu[i] + u[..., None] * self.mu[i + 1]).astype(np.float32)


def resolve_emotion(
  spec, priors: Mapping[str, Mapping] | None, prior_size: int = 256, clip_prior: Callable[..., Prior] | None = None
) -> Emotion:
  """Turns whatever a user may give as an emotion into an `Emotion` with priors of `prior_size` numbers.

  priors: label -> {'mu': (prior_size,), …}, from the weights. clip_prior: the prior of a clip, which is a file that
  `is_recording` or an object with `expression` and `audio`; None where the weights have no embedder. spec:
  - 'happy'; 'happy:0.7' = neutral + 0.7·(happy − neutral), strength in [0, 2];
  - 'happy:0.6+surprised:0.4' = neutral + Σ wᵢ·(priorᵢ − neutral), so weights that sum to 1 are a weighted mean; their
    sum is in [0, 2] too. A mix without weights is in equal parts. Only a sum other than 1 needs a prior named neutral;
  - '0s neutral, 1.5s happy:0.5, 0:05 angry': moves smoothly between the emotions. Times are 2s, 500ms or m:ss;
  - a prior file; or a clip, a sound or a file of expression coefficients, whose emotion the embedder tells. Each may
    also stand for a label within a mix or timeline: 'a.mat:0.5+b.mat:0.5' is half-way between two clips;
  - an array of prior_size numbers, or (n, prior_size): a prior for each frame of 12.5 a second, linear between;
  - {'mu': array}, a Prior or an Emotion;
  - a drawn clip (`world.drawing.Performance`), or anything else with `expression` (n, 64) at 25 frames a second
    and `audio` at 16 kHz, of which one may be None.
  Raises InputError where it is none of these, or a clip and the weights have no embedder.
  """
  if isinstance(spec, np.ndarray) and spec.dtype == object and spec.ndim == 0:
    spec = spec.item()  # a released prior as numpy.load gives it
  if isinstance(spec, Emotion):
    vector(spec.mu[0], prior_size, "The emotion's prior")
    return spec
  if isinstance(spec, str):
    return _Grammar(priors or {}, prior_size, clip_prior).emotion(spec)
  if isinstance(spec, os.PathLike):
    path = pathlib.Path(spec)
    return Emotion([0.0], _from_file(path, prior_size, clip_prior)[None], path.name)
  if hasattr(spec, "expression") and hasattr(spec, "audio"):
    return Emotion([0.0], _from_clip(spec, "A clip was given:", clip_prior)[None], "given clip")
  if isinstance(spec, Prior):
    spec = spec.mu
  if isinstance(spec, Mapping):
    if "mu" not in spec or not set(spec) <= {"mu", "sigma"}:
      raise InputError("A prior given as a mapping has the key mu and may have sigma, no other.")
    spec = spec["mu"]
  return _from_array(spec, prior_size)


def emotion_files(text: str, folder: pathlib.Path = pathlib.Path()) -> list[pathlib.Path]:
  """The files in `folder` that an emotion's text may name: itself, and the terms of its timeline and mixes."""
  terms = [text, *re.split(r"[,+]", text)]
  terms += [time["mix"] or "" for term in terms if (time := _KEYFRAME.fullmatch(term.strip()))]
  terms += [term.rpartition(":")[0] for term in terms]
  paths = {folder / pathlib.Path(term.strip()) for term in terms if _is_path(term.strip())}
  return sorted(path for path in paths if os.path.isfile(path))


def _from_array(spec, prior_size):
  if spec is None or np.isscalar(spec):
    raise InputError(f"An emotion is {_FORMS}; found {str(spec)[:60] or 'nothing'}.")
  mu = finite(spec, "The emotion's array")
  if mu.size == prior_size == max(mu.shape):
    return Emotion([0.0], mu.reshape(1, prior_size), "given prior")
  frames = mu.reshape([side for side in mu.shape if side != 1])
  if frames.ndim != 2 or frames.shape[1] != prior_size or not frames.size:
    raise InputError(
      f"The emotion's array has shape {mu.shape}; it should have {prior_size} numbers, or (frames, {prior_size})."
    )
  seconds = np.arange(len(frames)) / MODEL_FPS
  return Emotion(seconds, frames, f"{len(frames)} given priors over {seconds[-1]:g}s", smooth=False)


def _from_file(path: pathlib.Path, prior_size: int, clip_prior) -> np.ndarray:
  if is_recording(path, prior_size) and os.path.isfile(path):
    return _from_clip(path, f"{path} is a clip or expression file:", clip_prior)
  return read_prior(path, prior_size).mu


def _from_clip(clip, name: str, clip_prior) -> np.ndarray:
  if clip_prior is None:
    raise InputError(
      f"{name} taking the emotion from it needs an emotion embedder in the weights, and these weights have none. Give "
      f"a label, a prior file ({', '.join(SUFFIXES)}) or an array instead."
    )
  return clip_prior(clip).mu


def _is_path(text: str) -> bool:
  return "/" in text or os.sep in text or re.search(r"\.[A-Za-z][A-Za-z0-9]{1,10}$", text) is not None


@dataclasses.dataclass(frozen=True)
class _Grammar:
  """Text -> Emotion, with the priors that its labels and files name."""

  priors: Mapping[str, Mapping]
  prior_size: int
  clip_prior: Callable[..., Prior] | None

  def emotion(self, text: str) -> Emotion:
    text = text.strip()
    if not text:
      raise InputError(f"The emotion is empty; give {_FORMS}.")
    whole = text in self.priors or (_is_path(text) and os.path.isfile(text))
    if not whole and ("," in text or _KEYFRAME.fullmatch(text)):
      keyframes = [self.keyframe(part.strip(), text) for part in text.split(",")]
      seconds, mu, words = zip(*keyframes, strict=True)
      return Emotion(seconds, np.stack(mu), ", ".join(f"{s:g}s {w}" for s, w in zip(seconds, words, strict=True)))
    mu, words = (self.prior(text), _short(text)) if whole else self.mix(text)
    return Emotion([0.0], mu[None], words)

  def keyframe(self, part: str, text: str) -> tuple[float, np.ndarray, str]:
    """'1.5s happy:0.5' -> 1.5, its prior, its words."""
    if not part:
      raise InputError(f"The timeline {text!r} has an empty entry; write it like '0s neutral, 2s happy'.")
    found = _KEYFRAME.fullmatch(part)
    if not found:
      raise InputError(
        f"{part!r} in the emotion {text!r} has no time that can be read; a timeline is written like "
        "'0s neutral, 1.5s happy, 0:05 angry', a mix like 'happy:0.6+surprised:0.4'."
      )
    time, minutes, unit = found["time"].strip(), float(found["minutes"] or 0), found["unit"]
    seconds = float(found["amount"]) / (1000 if unit == "ms" else 1)
    if found["minutes"] is None and unit is None:
      raise InputError(
        f"The number in {part!r} has no unit: a time is written '{time}s', a strength behind its label, 'happy:0.7'."
      )
    if found["minutes"] is not None and (unit == "ms" or seconds >= 60):
      raise InputError(f"The time {time!r} of the emotion {text!r} cannot be read; write 65s or 1:05.")
    if found["sign"] == "-":
      raise InputError(f"The time {time!r} of the emotion {text!r} is negative; a clip starts at 0s.")
    if not found["mix"]:
      raise InputError(f"The time {time!r} of the emotion {text!r} has no emotion after it, as in '{time} happy'.")
    return (60 * minutes + seconds, *self.mix(found["mix"]))

  def mix(self, text: str) -> tuple[np.ndarray, str]:
    """'happy:0.6 + surprised:0.4' -> its prior, its words."""
    names, weights = zip(*(self.term(term.strip(), text) for term in text.split("+")), strict=True)
    if len(set(map(type, weights))) > 1:
      raise InputError(
        f"Some emotions of the mix {text!r} have a weight and some have none; give it to all or to none."
      )
    if weights[0] is None:
      words = " + ".join(map(_short, names))
      weights = [1 / len(names)] * len(names)
    else:
      words = " + ".join(f"{_short(name)} {w:g}" for name, w in zip(names, weights, strict=True))
    total = math.fsum(weights)
    if total > STRONGEST:
      raise InputError(f"The weights of the mix {text!r} sum to {total:g}; they may sum to at most {STRONGEST:g}.")
    mu = sum(np.float64(w) * self.prior(name) for name, w in zip(names, weights, strict=True))
    if not math.isclose(total, 1, abs_tol=1e-9):
      if "neutral" not in self.priors:
        raise InputError(
          f"The strength in {text!r} is measured from the prior 'neutral', which these weights do not have; "
          "leave the strength out or give weights that sum to 1."
        )
      mu = mu + (1 - total) * self.prior("neutral")
    return mu.astype(np.float32), words

  def term(self, term: str, text: str) -> tuple[str, float | None]:
    """'happy:0.6' -> 'happy', 0.6; 'happy' -> 'happy', None."""
    name, colon, strength = term.rpartition(":")
    if not colon or _is_path(strength):  # a colon within a path, as in C:\, starts no strength
      name, colon, strength = term, "", ""
    name = name.strip()
    if not name:
      raise InputError(f"A label is missing in the emotion {text!r}; a mix is written like 'happy:0.6+surprised:0.4'.")
    if not colon:
      return name, None
    try:
      weight = float(strength)
    except ValueError:
      raise InputError(
        f"The strength {strength.strip()!r} in the emotion {text!r} is not a number; write it like 'happy:0.7'."
      ) from None
    if not 0 <= weight <= STRONGEST:
      raise InputError(f"The strength {strength.strip()} in the emotion {text!r} is not between 0 and {STRONGEST:g}.")
    return name, weight

  def prior(self, name: str) -> np.ndarray:
    """A label or a file -> mu (d,)."""
    label = name if name in self.priors else name.casefold()
    if label in self.priors:
      return vector(self.priors[label]["mu"], self.prior_size, f"The prior {label!r} of the weights")
    if _is_path(name):
      return _from_file(pathlib.Path(name), self.prior_size, self.clip_prior)
    if not self.priors:
      raise InputError(
        f"The emotion {name!r} is a label, but these weights hold no emotion priors; add them with "
        "`dicetalk convert --priors DIR`, or give a prior file."
      )
    nearest = difflib.get_close_matches(label, self.priors, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise InputError(f"The emotion {name!r} is not known; these weights know {', '.join(sorted(self.priors))}.{hint}")


def _short(name: str) -> str:
  return pathlib.Path(name).name if _is_path(name) else name
