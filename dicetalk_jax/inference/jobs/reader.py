"""Reads a job list: a JSON object per line -> jobs, and an error for each line that is not a job.

A line has `image`, `audio`, `emotion` and `out`, and may have `keep_resolution` and any field of `GenerationConfig`.
Relative paths, including those in an emotion, start at the list's folder.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import itertools
import json
import math
import os
import types
import typing
from pathlib import Path

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import InputError
from dicetalk_jax.files import existing_file, expanded, protect_inputs
from dicetalk_jax.inference.emotion import emotion_files

_REQUIRED = ("image", "audio", "emotion", "out")
_OPTIONS = typing.get_type_hints(GenerationConfig) | {"keep_resolution": bool}
# These change speed and memory only, so a change makes no video again.
_NOT_OF_THE_VIDEO = ("windows_at_once",)


@dataclasses.dataclass(frozen=True)
class Job:
  """A valid line of a list. Paths are complete; settings: what determines the video, with paths as written."""

  line: int
  folder: Path
  image: Path
  audio: Path
  emotion: str
  out: Path
  generation: GenerationConfig
  keep_resolution: bool
  settings: dict

  @property
  def inputs(self) -> dict[str, list[Path]]:
    """{role: files that the job reads}."""
    return {"image": [self.image], "audio": [self.audio], "emotion": emotion_files(self.emotion, self.folder)}

  def digest(self, weights: str) -> str:
    """Hash of the settings and of the weights' identity: another digest means another video."""
    text = json.dumps([self.settings, weights], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class BadLine:
  """A line of a list that is not a valid job; out: as written, None where the line has none."""

  line: int
  error: str
  out: str | None = None


def read_jobs(
  path: str | os.PathLike, defaults: GenerationConfig | None = None, keep_resolution: bool = False
) -> list[Job | BadLine]:
  """The lines of a list in order, without blank ones.

  A job whose `out` is that of an earlier line, or an input of any line, is a BadLine. Raises InputError for a list that
  cannot be read or is empty.
  """
  path = existing_file(path, "list of jobs")
  folder, defaults = path.absolute().parent, defaults or GenerationConfig()
  jobs, outs = [], {}
  for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
    if not line.strip():
      continue
    values = {}
    try:
      values = _object(line)
      job = _job(number, values, folder, defaults, keep_resolution)
      protect_inputs(job.out, job.inputs | {"list of jobs": path})
      earlier = outs.setdefault(os.path.realpath(job.out), number)
      if earlier != number:
        raise InputError(f"out {values['out']} is that of line {earlier}; give each job its own")
    except InputError as error:
      job = BadLine(number, str(error), values["out"] if isinstance(values.get("out"), str) else None)
    jobs.append(job)
  if not jobs:
    raise InputError(f"list of jobs {path} holds no job; a line is a JSON object with {', '.join(_REQUIRED)}")
  readers = {}
  for job in jobs:
    for source in itertools.chain(*job.inputs.values()) if isinstance(job, Job) else ():
      readers.setdefault(_identity(source), job.line)
  readers.pop(None, None)
  for place, job in enumerate(jobs):
    if isinstance(job, Job) and (reader := readers.get(_identity(job.out))):
      error = f"out {job.out} is an input of line {reader}, which it would replace; give another name"
      jobs[place] = BadLine(job.line, error, job.settings["out"])
  return jobs


def _identity(path: Path) -> tuple[int, int] | None:
  """What all names of an existing file share."""
  with contextlib.suppress(OSError, ValueError):
    status = path.stat()
    return status.st_dev, status.st_ino


def _object(line: bytes) -> dict:
  def refuse(name):
    raise ValueError(f"{name} is no number of JSON")

  try:
    values = json.loads(line.decode(), parse_constant=refuse)
  except (ValueError, RecursionError) as error:
    raise InputError(f"this is not JSON ({error})") from None
  if not isinstance(values, dict):
    raise InputError(f"this is {_shown(values)}, wanted a JSON object with {', '.join(_REQUIRED)}")
  return values


def _job(number: int, values: dict, folder: Path, defaults: GenerationConfig, keep_resolution: bool) -> Job:
  """Raises InputError for a key that is unknown or missing and for a value of the wrong type."""
  known = (*_REQUIRED, *_OPTIONS)
  for name in values:
    if name not in known:
      nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
      hint = f"did you mean {nearest[0]}?" if nearest else f"a job has {', '.join(known)}"
      raise InputError(f"{_shown(name)} is not a key of a job; {hint}")
  if missing := [name for name in _REQUIRED if name not in values]:
    raise InputError(f"{' and '.join(missing)} missing; a job has {', '.join(_REQUIRED)}")
  options = {}
  for name, value in values.items():
    kind = _OPTIONS.get(name, str)
    try:
      options[name] = _converted(value, kind)
    except (TypeError, OverflowError):
      raise InputError(f"{name} is {_shown(value)}, wanted {_wanted(kind)}") from None
  required = {name: options.pop(name) for name in _REQUIRED}
  image, audio, out = (_complete(name, required[name], folder) for name in ("image", "audio", "out"))
  keep_resolution = options.pop("keep_resolution", keep_resolution)
  generation = dataclasses.replace(defaults, **options)
  # Only what differs from the defaults, so that an option of a later version changes no older digest.
  changed = {
    field.name: value
    for field in dataclasses.fields(generation)
    if field.name not in _NOT_OF_THE_VIDEO and (value := getattr(generation, field.name)) != field.default
  }
  # 64 of a preset is 64.0 of a command line.
  changed = json.loads(json.dumps(changed, default=float), parse_int=float)
  settings = required | {"keep_resolution": keep_resolution} | changed
  return Job(number, folder, image, audio, required["emotion"], out, generation, keep_resolution, settings)


def _complete(name: str, text: str, folder: Path) -> Path:
  try:
    with contextlib.suppress(OSError):
      os.stat(text)
  except ValueError:
    raise InputError(f"{name} {text!r} cannot be the name of a file") from None
  return folder / expanded(text, name)


def _converted(value, kind):
  """A JSON value as a field of type `kind`; TypeError where it does not fit."""
  origin, parts = typing.get_origin(kind), typing.get_args(kind)
  if origin in (typing.Union, types.UnionType):
    for part in parts:
      with contextlib.suppress(TypeError):
        return _converted(value, part)
  elif origin is typing.Literal:
    if isinstance(value, str) and value in parts:
      return value
  elif origin is tuple:
    if isinstance(value, list) and len(value) == len(parts):
      return tuple(_converted(item, part) for item, part in zip(value, parts, strict=True))
  elif kind is float:
    if type(value) in (int, float) and math.isfinite(value):
      return float(value)
  elif type(value) is kind:
    return value
  raise TypeError


def _wanted(kind) -> str:
  origin, parts = typing.get_origin(kind), typing.get_args(kind)
  if origin in (typing.Union, types.UnionType, typing.Literal):
    return " or ".join(map(_shown if origin is typing.Literal else _wanted, parts))
  if origin is tuple:
    return f"{len(parts)} numbers"
  return {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}[kind]


def _shown(value) -> str:
  text = json.dumps(value, ensure_ascii=False)
  return text if len(text) <= 60 else f"{text[:57]}..."
