"""Compiled programs, kept from one process to the next."""

import contextlib
import os
import pathlib
import platform
import zlib

import jax

_LARGEST = 4 * 2**30
_SHORTEST = 0.05


def keep_compiled_programs() -> None:
  """From now on what takes a moment to compile is kept in the user's cache folder, and found there next time.

  `$XDG_CACHE_HOME/dicetalk/compiled`, or below `~/.cache`, a folder for each kind of CPU, for homes are shared; at most
  4 GiB in each, the longest unused go first. Nothing is changed where JAX has a cache already
  (`JAX_COMPILATION_CACHE_DIR`), where the folder cannot be written, and in a run of several processes: where one finds
  a program and another compiles it, a GPU's autotuning waits for ever.
  """
  if jax.config.jax_compilation_cache_dir or jax.process_count() > 1:
    return
  with contextlib.suppress(OSError, RuntimeError):  # no home
    caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path("~/.cache").expanduser()
    folder = pathlib.Path(caches, "dicetalk", "compiled", _cpu())
    folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
      jax.config.update("jax_compilation_cache_dir", str(folder))
      jax.config.update("jax_compilation_cache_max_size", _LARGEST)
      # Dozens of small ones take seconds together.
      jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST)


def _cpu() -> str:
  """What programs compiled here may use of it: on another one they could end the process."""
  can = platform.processor()
  with contextlib.suppress(OSError, StopIteration):
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    can = next(line for line in lines if line.startswith(("flags", "Features")))
  return f"{platform.machine()}-{zlib.crc32(can.encode()):08x}"
