"""Speed of batches for the diffusion, compared with plain reads of the same files.

    python benchmarks/data_loading.py [--folder DIR]

Random clips of full size (latents of 512 pixels, states of Whisper-tiny, CLIP embeddings) are written to a temporary
folder in DIR. They are read as plain files and as batches, with a cold and with a warm page cache.
"""

import argparse
import os
import pathlib
import tempfile
import time

import common
import numpy as np

from dicetalk_jax.data.batches.diffusion import DiffusionBatchConfig, diffusion_batches
from dicetalk_jax.data.encode.record import EncodedClip
from dicetalk_jax.data.sets import write_set
from dicetalk_jax.vocabulary import TRUTH

CLIPS, FRAMES, BATCH = 32, 100, 4


def draw_clip(number):
  """A clip of full size."""
  rng = np.random.default_rng(number)

  def draw(*shape):
    return rng.standard_normal(shape, np.float32).astype(np.float16)

  reference = np.arange(0, FRAMES, 10, dtype=np.int32)
  name = f"clip{number:03d}"
  return EncodedClip(
    **dict(clip=name, source="synthetic", split="train", identity=name, video=name, sentence="", emotion=number % 8),
    **dict(level=1, num_frames=FRAMES, height=512, width=512, face_box=(128, 96, 256, 320)),
    expression=rng.standard_normal((FRAMES, 64), np.float32),
    truth=np.zeros((0, len(TRUTH)), np.float32),
    states=draw(2 * FRAMES, 5, 384),
    latents_mean=draw(FRAMES, 64, 64, 4),
    latents_logvar=draw(FRAMES, 64, 64, 4),
    reference_index=reference,
    image_embedding=draw(len(reference), 1024),
  )


def write_clips(folder):
  """Writes random clips as an encoded set; returns its files."""
  write_set(folder, map(draw_clip, range(CLIPS)), "random")
  return sorted(folder.glob("*.array_record*"))


def forget(paths):
  """Drops files from the page cache; False if the system cannot."""
  if not hasattr(os, "posix_fadvise"):
    return False
  for path in paths:
    with path.open("rb") as file:
      os.fsync(file.fileno())
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
  return True


def read_plainly(paths):
  """MB/s of reading whole files."""
  buffer = bytearray(1 << 22)
  start, size = time.perf_counter(), 0
  for path in paths:
    with path.open("rb", buffering=0) as file:
      while count := file.readinto(buffer):
        size += count
  return size / 1e6 / (time.perf_counter() - start)


def read_batches(folder, paths, workers, cold):
  """Batches/s over two epochs, or over one with a cold cache, which is warm in the second."""
  record = sum(path.stat().st_size for path in paths) / CLIPS
  with diffusion_batches(folder, config=DiffusionBatchConfig(batch=BATCH), workers=workers) as batches:
    first = next(batches)  # starts the workers, which is not measured
    if cold:
      forget(paths)
    # Batches that were prefetched meanwhile were warm and are not counted.
    ahead = 2 * max(1, workers) + 1
    for _ in range(0 if cold else ahead):
      next(batches)
    count = CLIPS // BATCH if cold else 4 * CLIPS // BATCH
    start = time.perf_counter()
    for _ in range(count):
      next(batches)
    seconds = time.perf_counter() - start
  delivered = sum(array.nbytes for array in first.values())
  return count / seconds, count * delivered / 1e6 / seconds, count * BATCH * record / 1e6 / seconds


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--folder", type=pathlib.Path, help="folder on the disk to measure")
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
    folder = pathlib.Path(folder)
    paths = write_clips(folder)
    size = sum(path.stat().st_size for path in paths) / 1e6
    rows = []
    for cold in (True, False):
      if cold and not forget(paths):
        continue
      if not cold:
        read_plainly(paths)
      disk = read_plainly(paths)
      for workers in (0, 2):
        rate, delivered, read = read_batches(folder, paths, workers, cold)
        figures = (f"{rate:.1f}", f"{delivered:.0f}", f"{read:.0f}", f"{disk:.0f}", f"{read / disk:.2f}")
        rows.append(("cold" if cold else "warm", str(workers), *figures))
  title = f"{CLIPS} clips of {FRAMES} frames, {size:.0f} MB, batches of {BATCH} ({common.machine()})"
  header = ("cache", "workers", "batches/s", "delivered MB/s", "read MB/s", "plain read MB/s", "read / plain")
  common.print_table(title, header, rows)


if __name__ == "__main__":
  main()
