"""Settings of a generation, each with its default in this one place; presets are Python files in configs/."""

import dataclasses
import os
import runpy
from typing import Annotated, Literal

import tyro

from dicetalk_jax.errors import InputError
from dicetalk_jax.files import existing_file


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
  """How a video is generated. Defaults: the settings in the weights, else those of the release."""

  face_box: tuple[float, float, float, float] | None = None
  """Face box X Y W H (left, top, width, height) in pixels of the portrait. Default: the largest detected face."""

  crop: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
  """Crop the portrait to a square around the face first."""

  size: float = 512
  """Shorter side of the video in pixels. Both sides are rounded to multiples of 64."""

  steps: int = 25
  """Number of denoising steps."""

  sigma_max: float = 700.0
  """Noise level at which denoising starts. Start lower when the weights were trained on small pictures: fewer steps
  are then enough."""

  sigma_min: float = 0.002
  """Noise level of the last step. Raise it when the number of steps is small."""

  window: int = 25
  """Frames that are denoised together, at 12.5 frames per second."""

  shift: int = 7
  """Frames by which all windows move after each step, so that no seams remain."""

  overlap: int = 0
  """Frames that neighbouring windows share. Their results are averaged."""

  identity_scale: float = 3.0
  """Guidance scale of the portrait. With 1, a step needs two runs of the U-Net instead of three."""

  audio_scale: float | None = None
  """Guidance scale of the speech. By default speech and emotion share --emotion-scale; a scale of its own costs a third
  more computation."""

  emotion_scale: float = 6.0
  """Guidance scale of the emotion, and of the speech unless --audio-scale is set."""

  bank: Literal["all", "nearest"] = "all"
  """Emotion bank: attend to all codes (Eq. 12-13) or to the code nearest to the prior (Eq. 9-11)."""

  interpolate: bool = True
  """Insert a frame between every two: 25 frames per second instead of 12.5."""

  seed: int = 0
  """Random seed of the noise. The same seed and inputs give the same video."""

  dtype: Literal["bfloat16", "float32"] | None = None
  """Data type of the U-Net, the VAE and the image encoder. Default: bfloat16 on an accelerator, float32 on a CPU."""

  decode_chunk: int = 10
  """Frames that the VAE decodes together. A smaller number needs less memory and changes the picture slightly."""

  windows_at_once: int = 1
  """Number of windows to denoise side by side; 0: all windows of a step, which compiles again for each length. The
  video does not change."""


def resolve(own: GenerationConfig, **settings) -> GenerationConfig:
  """The settings of one generation: a setting that is None takes the value in `own`.

  own: what the weights ask for, which is the release's value where they say nothing (`Weights.generation`). Raises
  TypeError for a name that is not a setting.
  """
  return dataclasses.replace(own, **{name: value for name, value in settings.items() if value is not None})


def load_preset(path: str | os.PathLike, kind: type):
  """Runs a preset, a Python file, and returns its variable `config`, or its only value of type `kind`.

  Raises InputError for a file that fails, or that has no such value.
  """
  path = existing_file(path, "config")
  try:
    variables = runpy.run_path(str(path))
  except Exception as error:
    raise InputError(f"config {path} cannot be run: {type(error).__name__}: {error}.") from error
  config = variables.get("config")
  candidates = [value for value in variables.values() if isinstance(value, kind)]
  if isinstance(config, kind):
    return config
  if len(candidates) == 1:
    return candidates[0]
  content = "no variable named config" if config is None else f"a config that is a {type(config).__name__}"
  if candidates:
    content = f"{len(candidates)} variables that are a {kind.__name__}, and none of them is named config"
  raise InputError(f"config {path} has {content}; it must make a {kind.__name__}.")
