"""The mean of weights from several training runs."""

import os
from collections.abc import Sequence

import numpy as np
from flax.traverse_util import unflatten_dict

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.files import check_new
from dicetalk_jax.weights.folder import Weights


def average(every: Sequence[Weights], out: str | os.PathLike) -> Weights:
  """Writes weights to a new folder `out` whose tensors are the means of those in `every`.

  This works for runs that started from the same weights and saw different batches (`loop.seed`): model soups (Wortsman
  et al., 2022), local SGD (Stich, 2019). A network that is equal in all stays bit-equal, so that data encoded with it
  remains valid. Priors and settings are the first one's. Raises WeightsError for fewer than two weights or other
  networks or sizes, and what `Weights.derive` raises.
  """
  if len(every) < 2:
    raise WeightsError(f"{len(every)} weights folder was given to average; give two or more")
  check_new(out)
  first, networks = every[0], {}
  ours = first.config["networks"]
  for other in every[1:]:
    theirs = other.config["networks"]
    if differ := sorted(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)):
      raise WeightsError(
        f"{first.folder} and {other.folder} differ in the sizes of {', '.join(differ)}; give weights of the same "
        "networks"
      )
  for name in ours:
    leaves = [dict(weights.tensors(name).read()) for weights in every]
    if any(not np.array_equal(leaf, other[path]) for other in leaves[1:] for path, leaf in leaves[0].items()):
      networks[name] = unflatten_dict(
        {
          path: np.mean([each[path].astype(np.float32) for each in leaves], axis=0).astype(leaf.dtype)
          for path, leaf in leaves[0].items()
        },
        sep="/",
      )
  return first.derive(out, networks)
