"""Settings that work was started with, and how the present ones differ from them."""

import dataclasses
import json
from collections.abc import Mapping


def as_json(config) -> dict:
  """A dataclass as JSON values."""
  return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def difference(saved, present, defaults=None) -> str | None:
  """The first value that differs, as "name saved, this has present"; None when all are equal.

  defaults: values of names that `saved` lacks, because they were introduced later. Names that only `saved` has are
  settings that no longer exist, and are ignored.
  """
  defaults = defaults or {}
  for name, new in present.items():
    old = saved.get(name, defaults.get(name))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
      inner = defaults.get(name)
      if text := difference(old, new, inner if isinstance(inner, Mapping) else None):
        return text
    elif old != new:
      return f"{name} {_shown(old)}, and this has {_shown(new)}"
  return None


def _shown(value) -> str:
  text = str(value)
  return text if len(text) <= 60 else f"{text[:57]}..."
