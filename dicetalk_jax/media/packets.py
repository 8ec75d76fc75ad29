"""Frames of a stream that may be damaged."""

import av


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
