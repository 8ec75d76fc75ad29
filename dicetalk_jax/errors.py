"""Errors that a user can act on: what was given, what was found, what to do."""


class DiceTalkError(Exception):
  """Base of every error that this package raises on purpose; its text is one or two sentences."""


class InputError(DiceTalkError):
  """A portrait, sound, emotion or option that cannot be used."""


class WeightsError(DiceTalkError):
  """A checkpoint or weights folder that is missing, damaged, or of another model or a newer format."""


class OutputError(DiceTalkError):
  """A result that could not be written; the text says where the computed data is kept."""


class MissingDependencyError(DiceTalkError):
  """A missing optional package; the text names the extra that installs it."""


def out_of_memory(error: BaseException | None) -> bool:
  """Whether the host or a device had too little memory: XLA says so in the text of its errors alone."""
  return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
