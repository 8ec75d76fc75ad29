"""Programs of the system that a test starts for real."""

import os
import shutil
import subprocess

import pytest


def needs(program, *packages):
  """Installs Debian's packages where the program is missing and that can be done; else the test is skipped."""
  if shutil.which(program):
    return
  if os.geteuid() or not shutil.which("apt-get"):
    pytest.skip(f"no {program} here (Debian: apt-get install {' '.join(packages)})")
  environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
  for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
    done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True, check=False)
  if done.returncode or not shutil.which(program):
    pytest.skip(f"{' '.join(packages)} cannot be installed: {done.stderr.strip()[-300:]}")
