"""The verb `priors`."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from dicetalk_jax.cli.terminal import progress_bars
from dicetalk_jax.files import check_file, protect_inputs
from dicetalk_jax.vocabulary import EMOTIONS


@dataclasses.dataclass(frozen=True)
class Priors:
  """Compute the prior of each emotion label from labelled clips, and write a new weights folder with these priors.

  The emotion embedder of the weights folder gives mu and sigma of every clip. A label's mu is the mean over its clips.
  Its sigma squared is the mean of their sigma squared plus the variance of mu between clips.

  Example: dicetalk priors encoded/mead --weights runs/embedder/weights --out weights
  """

  data: Annotated[tyro.conf.Positional[tuple[pathlib.Path, ...]], tyro.conf.arg(metavar="DATA")]
  """Encoded sets of `dicetalk data encode`; sets of `--what audio` are enough."""

  weights: pathlib.Path
  """Weights folder with an emotion embedder."""

  out: pathlib.Path
  """New weights folder; it must not exist, or be empty."""

  split: str = "train"
  """Split of the sets to read."""

  min_level: int = 0
  """Use clips of this emotion level (1 to 3) or higher. Neutral has one level and is always used. 0: all."""

  partial: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
  """Continue when some of the eight emotions have no clip. The new weights then lack these labels."""

  save: pathlib.Path | None = None
  """Folder for <label>.npz files with mu and sigma, in addition."""

  def run(self):
    from dicetalk_jax.inference.label_priors import write_label_priors
    from dicetalk_jax.weights.folder import Weights

    if self.save:
      protect_inputs(self.save, {"encoded set": self.data, "weights folder": self.weights}, inside=True)
      for label in EMOTIONS:
        check_file(self.save / f"{label}.npz", "prior")
    weights = Weights.open(self.weights)
    with progress_bars() as progress:
      _, priors = write_label_priors(
        weights, self.data, self.out, self.split, self.min_level, self.partial, progress=progress
      )
    if self.save:
      priors.save(self.save)
    print(priors)
    print(f"{self.out}: weights with these priors" + (f"; {self.save}: a file for each" if self.save else ""))
