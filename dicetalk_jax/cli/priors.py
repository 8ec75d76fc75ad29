"""The verb `priors`."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from dicetalk_jax.cli.terminal import progress_bars


@dataclasses.dataclass(frozen=True)
class Priors:
  """Make the priors of the emotion labels: what the embedder of a weights folder says of the clips of encoded sets.

  Writes a new weights folder with them, and prints of how many clips and people each was made. A label's mu is the mean
  of its clips' mu; its sigma squared is the mean of theirs plus the variance of mu from clip to clip.

  Example: dicetalk priors encoded/mead --weights runs/embedder/weights --out weights
  """

  data: Annotated[tyro.conf.Positional[tuple[pathlib.Path, ...]], tyro.conf.arg(metavar="DATA")]
  """Encoded sets, as `dicetalk data encode` makes them; those of its `--what audio` suffice."""

  weights: pathlib.Path
  """Weights folder with an emotion embedder."""

  out: pathlib.Path
  """Weights folder to make; it must not exist, or be empty."""

  split: str = "train"
  """Of the sets."""

  min_level: int = 0
  """Only clips of this level of emotion (1 to 3) or a higher one; neutral, which has one level, always counts."""

  partial: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
  """Go on where some of the eight emotions have no clip; the new weights then do not know these labels."""

  save: pathlib.Path | None = None
  """Folder that gets <label>.npz files with mu and sigma too."""

  def run(self):
    from dicetalk_jax.inference.label_priors import write_label_priors
    from dicetalk_jax.weights.folder import Weights

    weights = Weights.open(self.weights)
    with progress_bars() as progress:
      _, found = write_label_priors(
        weights, self.data, self.out, self.split, self.min_level, self.partial, progress=progress
      )
    if self.save:
      found.save(self.save)
    print(found)
    print(f"{self.out}: weights with these priors" + (f"; {self.save}: a file each" if self.save else ""))
