"""What every reader of files needs: a path that is good, and frames of a stream that may be damaged."""

from pathlib import Path

import av

from dicetalk_jax.errors import InputError


def existing_file(source, what: str) -> Path:
  """The path of a file that exists and holds something; `what` names its role in the message ("portrait").

  Raises InputError for a path that is missing, a folder, empty or not allowed to be read.
  """
  path = Path(source).expanduser()
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


def decoded(container, stream):
  """Yields the frames of an open container's stream. Damaged packets are passed over; a file cut short ends early."""
  packets = container.demux(stream)
  while True:
    try:
      packet = next(packets, None)
      frames = [] if packet is None else packet.decode()
    except av.FFmpegError:
      continue
    if packet is None:
      return
    yield from frames
