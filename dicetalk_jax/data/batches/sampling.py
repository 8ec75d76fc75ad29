"""Which sample comes when, as a pure function of seed and place, and the iterator over batches that rests on it.

Sample j of a run is the same whatever the number of processes and workers, so an iterator's state is one number.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Protocol

import grain
import numpy as np

from dicetalk_jax.data.settings import Settings
from dicetalk_jax.errors import InputError

# Training never ends; Grain wants a length.
ENDLESS = 2**40


def generator(*key: int) -> np.random.Generator:
  """The random numbers of one place: of a seed, a constant that says what for, and an index."""
  return np.random.default_rng(key)


def shuffled(index: int, length: int, *key: int) -> int:
  """Entry `index` of the endless sequence of permutations of `length` items, another each epoch."""
  epoch, position = divmod(index, length)
  return int(_permutation(length, (*key, epoch))[position])


# Two streams, each at the turn of an epoch. Grain's index_shuffle needs no memory, but takes milliseconds an index of
# short sequences.
@functools.lru_cache(maxsize=4)
def _permutation(length: int, key: tuple[int, ...]) -> np.ndarray:
  return generator(*key).permutation(np.arange(length, dtype=np.uint32))


@dataclasses.dataclass(frozen=True)
class Share:
  """This process's part of every global batch: rows index · b/count up to (index + 1) · b/count of its b rows."""

  index: int = 0
  count: int = 1

  def __post_init__(self):
    if not 0 <= self.index < self.count:
      raise InputError(f"process {self.index} of {self.count} does not exist; processes count from 0")

  def rows(self, batch: int, what: str) -> range:
    """Raises InputError where `batch` cannot be divided; `what` names its unit."""
    if batch < 1 or batch % self.count:
      raise InputError(
        f"{batch} {what} a batch cannot be divided over {self.count} processes; give a multiple of {self.count}"
      )
    size = batch // self.count
    return range(self.index * size, (self.index + 1) * size)


class Source(Protocol):
  """Batches by index: this process's rows of global batch i. Picklable; threads may read it at once."""

  fingerprint: Mapping  # what decides the batches, as JSON: a state of another is refused

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


class _From:
  """A source from one of its batches on."""

  def __init__(self, source: Source, first: int):
    self._source, self._first = source, first

  def __len__(self):
    return len(self._source) - self._first

  def __getitem__(self, index):
    return self._source[self._first + index]


class Batches:
  """An iterator over a source's batches, read ahead in threads, or in `workers` processes of their own.

  It resumes exactly from `get_state()`, which is a small JSON object, at any batch and with any number of workers and
  of processes. A finite one that has ended starts again when iterated over anew. `close()` ends the workers, as leaving
  a `with` does.

  `source` has what is known of the data: `clips`, `identities`, `left_out` and so on. A read that fails raises
  InputError, and the next call tries the same batch again.
  """

  def __init__(self, source: Source, workers: int = 0, threads: int = 2, prefetch: int = 2):
    if workers < 0 or threads < 1 or prefetch < 1:
      raise InputError(
        f"{workers} workers, {threads} threads and {prefetch} batches ahead cannot be used: workers are 0 or more, the "
        "others at least 1"
      )
    self.source = source
    self._workers, self._threads, self._prefetch = workers, threads, prefetch
    self._next = 0
    self._batches = None

  def __len__(self):
    return len(self.source)

  def __iter__(self):
    if self._next >= len(self.source):
      self._restart(0)
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if self._next >= len(self.source):
      raise StopIteration
    if self._batches is None:
      self._batches = self._start()
    try:
      batch = next(self._batches)
    except BaseException as error:
      with contextlib.suppress(Exception):  # of workers that never started
        self.close()
      if self._workers and isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):
        raise InputError(
          "a worker process that reads batches ended: it was killed, or the program that starts workers does its work "
          'outside of `if __name__ == "__main__":`, where each worker would do it again'
        ) from error
      raise
    self._next += 1
    # What workers send lies in shared memory, of which there may be little.
    return {name: np.array(array) for name, array in batch.items()} if self._workers else batch

  def _start(self):
    dataset = grain.MapDataset.source(_From(self.source, self._next))
    if not self._workers:
      options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=max(self._threads, self._prefetch))
      return iter(dataset.to_iter_dataset(options))
    from absl import flags

    # Grain's workers read absl's flags, which a program that is not absl's never parses.
    flags.FLAGS.mark_as_parsed()
    # Each worker has a thread of its own per batch already.
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=self._prefetch)
    return iter(dataset.mp_prefetch(options))

  def _restart(self, index: int):
    self.close()
    self._next = index

  def get_state(self) -> dict:
    """Where the next batch is, and of what: a small JSON object, the same on every process."""
    return {"next": self._next, **self.source.fingerprint}

  state = get_state

  def set_state(self, state: Mapping) -> None:
    """Goes to where a state was taken; raises InputError for one of another seed, data or batch."""
    if not isinstance(state, Mapping) or "next" not in state:
      raise InputError(f"{state!r} is no state of the data; give what get_state() returned")
    for name, ours in self.source.fingerprint.items():
      theirs = state.get(name)
      if isinstance(ours, Settings) and isinstance(theirs, Mapping):
        theirs = ours.completed(theirs)
      if theirs != ours:
        raise InputError(f"the state of the data was saved with {_difference(name, theirs, ours)}; go on as it began")
    index = state.get("next")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index <= len(self.source):
      raise InputError(f"the state of the data has next {index!r}, wanted a number of batches up to {len(self.source)}")
    self._restart(index)

  def close(self) -> None:
    """Ends threads and worker processes; the next batch starts them again."""
    batches, self._batches = self._batches, None
    if batches is not None:
      batches.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def __del__(self):
    if getattr(self, "_batches", None) is not None:
      self.close()


def _difference(name, theirs, ours) -> str:
  if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
    key = next(key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key))
    return _difference(key, theirs.get(key), ours.get(key))
  return f"{name} {theirs}, and this has {ours}"
