"""`dicetalk app` in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

PRESET = """
from dicetalk_jax.config import GenerationConfig

config = GenerationConfig(size=64, steps=2, window=4, shift=2, decode_chunk=4)
"""


class Server:
  """`dicetalk app` with stand-in weights, on a port of its own, that can be killed and started again."""

  def __init__(self, weights, folder, *options):
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      self.port = free.getsockname()[1]
    preset = folder / "preset.py"
    preset.write_text(PRESET)
    self.folder, self.weights = folder, weights
    self.temporary = folder / "temporary"
    self.temporary.mkdir()
    command = [sys.executable, "-m", "dicetalk_jax.cli", "app", "--port", str(self.port), "--config", preset]
    command += ["--weights", weights, "--results", folder / "results", *options]
    self.command = list(map(str, command))
    self.environment = os.environ | {
      "JAX_COMPILATION_CACHE_DIR": str(weights.parent / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      "TMPDIR": str(self.temporary),
    }
    self.said = []

  @property
  def url(self):
    return f"http://127.0.0.1:{self.port}/"

  @property
  def uploads(self):
    """All files of visitors that are on the server."""
    return [path for path in self.temporary.glob("dicetalk-app-*/uploads/**/*") if path.is_file()]

  def start(self):
    self.process = subprocess.Popen(
      self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment
    )
    begun = threading.Event()

    def listen(process):
      for line in process.stdout:
        self.said.append(line)
        if line.startswith("dicetalk app: http"):
          begun.set()
      begun.set()

    threading.Thread(target=listen, args=(self.process,), daemon=True).start()
    assert begun.wait(300), self.said
    assert self.process.poll() is None, self.said
    return self

  def kill(self):
    self.process.kill()
    self.process.wait()

  def stop(self):
    """As Ctrl-C does."""
    if self.process.poll() is None:
      self.process.send_signal(signal.SIGINT)
      try:
        self.process.wait(30)
      finally:
        self.process.kill()

  def get(self, path):
    with urllib.request.urlopen(self.url + path, timeout=20) as answer:
      return answer.read()
