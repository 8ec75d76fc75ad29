"""Safe paths and safe writing: the only place that knows how a file is written."""

import json
from pathlib import Path

from dicetalk_jax.errors import InputError


def expanded(path, what: str) -> Path:
  """A path with `~` resolved; InputError where it is empty or names a home that does not exist."""
  if not str(path):
    raise InputError(f"the path of the {what} is empty; give the name of a file")
  try:
    return Path(path).expanduser()
  except RuntimeError as error:
    raise InputError(f"{what} {path} names the home of a user who does not exist; write the path in full") from error


def existing_file(source, what: str) -> Path:
  """The path of a file that exists and holds something; `what` names its role in the message ("portrait").

  Raises InputError for a path that is missing, a folder, empty or not allowed to be read.
  """
  path = expanded(source, what)
  try:
    if path.is_dir():
      raise InputError(f"{what} {path} is a folder; give the file inside it")
    if not path.exists():
      raise InputError(f"{what} {path} does not exist; check the spelling and the current folder")
    with path.open("rb") as file:
      if not file.read(1):
        raise InputError(f"{what} {path} is empty (0 bytes); was its download or copy interrupted?")
  except (OSError, ValueError) as error:
    raise InputError(f"{what} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
  return path


def readable_size(count: int) -> str:
  return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def write_json(value, path: Path, indent: int | None = 2) -> None:
  path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
