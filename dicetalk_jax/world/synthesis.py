"""A formant synthesiser: glottal pulses and noise through a vocal tract that moves, after Klatt (1980, 1990).

Software for a cascade/parallel formant synthesizer; Analysis, synthesis and perception of voice quality variations.
The filter of the tract changes every 5 ms. Its frequency response is applied to crossfaded 10 ms windows of the source,
so that each window rings out under the next ones.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.signal import lfilter, resample_poly

from dicetalk_jax.vocabulary import SAMPLE_RATE
from dicetalk_jax.world.phonemes import INDEX, PHONEMES, STOP
from dicetalk_jax.world.speakers import Prosody, Voice
from dicetalk_jax.world.timing import Segment, phrases

HOP = 80
STEP = HOP / SAMPLE_RATE
# 60 ms: a formant 70 Hz wide has then decayed by 113 dB.
_FFT = 12 * HOP
_OVERSAMPLING = 4
# Steps that are filtered at a time, few enough for the cache of a processor.
_BLOCK = 64
_HZ = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
_Z = np.exp(-2j * np.pi * _HZ / SAMPLE_RATE)[None]
# Formants of a man's tract; F1 to F4 move.
_UPPER = ((4400, 300), (5300, 400), (6200, 500), (7100, 600))
_BURST = 0.012


def synthesise(
  segments: Sequence[Segment], n: int, pitch: np.ndarray, voice: Voice, prosody: Prosody, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Segments and pitch at every step -> sound (n,), vowels about 1 in RMS, and where it is voiced (n // HOP,)."""
  steps = n // HOP
  t = (np.arange(steps) + 0.5) * STEP
  tracks = _Tracks(segments, t, prosody, rng)
  pulses, flow = _glottis(pitch, tracks.creak, n, voice, prosody, rng)
  breath = lfilter([0.5], [1, -0.5], rng.standard_normal(n))
  breathiness = np.clip(voice.breathiness + prosody.breathiness, 0, 1)
  voicing = _samples(tracks.voicing, n)
  source = pulses * voicing
  source += breath * (_samples(tracks.aspiration, n) + 0.22 * breathiness * voicing * (0.35 + 1.3 * flow))
  noise = rng.standard_normal(n) * (1 - 0.5 * np.minimum(voicing, 1) * (1 - flow))
  tilt = voice.tilt + prosody.tilt
  vocal = _filtered(source, lambda rows: _tract(tracks, rows, voice.tract * prosody.smile) * _tilt(tracks, rows, tilt))
  vowels = np.repeat(tracks.in_vowel, HOP)
  level = np.sqrt(np.mean(vocal[vowels] ** 2)) if vowels.any() else np.sqrt(np.mean(vocal**2)) * 2
  weights, shapes = _frication(tracks, voice)
  sound = vocal / max(level, 1e-9) + _filtered(noise, lambda rows: weights[rows] @ shapes)
  return sound * _samples(tracks.gate, n), tracks.voicing > 0.1


def speaking_rms(sound: np.ndarray, segments: Sequence[Segment]) -> float:
  """RMS of the sound where it is not silence."""
  parts = [sound[round(s.start * SAMPLE_RATE) : round(s.end * SAMPLE_RATE)] for s in segments if s.phoneme != "SIL"]
  return max(float(np.sqrt(np.mean(np.concatenate(parts) ** 2))), 1e-9)


class _Tracks:
  """All control tracks, at the middles t (steps,) of the steps: (steps,), (steps, 4) or (steps, segments)."""

  def __init__(self, segments: Sequence[Segment], t: np.ndarray, prosody: Prosody, rng: np.random.Generator):
    self.sounds = sounds = [PHONEMES[INDEX[segment.phoneme]] for segment in segments]
    start, end = (np.array([getattr(segment, name) for segment in segments]) for name in ("start", "end"))
    stress = np.array([segment.stress for segment in segments])
    vowel = np.array([sound.is_vowel for sound in sounds])
    spoken = np.array([sound.name != "SIL" for sound in sounds])
    column = t[:, None]
    inside = (column >= start) & (column < end)
    self.in_vowel = inside[:, vowel].any(1)
    self.formants, self.bandwidths, self.nasal = _blended(sounds, stress, start, end, column)
    self.effort, ending = _phrasing(segments, t)
    gain = 10 ** (np.where(vowel, np.array([-2.5, 0.0, 1.2])[stress], 0) / 20)
    shake = 1 + 0.35 * min(prosody.tremor, 2.0) * np.sin(2 * np.pi * (6.3 * t + rng.random()))
    voicing = (inside * gain * [sound.voicing for sound in sounds]).sum(1)
    self.voicing = _smooth(voicing * self.effort * shake, 0.02 + prosody.attack)
    aspiration, noise = _releases(sounds, start, end, column)
    self.aspiration = _smooth(aspiration, 0.015)
    self.noise = np.stack([_smooth(row, 0.015) for row in noise.T], 1) * np.sqrt(self.effort)[:, None]
    self.gate = _smooth((inside & spoken).any(1).astype(float), 0.02)
    # Creak occurs mostly at the end of a breath.
    self.creak = np.clip(prosody.creak * (0.5 + 0.5 * ending), 0, 1)


def _blended(sounds, stress, start, end, t):
  """Formants, bandwidths (steps, 4) and nasality (steps,), blended between neighbouring sounds."""
  first = np.array([sound.formants for sound in sounds], float)
  last = np.array([sound.end or sound.formants for sound in sounds], float)
  # An unstressed vowel is centralised.
  vowel = np.array([sound.is_vowel for sound in sounds])
  drift = np.where(vowel & (stress == 0), 0.25, 0.0)[:, None]
  middle = np.array([500.0, 1500.0, 2500.0, 3450.0])
  first, last = first + drift * (middle - first), last + drift * (middle - last)
  x = np.clip(((t - start) / (end - start) - 0.2) / 0.6, 0, 1)[..., None]
  target = np.log(first) + (np.log(last) - np.log(first)) * x * x * (3 - 2 * x)
  away = np.maximum(start - t, 0) + np.maximum(t - end, 0)
  pull = np.array([sound.pull for sound in sounds]) * np.exp(-away / 0.022)
  weight = pull / pull.sum(1, keepdims=True)
  formants = np.exp((weight[..., None] * target).sum(1))
  bandwidths = weight @ np.array([sound.bandwidths for sound in sounds])
  quick = np.exp(-away / 0.015)
  nasal = (quick * np.array([sound.nasal for sound in sounds])).sum(1) / quick.sum(1)
  return formants, bandwidths, nasal


def _releases(sounds, start, end, t):
  """Aspiration (steps,) and the amplitude of each segment's frication or burst (steps, segments)."""
  opened = start + (end - start) * [sound.closure for sound in sounds]
  inside = (t >= opened) & (t < end)
  noise = inside * [sound.noise_level for sound in sounds]
  aspiration = inside * [sound.aspiration for sound in sounds]
  for i, sound in enumerate(sounds):
    if sound.kind == STOP:
      after = sounds[i + 1] if i + 1 < len(sounds) else PHONEMES[0]
      # A release is weak before another stop or a pause, and is not aspirated after an S.
      strength = 1.0 if after.voicing > 0.3 else 0.35
      noise[:, i] *= strength * np.exp((opened[i] - t[:, 0]).clip(max=0) / _BURST)
      aspiration[:, i] *= strength * (0.3 if i and sounds[i - 1].name == "S" else 1.0)
  return aspiration.sum(1), noise


def _phrasing(segments, t):
  """Effort (steps,), about 1 and falling over each phrase, and ending (steps,), which rises to 1 in its last 0.35 s."""
  effort, ending = np.ones(len(t)), np.zeros(len(t))
  for phrase in phrases(segments):
    start, end = phrase[0].start, phrase[-1].end
    inside = (t >= start) & (t < end)
    left = end - t[inside]
    effort[inside] = (1.1 - 0.3 * (t[inside] - start) / (end - start)) * np.clip(0.35 + left / 0.12, 0, 1)
    ending[inside] = np.clip(1 - left / 0.35, 0, 1)
  return effort, ending


def _glottis(pitch, creak, n, voice, prosody, rng):
  """The derivative of glottal flow (n,), about 1 in RMS, and the flow (n,) in [0, 1]; KLGLOTT88's pulse."""
  hz = _samples(pitch, n * _OVERSAMPLING) / (SAMPLE_RATE * _OVERSAMPLING)
  creak = np.clip(_samples(creak, n * _OVERSAMPLING) + voice.creak * 0.5, 0, 1)
  hz = hz * (1 - 0.12 * creak)
  cycle = np.cumsum(hz).astype(int)
  jitter = rng.standard_normal(cycle[-1] + 2).clip(-2.5, 2.5)
  shimmer = rng.standard_normal(2 * cycle[-1] + 8).clip(-2.5, 2.5)
  phase = np.cumsum(hz * (1 + (voice.jitter + 0.03 * creak) * jitter[cycle]))
  cycle = phase.astype(int)
  strength = (1 + (voice.shimmer + 0.05 * creak) * shimmer[cycle]) * (1 - 0.6 * creak * (cycle % 2))
  breathiness = np.clip(voice.breathiness + prosody.breathiness, 0, 1)
  # A strong voice closes the glottis for longer.
  quotient = np.clip(voice.open_quotient + 0.25 * prosody.breathiness - 0.01 * prosody.energy, 0.35, 0.9)
  u = (phase - cycle) / (quotient * (1 - 0.3 * creak))
  flow = np.where(u < 1, 6.75 * u * u * (1 - u), 0) * strength
  flow = resample_poly(flow, 1, _OVERSAMPLING)[:n]
  pulses = np.diff(flow, prepend=flow[0])
  return pulses / (np.sqrt(np.mean(pulses**2)) * (1 + breathiness)), np.clip(flow, 0, 1)


def _tilt(tracks: "_Tracks", rows: slice, slope: float) -> np.ndarray:
  """Gain (rows, bins) of a spectral slope in dB an octave; more effort sounds brighter."""
  octaves = np.log2(np.maximum(_HZ, 400.0) / 400.0)[None]
  return 10 ** (np.minimum(slope + 3 * (tracks.effort[rows, None] - 1), 3.0) * octaves / 20)


def _inverse(hz, width):
  """Hz, (k, 1) or scalar -> (k, bins): inverse response of Klatt's digital resonator, which is 1 at 0 Hz."""
  radius = np.exp(-np.pi * width / SAMPLE_RATE)
  b, c = 2 * radius * np.cos(2 * np.pi * hz / SAMPLE_RATE), -(radius**2)
  return (1 - b * _Z - c * _Z * _Z) / (1 - b - c)


def _tract(tracks: "_Tracks", rows: slice, scale: float) -> np.ndarray:
  """Response (rows, bins) of the vocal tract: all formants below 7.8 kHz, with the nasal pole and zero."""
  poles = _inverse(270.0 * scale, 100.0)
  for hz, width in _UPPER:
    if hz * scale < 7800:
      poles = poles * _inverse(hz * scale, width)
  formants = np.minimum(tracks.formants[rows] * scale, 7600.0)
  widths = tracks.bandwidths[rows] * scale**0.5
  for k in range(4):
    poles = poles * _inverse(formants[:, k, None], widths[:, k, None])
  nasal = tracks.nasal[rows, None]
  return _inverse((270 + 230 * nasal) * scale, 100.0) * (1 - 0.35 * nasal) / poles


def _frication(tracks: "_Tracks", voice: Voice) -> tuple[np.ndarray, np.ndarray]:
  """Amplitudes (steps, kinds) and responses (kinds, bins) of noise at constrictions, each 1 in RMS."""
  names = sorted({sound.name for sound in tracks.sounds if sound.noise})
  shapes, weights = np.zeros((len(names), len(_HZ)), complex), np.zeros((len(tracks.noise), len(names)))
  for k, name in enumerate(names):
    for hz, width, weight in PHONEMES[INDEX[name]].noise:
      # Two resonators in series, for the steep spectrum of a hiss.
      band = (1 - _Z[0] * _Z[0]) / _inverse(min(hz * voice.tract**0.5, 7400.0), 1.5 * width)[0] ** 2
      shapes[k] += weight * band / np.abs(band).max()
    shapes[k] /= np.sqrt(np.mean(np.abs(shapes[k]) ** 2))
    weights[:, k] = tracks.noise[:, [sound.name == name for sound in tracks.sounds]].sum(1)
  return weights, shapes


def _filtered(source: np.ndarray, response: Callable[[slice], np.ndarray]) -> np.ndarray:
  """Filters (n,) with response(rows) (rows, bins) of each step, crossfaded from step to step."""
  steps, overlap = len(source) // HOP, _FFT // HOP
  window = np.sin(np.pi * (np.arange(2 * HOP) + 0.5) / (2 * HOP)) ** 2
  padded = np.pad(source, (HOP // 2, 2 * HOP))
  frames = np.lib.stride_tricks.sliding_window_view(padded, 2 * HOP)[::HOP]
  out = np.zeros((steps + overlap, HOP))
  for first in range(0, steps, _BLOCK):
    rows = slice(first, min(first + _BLOCK, steps))
    rung = np.fft.irfft(np.fft.rfft(frames[rows] * window, _FFT) * response(rows), _FFT).reshape(-1, overlap, HOP)
    for k in range(overlap):
      out[first + k : first + k + len(rung)] += rung[:, k]
  return out.reshape(-1)[HOP // 2 : HOP // 2 + len(source)]


def _samples(track: np.ndarray, n: int) -> np.ndarray:
  """A track at the middles of steps -> at n samples."""
  per = n / len(track)
  return np.interp((np.arange(n) + 0.5) / per, np.arange(len(track)) + 0.5, track)


def _smooth(track: np.ndarray, seconds: float) -> np.ndarray:
  kernel = np.hanning(2 * round(seconds / STEP / 2) + 3)[1:-1]
  half = len(kernel) // 2
  return np.convolve(np.pad(track, half, "edge"), kernel / kernel.sum(), "valid")
