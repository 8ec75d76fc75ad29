"""A small encoded set of random clips, as `dicetalk data encode` leaves one, that the embedder trains on."""

import numpy as np

from dicetalk_jax.data.encoded import EncodedClip, features
from dicetalk_jax.data.records import TRUTH
from dicetalk_jax.data.sets import serialize, shard_name, write_info, write_shard


def write_clips(folder, people=("M003", "W009", "M005"), emotions=(0, 4), clips=3, frames=30, expression=True):
  """Emotions are directions of the coefficients, beside each person's and each clip's own; returns the folder."""
  folder.mkdir(parents=True)
  rng = np.random.default_rng([1, 2, 3])
  record, written = features("audio"), {}
  meaning = rng.standard_normal((len(emotions), 64))
  for split in ("train", "test"):
    examples = []
    for person in people:
      of_person = 0.5 * rng.standard_normal(64)
      for of_emotion, emotion in zip(meaning, emotions, strict=True):
        for i in range(clips):
          coefficients = of_emotion + of_person + 0.6 * rng.standard_normal(64)
          name = f"{person}{split}/{emotion}/{i}"
          clip = EncodedClip(
            **dict(clip=name, source="mead", split=split, identity=f"{person}{split}", video=name, sentence=""),
            **dict(emotion=emotion, level=1, num_frames=frames, height=64, width=64, face_box=(16, 8, 32, 40)),
            expression=(coefficients + 0.3 * rng.standard_normal((frames if expression else 0, 64))).astype(np.float32),
            truth=np.zeros((0, len(TRUTH)), np.float32),
            states=rng.standard_normal((2 * frames, 2, 8)).astype(np.float16),
          )
          examples.append(serialize(record, clip.example()))
    written[split] = [write_shard(folder / shard_name("drawn", split, 0, 1), examples)]
  write_info(folder, "drawn", record, written)
  return folder
