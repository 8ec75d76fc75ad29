"""Stand-ins for the making of clips, importable by the processes that a build starts."""

import os
import signal
import time

import numpy as np

from dicetalk_jax.data.records import Clip, Rejected, encode_frames
from dicetalk_jax.errors import OutputError
from dicetalk_jax.vocabulary import SAMPLES_PER_FRAME


def one_clip(name, frames=30, size=32, **fields):
  """A clip of grey frames, each of another brightness, and of a sound that tells its name."""
  pictures = [np.full((size, size, 3), 40 + 5 * i % 200, np.uint8) for i in range(frames)]
  encoded, count = encode_frames(pictures)
  audio = np.random.default_rng(sum(map(ord, name))).uniform(-0.5, 0.5, count * SAMPLES_PER_FRAME)
  known = dict(clip=name, source="clips", identity="clips/a", video="v", face_box=(4, 4, 24, 24)) | fields
  return Clip(**known, frames=encoded, num_frames=count, height=size, width=size, audio=audio.astype(np.float32))


def make(work):
  """work: what to do. 'two' clips, none ('reject'), a process that dies, a full disk, a slow one, or one clip."""
  name, kind = work
  if kind == "reject":
    yield Rejected(name, "it shows no face")
  elif kind == "die":
    os.kill(os.getpid(), signal.SIGKILL)
  elif kind == "full":
    raise OutputError("the disk is full")
  elif kind == "bug":
    raise ZeroDivisionError("a mistake of ours")
  else:
    if kind == "slow":
      time.sleep(0.25)
    for part in range(2 if kind == "two" else 1):
      yield one_clip(f"{name}/{part}")
