"""What the layouts of the published sets share: files found, identities split, a wrong folder told."""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import tyro

from dicetalk_jax.data.build.prepare import PrepareConfig, prepare
from dicetalk_jax.data.build.runner import Job
from dicetalk_jax.data.records import Rejected, Source
from dicetalk_jax.data.settings import Settings
from dicetalk_jax.errors import InputError
from dicetalk_jax.files import expanded
from dicetalk_jax.media.face import DnnDetector
from dicetalk_jax.vocabulary import EMOTIONS, LEVELS

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg")
SOUNDS = (".m4a", ".wav", ".mp3", ".flac", ".aac", ".ogg")
EXPRESSIONS = (".mat", ".npy", ".npz", ".txt")
# Bytes of a text file in which three rows of 257 numbers in full precision have room.
_FEW_ROWS = 1 << 15


@dataclasses.dataclass(frozen=True)
class Listing:
  """What a layout finds: jobs, and what it leaves out before anything is read."""

  jobs: list[Job]
  rejected: list[Rejected] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class VideoLayout:
  """A set of video files on disk; a subclass knows how its folders are named."""

  name: ClassVar[str]
  description: ClassVar[str]

  prepare: tyro.conf.OmitArgPrefixes[PrepareConfig] = dataclasses.field(default_factory=PrepareConfig)

  expressions: Path | None = None
  """Folder with coefficients, of the same subfolders and names as the videos; default: beside the videos."""

  face_model: Path | None = None
  """YuNet's .onnx file: a detector that finds faces from the side, and small ones, which OpenCV's cascade does not."""

  def listing(self, root: Path) -> Listing:
    """The jobs that `root` makes; a subclass knows how."""
    raise TypeError(f"{type(self).__name__} does not say how its files lie")

  def check(self, root: Path, jobs: Sequence[Job]) -> None:
    """Raises InputError where coefficients are asked for in a folder that has none of these videos."""
    if self.expressions is None:
      return
    folder = existing_root(self.expressions, "coefficients")
    if not any(job.work.expression for job in jobs):
      first = jobs[0].work.path.relative_to(existing_root(root, self.name)).with_suffix("")
      raise InputError(
        f"{folder} has coefficients of none of {len(jobs)} videos: expected {first} with {', '.join(EXPRESSIONS)}, in "
        f"the same place as under {root}"
      )

  def make(self) -> Callable:
    if self.face_model:
      _detector(self.face_model)  # a wrong one is told before anything is made
    return functools.partial(_prepare, self.name, self.prepare, self.face_model)

  def settings(self) -> Settings:
    return Settings(self)

  def expression_of(self, video: Path, root: Path) -> Path | None:
    """The coefficients of a video: a file of its name beside it, or in the same place under `expressions`."""
    return coefficients_of(
      video if self.expressions is None else expanded(self.expressions, "folder") / video.relative_to(root)
    )


def _prepare(name, config, face_model, source: Source):
  return prepare(source, name, config, _detector(face_model) if face_model else None)


@functools.cache
def _detector(model: Path) -> DnnDetector:
  return DnnDetector(model)


def coefficients_of(video: Path) -> Path | None:
  """The file of coefficients beside a video, of its name."""
  found = with_suffix_of(video, EXPRESSIONS)
  # What is said is often kept in such a file too.
  return None if found is not None and found.suffix == ".txt" and not _numeric(found) else found


def with_suffix_of(path: Path, suffixes: Iterable[str]) -> Path | None:
  """The file of that name with one of these suffixes, the first that exists."""
  return next((found for suffix in suffixes if (found := path.with_suffix(suffix)).is_file()), None)


def _numeric(path: Path) -> bool:
  """Whether a text file holds nothing but numbers, under names of columns perhaps."""
  with path.open("rb") as file:
    lines = file.read(_FEW_ROWS).splitlines()[1:3]
  return bool(lines) and all(re.fullmatch(rb"(?i:[\s\d.,;e+-]|nan|inf)*", line) for line in lines)


def videos_in(root: Path, rejected: list[Rejected]) -> Iterator[Path]:
  """Every file named as a video, in order, in linked folders too; what cannot be used is added to `rejected`."""
  seen = set()
  for folder, inside, files in os.walk(root, followlinks=True):
    # A link to a folder above would be walked for ever.
    real = os.path.realpath(folder)
    if real in seen:
      inside.clear()
      continue
    seen.add(real)
    inside[:] = sorted(name for name in inside if not name.startswith("."))
    for name in sorted(files):
      path = Path(folder, name)
      if path.suffix.lower() not in VIDEOS or name.startswith("."):
        continue
      shown = str(path.relative_to(root)).encode(errors="backslashreplace").decode()
      if shown != str(path.relative_to(root)):
        rejected.append(Rejected(shown, "its name is not UTF-8; rename it"))
      elif not path.exists():
        rejected.append(Rejected(shown, "it is a link to a file that is not there"))
      else:
        yield path


def existing_root(root, name: str) -> Path:
  """The folder of a set; InputError where it is none."""
  root = expanded(root, f"folder of {name}").absolute()
  if not root.is_dir():
    found = "is a file" if root.is_file() else "does not exist"
    raise InputError(f"{root} {found}; give the folder that holds {name}")
  return root


def wrong_root(root: Path, name: str, layout: str) -> InputError:
  """Says which layout was expected, and what is there."""
  entries = sorted(root.iterdir())
  shown = ", ".join(entry.name + "/" * entry.is_dir() for entry in entries[:5]) or "nothing"
  more = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
  return InputError(f"{root} does not hold {name}: expected {layout}; it holds {shown}{more}")


def rank(text: str, seed: int) -> bytes:
  """A place in an order that is random, the same everywhere, and does not move when others come or go."""
  return hashlib.sha256(f"{seed}:{text}".encode()).digest()


def hold_out(groups: Mapping[str, int], wanted: int, seed: int) -> set[str]:
  """Identities for the test split: drawn one by one until they have `wanted` members, never all of them.

  groups: identity -> how many members (1 each to count identities, their videos to count videos).
  """
  order = sorted(groups, key=lambda identity: rank(identity, seed))
  chosen, members = set(), 0
  for identity in order[:-1]:
    if members >= wanted:
      break
    chosen.add(identity)
    members += groups[identity]
  return chosen


def share(count: int, published: int, of: int) -> int:
  """How many to hold out of `count`: the published number of the whole set, of a part of it the same share."""
  return published if count >= of else max(1, round(count * published / of))


def job_of(source: Source, split: str) -> Job:
  """The job of a source, with what is known of it and the state of its files."""
  state = []
  for path in (source.path, source.audio, source.expression):
    if path is not None and path.exists():
      found = path.stat()
      state.append(f"{found.st_size} {found.st_mtime_ns}")
  labels = json.dumps([source.identity, source.video, source.emotion, source.level])
  return Job(source.clip, split, source, "; ".join(state), labels)


def jobs_of(sources: Sequence[Source], test: set[str]) -> list[Job]:
  """Jobs of sources, those of test identities in the test split."""
  return [job_of(source, "test" if source.identity in test else "train") for source in sources]


def check_label(emotion: str | None, level: int) -> str | None:
  """What is wrong with a label, None where nothing is."""
  if emotion is not None and emotion not in EMOTIONS:
    return f"emotion '{emotion}' is none of {', '.join(EMOTIONS)}"
  if level and level not in LEVELS:
    return f"level {level} is none of {', '.join(map(str, LEVELS))}"
  return None
