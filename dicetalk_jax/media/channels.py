"""Sound of several channels -> one or two channels."""

import numpy as np

_HALF = np.sqrt(0.5)
# libswresample's weights of a channel in left, right and mono: the centre is at full level in mono, surround channels
# at -3 dB of the front ones, and the low-frequency channel is left out (ITU-R BS.775).
_WEIGHTS = {
  **dict.fromkeys(("FL", "FLC"), (1.0, 0.0, _HALF)),
  **dict.fromkeys(("FR", "FRC"), (0.0, 1.0, _HALF)),
  **dict.fromkeys(("BL", "SL"), (_HALF, 0.0, 0.5)),
  **dict.fromkeys(("BR", "SR"), (0.0, _HALF, 0.5)),
  "FC": (_HALF, _HALF, 1.0),
  "BC": (0.5, 0.5, 0.5),
  "LFE": (0.0, 0.0, 0.0),
}
# FFmpeg's default layouts.
_NAMES = {
  3: ("FL", "FR", "LFE"),
  4: ("FL", "FR", "FC", "BC"),
  5: ("FL", "FR", "FC", "BL", "BR"),
  6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
  7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
  8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}
# A mean that is this much quieter than the louder channel has lost its sound: 5.5 dB; one empty channel of two is 6 dB.
_CANCELLED = 10 ** (-5.5 / 20)


class Mono:
  """Decides how channels become one: give it all blocks by `measure`, then mix them by `mix`.

  Two channels are averaged, as the release does; more are mixed by FFmpeg's weights. Where that is more than 5.5 dB
  quieter than the loudest channel (opposite phases, or all but one channel empty), that channel is taken alone.
  names: of the channels, such as ("FL", "FR", "LFE"); None takes FFmpeg's default layout.
  """

  def __init__(self, channels: int, names: tuple[str, ...] | None = None):
    self._weights = _weights(channels, names)[:, 2] if channels in _NAMES else None
    self.channels, self._energy, self._mixed = channels, np.zeros(channels), 0.0

  def measure(self, block: np.ndarray) -> None:
    """Counts (samples, channels) in."""
    self._energy += np.square(block, dtype=np.float64).sum(axis=0)
    self._mixed += float(np.square(self._mean(block), dtype=np.float64).sum())

  @property
  def channel(self) -> int | None:
    """The channel that is taken alone; None: all are mixed."""
    energy = self._energy if self._weights is None else self._energy * (self._weights > 0)
    loudest = int(np.argmax(energy))
    return loudest if self._mixed < energy[loudest] * _CANCELLED**2 else None

  def mix(self, block: np.ndarray) -> np.ndarray:
    """(samples, channels) -> (samples,)."""
    return self._mean(block) if self.channel is None else block[:, self.channel]

  @property
  def note(self) -> str | None:
    """What a user should know."""
    if self.channel is None:
      return None
    return f"The channels of the sound cancel or are empty: channel {self.channel + 1}, the loudest, is used alone."

  def _mean(self, block):
    return block.mean(axis=1) if self._weights is None else block @ self._weights


def mono(sound: np.ndarray) -> tuple[np.ndarray, list[str]]:
  """(samples, channels) -> (samples,) within [-1, 1], and notes of what had to be changed."""
  mixer = Mono(sound.shape[1])
  mixer.measure(sound)
  mixed, notes = mixer.mix(sound), [mixer.note] if mixer.note else []
  peak = float(np.max(np.abs(mixed), initial=0))
  if peak > 1:
    notes.append(f"The sound exceeds full scale by {20 * np.log10(peak):.1f} dB: it is turned down by as much.")
    mixed = mixed / np.float32(peak)
  return mixed, notes


def stereo(sound: np.ndarray, names: tuple[str, ...] | None = None) -> np.ndarray:
  """(samples, channels) -> the same with at most two channels, mixed by FFmpeg's weights."""
  channels = sound.shape[1]
  if channels <= 2:
    return sound
  return sound @ _weights(channels, names)[:, :2] if channels in _NAMES else sound.mean(axis=1, keepdims=True)


def is_default(names: tuple[str, ...]) -> bool:
  """Whether a layout mixes as the one that a number of channels stands for."""
  return len(names) not in _NAMES or np.array_equal(_weights(len(names), names), _weights(len(names), None))


def _weights(channels: int, names: tuple[str, ...] | None) -> np.ndarray:
  """(channels, 3) float32: of left, right and mono. A layout that is unknown or not named is the default one."""
  known = names is not None and all(name in _WEIGHTS for name in names)
  return np.array([_WEIGHTS[name] for name in (names if known else _NAMES[channels])], np.float32)
