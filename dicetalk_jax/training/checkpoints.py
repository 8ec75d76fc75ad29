"""Checkpoints of a run through Orbax: written asynchronously, complete or absent, and checked on restore.

Frozen parameters are in the weights that training started from, so only their checksums are saved.
"""

import contextlib
import errno
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from orbax.checkpoint import v1 as ocp

from dicetalk_jax.errors import OutputError, WeightsError, out_of_memory
from dicetalk_jax.files import free_space, readable_size, write_failure
from dicetalk_jax.parallel.hosts import gather, is_first, wait_for_all
from dicetalk_jax.parallel.mesh import to_host
from dicetalk_jax.parallel.rules import path_name
from dicetalk_jax.training.state import TrainState

_LOGGERS = ("absl", "asyncio")
_UNFINISHED = ".orbax-checkpoint-tmp"


def show(message: str) -> None:
  """Prints a message to stderr."""
  print(message, file=sys.stderr, flush=True)


class Checkpoints:
  """The checkpoints of a run, `folder`/<step>: the newest `keep`, and those at multiples of `keep_every` for good.

  Half-written checkpoints of an interrupted process are removed. If a checkpoint cannot be written, `warn` is called
  and the older ones stay. Orbax's log is silenced meanwhile, because one failure fills thousands of lines.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    keep: int = 3,
    keep_every: int | None = None,
    warn: Callable[[str], None] = show,
  ):
    """Raises OutputError if the folder cannot be created."""
    self._folder, self._warn = pathlib.Path(folder).absolute(), warn
    self._saving, self._checksums = None, None
    policies = ocp.training.preservation_policies
    preserved = [policies.LatestN(max(keep, 1))] + ([policies.EveryNSteps(keep_every)] if keep_every else [])
    context = ocp.Context()
    context.array.saving.use_compression = False
    try:
      self._orbax = ocp.training.Checkpointer(
        self._folder,
        context=context,
        save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
        preservation_policy=policies.AnyPreservationPolicy(preserved),
        cleanup_tmp_directories=True,
      )
    except OSError as error:
      raise OutputError(f"{self._folder} cannot hold checkpoints: {error.strerror}; choose another folder.") from error
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    self._levels = {logger: logger.level for logger in loggers}
    for logger in loggers:
      logger.setLevel(logging.CRITICAL)

  @property
  def latest(self) -> int | None:
    """The step of the newest complete checkpoint."""
    return max((checkpoint.step for checkpoint in self._orbax.checkpoints), default=None)

  def save(self, state: TrainState, data: Mapping, wait: bool = False) -> None:
    """Starts to write a checkpoint of the state's step, after the previous one is written.

    data: state of the data iterator. wait: return when it is written, and raise OutputError if it cannot be. An
    existing checkpoint of this step stays.
    """
    self._finish()
    step = int(state.step)
    if self.latest == step:
      return
    if is_first():
      self._clear()
    stored = _stored(state)
    # One replica of each shard is written.
    shards = (shard for leaf in jax.tree.leaves(stored) for shard in leaf.addressable_shards if shard.replica_id == 0)
    needed = sum(shard.data.nbytes for shard in shards)
    try:
      # Check first, because Orbax would fill the disk before it fails. All hosts start to write, or none: each would
      # wait for the others.
      wants = gather([needed, free_space(self._folder)])
      needed, free = sum(of[0] for of in wants), min(of[1] for of in wants)
      if free < needed:
        raise OSError(errno.ENOSPC, f"it needs {readable_size(needed)}, and {readable_size(free)} are free")
      metadata = {"data": dict(data), "frozen": self._frozen(state)}
      self._saving = step
      self._orbax.save_checkpointables_async(step, {"state": stored}, custom_metadata=metadata)
    except Exception as error:
      self._failed(step, error, wait)
    if wait:
      self._finish(raises=True)

  def poll(self) -> None:
    """Reports a failed write; costs nothing."""
    if self._saving is not None and not self._orbax.is_saving_in_progress():
      self._finish()

  def restore(self, state: TrainState) -> tuple[TrainState, dict] | None:
    """State, in the shardings of `state`, and iterator state of the newest readable checkpoint; None without any.

    state: may have shapes instead of arrays, except for frozen leaves (`TrainState.emptied`). A damaged checkpoint is
    reported to `warn`, and renamed to <step>.damaged once an older one could be read. Raises WeightsError for a
    checkpoint of another model, with the first difference, and if no checkpoint can be read.
    """
    damaged = []
    for step in sorted((checkpoint.step for checkpoint in self._orbax.checkpoints), reverse=True):
      restored, failure = None, None
      try:
        restored = self._read(step, state)
      except WeightsError:
        raise
      except Exception as error:  # Orbax and TensorStore have many names for a damaged file
        if out_of_memory(error):
          raise
        failure = _reason(error)
      # Each host reads its own shards. If one cannot, all take the previous checkpoint.
      if failures := [reason for reason in gather(failure) if reason]:
        damaged.append(step)
        self._warn(f"{self._folder / str(step)} is damaged ({failures[0]}).")
        continue
      if damaged:
        self._set_aside(damaged)
        self._warn(f"Training continues from {self._folder / str(step)}.")
      return restored
    if damaged:
      raise WeightsError(
        f"{self._folder} has no checkpoint that can be read; train in another folder, or remove this one to start anew."
      )
    return None

  def close(self) -> None:
    """Waits for the checkpoint that is being written."""
    try:
      self._finish()
      self._orbax.close()
      if is_first():
        self._clear()
    finally:
      for logger, level in self._levels.items():
        logger.setLevel(level)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _read(self, step, state):
    metadata = self._orbax.checkpointables_metadata(step)
    stored, extra = metadata.metadata["state"], metadata.custom_metadata
    if not stored or not extra:
      raise ValueError("its metadata is missing")
    where, wanted = self._folder / str(step), _stored(state)
    _compare(where, stored, wanted)
    ours = self._frozen(state)
    for path in sorted(extra["frozen"].keys() | ours.keys()):
      if extra["frozen"].get(path) != ours.get(path):
        raise WeightsError(
          f"{where} is of a run on other weights: its frozen '{path}' differs; use the weights and the dtype that the "
          "run started with, or train in another folder."
        )
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), wanted)
    restored = self._orbax.load_checkpointables(step, {"state": abstract})["state"]
    return state.replace(**restored), extra["data"]

  def _frozen(self, state):
    if self._checksums is None:
      sums = jax.jit(lambda tree: jax.tree.map(_checksum, tree))(state.frozen)
      self._checksums = {path: int(value) for path, value in flatten_dict(to_host(sums), sep="/").items()}
    return self._checksums

  def _finish(self, raises=False):
    """Waits for the checkpoint that is being written."""
    step, self._saving = self._saving, None
    if step is None:
      return
    try:
      self._orbax.wait()
    except Exception as error:
      self._failed(step, error, raises)

  def _failed(self, step, error, raises):
    self._saving = None
    if is_first():
      self._clear()
    with contextlib.suppress(OSError):
      self._orbax.reload()
    last = "there is none before it" if self.latest is None else f"the last is that of step {self.latest}"
    message = f"The checkpoint of step {step} could not be written to {self._folder}: {_reason(error)}; {last}."
    # One host may have failed alone, but all must know the same checkpoints: this error ends the run.
    if raises or (jax.process_count() > 1 and getattr(error, "errno", None) != errno.ENOSPC):
      raise OutputError(message) from error
    self._warn(message)

  def _clear(self):
    """Removes half-written checkpoints, which only take space.

    Other threads of a failed save may write for a moment more; the next save, close or start removes what they leave.
    """
    for path in self._folder.glob(f"*{_UNFINISHED}"):
      shutil.rmtree(path, ignore_errors=True)

  def _set_aside(self, steps):
    for step in steps if is_first() else ():
      (self._folder / str(step)).rename(self._folder / f"{step}.damaged")
    wait_for_all("damaged checkpoints are set aside")
    self._orbax.reload()


def _stored(state: TrainState) -> dict:
  """The part of a state that a checkpoint holds."""
  names = ("step", "params", "opt_state", "ema", "key")
  return {name: value for name in names if (value := getattr(state, name)) is not None}


def _compare(where, stored: Mapping, wanted: Mapping) -> None:
  """Raises WeightsError with the first difference between a checkpoint's shapes and those of this run."""
  stored, wanted = (
    {
      path_name((jax.tree_util.DictKey(name), *path)): tuple(leaf.shape)
      for name, tree in part.items()
      for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    for part in (stored, wanted)
  )
  for path in {**wanted, **stored}:
    if stored.get(path) != wanted.get(path):
      raise WeightsError(
        f"{where} is of another model or optimizer: '{path}' is {stored.get(path, 'missing')}, wanted "
        f"{wanted.get(path, 'none of that name')}; use the configuration that the run started with, or another folder."
      )


def _checksum(leaf):
  """The sum of a leaf's bits as whole numbers, which does not depend on the order of addition."""
  bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
  return bits.astype(jnp.uint32).sum(dtype=jnp.uint32)


def _reason(error: BaseException) -> str:
  """The operating system's message, or the first line of the error."""
  first = (str(error).strip().splitlines() or [""])[0].rstrip(" .:")[:200]
  return write_failure(error) or f"{type(error).__name__}: {first}"
