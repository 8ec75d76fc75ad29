"""The verb `app`."""

import dataclasses
import pathlib

import tyro

from dicetalk_jax.app.limits import Limits
from dicetalk_jax.config import GenerationConfig, load_preset


@dataclasses.dataclass(frozen=True)
class App:
  """Serve a web page that makes videos: portrait, speech and emotion in a browser.

  Example: dicetalk app --weights weights/

  Only this machine can open the page. For others give --host, such as 0.0.0.0, and a name and password that they must
  know: dicetalk app --weights weights/ --host 0.0.0.0 --auth me:secret. They travel unencrypted: across a network that
  you do not trust put the page behind a server that speaks HTTPS.
  """

  weights: pathlib.Path | None = None
  """Weights folder; default: the small weights inside the package."""

  host: str = "127.0.0.1"
  """Address to serve at; other than this machine's own ones need --auth."""

  port: int = 7860
  """Port to serve at."""

  auth: str | None = None
  """USER:PASSWORD that visitors must give."""

  config: pathlib.Path | None = None
  """Preset with what the page's settings show at first, such as configs/draft.py."""

  results: pathlib.Path | None = None
  """Folder that keeps the videos for a day, over restarts; default: they go when the server ends."""

  limits: tyro.conf.OmitArgPrefixes[Limits] = dataclasses.field(default_factory=Limits)

  def run(self) -> int:
    from dicetalk_jax.app.server import check_address, serve
    from dicetalk_jax.inference.pipeline import DiceTalk
    from dicetalk_jax.parallel.compilation import keep_compiled_programs

    # Before networks are looked for, which may take a while.
    check_address(self.host, self.port, self.auth)
    defaults = load_preset(self.config, GenerationConfig) if self.config else None
    keep_compiled_programs()
    talker = DiceTalk.load(self.weights)
    serve(
      talker,
      self.host,
      self.port,
      self.auth,
      self.limits,
      self.results,
      defaults or talker.weights.generation,
      self.weights,
      say=lambda address: print(f"dicetalk app: {address} (Ctrl-C ends it)", flush=True),
    )
    return 0
