"""Windows of an encoded clip: start, content and augmentation."""

import dataclasses

import numpy as np

from dicetalk_jax.data.encode.record import EncodedClip
from dicetalk_jax.diffusion.conditioning import speech_at_25


def starts(length: int, span: int, count: int, rng) -> np.ndarray:
  """First frames of `count` windows of `span` frames in a clip: disjoint if they fit, else each in its own part.

  Without a generator the windows are spread evenly; a single one is in the middle.
  """
  free = max(0, length - span)
  if rng is None:
    return np.array([free // 2]) if count == 1 else np.linspace(0, free, count).astype(int)
  room = length - count * span
  if room >= 0:
    return np.sort(rng.integers(0, room + 1, count)) + span * np.arange(count)
  return ((np.arange(count) + rng.random(count)) * (free + 1) / count).astype(int)


@dataclasses.dataclass(frozen=True)
class Sequences:
  """Input of the emotion embedder at 25 Hz, float32: expression (n, 64), speech (n, d); 0 rows when unknown."""

  expression: np.ndarray
  speech: np.ndarray

  @classmethod
  def of(cls, clip: EncodedClip) -> "Sequences":
    return cls(clip.expression, speech_at_25(clip.states))

  def __len__(self):
    return max(len(self.expression), len(self.speech))

  @property
  def nbytes(self) -> int:
    return self.expression.nbytes + self.speech.nbytes

  def window(self, times: np.ndarray) -> dict[str, np.ndarray]:
    """Both at times (f,) in frames, interpolated; zero and masked after the end."""
    inside, window = times <= len(self) - 1, {}
    for name, sequence in (("expression", self.expression), ("speech", self.speech)):
      known = inside & (len(sequence) > 0)
      window |= {name: _at(sequence, times) * known[:, None], f"{name}_mask": known}
    return window


def _at(sequence: np.ndarray, times: np.ndarray) -> np.ndarray:
  """Linear interpolation of (n, d) at times (f,) -> (f, d) float32: the last row after the end, zeros for n = 0."""
  sequence = sequence if len(sequence) else np.zeros((1, sequence.shape[1]), np.float32)
  times = np.minimum(times, len(sequence) - 1)
  before = np.floor(times).astype(int)
  after = np.minimum(before + 1, len(sequence) - 1)
  share = (times - before).astype(np.float32)[:, None]
  return sequence[before] * (1 - share) + sequence[after] * share


def jittered(expression: np.ndarray, mask: np.ndarray, jitter: float, rng) -> np.ndarray:
  """Adds noise to the frames in `mask`, `jitter` standard deviations of each coefficient within them."""
  scale = jitter * expression[mask].std(axis=0)
  noise = rng.standard_normal(expression.shape, np.float32)
  return expression + noise * scale * mask[:, None]


def jittered_box(box, most_scale: float, most_shift: float, rng) -> np.ndarray:
  """A box x, y, w, h scaled and shifted at random, as (4,) float32; unchanged without a generator."""
  x, y, w, h = map(float, box)
  if rng is not None:
    scale = 1 + most_scale * rng.uniform(-1, 1)
    shift = most_shift * rng.uniform(-1, 1, 2)
    x, y = x + w * (shift[0] + (1 - scale) / 2), y + h * (shift[1] + (1 - scale) / 2)
    w, h = w * scale, h * scale
  return np.array([x, y, w, h], np.float32)
