"""Verbs for weights: download, convert, export, info, pack, widen, average."""

import dataclasses
import pathlib
from typing import Annotated, Literal

import tyro

from dicetalk_jax.cli.terminal import progress_bars


@dataclasses.dataclass(frozen=True)
class Download:
  """Download the published files from the Hugging Face hub. A partial download is continued.

  Example: dicetalk download released/
  """

  target: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="TARGET")]
  """Folder for the files, in the released layout."""

  token: str | None = None
  """Token of an account that has accepted the licences. Default: that of `hf auth login` or HF_TOKEN."""

  endpoint: str | None = None
  """Address of a mirror of the hub."""

  def run(self):
    from dicetalk_jax.weights.download import download

    with progress_bars(of_bytes=True) as progress:
      download(self.target, token=self.token, endpoint=self.endpoint, progress=progress)
    print(f"{self.target}: complete. Next: dicetalk convert {self.target} weights/")


@dataclasses.dataclass(frozen=True)
class Convert:
  """Convert the published PyTorch files into a weights folder.

  Example: dicetalk convert released/ weights/ --priors released/emotion_priors
  """

  source: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="SOURCE")]
  """Folder in the released layout."""

  weights: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="WEIGHTS")]
  """Weights folder to write. It must be empty or not exist."""

  priors: pathlib.Path | None = None
  """Folder with the emotion priors, <label>.npy. Default: found in SOURCE."""

  slim: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
  """Leave out what only `dicetalk export --all` needs."""

  def run(self):
    from dicetalk_jax.weights.release.convert import convert

    with progress_bars(of_bytes=True, one_bar=True) as progress:
      weights = convert(self.source, self.weights, self.priors, self.slim, progress)
    print(weights.info())


@dataclasses.dataclass(frozen=True)
class Export:
  """Write a weights folder as PyTorch files in the released layout, bit-equal to the converted files.

  Example: dicetalk export weights/ exported/
  """

  weights: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="WEIGHTS")]
  """Weights folder, or a repository of the hub."""

  target: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="TARGET")]
  """Folder to write. It must be empty or not exist."""

  all: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
  """Also write Stable Video Diffusion, Whisper, RIFE and the emotion priors. `dicetalk convert` reads such a folder."""

  def run(self):
    from dicetalk_jax.weights.release.export import export

    with progress_bars(one_bar=True) as progress:
      paths = export(self.weights, self.target, self.all, progress)
    print("\n".join(str(self.target / path) for path in paths))


@dataclasses.dataclass(frozen=True)
class Info:
  """Show the contents of a weights folder.

  Example: dicetalk info weights/
  """

  weights: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="WEIGHTS")]
  """Weights folder, or a repository of the hub."""

  def run(self):
    from dicetalk_jax.weights.folder import Weights

    print(Weights.open(self.weights).info())


@dataclasses.dataclass(frozen=True)
class Pack:
  """Copy a weights folder to give it away: bfloat16 tensors, priors, and the settings to generate with.

  Example: dicetalk pack runs/adaptation/weights small/ --config configs/synthetic_128.py
  """

  weights: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="WEIGHTS")]
  """Weights folder to copy, or a repository of the hub."""

  out: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="OUT")]
  """Weights folder to write. It must be empty or not exist."""

  config: pathlib.Path | None = None
  """Preset with a GenerationConfig: the defaults of `dicetalk generate` with these weights."""

  dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
  """Type of all tensors."""

  def run(self):
    import jax.numpy as jnp

    from dicetalk_jax.config import GenerationConfig, load_preset
    from dicetalk_jax.weights.folder import Weights

    generation = load_preset(self.config, GenerationConfig) if self.config else None
    print(Weights.open(self.weights).pack(self.out, generation, jnp.dtype(self.dtype)).info())


@dataclasses.dataclass(frozen=True)
class Widen:
  """Write weights whose U-Net has twice the channels and the same output, to train further.

  Example: dicetalk widen runs/adaptation/weights wider/
  """

  weights: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="WEIGHTS")]
  """Weights folder to start from, or a repository of the hub."""

  out: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="OUT")]
  """Weights folder to write. It must be empty or not exist."""

  seed: int = 0
  """Seed of the random differences between the two copies of a channel."""

  def run(self):
    from dicetalk_jax.weights.folder import Weights
    from dicetalk_jax.weights.widening import widen

    print(widen(Weights.open(self.weights), self.out, self.seed).info())


@dataclasses.dataclass(frozen=True)
class Average:
  """Write the mean of several weights folders that were trained from the same start on different batches.

  Example: dicetalk average runs/one/weights runs/two/weights --out mean/
  """

  weights: Annotated[tyro.conf.Positional[tuple[pathlib.Path, ...]], tyro.conf.arg(metavar="WEIGHTS")]
  """Two or more weights folders with the same networks. Priors and settings are the first one's."""

  out: pathlib.Path
  """Weights folder to write. It must be empty or not exist."""

  def run(self):
    from dicetalk_jax.weights.averaging import average
    from dicetalk_jax.weights.folder import Weights

    print(average([Weights.open(folder) for folder in self.weights], self.out).info())
