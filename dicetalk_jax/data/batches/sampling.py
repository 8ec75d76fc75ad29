"""Which sample comes when, as a pure function of seed and place, and the iterator over batches.

Sample j is the same for any number of processes and workers, so that the state of an iterator is one number.
"""

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Mapping

import numpy as np

from dicetalk_jax.data.settings import difference
from dicetalk_jax.errors import InputError

# Training never ends, but Grain needs a length.
ENDLESS = 2**40


def generator(*key: int) -> np.random.Generator:
  """The random numbers of one place. key: the seed, a constant for the purpose, and an index."""
  return np.random.default_rng(key)


def shuffled(index: int, length: int, *key: int) -> int:
  """Entry `index` of an endless sequence of permutations of `length` items, one for each epoch."""
  epoch, position = divmod(index, length)
  return int(_permutation(length, (*key, epoch))[position])


# Two streams, each at the turn of an epoch. Grain's index_shuffle needs no memory, but takes milliseconds an index for
# short sequences.
@functools.lru_cache(maxsize=4)
def _permutation(length: int, key: tuple[int, ...]) -> np.ndarray:
  return generator(*key).permutation(np.arange(length, dtype=np.uint32))


@dataclasses.dataclass(frozen=True)
class Run:
  """Which batches a source yields: the seed, this process's share of each batch, and endless training or one pass."""

  seed: int = 0
  process_index: int = 0
  process_count: int = 1
  training: bool = True

  def __post_init__(self):
    if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer) or self.seed < 0:
      raise InputError(f"seed {self.seed} is not a whole number of at least 0")
    if not 0 <= self.process_index < self.process_count:
      raise InputError(f"process {self.process_index} of {self.process_count} does not exist; processes count from 0")

  def rows(self, batch: int, unit: str) -> range:
    """This process's share of `batch` rows; InputError when they cannot be divided. `unit` names a row."""
    if batch < 1 or batch % self.process_count:
      raise InputError(
        f"{batch} {unit} a batch cannot be divided over {self.process_count} processes; give a multiple of "
        f"{self.process_count}"
      )
    size = batch // self.process_count
    return range(self.process_index * size, (self.process_index + 1) * size)


class Batches:
  """An iterator over the batches of a source, read ahead in threads, or in `workers` processes.

  source: a picklable sequence, safe to read from threads, of this process's rows of each global batch. Its
  `fingerprint` is JSON of all that determines the batches: a state with another one is refused. It may have `defaults`,
  values of the fingerprint that older states lack.

  Use it as a context manager, or call `close()`, to end the workers. `get_state()` is a small JSON object from which
  `set_state` resumes exactly, with any number of workers and processes. A finite iterator restarts when it is iterated
  over again. `source` describes the data: `clips`, `identities`, `left_out` and so on. When a read fails, InputError is
  raised, and the next call reads the same batch again.
  """

  def __init__(self, source, workers: int = 0, threads: int = 2, prefetch: int = 2):
    if workers < 0 or threads < 1 or prefetch < 1:
      raise InputError(
        f"{workers} workers, {threads} threads and {prefetch} prefetched batches are not possible: workers must be at "
        "least 0, the others at least 1"
      )
    self.source = source
    self._workers, self._threads, self._prefetch = workers, threads, prefetch
    self._next = 0
    # A list of Grain's iterator, once it has started, and what ends it.
    self._running, self._close = [], None

  def __len__(self):
    return len(self.source)

  def __iter__(self):
    if self._next >= len(self.source):
      self._restart(0)
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if self._next >= len(self.source):
      raise StopIteration
    if not self._running:
      self._running.append(self._start())
      # Also when this object is collected, and before the interpreter exits, when Grain's own end fails noisily.
      self._close = weakref.finalize(self, _close, self._running)
    try:
      batch = next(self._running[0])
    except BaseException as error:
      self.close()
      if self._workers and isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):
        raise InputError(
          "a worker process that reads batches has ended: it was killed, or the program that starts workers is not "
          'inside `if __name__ == "__main__":`, so that each worker would run it again'
        ) from error
      raise
    self._next += 1
    # Arrays of workers are in shared memory, of which there may be little.
    return {name: np.array(array) for name, array in batch.items()} if self._workers else batch

  def _start(self):
    # Imported here because it takes half a second: settings are checked before any batch is read.
    import grain

    dataset = grain.MapDataset.source(self.source)[self._next :]
    if not self._workers:
      options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=max(self._threads, self._prefetch))
      return iter(dataset.to_iter_dataset(options))
    from absl import flags

    # Grain's workers read absl's flags, which only programs of absl parse.
    flags.FLAGS.mark_as_parsed()
    # Each worker has one thread for each batch already.
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=self._prefetch)
    return iter(dataset.mp_prefetch(options))

  def _restart(self, index: int):
    self.close()
    self._next = index

  def get_state(self) -> dict:
    """The number of the next batch and the fingerprint of the source: a small JSON object, equal on all processes."""
    return {"next": self._next, **self.source.fingerprint}

  state = get_state

  def set_state(self, state: Mapping) -> None:
    """Continues from a state; raises InputError for one of other data, another seed or other settings."""
    if not isinstance(state, Mapping) or "next" not in state:
      raise InputError(f"{state!r} is not a state of the data; give what get_state() returned")
    index, saved = state["next"], {name: state.get(name) for name in self.source.fingerprint}
    if text := difference(saved, self.source.fingerprint, getattr(self.source, "defaults", None)):
      raise InputError(f"the state of the data was saved with {text}; continue with the same settings")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index <= len(self.source):
      raise InputError(f"the state of the data has next {index!r}; it must be a batch number up to {len(self.source)}")
    self._restart(index)

  def close(self) -> None:
    """Ends threads and worker processes; the next batch starts them again."""
    if self._close is not None:
      self._close()
    self._running = []

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def _close(running: list) -> None:
  while running:
    with contextlib.suppress(Exception):  # of workers that never started
      running.pop().close()
