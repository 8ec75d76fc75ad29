"""What the layouts of sets of video files share: how files are found, split, and given to the build."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import tyro

from dicetalk_jax.data.build.prepare import PrepareConfig, prepare
from dicetalk_jax.data.build.runner import Job
from dicetalk_jax.data.records import Rejected, Source
from dicetalk_jax.errors import InputError
from dicetalk_jax.files import expanded
from dicetalk_jax.media.audio import SOUND_SUFFIXES
from dicetalk_jax.media.expression import SUFFIXES as EXPRESSION_SUFFIXES
from dicetalk_jax.media.expression import beside, coefficients_of
from dicetalk_jax.media.face import DnnDetector
from dicetalk_jax.media.video import VIDEO_SUFFIXES
from dicetalk_jax.vocabulary import EMOTIONS, LEVELS

_OTHER = "it is not a video, nor the sound or the coefficients of one"


@dataclasses.dataclass(frozen=True)
class Listing:
  """Jobs of a set, and the files that are left out before anything is read."""

  jobs: list[Job]
  rejected: list[Rejected] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class VideoLayout:
  """A set of video files. A subclass defines `sources`, and may define who is held out."""

  prepare: tyro.conf.OmitArgPrefixes[PrepareConfig] = dataclasses.field(default_factory=PrepareConfig)

  held_out: float | None = None
  """Size of the test split: identities (for hdtf: videos), or a share below 1. The split is by identity. Default: the
  paper's number (mead: 5 of 46; hdtf: 20 of 362; voxceleb2: 118 of 6112) or the same share of fewer; clips: 0.1."""

  expressions: Path | None = None
  """Folder of expression coefficients, with the same subfolders and names as the videos. Default: beside the videos."""

  face_model: Path | None = None
  """YuNet's .onnx file. This detector also finds faces from the side and small ones, unlike OpenCV's cascade."""

  # Of a subclass: the set's name in commands and in prose, what it is, and how its files lie.
  name = title = description = expected = ""
  # How many are held out, of how many in the whole set; a part of the set has the same share.
  published = (0.1, 1)

  def sources(self, root: Path, rejected: list[Rejected]) -> Iterator[Source]:
    """The videos of the set in `root`; files that cannot be used are added to `rejected`."""
    raise TypeError(f"{type(self).__name__} does not define its sources")

  def members(self, sources: Sequence[Source]) -> dict[str, int]:
    """Identity -> how much it counts when the test split is drawn."""
    return dict.fromkeys(sorted({source.identity for source in sources}), 1)

  def test_identities(self, sources: Sequence[Source]) -> set[str]:
    members = self.members(sources)
    total, size = sum(members.values()), self.held_out
    if size is None:
      number, of = self.published
      size = number if total >= of else number / of
    if size < 0 or (size >= 1 and size != int(size)):
      raise InputError(f"held_out is {size:g}; give a whole number, or a share below 1 such as 0.1")
    return hold_out(members, max(1, round(size * total)) if 0 < size < 1 else int(size))

  def listing(self, root: Path) -> Listing:
    """The jobs of the videos in `root`.

    Raises InputError when no file lies as the set's do, and for a folder of coefficients that has none of the videos.
    """
    root = existing_root(root, self.title)
    rejected: list[Rejected] = []
    sources = list(self.sources(root, rejected))
    if not sources:
      entries = [entry.name + "/" * entry.is_dir() for entry in sorted(root.iterdir())]
      more = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
      raise InputError(
        f"{root} does not hold {self.title}: expected {self.expected}; it holds "
        f"{', '.join(entries[:5]) or 'nothing'}{more}"
      )
    if self.expressions is not None and not any(source.expression for source in sources):
      first = sources[0].path.relative_to(root).with_suffix("")
      raise InputError(
        f"{self.expressions} has coefficients of none of {len(sources)} videos: expected {first} with "
        f"{', '.join(EXPRESSION_SUFFIXES)}, in the same place as under {root}"
      )
    test = self.test_identities(sources)
    jobs = [job_of(source, "test" if source.identity in test else "train") for source in sources]
    rejected += self._others(root, sources, rejected)
    return Listing(jobs, rejected)

  def _others(self, root: Path, sources: Sequence[Source], rejected: Sequence[Rejected]) -> Iterator[Rejected]:
    """Files in the folder that are not part of the set."""
    used = {path for source in sources for path in (source.path, source.audio, source.expression)}
    known = {item.clip for item in rejected}
    for path in walk(root):
      name = shown_name(path, root)
      if path not in used and name not in known and not self.ignores(path.relative_to(root)):
        yield Rejected(name, _OTHER)

  def ignores(self, path: Path) -> bool:
    """Whether a file that is not used needs no mention; path is relative to the root."""
    return False

  def make(self) -> Callable:
    """The function of a job's work."""
    if self.face_model:
      _detector(self.face_model)  # to report a wrong file at once
    return functools.partial(_prepare, self.name, self.prepare, self.face_model)

  def expression_of(self, video: Path, root: Path) -> Path | None:
    """The coefficients of a video: a file of its name beside it, or in the same place under `expressions`."""
    if self.expressions is None:
      return coefficients_of(video)
    return coefficients_of(existing_root(self.expressions, "coefficients") / video.relative_to(root))


def _prepare(name, config, face_model, source: Source):
  return prepare(source, name, config, _detector(face_model) if face_model else None)


_detector = functools.cache(DnnDetector)


def sound_of(video: Path) -> Path | None:
  """The sound file of a video's name beside it."""
  return beside(video, SOUND_SUFFIXES)


def walk(root: Path) -> Iterator[Path]:
  """Every file in order, linked folders included, hidden files and folders left out."""
  visited = set()
  for folder, inside, files in os.walk(root, followlinks=True):
    # A link to a folder above would be walked forever.
    real = os.path.realpath(folder)
    if real in visited:
      inside.clear()
      continue
    visited.add(real)
    inside[:] = sorted(name for name in inside if not name.startswith("."))
    yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def shown_name(path: Path, root: Path) -> str:
  """A path relative to the root, with bytes that are not UTF-8 escaped."""
  return str(path.relative_to(root)).encode(errors="backslashreplace").decode()


def videos_in(root: Path, rejected: list[Rejected], base: Path | None = None) -> Iterator[Path]:
  """Every file with the suffix of a video; those that cannot be used are added to `rejected`, named from `base` on."""
  for path in walk(root):
    if path.suffix.lower() not in VIDEO_SUFFIXES:
      continue
    name = shown_name(path, base or root)
    if name != str(path.relative_to(base or root)):
      rejected.append(Rejected(name, "its name is not UTF-8; rename it"))
    elif not path.exists():
      rejected.append(Rejected(name, "it is a link to a file that is not there"))
    else:
      yield path


def existing_root(root, name: str) -> Path:
  """The folder of a set; InputError when it is not a folder."""
  root = expanded(root, f"folder of {name}").absolute()
  if not root.is_dir():
    state = "is a file" if root.is_file() else "does not exist"
    raise InputError(f"{root} {state}; give the folder that holds {name}")
  return root


def hold_out(members: Mapping[str, int], wanted: int) -> set[str]:
  """Identities for the test split, drawn until they count `wanted`; at least one identity is left to train on.

  members: identity -> how much it counts. The order is a hash of the name, so it hardly changes when others are added.
  """
  order = sorted(members, key=lambda identity: hashlib.sha256(f"0:{identity}".encode()).digest())
  chosen, count = set(), 0
  for identity in order[:-1]:
    if count >= wanted:
      break
    chosen.add(identity)
    count += members[identity]
  return chosen


def job_of(source: Source, split: str) -> Job:
  """The job of a source, with its labels and the state of its files."""
  state = []
  for path in (source.path, source.audio, source.expression):
    if path is not None and path.exists():
      stat = path.stat()
      state.append(f"{stat.st_size} {stat.st_mtime_ns}")
  labels = json.dumps([source.identity, source.video, source.emotion, source.level])
  return Job(source.clip, split, source, "; ".join(state), labels)


def check_label(emotion: str | None, level: int) -> str | None:
  """What is wrong with a label, None when nothing is."""
  if emotion is not None and emotion not in EMOTIONS:
    return f"emotion '{emotion}' is none of {', '.join(EMOTIONS)}"
  if level and level not in LEVELS:
    return f"level {level} is none of {', '.join(map(str, LEVELS))}"
  return None
