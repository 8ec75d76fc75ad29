"""Acting: a person, an emotion and speech -> the parameters of every frame."""

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter1d

from dicetalk_jax.errors import InputError
from dicetalk_jax.vocabulary import FPS, SAMPLES_PER_FRAME
from dicetalk_jax.world.expressions import Expression, Manner, Style, expression
from dicetalk_jax.world.parameters import INDEX, OF_FACE, PARAMETERS, clipped, column
from dicetalk_jax.world.phonemes import LIP_COLUMNS
from dicetalk_jax.world.visemes import lips
from dicetalk_jax.world.voice import Speech

TRANSITION = 0.8  # seconds from one emotion of a timeline to the next, centred on the given time
REFRACTORY = 0.5  # seconds without a blink after one
# Closure of the eyes in each frame of a blink of 3, 4 or 5 frames; they close faster than they open.
BLINKS = ((0.75, 1.0, 0.5), (0.7, 1.0, 0.8, 0.3), (0.55, 1.0, 0.9, 0.55, 0.2))
EYE_RANGE = 0.5  # radians that the eyes turn at gaze 1
# Head motion of a calm speaker, root mean square: radians, face heights.
SWAY = dict(yaw=0.05, pitch=0.03, roll=0.025, shift_x=0.014, shift_y=0.01, zoom=0.012)
MICRO_MOTION = 0.025
TREMOR = dict(brow_inner=1.0, lip_width=1.0, squint=0.6, upper_lip=0.5, corner_left=0.8, corner_right=0.8, roll=0.12)
# The parts of a face start an expression at different times.
_BROWS = ("brow_inner", "brow_outer", "brow_tilt")
_EYES = ("lid", "squint", "gaze_x", "gaze_y")
_HEAD = ("yaw", "pitch", "roll", "shift_x", "shift_y", "zoom")
_MOUTH = tuple(p.name for p in PARAMETERS if p.name not in {*_BROWS, *_EYES, *_HEAD})
_PARTS = {_BROWS: 0.0, _EYES: 0.03, _MOUTH: 0.06, _HEAD: 0.12}  # seconds behind the brows
_STREAMS = ENVELOPE, BLINK, GAZE, HEAD, ACCENT, TWITCH, MICRO = range(7)

Timeline = Sequence[tuple[float, str, int]]


def act(
  style: Style, emotion: str | Timeline, level: int | None, speech: Speech, n_frames: int, seed: int
) -> np.ndarray:
  """A performance -> parameters (n_frames, len(PARAMETERS)) float32, at the centres (i + ½) / 25 s of the frames.

  emotion: an emotion with its `level`, or a timeline of (seconds, emotion, level) with level None. The first entry
  holds from the start; each changes to the next within `TRANSITION`. Speech overrides the emotion at the lips, and
  decides how far the mouth opens. Raises InputError for an unknown emotion or level, and an invalid timeline.
  """
  streams = [np.random.default_rng([0xAC7, seed, stream]) for stream in _STREAMS]
  t = (np.arange(n_frames) + 0.5) / FPS
  stages = [(0.0, emotion, level)] if isinstance(emotion, str) else _checked(emotion)
  stages = [(start, expression(name, strength, style)) for start, name, strength in stages]
  manner = Manner(*_blend(stages, t, "manner").T)
  voicing = _spoken(speech, t)
  loud = _loudness(speech, n_frames)

  face = _envelope(stages, t, manner, loud, streams[ENVELOPE])
  face += _twitches(stages, t, manner, streams[TWITCH])
  face += style.rest
  _add_micro_motion(face, t, manner, streams[MICRO])
  _add_accents(face, t, manner, speech, streams[ACCENT])
  face[:, list(OF_FACE)] = _soft(face[:, list(OF_FACE)])
  sway = _sway(manner, streams[HEAD])
  eyes = _gaze(style, t, manner, streams[GAZE])
  # The head follows the eyes by a part of the way, with a delay.
  sway[:, _columns(("yaw", "pitch"))] += gaussian_filter1d(0.2 * EYE_RANGE * eyes, 5, axis=0, mode="nearest")
  face += sway
  # While the head sways, the eyes stay on their target (vestibulo-ocular reflex).
  face[:, _columns(("gaze_x", "gaze_y"))] += eyes - 0.8 / EYE_RANGE * sway[:, _columns(("yaw", "pitch"))]
  column(face, "blink")[:] = _blinks(manner, streams[BLINK])
  return clipped(_with_speech(face, lips(speech.segments, n_frames), manner.jaw, voicing))


def _checked(timeline: Timeline) -> list[tuple[float, str, int]]:
  stages = list(timeline)
  if not stages:
    raise InputError("an emotion timeline needs at least one (seconds, emotion, level); it is empty")
  times = [stage[0] for stage in stages]
  if any(later <= earlier for earlier, later in itertools.pairwise(times)):
    raise InputError(f"the times of an emotion timeline must rise; they are {', '.join(f'{s:g}' for s in times)} s")
  return stages


def _blend(stages: list[tuple[float, Expression]], t: np.ndarray, field: str) -> np.ndarray:
  """A field of the expressions of the stages at times t (n,) -> (n, size of the field)."""
  values = np.tile(getattr(stages[0][1], field), (len(t), 1))
  for start, following in stages[1:]:
    share = _smoothstep((t - start) / TRANSITION + 0.5)[:, None]
    values += share * (getattr(following, field) - values)
  return values


def _smoothstep(x: np.ndarray) -> np.ndarray:
  x = np.clip(x, 0, 1)
  return x * x * (3 - 2 * x)


def _soft(x: np.ndarray, knee: float = 0.6) -> np.ndarray:
  """Compresses values beyond the knee towards ±1. Unlike clipping, this keeps strong expressions moving."""
  return np.sign(x) * (np.minimum(np.abs(x), knee) + (1 - knee) * np.tanh(np.maximum(np.abs(x) - knee, 0) / (1 - knee)))


def _columns(names: Sequence[str]) -> list[int]:
  return [INDEX[name] for name in names]


def _waves(rng: np.random.Generator, cycles: np.ndarray, count: int, rates=(0.5, 1.0, 1.7, 2.6)) -> np.ndarray:
  """Smooth noise of unit variance over cycles (n,) -> (n, count): sinusoids of random phase, slower ones larger."""
  rates = np.array(rates)[:, None] * np.exp(0.15 * rng.standard_normal((len(rates), count)))
  amplitudes = np.abs(1 + 0.3 * rng.standard_normal(rates.shape)) / rates
  amplitudes *= np.sqrt(2 / np.sum(amplitudes**2, 0))
  phases = rng.uniform(0, 2 * np.pi, rates.shape)
  return np.sum(amplitudes * np.sin(2 * np.pi * cycles[:, None, None] * rates + phases), 1)


def _bump(t: np.ndarray, centre: float, width: float) -> np.ndarray:
  return np.exp(-0.5 * ((t - centre) / width) ** 2)


def _spoken(speech: Speech, t: np.ndarray) -> np.ndarray:
  """(n,): 0 in silence .. 1 within words."""
  inside = np.zeros(len(t))
  for segment in speech.segments:
    if segment.phoneme != "SIL":
      inside[(t >= segment.start) & (t < segment.end)] = 1
  return gaussian_filter1d(inside, 2.0, mode="nearest")


def _loudness(speech: Speech, n: int) -> np.ndarray:
  """(n,): level of the voice over about a quarter of a second, relative to its 90th percentile, 0 to about 1."""
  audio = np.zeros(n * SAMPLES_PER_FRAME)
  audio[: len(speech.audio)] = speech.audio[: len(audio)]
  level = np.sqrt(np.mean(audio.reshape(n, SAMPLES_PER_FRAME) ** 2, 1))
  level = gaussian_filter1d(level, 3.0, mode="nearest")
  return level / max(np.percentile(level, 90), 1e-4)


def _envelope(stages, t, manner, loud, rng) -> np.ndarray:
  """Contribution of the emotion to the parameters (n, P): it rises, follows the voice, and falls at the end."""
  strength = np.exp(0.08 * rng.standard_normal())
  mix = np.exp(0.07 * rng.standard_normal(len(PARAMETERS)))
  initial, start = rng.uniform(0.25, 0.65), rng.uniform(-0.25, 0.1)
  ebb = rng.uniform(0, 0.2)
  breath = 1 + manner.breathing * (loud - 0.5) + 0.05 * _waves(rng, 0.4 * t, 1)[:, 0]
  out = np.zeros((len(t), len(PARAMETERS)))
  for part, delay in _PARTS.items():
    delay = delay + rng.uniform(0, 0.08)
    onset = _smoothstep((t - start - delay) / (1.6 * manner.onset))
    fall = _smoothstep((t - delay - (t[-1] - 0.5)) / 0.5)
    intensity = strength * breath * (initial + (1 - initial) * onset) * (1 - ebb * fall)
    which = _columns(part)
    out[:, which] = intensity[:, None] * _blend(stages, t - delay, "target")[:, which]
  return out * mix


def _twitches(stages, t, manner, rng) -> np.ndarray:
  intensity = np.zeros(len(t))
  for centre in t[rng.random(len(t)) < manner.twitch / FPS]:
    intensity = np.maximum(intensity, rng.uniform(0.5, 1) * _bump(t, centre, rng.uniform(0.1, 0.2)))
  return intensity[:, None] * _blend(stages, t, "twitch")


def _add_micro_motion(parameters, t, manner, rng):
  face = [i for i in OF_FACE if PARAMETERS[i].name not in (*LIP_COLUMNS, "blink")]
  parameters[:, face] += MICRO_MOTION * _waves(rng, t, len(face))
  shares = np.array(list(TREMOR.values()))
  parameters[:, _columns(TREMOR)] += manner.tremor[:, None] * shares * _waves(rng, 6 * t, len(TREMOR), (0.8, 1.0, 1.2))


def _add_accents(parameters, t, manner, speech, rng):
  """Head dips and some brow raises on stressed syllables, slightly before the middle of the vowel."""
  for segment in speech.segments:
    dips, rises = rng.uniform(0.3, 1.2), rng.uniform(0.5, 1.2) * (rng.random() < 0.6)
    if not segment.stress:
      continue
    if segment.stress == 2:  # the nucleus of its phrase
      dips, rises = 1.4 * dips, 1.2 * max(rises, 0.8)
    centre = (segment.start + segment.end) / 2
    dip = _bump(t, centre, 0.1) - 0.4 * _bump(t, centre - 0.24, 0.1)
    column(parameters, "pitch")[:] -= dips * manner.nod * dip
    column(parameters, "shift_y")[:] -= 0.2 * dips * manner.nod * dip
    rise = rises * manner.accent * _bump(t, centre - 0.04, 0.13)
    column(parameters, "brow_outer")[:] += rise
    column(parameters, "brow_inner")[:] += 0.8 * rise


def _sway(manner, rng) -> np.ndarray:
  out = np.zeros((len(manner.sway), len(PARAMETERS)))
  cycles = np.cumsum(manner.sway_rate) / FPS
  out[:, _columns(SWAY)] = manner.sway[:, None] * np.array(list(SWAY.values())) * _waves(rng, cycles, len(SWAY))
  return out


def _gaze(style, t, manner, rng) -> np.ndarray:
  """Gaze (n, 2) relative to the direction of the emotion: fixations, with one frame between two of them."""
  out = np.zeros((len(t), 2))
  i = 0
  place = rng.normal(0, 0.04, 2)
  while i < len(t):
    length = np.exp(0.5 * rng.standard_normal()) / max(manner.gaze[i], 0.1)
    away = rng.random() < manner.aside[i]
    until = i + max(3, round(FPS * (0.6 if away else 1.0) * length))
    before, place = place, rng.normal(0, (0.05, 0.04))
    if away:
      side = style.side if rng.random() < 0.75 else -style.side
      place += (side * rng.uniform(0.25, 0.75), rng.uniform(-0.3, 0.2))
    out[i:until] = place
    out[i] = before + 0.6 * (place - before)
    i = until
  return out


def _blinks(manner, rng) -> np.ndarray:
  """Closure of the eyes by blinks (n,), 0 to 1: a Poisson process with a pause after each blink."""
  out = np.zeros(len(manner.blink))
  chance, length = rng.random(len(out)), rng.integers(0, len(BLINKS), len(out))
  ready = 0
  for i, rate in enumerate(manner.blink):
    if i >= ready and chance[i] < rate / FPS:
      shape = BLINKS[length[i]][: len(out) - i]
      out[i : i + len(shape)] = shape
      ready = i + len(shape) + round(REFRACTORY * FPS)
  return out


def _with_speech(face, lip, jaw_gain, voicing) -> np.ndarray:
  """The face of the emotion (n, P) with the lips of speech (n, len(LIP_COLUMNS)); voicing (n,) is 0 to 1."""
  out = face.copy()
  speech = {name: lip[:, i] for i, name in enumerate(LIP_COLUMNS)}
  free = 1 - speech["lip_press"]
  for name in ("lip_round", "lip_tuck", "tongue", "lip_press"):
    column(out, name)[:] = speech[name]
  # An emotion presses the lips between words only, and drops the jaw less within words.
  column(out, "lip_press")[:] += free * (1 - voicing) * np.clip(column(face, "lip_press"), 0, 1)
  rest = np.clip(column(face, "jaw"), 0, 1) * (1 - 0.5 * voicing) * free
  column(out, "jaw")[:] = rest + (1 - rest) * jaw_gain * speech["jaw"]
  unrounded = 1 - 0.6 * speech["lip_round"]
  column(out, "lip_width")[:] = speech["lip_width"] + unrounded * column(face, "lip_width")
  for name in ("corner_left", "corner_right"):
    column(out, name)[:] *= unrounded
  # A raised upper lip would open lips that a phoneme closes or rounds.
  column(out, "upper_lip")[:] *= free * unrounded
  return out
