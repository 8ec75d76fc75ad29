"""What the package tells XLA's compiler: flags for a CPU, and a cache of compiled programs."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import zlib

# Programs to keep, in bytes and in seconds of compilation. Dozens of programs of 0.05 s take seconds together.
_LARGEST, _SHORTEST = 4 * 2**30, 0.05


def use_fast_convolutions() -> None:
  """Turns off a fusion of jaxlib's CPU compiler; call it before JAX starts, which reads XLA_FLAGS once.

  The fusion makes a convolution 1.5 times slower: 353 ms instead of 233 for 3x3, 320 -> 320 channels, 25x32x32
  positions on two cores (PyTorch: 207 ms).
  """
  flags = os.environ.get("XLA_FLAGS", "")
  # XLA ends the process for a flag that it does not know. These versions know it.
  known = importlib.metadata.version("jaxlib").startswith(("0.10.", "0.12."))
  if known and "ynn_fusion" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_experimental_ynn_fusion_type=".strip()


def keep_compiled_programs() -> None:
  """Keeps compiled programs in the user's cache folder, where the next process finds them.

  The folder is `$XDG_CACHE_HOME/dicetalk/compiled`, or below `~/.cache`, with one folder for each kind of CPU, because
  homes are shared. It holds 4 GiB at most; the longest unused programs go first. Nothing changes if JAX has a cache
  already (`JAX_COMPILATION_CACHE_DIR`), if the folder cannot be written, or in a run of several processes: if one of
  them finds a program and another compiles it, a GPU's autotuning waits forever.
  """
  import jax

  if jax.config.jax_compilation_cache_dir or jax.process_count() > 1:
    return
  with contextlib.suppress(OSError, RuntimeError):  # no home
    caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path("~/.cache").expanduser()
    folder = pathlib.Path(caches, "dicetalk", "compiled", _cpu())
    folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
      jax.config.update("jax_compilation_cache_dir", str(folder))
      jax.config.update("jax_compilation_cache_max_size", _LARGEST)
      jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST)


def _cpu() -> str:
  """The CPU's instruction set. A program compiled for another one could crash."""
  features = platform.processor()
  with contextlib.suppress(OSError, StopIteration):
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    features = next(line for line in lines if line.startswith(("flags", "Features")))
  return f"{platform.machine()}-{zlib.crc32(features.encode()):08x}"
