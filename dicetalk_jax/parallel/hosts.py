"""The processes of one run: how they find each other, agree, and end together.

A process learns its role from the environment, so that every host runs the same command:

  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID   all three: address of process 0, number, index
  a step of Slurm or Open MPI with several tasks               recognised as `jax.distributed.initialize` does
  DICETALK_HOSTS=auto                                          the same, for TPU pods, GKE and whatever else JAX knows
  DICETALK_CONNECT_TIMEOUT (300)                               seconds until all processes must have connected
  DICETALK_HEARTBEAT_TIMEOUT (100)                             seconds after which a silent process counts as dead

If a process dies, JAX's coordination service ends the others: at once if it was process 0, within the heartbeat timeout
otherwise. They abort (exit code 134) with a message that names the process. CPU collectives fail at once instead.
"""

import contextlib
import importlib.metadata
import json
import os
import socket
import sys
import threading
from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from dicetalk_jax.errors import InputError

_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_connected = threading.Event()


def connect() -> None:
  """Connects to the other processes of this run, if the environment names any; call it before JAX computes.

  `jax.devices()` are then those of all processes. Ends the process with a message if they do not all connect within the
  timeout. Raises InputError for an environment that is contradictory.
  """
  arguments = _arguments()
  if arguments is None or _connected.is_set():
    return
  wait, heartbeat = _number("DICETALK_CONNECT_TIMEOUT", 300), _number("DICETALK_HEARTBEAT_TIMEOUT", 100)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  timer = threading.Timer(wait, _end_late, (wait,))
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(**arguments, initialization_timeout=2 * wait + 60, heartbeat_timeout_seconds=heartbeat)
  except (RuntimeError, ValueError, TypeError) as error:
    reason = str(error).strip().splitlines()[0].rstrip(".")
    raise InputError(
      f"the processes of this run could not connect ({reason}); set {', '.join(_EXPLICIT)} for each, or unset "
      "DICETALK_HOSTS to run one process"
    ) from error
  finally:
    timer.cancel()
  _connected.set()


def _arguments() -> dict | None:
  """Arguments of `jax.distributed.initialize` from the environment; None if this process is alone."""
  environment = os.environ
  missing = [name for name in _EXPLICIT if not environment.get(name)]
  if missing and not {"JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} <= set(missing):
    given = ", ".join(name for name in _EXPLICIT if name not in missing)
    raise InputError(f"{given} is set without {', '.join(missing)}; set all three, or none")
  if not missing:
    address, count, index = environment[_EXPLICIT[0]], _number(_EXPLICIT[1]), _number(_EXPLICIT[2], least=0)
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdigit():
      raise InputError(f"JAX_COORDINATOR_ADDRESS is '{address}'; give HOST:PORT of process 0")
    if index >= count:
      raise InputError(f"JAX_PROCESS_ID is {index} of JAX_NUM_PROCESSES {count}; processes count from 0")
    return {"coordinator_address": address, "num_processes": count, "process_id": index} if count > 1 else None
  slurm = environment.get("SLURM_JOB_ID") and "SLURM_PROCID" in environment
  tasks = (environment.get("SLURM_STEP_NUM_TASKS") if slurm else None, environment.get("OMPI_COMM_WORLD_SIZE"))
  if any(number and number.isdigit() and int(number) > 1 for number in tasks):
    return {}
  how = environment.get("DICETALK_HOSTS", "")
  if how not in ("", "auto"):
    raise InputError(f"DICETALK_HOSTS is '{how}'; set auto, or nothing")
  return {} if how else None


def _number(name: str, default: int | None = None, least: int = 1) -> int:
  text = os.environ.get(name) or str(default)
  if not text.strip().isdigit() or int(text) < least:
    raise InputError(f"{name} is '{text}'; give a whole number of at least {least}")
  return int(text)


def _end_late(seconds: int) -> None:
  """Ends the process with a sentence: JAX would abort with a stack trace, and the main thread waits inside JAX."""
  from jax._src.distributed import global_state

  address, count = global_state.coordinator_address, global_state.num_processes or "all"
  if global_state.process_id == 0:
    problem = f"this is process 0, and not all of the {count} processes connected to {address}"
  elif address and _listens(address):
    problem = f"process 0 answers at {address}, but not all of the {count} processes connected to it"
  else:
    problem = f"nothing answers at {address}, where process 0 should be"
  print(
    f"error: {problem} within {seconds} s; check that every host runs the same command with a number of its own, and "
    "reaches that address through its firewall (DICETALK_CONNECT_TIMEOUT sets the time).",
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)


def _listens(address: str) -> bool:
  host, _, port = address.rpartition(":")
  with contextlib.suppress(OSError):
    socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    return True
  return False


def leave(code: int) -> None:
  """Ends a process that failed. JAX's own shutdown would wait for the others, which wait for this one."""
  if _connected.is_set():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def lost_process(error: Exception) -> str | None:
  """What to tell of an error that comes from the death of another process; None for any other error."""
  reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
  if not _connected.is_set() or not any(word in reason for word in ("Gloo", "NCCL", "coordination service")):
    return None
  return (
    f"another process of this run ended, and this one cannot continue without it ({reason[:200]}). Its own messages "
    "say why. Checkpoints are complete; start all processes again with the same command"
  )


def is_first() -> bool:
  """Whether this process writes what is written once."""
  return jax.process_index() == 0


def gather(value) -> list:
  """JSON values of all processes, in their order; all must call it."""
  if jax.process_count() == 1:
    return [value]
  from jax.experimental import multihost_utils

  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(text)))).reshape(-1)
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: len(text)] = text
  rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
  return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def wait_for_all(name: str) -> None:
  """Returns when every process has called it with this name."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def check_agreement(facts: Mapping) -> None:
  """Raises InputError on every process if one has other facts, nested dicts of JSON values, than process 0.

  Versions of the libraries are compared with them.
  """
  if jax.process_count() == 1:
    return
  versions = {name: importlib.metadata.version(name) for name in ("dicetalk-jax", "jax", "jaxlib", "flax", "optax")}
  ours = flatten_dict({"version": versions, **facts}, sep=".")
  first, *others = gather({name: repr(value) for name, value in ours.items()})
  for index, theirs in enumerate(others, start=1):
    for name in {**first, **theirs}:
      if first.get(name) != theirs.get(name):
        raise InputError(
          f"process {index} has {name} {theirs.get(name, 'none')}, and process 0 {first.get(name, 'none')}; start all "
          "processes with the same program, configuration and files"
        )
