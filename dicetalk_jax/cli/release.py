"""Verbs about weights: download, convert, export, info, pack, widen, average."""

import dataclasses
import pathlib
from typing import Annotated, Literal

import tyro

from dicetalk_jax.cli.terminal import progress_bars


@dataclasses.dataclass(frozen=True)
class Download:
  """Fetch the published files from the hub, resumably; only those that convert reads.

  Example: dicetalk download released/
  """

  target: tyro.conf.Positional[pathlib.Path]
  """Folder that gets the released layout."""

  token: str | None = None
  """Of an account that has accepted the licences; default: that of `hf auth login` or HF_TOKEN."""

  endpoint: str | None = None
  """Of a mirror of the hub."""

  def run(self):
    from dicetalk_jax.weights.download import download

    with progress_bars(of_bytes=True) as progress:
      download(self.target, token=self.token, endpoint=self.endpoint, progress=progress)
    print(f"{self.target}: complete; next: dicetalk convert {self.target} weights/")


@dataclasses.dataclass(frozen=True)
class Convert:
  """Convert the released PyTorch files into a weights folder.

  Example: dicetalk convert released/ weights/ --priors released/emotion_priors
  """

  source: tyro.conf.Positional[pathlib.Path]
  """Folder in the released layout."""

  weights: tyro.conf.Positional[pathlib.Path]
  """Weights folder to make; it must not exist, or be empty."""

  priors: pathlib.Path | None = None
  """Folder of emotion priors, <label>.npy; default: looked for in SOURCE."""

  slim: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
  """Leave out what only `dicetalk export --all` needs."""

  def run(self):
    from dicetalk_jax.weights.release.convert import convert

    with progress_bars(of_bytes=True, one_bar=True) as progress:
      weights = convert(self.source, self.weights, self.priors, self.slim, progress)
    print(weights.info())


@dataclasses.dataclass(frozen=True)
class Export:
  """Write a weights folder back as PyTorch files of the released layout, bit-equal to what was converted.

  Example: dicetalk export weights/ exported/
  """

  weights: tyro.conf.Positional[pathlib.Path]
  """Weights folder."""

  target: tyro.conf.Positional[pathlib.Path]
  """Folder to write; it must not exist, or be empty."""

  all: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
  """The parts by others too: Stable Video Diffusion, Whisper, RIFE and the emotion priors."""

  def run(self):
    from dicetalk_jax.weights.release.export import export

    with progress_bars(one_bar=True) as progress:
      written = export(self.weights, self.target, self.all, progress)
    print("\n".join(str(self.target / path) for path in written))


@dataclasses.dataclass(frozen=True)
class Info:
  """Print what a weights folder holds.

  Example: dicetalk info weights/
  """

  weights: tyro.conf.Positional[pathlib.Path]
  """Weights folder."""

  def run(self):
    from dicetalk_jax.weights.folder import Weights

    print(Weights.open(self.weights).info())


@dataclasses.dataclass(frozen=True)
class Pack:
  """Make a copy of a weights folder to give away: networks in bfloat16, priors, and how they are meant to be used.

  Example: dicetalk pack runs/adaptation/weights small/ --config configs/synthetic_128.py
  """

  weights: tyro.conf.Positional[pathlib.Path]
  """Weights folder to copy."""

  out: tyro.conf.Positional[pathlib.Path]
  """Weights folder to make; it must not exist, or be empty."""

  config: pathlib.Path | None = None
  """Preset with a GenerationConfig: the defaults of `dicetalk generate` with these weights."""

  dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
  """Of every tensor."""

  def run(self):
    import jax.numpy as jnp

    from dicetalk_jax.config import GenerationConfig, load_preset
    from dicetalk_jax.weights.folder import Weights

    generation = load_preset(self.config, GenerationConfig) if self.config else None
    print(Weights.open(self.weights).pack(self.out, generation, jnp.dtype(self.dtype)).info())


@dataclasses.dataclass(frozen=True)
class Widen:
  """Make a weights folder whose U-Net has twice the channels and computes the same, to train on from there.

  Example: dicetalk widen runs/adaptation/weights wider/
  """

  weights: tyro.conf.Positional[pathlib.Path]
  """Weights folder to start from."""

  out: tyro.conf.Positional[pathlib.Path]
  """Weights folder to make; it must not exist, or be empty."""

  seed: int = 0
  """Of how the two halves of each channel differ."""

  def run(self):
    from dicetalk_jax.weights.folder import Weights
    from dicetalk_jax.weights.widening import widen

    print(widen(Weights.open(self.weights), self.out, self.seed).info())


@dataclasses.dataclass(frozen=True)
class Average:
  """Make a weights folder of the means of several that were trained from one start, each on batches of its own.

  Example: dicetalk average runs/one/weights runs/two/weights --out mean/
  """

  weights: tyro.conf.Positional[tuple[pathlib.Path, ...]]
  """Weights folders, two or more, of the same networks; priors and settings are the first one's."""

  out: pathlib.Path
  """Weights folder to make; it must not exist, or be empty."""

  def run(self):
    from dicetalk_jax.weights.averaging import average
    from dicetalk_jax.weights.folder import Weights

    print(average([Weights.open(folder) for folder in self.weights], self.out).info())
