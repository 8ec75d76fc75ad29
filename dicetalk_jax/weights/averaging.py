"""The mean of several trained weights: runs from one start that saw different batches, as if of one larger run."""

import os
from collections.abc import Sequence

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.files import check_new
from dicetalk_jax.weights.folder import Weights


def average(every: Sequence[Weights], out: str | os.PathLike) -> Weights:
  """Saves weights in a new folder `out` whose tensors are the means of those of `every`.

  Runs of one start, each of batches of its own (`loop.seed`), lie near enough to each other for this (a model soup of
  Wortsman et al., 2022; local SGD of Stich, 2019): their mean has less of what chance taught each. A network that all
  have alike stays as it is, to the bit, so that what was encoded with it stays true; priors and settings are the
  first's. Raises WeightsError for fewer than two, for networks that are not the same ones in the same sizes, and what
  `Weights.derive` raises.
  """
  if len(every) < 2:
    raise WeightsError(f"{len(every)} weights folder was given to average; give two or more")
  check_new(out)
  first, networks = every[0], {}
  for other in every[1:]:
    if other.config["networks"] != first.config["networks"]:
      differ = sorted(
        name
        for name in {**first.config["networks"], **other.config["networks"]}
        if first.config["networks"].get(name) != other.config["networks"].get(name)
      )
      raise WeightsError(
        f"{first.folder} and {other.folder} differ in the sizes of {', '.join(differ)}; give weights of the same "
        "networks"
      )
  for name in first.config["networks"]:
    leaves = [
      {path: np.asarray(leaf) for path, leaf in flatten_dict(weights.load(name), sep="/").items()} for weights in every
    ]
    if any(not np.array_equal(leaf, other[path]) for other in leaves[1:] for path, leaf in leaves[0].items()):
      networks[name] = unflatten_dict(
        {
          path: np.mean([each[path].astype(np.float32) for each in leaves], axis=0).astype(leaf.dtype)
          for path, leaf in leaves[0].items()
        },
        sep="/",
      )
  return first.derive(out, networks)
