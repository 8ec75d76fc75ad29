"""Errors a person can act on: what was given, what was found, what to do."""


class DiceTalkError(Exception):
  """The base of every error this package raises on purpose; its text is one sentence or two for a person."""


class InputError(DiceTalkError):
  """A portrait, sound, emotion or option that cannot be used."""


class WeightsError(DiceTalkError):
  """A checkpoint or weights folder that is missing, damaged, of another model or of a newer format."""


class OutputError(DiceTalkError):
  """A result that could not be written; the text says where what was computed has been kept."""


class MissingDependencyError(DiceTalkError):
  """An optional package that this call needs; the text gives the extra that installs it."""


def out_of_memory(error: BaseException | None) -> bool:
  """Whether the host or a device had too little memory: XLA says so in the text of its errors alone."""
  return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
