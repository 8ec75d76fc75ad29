"""The command line: one module per group of verbs."""

import atexit
import os
import signal
import sys

from dicetalk_jax.cli.terminal import STOPPED


def main(arguments: list[str] | None = None) -> int:
  """Runs one verb and returns its exit code.

  0: done. 1: failed, with a message. 75: training was stopped and saved. 130: Ctrl-C. A wrong command line: 2.
  """
  from dicetalk_jax.cli.verbs import run

  return run(sys.argv[1:] if arguments is None else arguments)


def entry():
  """Entry point of `dicetalk`: runs `main` as a process."""
  # Registered first, so it runs last, after the handlers that end worker processes. Without it Python would end by
  # SIGINT when a Ctrl-C passed through an exec(), which dataclasses use, even though it was caught.
  if os.getpid() == 1:
    # The kernel drops SIGTERM for the first process of a container that has no handler.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
  interrupted = []
  atexit.register(lambda: _leave() if interrupted else None)
  try:
    try:
      code = main()
    finally:
      # At exit a closed pipe could not be caught.
      sys.stdout.flush()
  except BrokenPipeError:
    # The reader, such as `head`, has ended: exit silently with the code of SIGPIPE, as other programs do.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = 128 + signal.SIGPIPE
  except KeyboardInterrupt:
    # During imports, or a second one while the first was handled.
    print("stopped", file=sys.stderr)
    code = 130
  if code not in (0, STOPPED) and "dicetalk_jax.parallel.hosts" in sys.modules:
    sys.modules["dicetalk_jax.parallel.hosts"].leave(code)
  if code == 130:
    # The process is ending: ignore further ones.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupted.append(True)
    if "jax" in sys.modules:
      # Threads of XLA may still compile or compute; an ordinary exit would crash in them.
      _leave()
  sys.exit(code)


def _leave():
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(130)
