"""The processes of one run: how they find each other, whether they mean the same, and what ends when one of them does.

Who a process is it learns from its environment alone, so that every host runs the same command line:

  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID   all three: as they say
  a step of Slurm or Open MPI with several tasks               as `jax.distributed.initialize` finds out
  DICETALK_HOSTS=auto                                          the same, for TPU pods, GKE and whatever else JAX knows
  DICETALK_CONNECT_TIMEOUT (300), DICETALK_HEARTBEAT_TIMEOUT (100)   seconds
"""

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from dicetalk_jax.errors import InputError

_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_connected = threading.Event()
_watch: "_Watch | None" = None


def connect(warn: Callable[[str], None] | None = None) -> None:
  """Joins the other processes of this run, where the environment says that there are any; before JAX computes.

  From then on `jax.devices()` are those of all. Where they do not all come within the timeout this process ends with a
  message; where one of them ends, so do the others. Raises InputError for an environment that makes no sense.
  """
  arguments = _from_environment(os.environ)
  if arguments is None or _connected.is_set():
    return
  wait, heartbeat = (_seconds(name, default) for name, default in (("CONNECT", 300), ("HEARTBEAT", 100)))
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  with _deadline(wait, arguments):
    try:
      jax.distributed.initialize(**arguments, initialization_timeout=2 * wait + 60, heartbeat_timeout_seconds=heartbeat)
    except (RuntimeError, ValueError, TypeError) as error:
      said = str(error).strip().splitlines()[0].rstrip(".")
      raise InputError(
        f"the processes of this run could not be joined ({said}); set {', '.join(_EXPLICIT)} for each, or unset "
        "DICETALK_HOSTS to work alone"
      ) from error
  _connected.set()
  if jax.process_count() > 1:
    _begin_watch(heartbeat, warn)


def _from_environment(environment: Mapping[str, str]) -> dict | None:
  """What `jax.distributed.initialize` is to be told; None where this process is alone."""
  given = [name for name in _EXPLICIT if environment.get(name)]
  if given and len(given) < len(_EXPLICIT) and set(given) != {"JAX_COORDINATOR_ADDRESS"}:
    missing = ", ".join(name for name in _EXPLICIT if name not in given)
    raise InputError(f"{', '.join(given)} given without {missing}; set all three, or none")
  if len(given) == len(_EXPLICIT):
    address = environment["JAX_COORDINATOR_ADDRESS"]
    count, index = (_number(name, environment[name]) for name in _EXPLICIT[1:])
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdigit():
      raise InputError(f"JAX_COORDINATOR_ADDRESS is '{address}', wanted HOST:PORT of process 0")
    if count < 1 or not 0 <= index < count:
      raise InputError(f"JAX_PROCESS_ID is {index} of JAX_NUM_PROCESSES {count}; processes count from 0")
    if count == 1:
      return None
    return {"coordinator_address": address, "num_processes": count, "process_id": index}
  slurm = environment.get("SLURM_JOB_ID") and "SLURM_PROCID" in environment
  tasks = (environment.get("SLURM_STEP_NUM_TASKS") if slurm else None, environment.get("OMPI_COMM_WORLD_SIZE"))
  if any(number and number.isdigit() and int(number) > 1 for number in tasks):
    return {}
  how = environment.get("DICETALK_HOSTS", "")
  if how not in ("", "auto"):
    raise InputError(f"DICETALK_HOSTS is '{how}', wanted auto, or none at all")
  return {} if how else None


def _number(name, text) -> int:
  if not text.strip().isdigit():
    raise InputError(f"{name} is '{text}', wanted a whole number")
  return int(text)


def _seconds(name, default) -> int:
  seconds = _number(f"DICETALK_{name}_TIMEOUT", os.environ.get(f"DICETALK_{name}_TIMEOUT") or str(default))
  if seconds < 1:
    raise InputError(f"DICETALK_{name}_TIMEOUT is {seconds}, wanted at least 1 second")
  return seconds


@contextlib.contextmanager
def _deadline(seconds, arguments):
  """Ends the process with a sentence where the block takes longer: JAX itself would abort with a stack trace."""

  def too_late():
    from jax._src.distributed import global_state

    address = arguments.get("coordinator_address") or getattr(global_state, "coordinator_address", None)
    count = arguments.get("num_processes") or getattr(global_state, "num_processes", None) or "all"
    if arguments.get("process_id", getattr(global_state, "process_id", None)) == 0:
      said = f"this is process 0, and not all of the {count} processes came to {address}"
    elif address and _listens(address):
      said = f"process 0 answers at {address}, and not all of the {count} processes came there"
    else:
      said = f"nothing answers at {address}, where process 0 should be"
    _die(
      f"{said} within {seconds} s; see that every host runs the same command, has a number of its own and reaches that "
      "address through its firewall (DICETALK_CONNECT_TIMEOUT: how long it is waited)"
    )

  timer = threading.Timer(seconds, too_late)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _listens(address) -> bool:
  host, _, port = address.rpartition(":")
  with contextlib.suppress(OSError):
    socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    return True
  return False


def _die(message):
  print(f"error: {message}.", file=sys.stderr, flush=True)
  # The main thread may wait in a collective, which nothing else ends.
  os._exit(1)


def leave(code: int) -> None:
  """Before the process ends: tells the others that it is meant to, or, where it failed, that they are not to wait.

  With a code other than 0 it does not return: JAX would wait for hosts that are about to end as well.
  """
  if _watch is None:
    return
  if code == 0:
    _watch.say_goodbye()
    return
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def wait_for_news(seconds: float = 10) -> None:
  """Gives the watch time to end this process with what it knows, where an error may come from another that ended."""
  if _watch is not None:
    time.sleep(seconds)


def is_first() -> bool:
  """Whether this process writes what is written once."""
  return jax.process_index() == 0


def gather(value) -> list:
  """A JSON value of each process -> those of all, in their order; all have to call it."""
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
  """Returns once every process has called it with this name."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def check_agreement(facts: Mapping) -> None:
  """InputError on every process where one has other facts, nested mappings of JSON values, than process 0.

  Versions of what computes are compared with them.
  """
  if jax.process_count() == 1:
    return
  ours = _flat({"version": _versions(), **facts})
  first, *others = gather({name: repr(value) for name, value in ours.items()})
  for index, theirs in enumerate(others, start=1):
    for name in {**first, **theirs}:
      if first.get(name) != theirs.get(name):
        if _watch is not None:
          _watch.say_goodbye()  # each of them tells this, and none that another has ended
        raise InputError(
          f"process {index} has {name} {theirs.get(name, 'none')}, and process 0 {first.get(name, 'none')}; start all "
          "of them with the same program, the same configuration and the same files"
        )


def _versions() -> dict[str, str]:
  import importlib.metadata

  return {name: importlib.metadata.version(name) for name in ("dicetalk-jax", "jax", "jaxlib", "flax", "optax")}


def _flat(tree, prefix="") -> dict:
  if not isinstance(tree, Mapping):
    return {prefix: tree}
  return {name: value for key, of in tree.items() for name, value in _flat(of, f"{prefix}.{key}".strip(".")).items()}


def _begin_watch(heartbeat, warn) -> None:
  global _watch
  watch = _Watch(heartbeat)
  # Where process 0 listens: it knows its names, and which of them is reached the others find out.
  meetings = gather(watch.listen() if is_first() else None)
  reached = watch.join(meetings[0])
  if not all(gather(reached)):
    watch.close()
    (warn or (lambda message: None))(
      "The hosts do not reach each other through a port of their own: a host that ends is noticed by JAX alone, after "
      f"{heartbeat} s."
    )
    return
  _watch = watch
  watch.start()
  # Of programs that do not call `leave`: an error that nobody caught is no goodbye.
  atexit.register(lambda: hasattr(sys, "last_value") or watch.say_goodbye())


class _Watch:
  """A connection of every process to process 0, through which each notices at once that another has ended.

  JAX notices, too, after a heartbeat that fails to come, and then aborts with a stack trace.
  """

  _GOODBYE = b"B"

  def __init__(self, heartbeat):
    self._heartbeat, self._index, self._count = heartbeat, jax.process_index(), jax.process_count()
    self._secret = os.urandom(16).hex()
    self._server, self._peers, self._ending = None, {}, threading.Event()

  def listen(self) -> dict:
    self._server = socket.create_server(("", 0), backlog=self._count)
    addresses = {socket.gethostname(), "127.0.0.1"}
    from jax._src.distributed import global_state

    if address := getattr(global_state, "coordinator_address", None):
      addresses.add(address.rpartition(":")[0].strip("[]"))
    with contextlib.suppress(OSError):
      addresses |= {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    return {"addresses": sorted(addresses), "port": self._server.getsockname()[1], "secret": self._secret}

  def join(self, meeting) -> bool:
    """Whether this process is connected: process 0 to all others, each other one to process 0."""
    self._secret = meeting["secret"]
    if self._index:
      return self._call(meeting)
    self._server.settimeout(20)
    with contextlib.suppress(OSError):
      while len(self._peers) < self._count - 1:
        peer, _ = self._server.accept()
        peer.settimeout(20)
        secret, _, index = peer.recv(64).decode(errors="replace").partition(" ")
        if secret == self._secret and index.strip().isdigit():
          peer.sendall(b"W")
          self._keep(int(index), peer)
        else:
          peer.close()
    return len(self._peers) == self._count - 1

  def _call(self, meeting) -> bool:
    for address in meeting["addresses"]:
      with contextlib.suppress(OSError):
        peer = socket.create_connection((address, meeting["port"]), timeout=5)
        peer.sendall(f"{self._secret} {self._index}\n".encode())
        if peer.recv(1) == b"W":
          self._keep(0, peer)
          return True
    return False

  def _keep(self, index, peer):
    peer.settimeout(None)
    # A machine that is gone says nothing: the system asks it.
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    every = max(1, self._heartbeat // 4)
    for option, value in (("TCP_KEEPIDLE", every), ("TCP_KEEPINTVL", every), ("TCP_KEEPCNT", 3)):
      if hasattr(socket, option):
        peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    self._peers[index] = peer

  def start(self):
    for index, peer in self._peers.items():
      threading.Thread(target=self._listen_to, args=(index, peer), daemon=True).start()

  def _listen_to(self, index, peer):
    """Reads lines: a goodbye, or the number of a process that has ended, as process 0 passes on."""
    heard = b""
    with contextlib.suppress(OSError):
      while part := peer.recv(64):
        heard += part
    if self._ending.is_set() or heard.startswith(self._GOODBYE):
      return
    ended = heard.strip().decode(errors="replace") or str(index)
    for other in self._peers.values() if self._index == 0 else ():
      with contextlib.suppress(OSError):
        other.sendall(f"{ended}\n".encode())
    _die(
      f"process {ended} of this run ended before the others, and they cannot go on without it: its own messages say "
      "why. What was saved is whole; start all of them again with the same command"
    )

  def say_goodbye(self):
    self._ending.set()
    for peer in self._peers.values():
      with contextlib.suppress(OSError):
        peer.sendall(self._GOODBYE)

  def close(self):
    self._ending.set()
    for each in (*self._peers.values(), self._server):
      if each is not None:
        each.close()
