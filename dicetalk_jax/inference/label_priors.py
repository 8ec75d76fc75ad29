"""Priors of emotion labels, pooled over many labelled clips."""

import dataclasses
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from dicetalk_jax.data.batches.windows import Sequences
from dicetalk_jax.data.encode.record import encoded_clip, open_encoded
from dicetalk_jax.data.index import Index
from dicetalk_jax.data.sets import Records
from dicetalk_jax.errors import InputError, OutputError
from dicetalk_jax.files import check_new, expanded, new_file
from dicetalk_jax.inference.clips import ClipEmbedder, pooled
from dicetalk_jax.vocabulary import EMOTIONS, LEVELS
from dicetalk_jax.weights.folder import Weights

# MEAD has it at one level only.
_WITHOUT_LEVELS = "neutral"


@dataclasses.dataclass(frozen=True)
class LabelPrior:
  """The Gaussian of a label: mu and sigma (d,) float32, and the number of its clips and people."""

  mu: np.ndarray
  sigma: np.ndarray
  clips: int
  people: int


@dataclasses.dataclass(frozen=True)
class LabelPriors:
  """Label -> `LabelPrior`; str() is a table."""

  labels: Mapping[str, LabelPrior]

  @property
  def priors(self) -> dict[str, dict[str, np.ndarray]]:
    """The priors as a weights folder takes them."""
    return {label: {"mu": prior.mu, "sigma": prior.sigma} for label, prior in self.labels.items()}

  def __str__(self):
    rows = [f"{'label':<12}{'clips':>8}{'people':>8}{'|mu|':>9}{'mean sigma':>12}"]
    for label, prior in self.labels.items():
      size, spread = np.linalg.norm(prior.mu), prior.sigma.mean()
      rows.append(f"{label:<12}{prior.clips:>8,}{prior.people:>8,}{size:>9.3f}{spread:>12.3f}")
    return "\n".join(rows)

  def save(self, folder: str | os.PathLike) -> None:
    """Writes `<label>.npz` files with mu and sigma, as `read_prior` reads them. Raises OutputError."""
    folder = expanded(folder, "folder of priors", OutputError)
    try:
      folder.mkdir(parents=True, exist_ok=True)
      for label, prior in self.priors.items():
        with new_file(folder / f"{label}.npz") as temporary, temporary.open("wb") as file:
          np.savez(file, **prior)
    except OSError as error:
      raise OutputError(f"{folder} cannot be written: {error.strerror or error}.") from error


def label_priors(
  weights: Weights,
  data: Sequence[str | os.PathLike],
  split: str = "train",
  min_level: int = 0,
  partial: bool = False,
  progress: Callable[[str, int, int], None] | None = None,
) -> LabelPriors:
  """The prior of every emotion from the labelled clips of encoded sets; each clip has the same weight.

  The μ of a label is the mean of its clips' μ. Its σ² is the mean of their σ² plus the variance of μ between clips: by
  the law of total variance, the variance of a sample from the prior of a random clip. `ClipEmbedder.priors` gives μ and
  σ of a clip. min_level: use clips of this level or higher; neutral is always used. partial: leave out emotions without
  a clip. progress("embedding", done, total).

  Raises WeightsError for weights without an embedder. Raises InputError for sets that cannot be read, have no labels,
  were encoded with a Whisper of another width or lack the embedder's input, and for emotions without a clip.
  """
  if min_level not in (0, *LEVELS):
    raise InputError(
      f"min_level {min_level} is no level of emotion; those are {', '.join(map(str, LEVELS))}, 0 for all."
    )
  if not data:
    raise InputError("No encoded set was given; make one with `dicetalk data encode`.")
  embedder = ClipEmbedder(weights)
  sets = [_Labelled.open(folder, split, min_level) for folder in data]
  present = {EMOTIONS[emotion] for labelled in sets for emotion in labelled.emotion}
  if (absent := [label for label in EMOTIONS if label not in present]) and not partial:
    level = f" of level {min_level} or more" if min_level else ""
    raise InputError(
      f"No clip in '{split}' of {_names(sets)} is {' or '.join(absent)}{level}; give sets that have all emotions, or "
      "--partial for priors of the others."
    )
  usable, total = [], sum(len(labelled.rows) for labelled in sets)

  def sequences() -> Iterator[Sequences]:
    done = 0
    for labelled in sets:
      for clip, key in labelled.read(embedder):
        done += 1
        if progress:
          progress("embedding", done, total)
        if len(clip):
          usable.append(key)
          yield clip

  gathered = defaultdict(list)
  for number, prior in enumerate(embedder.priors(sequences())):
    label, person = usable[number]
    gathered[label].append((person, *prior))
  if missing := [label for label in EMOTIONS if label in present and label not in gathered]:
    raise InputError(
      f"No clip of {' or '.join(missing)} in '{split}' of {_names(sets)} has expression coefficients, which this "
      "emotion embedder needs; build the sets with them."
    )
  labels = {}
  for label in (label for label in EMOTIONS if label in gathered):
    people, mu, sigma = zip(*gathered[label], strict=True)
    labels[label] = LabelPrior(*pooled(mu, sigma), clips=len(mu), people=len(set(people)))
  return LabelPriors(labels)


def write_label_priors(
  weights: Weights,
  data: Sequence[str | os.PathLike],
  out: str | os.PathLike,
  split: str = "train",
  min_level: int = 0,
  partial: bool = False,
  progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Weights, LabelPriors]:
  """Writes the weights with `label_priors` instead of their own into the new folder `out`. Raises OutputError too."""
  check_new(out)
  labels = label_priors(weights, data, split, min_level, partial, progress)
  return weights.derive(out, priors=labels.priors), labels


@dataclasses.dataclass(frozen=True)
class _Labelled:
  """The records of a split that count for the priors."""

  records: Records
  index: Index
  rows: np.ndarray

  @classmethod
  def open(cls, folder, split: str, min_level: int) -> "_Labelled":
    records, index = open_encoded(folder, split, pictures=False)
    known = index.emotion >= 0
    if not known.any():
      raise InputError(
        f"{folder} has no clip of known emotion in '{split}'; add a labels.csv to the videos (see `dicetalk data build "
        "clips --help`)."
      )
    counts = known & ((index.level >= min_level) | (index.emotion == EMOTIONS.index(_WITHOUT_LEVELS)))
    return cls(records, index, np.flatnonzero(counts))

  @property
  def emotion(self) -> np.ndarray:
    return self.index.emotion[self.rows]

  def read(self, embedder: ClipEmbedder) -> Iterator[tuple[Sequences, tuple[str, str]]]:
    """The embedder's input from each record (0 rows if it has none), and its (label, person)."""
    for row in self.rows:
      clip = encoded_clip(self.records[int(row)])
      width, wanted = clip.states.shape[-1], embedder.model.speech_features
      if width != wanted and embedder.takes("audio"):
        raise InputError(
          f"{self.records.folder} was encoded with a Whisper of width {width}, and the embedder of "
          f"{embedder.weights.folder} takes {wanted}; encode the set with weights of that Whisper."
        )
      yield embedder.taken(Sequences.of(clip)), (EMOTIONS[clip.emotion], clip.identity)


def _names(sets: Sequence[_Labelled]) -> str:
  names = [str(labelled.records.folder) for labelled in sets]
  return ", ".join(itertools.islice(names, 3)) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
