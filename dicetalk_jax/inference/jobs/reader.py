"""A list of videos to make: a file with a JSON object a line -> jobs, and what is wrong with lines that are none.

A line has `image`, `audio`, `emotion` and `out`, and may have any field of `GenerationConfig` and `keep_resolution`
instead of the defaults. Relative paths, those in an emotion too, start at the list's folder.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import os
import types
import typing
from pathlib import Path

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import InputError
from dicetalk_jax.files import existing_file, expanded

_REQUIRED = ("image", "audio", "emotion", "out")
_OPTIONS = typing.get_type_hints(GenerationConfig) | {"keep_resolution": bool}
# These change speed and memory alone: a video made with others need not be made again.
_NOT_OF_THE_VIDEO = ("windows_at_once",)


@dataclasses.dataclass(frozen=True)
class Job:
  """A good line of a list. Paths are whole; settings: what decides the video, with paths as they were written."""

  line: int
  folder: Path
  image: Path
  audio: Path
  emotion: str
  out: Path
  generation: GenerationConfig
  keep_resolution: bool
  settings: dict

  def digest(self, weights: str) -> str:
    """Of the settings and of the weights' identity: another one means another video."""
    text = json.dumps([self.settings, weights], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class BadLine:
  """A line of a list that is no job; out: as it was written, None where there is none."""

  line: int
  error: str
  out: str | None = None


def read_jobs(
  path: str | os.PathLike, defaults: GenerationConfig | None = None, keep_resolution: bool = False
) -> list[Job | BadLine]:
  """The lines of a list in their order, blank ones passed over. Of two jobs with the same `out` the later is bad.

  Raises InputError for a list that cannot be read or is empty.
  """
  path = existing_file(path, "list of jobs")
  folder, defaults = path.absolute().parent, defaults or GenerationConfig()
  jobs, taken = [], {}
  for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
    if not line.strip():
      continue
    found = {}
    try:
      found = _object(line)
      job = _job(number, found, folder, defaults, keep_resolution)
      earlier = taken.setdefault(os.path.realpath(job.out), number)
      if earlier != number:
        raise InputError(f"out {found['out']} is that of line {earlier}; give each job its own")
    except InputError as error:
      job = BadLine(number, str(error), found["out"] if isinstance(found.get("out"), str) else None)
    jobs.append(job)
  if not jobs:
    raise InputError(f"list of jobs {path} holds no job; a line is a JSON object with {', '.join(_REQUIRED)}")
  return jobs


def _object(line: bytes) -> dict:
  def refuse(name):
    raise ValueError(f"{name} is no number of JSON")

  try:
    found = json.loads(line.decode(), parse_constant=refuse)
  except (ValueError, RecursionError) as error:
    raise InputError(f"this is not JSON ({error})") from None
  if not isinstance(found, dict):
    raise InputError(f"this is {_shown(found)}, wanted a JSON object with {', '.join(_REQUIRED)}")
  return found


def _job(number: int, found: dict, folder: Path, defaults: GenerationConfig, keep_resolution: bool) -> Job:
  """Raises InputError for what is unknown, missing or of the wrong type."""
  known = (*_REQUIRED, *_OPTIONS)
  for name in found:
    if name not in known:
      nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
      hint = f"did you mean {nearest[0]}?" if nearest else f"it has {', '.join(known)}"
      raise InputError(f"{_shown(name)} is nothing that a job has; {hint}")
  if missing := [name for name in _REQUIRED if name not in found]:
    raise InputError(f"{' and '.join(missing)} missing; a job has {', '.join(_REQUIRED)}")
  options = {name: _value(name, value, _OPTIONS.get(name, str)) for name, value in found.items()}
  required = {name: options.pop(name) for name in _REQUIRED}
  image, audio, out = (_whole(name, required[name], folder) for name in ("image", "audio", "out"))
  for name, source in (("image", image), ("audio", audio)):
    if os.path.realpath(out) == os.path.realpath(source):
      raise InputError(f"out {required['out']} is the job's own {name}, which it would replace")
  keep_resolution = options.pop("keep_resolution", keep_resolution)
  generation = dataclasses.replace(defaults, **options)
  settings = required | {"keep_resolution": keep_resolution} | _changed(generation)
  return Job(number, folder, image, audio, required["emotion"], out, generation, keep_resolution, settings)


def _changed(generation: GenerationConfig) -> dict:
  """What decides the video and has not its default: an option that a later version adds changes no older job."""
  values = {field.name: getattr(generation, field.name) for field in dataclasses.fields(generation)}
  values = {
    name: value
    for name, value in values.items()
    if name not in _NOT_OF_THE_VIDEO and value != getattr(GenerationConfig, name)
  }
  # 64 of a preset is 64.0 of a command line.
  return json.loads(json.dumps(values, default=float), parse_int=float)


def _whole(name: str, text: str, folder: Path) -> Path:
  try:
    possible = b"\0" not in os.fsencode(text)
  except UnicodeEncodeError:
    possible = False
  if not possible:
    raise InputError(f"{name} {text!r} can be the name of no file")
  return folder / expanded(text, name)


def _value(name: str, value, kind):
  try:
    return _fitting(value, kind)
  except (TypeError, OverflowError):
    raise InputError(f"{name} is {_shown(value)}, wanted {_wanted(kind)}") from None


def _fitting(value, kind):
  """A value of JSON as a field of type `kind` holds it; TypeError where it is none."""
  origin, parts = typing.get_origin(kind), typing.get_args(kind)
  if origin in (typing.Union, types.UnionType):
    for part in parts:
      with contextlib.suppress(TypeError):
        return _fitting(value, part)
  elif origin is typing.Literal:
    if isinstance(value, str) and value in parts:
      return value
  elif origin is tuple:
    if isinstance(value, list) and len(value) == len(parts):
      return tuple(_fitting(item, part) for item, part in zip(value, parts, strict=True))
  elif kind is float:
    if type(value) in (int, float) and math.isfinite(value):
      return float(value)
  elif type(value) is kind:
    return value
  raise TypeError


def _wanted(kind) -> str:
  origin, parts = typing.get_origin(kind), typing.get_args(kind)
  if origin in (typing.Union, types.UnionType):
    return " or ".join(map(_wanted, parts))
  if origin is typing.Literal:
    return " or ".join(map(_shown, parts))
  if origin is tuple:
    return f"{len(parts)} numbers"
  return {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}[kind]


def _shown(value) -> str:
  text = json.dumps(value, ensure_ascii=False)
  return text if len(text) <= 60 else f"{text[:57]}..."
