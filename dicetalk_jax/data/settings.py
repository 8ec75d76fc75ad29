"""What begun work was saved with, beside what the same work is asked for with now."""

import dataclasses
import json
from collections.abc import Mapping


class Settings(dict):
  """The values of a dataclass, as JSON.

  A field that is added has a default that does what was done before it: begun work that lacks one goes on with it.
  """

  def __init__(self, config):
    super().__init__(json.loads(json.dumps(dataclasses.asdict(config), default=str)))
    self._defaults = json.loads(json.dumps(_defaults(config), default=str))

  def completed(self, begun: Mapping) -> dict:
    """Settings saved by this version or an older one, with the defaults of those that it lacked."""
    return _completed(begun, self._defaults)


def _defaults(config) -> dict:
  values = {}
  for field in dataclasses.fields(config):
    if field.default is not dataclasses.MISSING:
      value = field.default
    elif field.default_factory is not dataclasses.MISSING:
      value = field.default_factory()
    else:
      continue
    values[field.name] = _defaults(value) if dataclasses.is_dataclass(value) else value
  return values


def _completed(begun, defaults) -> dict:
  whole = {**defaults, **begun}
  for name, inner in defaults.items():
    if isinstance(inner, Mapping) and isinstance(begun.get(name), Mapping):
      whole[name] = _completed(begun[name], inner)
  return whole
