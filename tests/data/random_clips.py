"""Random clips of a labelled set and of talks, written as `dicetalk data encode` leaves them, and batches of them."""

import dataclasses

import numpy as np

from dicetalk_jax.data.batches.diffusion import DiffusionBatchConfig, diffusion_batches
from dicetalk_jax.data.batches.embedder import EmbedderBatchConfig, embedder_batches
from dicetalk_jax.data.encode.record import EncodedClip
from dicetalk_jax.data.sets import write_set
from dicetalk_jax.vocabulary import TRUTH

LAYERS, WIDTH = 3, 8


def clip(name, frames, identity="M003", video=None, emotion=-1, level=0, size=64, expression=True, source="mead"):
  rng = np.random.default_rng([frames, *name.encode()])

  def draw(*shape):
    return rng.standard_normal(shape, np.float32).astype(np.float16)

  reference = np.arange(0, frames, 10, dtype=np.int32)
  latents = (frames, size // 8, size // 8, 4)
  return EncodedClip(
    **dict(clip=name, source=source, split="train", identity=identity, video=video or name, sentence=""),
    **dict(emotion=emotion, level=level, num_frames=frames, height=size, width=size, face_box=(16, 8, 32, 40)),
    expression=rng.standard_normal((frames if expression else 0, 64)).astype(np.float32),
    truth=np.zeros((0, len(TRUTH)), np.float32),
    states=draw(2 * frames, LAYERS, WIDTH),
    latents_mean=draw(*latents),
    latents_logvar=draw(*latents),
    reference_index=reference,
    image_embedding=draw(len(reference), 16),
  )


def write(folder, clips, what="all", shards=2, name="drawn"):
  """An encoded folder as `encode` writes it, but without the index, which its first reader makes."""
  if what == "audio":
    pictures = ("latents_mean", "latents_logvar", "reference_index", "image_embedding")
    clips = [dataclasses.replace(clip, **dict.fromkeys(pictures)) for clip in clips]
  return write_set(folder, clips, name, shard_clips=-(-len(clips) // shards))


MEAD = [
  clip(f"{person}/{emotion}/{level}", 52 + 3 * level, person, emotion=emotion, level=level)
  for person in ("M003", "W009")
  for emotion in (0, 4, 5)
  for level in (1, 2, 3)
]
HDTF = [clip(f"talk{i}/{j}", 60 + i, f"WDA{i}", video=f"talk{i}", source="hdtf") for i in range(3) for j in range(2)]
HDTF.append(clip("short", 48, source="hdtf"))
HDTF.append(clip("long", 200, "WRA", source="hdtf", expression=False))

DIFFUSION = DiffusionBatchConfig(batch=4)
EMBEDDER = EmbedderBatchConfig(groups=4, clips=2, frames=24)


def take(batches, count):
  with batches:
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


def assert_same(ours, theirs):
  assert ours.keys() == theirs.keys()
  for name in ours:
    assert ours[name].dtype == theirs[name].dtype
    np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def make(kind, mead, hdtf, **options):
  if kind == "embedder":
    return embedder_batches([mead, hdtf], options.pop("config", EMBEDDER), **options)
  return diffusion_batches(mead, hdtf, options.pop("config", DIFFUSION), **options)
