"""A small encoded set of random clips, as `dicetalk data encode` leaves one, that both stages train on."""

import numpy as np

from dicetalk_jax.data.encode.record import EncodedClip, features
from dicetalk_jax.data.sets import serialize, shard_name, write_info, write_shard
from dicetalk_jax.vocabulary import TRUTH


def write_clips(
  folder,
  people=("M003", "W009", "M005"),
  emotions=(0, 4),
  clips=3,
  frames=30,
  expression=True,
  pictures=False,
  states=(2, 8),
):
  """Emotions are directions of the coefficients, beside each person's and each clip's own; returns the folder.

  pictures: latents and embeddings too, of 64 pixels at an eighth. states: Whisper's, how many and how wide.
  """
  folder.mkdir(parents=True)
  rng = np.random.default_rng([1, 2, 3])
  record, written = features("all" if pictures else "audio"), {}
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
            states=rng.standard_normal((2 * frames, *states)).astype(np.float16),
            **(_pictures(rng, frames) if pictures else {}),
          )
          examples.append(serialize(record, clip.example()))
    written[split] = [write_shard(folder / shard_name("drawn", split, 0, 1), examples)]
  write_info(folder, "drawn", record, written)
  return folder


def _pictures(rng, frames, size=64, width=64):
  reference, latents = np.arange(0, frames, 10, dtype=np.int32), (frames, size // 8, size // 8, 4)
  return dict(
    latents_mean=(5 * rng.standard_normal(latents)).astype(np.float16),
    latents_logvar=np.full(latents, -8, np.float16),
    reference_index=reference,
    image_embedding=rng.standard_normal((len(reference), width)).astype(np.float16),
  )
