"""Small sets of clips as building leaves them: people are patches of colour that move, and what they say are tones."""

import numpy as np
from PIL import Image

from dicetalk_jax.data import sets
from dicetalk_jax.data.records import Clip, encode_frames
from dicetalk_jax.vocabulary import EMOTIONS, SAMPLE_RATE, SAMPLES_PER_FRAME, TRUTH

TONES = 4


def drawn_clip(name, frames, identity="p0", split="train", size=16, truth=True):
  rng = np.random.default_rng([frames, *name.encode()])
  of_person = np.random.default_rng([*identity.encode()])
  patches = Image.fromarray(of_person.integers(20, 235, (4, 4, 3)).astype(np.uint8))
  picture = np.asarray(patches.resize((size, size), Image.Resampling.BILINEAR))
  # To and fro, two pixels a frame.
  video, count = encode_frames(np.roll(picture, 2 * abs(i % 8 - 4), axis=1) for i in range(frames))
  # Each sound holds for some frames: the phoneme is the tone's number, the mouth is open as far as it is high.
  phoneme = np.repeat(rng.integers(0, TONES, frames), 5)[:frames]
  hertz = np.repeat(np.array([0, 300, 900, 2500])[phoneme], SAMPLES_PER_FRAME)
  known = np.zeros((frames, len(TRUTH)), np.float32)
  known[:, TRUTH.index("phoneme")] = phoneme
  known[:, TRUTH.index("mouth_opening")] = phoneme / TONES
  known[:, TRUTH.index("mouth_width")] = (phoneme % 2) - 0.5
  audio = 0.3 * np.sin(2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE) + 1e-3 * rng.standard_normal(len(hertz))
  return Clip(
    **dict(clip=name, source="synthetic", identity=identity, video=name, frames=video, num_frames=count),
    **dict(height=size, width=size, face_box=(2, 2, size - 4, size - 4), split=split, sentence="", level=1),
    audio=audio.astype(np.float32),
    emotion=EMOTIONS[len(name) % 8],
    truth=known if truth else None,
  )


def write_set(folder, clips, shards=2, name="synthetic"):
  """A finished set of these clips, by their splits; returns its folder."""
  return sets.write_set(folder, clips, name, shard_clips=-(-len(clips) // shards))


def people(count, clips=3, frames=30, split="train", **options):
  """`clips` clips of each of `count` people."""
  return [
    drawn_clip(f"{split}{i}/{j}", frames + j, f"{split}{i}", split, **options)
    for i in range(count)
    for j in range(clips)
  ]
