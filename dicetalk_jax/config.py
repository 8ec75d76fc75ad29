"""Every knob once, as frozen dataclasses; presets are Python files in configs/ that make one of them."""

import dataclasses
import os
import runpy
from typing import Annotated, Literal

import tyro

from dicetalk_jax.errors import InputError
from dicetalk_jax.files import existing_file


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
  """How a video is generated. The defaults are the release's."""

  face_box: tuple[float, float, float, float] | None = None
  """Where the face is, X Y W H (left, top, width, height) in pixels of the portrait; default: the largest found."""

  crop: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
  """Crop the portrait to a square around the face first."""

  size: float = 512
  """Shorter side of the video, in pixels; both sides become multiples of 64."""

  steps: int = 25
  """Denoising steps."""

  sigma_max: float | None = None
  """Noise level that denoising begins at; default: what the weights name, else 700. From less, a small picture that was
  trained at less comes out of fewer steps."""

  sigma_min: float | None = None
  """Noise level that the last step takes away; default: what the weights name, else 0.002. A small picture of few steps
  has better use for them than noise that nobody sees."""

  window: int = 25
  """Frames (12.5 a second) that are denoised together."""

  shift: int = 7
  """Frames by which the windows move after each step, so that no seam stays."""

  overlap: int = 0
  """Frames that neighbouring windows share; their results are averaged."""

  identity_scale: float = 3.0
  """Guidance towards the portrait; at 1 the U-Net runs twice a step instead of three times."""

  audio_scale: float | None = None
  """Guidance towards the speech, apart from the emotion's, for a third more work; default: --emotion-scale."""

  emotion_scale: float = 6.0
  """Guidance towards the emotion, and towards the speech unless --audio-scale is given."""

  bank: Literal["all", "nearest"] = "all"
  """Attend to all codes of the emotion bank (Eq. 12-13) or to the one nearest the prior (Eq. 9-11)."""

  interpolate: bool = True
  """Put a frame between each two, for 25 frames a second instead of 12.5."""

  seed: int = 0
  """Of the noise: the same seed and inputs give the same video."""

  dtype: Literal["bfloat16", "float32"] | None = None
  """What U-Net, VAE and image encoder compute in; default: bfloat16 on an accelerator, float32 on a CPU."""

  decode_chunk: int = 10
  """Frames that the VAE decodes together; fewer need less memory and change the picture slightly."""

  windows_at_once: int = 1
  """Windows denoised side by side, 0 for all of a step (compiled anew for each length); the video stays the same."""


def load_preset(path: str | os.PathLike, kind: type):
  """The `config` of a preset, a Python file that is run, or its only value that is a `kind` where it makes several.

  Raises InputError where it is none of this kind.
  """
  path = existing_file(path, "config")
  try:
    made = runpy.run_path(str(path))
  except Exception as error:
    raise InputError(f"config {path} cannot be run: {type(error).__name__}: {error}.") from error
  config = made.get("config")
  of_kind = [value for value in made.values() if isinstance(value, kind)]
  if isinstance(config, kind):
    return config
  if len(of_kind) == 1:
    return of_kind[0]
  found = "no variable named config" if config is None else f"a config that is a {type(config).__name__}"
  if of_kind:
    found = f"{len(of_kind)} variables that are a {kind.__name__}, and none of them is named config"
  raise InputError(f"config {path} has {found}; it must make a {kind.__name__}.")
