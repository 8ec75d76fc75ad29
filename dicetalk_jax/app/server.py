"""The page's server: on the loopback address by default, its files in a temporary folder."""

import contextlib
import ipaddress
import os
import pathlib
import shutil
import socket
import tempfile
import time
from collections.abc import Callable

from dicetalk_jax.app.limits import Limits
from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import InputError, MissingDependencyError
from dicetalk_jax.inference.pipeline import DiceTalk

_SWEEP_SECONDS = 60.0
_RESULT_SECONDS = 24 * 3600.0


def check_address(host: str, port: int, auth: str | None) -> tuple[str, str] | None:
  """User and password of `auth`; InputError where they are malformed, or missing for a host that others can reach."""
  if not 0 < port < 65536:
    raise InputError(f"port {port} cannot be used: it must be from 1 to 65535")
  if auth is None:
    if not _is_loopback(host):
      raise InputError(
        f"host {host} makes this page reachable for others: set a user name and password with --auth USER:PASSWORD"
      )
    return None
  user, colon, password = auth.partition(":")
  if not (user and colon and password):
    raise InputError("--auth must be USER:PASSWORD")
  return user, password


def serve(
  talker: DiceTalk,
  host: str,
  port: int,
  auth: str | None,
  limits: Limits,
  results: pathlib.Path | None,
  defaults: GenerationConfig,
  weights: pathlib.Path | str | None = None,
  say: Callable[[str], None] = print,
):
  """Serves the page until it is interrupted.

  results: folder that keeps the videos after the server ends; None deletes them. weights: path that command lines show.
  say(address) is called when the page is ready. Raises InputError for an address that cannot be used, and
  MissingDependencyError without Gradio.
  """
  pair = check_address(host, port, auth)
  _check_free(host, port)
  # Before Gradio is imported: no analytics, and uploads in the folder that is removed.
  os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
  with tempfile.TemporaryDirectory(prefix=f"dicetalk-app-{os.getpid()}-") as place, contextlib.ExitStack() as stack:
    place = pathlib.Path(place).resolve()
    remove_abandoned(place.parent)
    os.environ["GRADIO_TEMP_DIR"] = str(place / "uploads")
    try:
      import gradio as gr
    except ImportError as error:
      raise MissingDependencyError(
        "the page needs Gradio: install it with `pip install 'dicetalk-jax[app]'`"
      ) from error
    from dicetalk_jax.app.estimate import Estimator
    from dicetalk_jax.app.generations import Generations
    from dicetalk_jax.app.handlers import Handlers
    from dicetalk_jax.app.page import asset, build
    from dicetalk_jax.app.results import Results
    from dicetalk_jax.app.uploads import Uploads

    uploads, kept, estimator = Uploads(place / "uploads"), Results(results or place / "results"), Estimator(talker)

    def command(request):
      return request.command(weights, talker.weights.generation)

    generations = Generations(talker, kept, uploads, estimator, limits.max_waiting, command)
    stack.callback(generations.close)
    page = build(Handlers(talker, limits, uploads, kept, generations, estimator, defaults))
    _, address, _ = page.launch(
      server_name=host,
      server_port=port,
      auth=pair,
      auth_message="dicetalk",
      max_file_size=limits.upload_bytes,
      allowed_paths=[str(kept.folder)],
      max_threads=100,
      prevent_thread_lock=True,
      share=False,
      run_history=False,
      ssr_mode=False,
      quiet=True,
      enable_monitoring=False,
      footer_links=["api", "settings"],
      # System fonts: nothing is fetched from other servers.
      theme=gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        font=("system-ui", "-apple-system", "Segoe UI", "sans-serif"),
        font_mono=("ui-monospace", "Menlo", "monospace"),
      ),
      css=asset("page.css"),
      head=f"<script>window.dicetalkLimit = {{bytes: {limits.upload_bytes}}};{asset('page.js')}</script>",
    )
    stack.callback(page.close, verbose=False)
    say(address)
    while True:
      time.sleep(_SWEEP_SECONDS)
      uploads.sweep()
      kept.sweep(_RESULT_SECONDS)


def _check_free(host: str, port: int):
  """InputError for an address that cannot be bound: Gradio would only say so in another thread."""
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      probe.bind(address)
  except OSError as error:
    why = "it is in use, or not an address of this machine; try another --port"
    raise InputError(f"{host}:{port} cannot be used: {why}") from error


def remove_abandoned(folder: pathlib.Path):
  """Removes temporary folders of killed servers."""
  for left in folder.glob("dicetalk-app-*"):
    process = left.name.split("-")[2]
    if process.isdigit() and left.is_dir() and not left.is_symlink() and not _is_running(int(process)):
      shutil.rmtree(left, ignore_errors=True)


def _is_running(process: int) -> bool:
  try:
    os.kill(process, 0)
  except OSError as error:
    return not isinstance(error, ProcessLookupError)
  return True


def _is_loopback(host: str) -> bool:
  with contextlib.suppress(ValueError):
    return host == "localhost" or ipaddress.ip_address(host).is_loopback
  return False
