"""The verb `app`."""

import dataclasses
import pathlib

import tyro

from dicetalk_jax.app.limits import Limits
from dicetalk_jax.config import GenerationConfig, load_preset


@dataclasses.dataclass(frozen=True)
class App:
  """Serve a web page that makes videos from a portrait, speech and an emotion.

  Example: dicetalk app --weights weights/

  By default only this machine can open the page. To allow others, set --host and a user name and password: dicetalk app
  --weights weights/ --host 0.0.0.0 --auth me:secret. The password is sent unencrypted: on a network that you do not
  trust, put the page behind an HTTPS server.
  """

  weights: pathlib.Path | None = None
  """Weights folder, or user/repo on the Hugging Face hub. Default: the small weights in the package."""

  host: str = "127.0.0.1"
  """Address to serve at. Addresses that others can reach need --auth."""

  port: int = 7860
  """Port to serve at."""

  auth: str | None = None
  """User name and password for visitors, as USER:PASSWORD."""

  config: pathlib.Path | None = None
  """Preset with the initial settings of the page, such as configs/draft.py."""

  results: pathlib.Path | None = None
  """Folder that keeps videos for a day, also after a restart. Default: videos are deleted when the server ends."""

  limits: tyro.conf.OmitArgPrefixes[Limits] = dataclasses.field(default_factory=Limits)

  def run(self) -> int:
    from dicetalk_jax.app.server import check_address, serve
    from dicetalk_jax.inference.pipeline import DiceTalk
    from dicetalk_jax.parallel.compilation import keep_compiled_programs

    # Before the weights are loaded, which may take a while.
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
