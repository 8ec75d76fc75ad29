"""A visitor's request, and the command line that makes the same video."""

import dataclasses
import pathlib
import re
import shlex

from dicetalk_jax.app.emotions import Choice
from dicetalk_jax.app.limits import Limits
from dicetalk_jax.app.uploads import Upload
from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import InputError
from dicetalk_jax.media.image import working_size

# Names that `drawn` and the browser's camera and microphone give.
_MADE_HERE = re.compile(r"person_\d+\.png|voice_\d+\.wav|audio\.wav|image\.(png|jpe?g|webp)")


@dataclasses.dataclass(frozen=True)
class Request:
  """One video: its inputs, its settings (the face's box among them), and its speech's length in seconds."""

  portrait: Upload
  speech: Upload
  emotion: Choice
  config: GenerationConfig
  portrait_size: tuple[int, int]
  seconds: float

  @property
  def uploads(self) -> tuple[Upload, ...]:
    clip = () if self.emotion.clip is None else (self.emotion.clip,)
    return (self.portrait, self.speech, *clip)

  @property
  def keepsakes(self) -> tuple[Upload, ...]:
    """Inputs that were drawn or recorded on the page: their owner has no file of them to give to the command line."""
    return tuple(upload for upload in self.uploads if _MADE_HERE.fullmatch(upload.name))

  @property
  def video_size(self) -> tuple[int, int]:
    """(width, height) of the video."""
    width, height = self.portrait_size
    return working_size(width, height, self.config.size)

  @property
  def file_name(self) -> str:
    """A name for the video, of the portrait's and the emotion's."""
    emotion = self.emotion.text if self.emotion.clip is None else pathlib.PurePath(self.emotion.clip.name).stem
    stem = pathlib.PurePath(self.portrait.name).stem
    return (re.sub(r"[^A-Za-z0-9]+", "_", f"{stem}_{emotion}").strip("_")[:60] or "video") + ".mp4"

  def command(self, weights: pathlib.Path | str | None = None, defaults: GenerationConfig | None = None) -> str:
    """The `dicetalk generate` line: settings that are not its defaults, and files by their owner's names.

    weights: what the line names; defaults: how these weights are meant to be used, which `generate` takes by itself.
    """
    defaults = defaults or GenerationConfig()
    words = ["dicetalk", "generate", "--image", _file(self.portrait), "--audio", _file(self.speech)]
    words += ["--emotion", self.emotion.text if self.emotion.clip is None else _file(self.emotion.clip)]
    for field in dataclasses.fields(self.config):
      value, option = getattr(self.config, field.name), field.name.replace("_", "-")
      if value == getattr(defaults, field.name) and field.name != "seed":
        continue
      if isinstance(value, bool):
        words.append(f"--{option}" if value else f"--no-{option}")
      else:
        words += [f"--{option}", *map(str, value if isinstance(value, tuple) else (value,))]
    words += ["--out", self.file_name]
    if weights is not None:
      words += ["--weights", str(weights)]
    return shlex.join(words)


def check_config(config: GenerationConfig, limits: Limits):
  """Raises InputError for settings beyond the server's limits."""
  ranges = {
    "size": (1, limits.max_size, " (--max-size)"),
    "steps": (1, limits.max_steps, " (--max-steps)"),
    "seed": (0, 2**32 - 1, ""),
  }
  for name, (least, most, option) in ranges.items():
    value = getattr(config, name)
    if not least <= value <= most or (name != "size" and value != int(value)):
      whole = "" if name == "size" else "whole "
      raise InputError(f"{name} is {value}; this server takes {whole}numbers from {least} to {most}{option}")


def _file(upload):
  # A name must not look like an option.
  return f"./{upload.name}" if upload.name.startswith("-") else upload.name
