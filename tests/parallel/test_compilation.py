"""Programs compiled by one process serve the next."""

import os
import pathlib
import platform
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp
from dicetalk_jax.parallel.compilation import keep_compiled_programs

keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))).sum())
print(sum(event.endswith("compilation_cache/cache_hits") for event in found), jax.config.jax_compilation_cache_dir)
"""


def run(environment):
  inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM], env=inherited | environment, capture_output=True, text=True, check=True
  )
  total, line = done.stdout.splitlines()
  hits, folder = line.split()
  return float(total), int(hits), folder, done.stderr


def test_programs_are_found_again(tmp_path):
  first, second = (run({"XDG_CACHE_HOME": str(tmp_path)}) for _ in range(2))
  assert first[2] == second[2]
  (kind,) = (tmp_path / "dicetalk" / "compiled").iterdir()
  assert kind == pathlib.Path(first[2]) and kind.name.startswith(platform.machine())
  assert first[1] == 0 < second[1]
  assert first[0] == second[0]
  assert second[3] == ""


def test_a_cache_of_ones_own_stays(tmp_path):
  assert run({"JAX_COMPILATION_CACHE_DIR": str(tmp_path)})[2] == str(tmp_path)


def test_where_no_folder_can_be_made_nothing_is_kept(tmp_path):
  (tmp_path / "file").write_text("no folder")
  _, hits, folder, said = run({"XDG_CACHE_HOME": str(tmp_path / "file")})
  assert (hits, folder, said) == (0, "None", "")
