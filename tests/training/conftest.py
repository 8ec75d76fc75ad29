"""What the tests of training share."""

import os
import subprocess

import pytest


@pytest.fixture
def small_disk(tmp_path):
  """A disk of its own, of 8 MiB, which is easily filled."""
  disk = tmp_path / "disk"
  disk.mkdir()
  if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=False).returncode:
    pytest.skip("a disk of its own cannot be mounted here")
  yield disk
  subprocess.run(["umount", disk], check=True)
