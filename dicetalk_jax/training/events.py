"""The TensorBoard log of a run, written in this thread: a full disk costs lines of the log and never the training."""

import collections
import contextlib
import os
import pathlib
import struct
import time
from collections.abc import Callable, Mapping

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class EventLog:
  """Events of one run in `folder`. What cannot be written is dropped, and `warn` is told once.

  Steps that an earlier, killed run had logged from `first_step` on are hidden by TensorBoard. tensorboardX's own
  SummaryWriter hands events to a thread, which ends at a full disk, and then waits for it for ever.
  """

  def __init__(self, folder: str | os.PathLike, first_step: int, warn: Callable[[str], None], silent: bool = False):
    """silent: nothing is written, as another process of the run does it."""
    self._folder, self._step, self.warn = pathlib.Path(folder), first_step, warn
    self._writer, self._warned, self._silent = None, False, silent

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """One point of each curve."""
    self.summaries(step, *(summary.scalar(name, float(value)) for name, value in values.items()))

  def summaries(self, step: int, *summaries: Summary) -> None:
    """What the functions of `tensorboardX.summary` make: images, videos, figures, histograms."""
    if self._silent:
      return
    try:
      if self._writer is None:
        self._open()
      for value in summaries:
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=value))
      self._writer.flush()
    except OSError as error:
      # Half an event makes the rest of a file unreadable: the next one goes to a new file.
      self._drop()
      if not self._warned:
        self.warn(f"{self._folder}: the log could not be written ({error.strerror}); training goes on without it.")
        self._warned = True

  def close(self) -> None:
    self._drop()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _open(self):
    self._folder.mkdir(parents=True, exist_ok=True)
    # Without more than the second, a run that ends at once and the next would share a file.
    self._writer = EventsWriter(str(self._folder / "events"), f".{os.getpid()}.{time.time_ns()}")
    start = SessionLog(status=SessionLog.SessionStatus.Value("START"))
    self._writer.write_event(Event(wall_time=time.time(), step=self._step, session_log=start))

  def _drop(self):
    writer, self._writer = self._writer, None
    if writer is not None:
      with contextlib.suppress(OSError):
        writer.close()


def read_scalars(folder: str | os.PathLike) -> dict[str, list[tuple[int, float]]]:
  """The curves of a run's log folder, {name: [(step, value)]}; what a later start has done again replaces the earlier.

  A file that a killed run has left without an end is read as far as it goes.
  """
  curves = collections.defaultdict(dict)
  for path in sorted(pathlib.Path(folder).glob("events*"), key=lambda path: path.stat().st_mtime_ns):
    for event in _events(path):
      if event.HasField("session_log"):
        for points in curves.values():
          for step in [step for step in points if step >= event.step]:
            del points[step]
      for value in event.summary.value:
        if value.HasField("simple_value"):
          curves[value.tag][event.step] = value.simple_value
  return {name: sorted(points.items()) for name, points in curves.items()}


def _events(path: pathlib.Path):
  """The events of one file: each is its length (8 bytes), a checksum (4), itself and a checksum (4)."""
  data, place = path.read_bytes(), 0
  while place + 12 <= len(data):
    (size,) = struct.unpack("<Q", data[place : place + 8])
    if place + 16 + size > len(data):
      return
    yield Event.FromString(data[place + 12 : place + 12 + size])
    place += 16 + size
