"""The TensorBoard log of a run, written in the calling thread: a full disk loses log entries, not the run."""

import contextlib
import os
import pathlib
import time
from collections.abc import Callable, Mapping

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class EventLog:
  """Events of one run in `folder`. Events that cannot be written are dropped, with one call of `warn`.

  TensorBoard hides steps from `first_step` on that an earlier, killed start logged. tensorboardX's SummaryWriter is not
  used because its thread ends at a full disk, and the writer then waits for it forever.
  """

  def __init__(self, folder: str | os.PathLike, first_step: int, warn: Callable[[str], None], silent: bool = False):
    """silent: write nothing, because another process of the run does."""
    self._folder, self._step, self.warn = pathlib.Path(folder), first_step, warn
    self._writer, self._warned, self._silent = None, False, silent

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """One point of each curve."""
    self.summaries(step, *(summary.scalar(name, float(value)) for name, value in values.items()))

  def summaries(self, step: int, *summaries: Summary) -> None:
    """Logs results of the functions in `tensorboardX.summary`: images, videos, figures, histograms."""
    if self._silent:
      return
    try:
      if self._writer is None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # The name has only seconds; a run that ends at once and the next would share a file.
        self._writer = EventsWriter(str(self._folder / "events"), f".{os.getpid()}.{time.time_ns()}")
        start = SessionLog(status=SessionLog.SessionStatus.Value("START"))
        self._writer.write_event(Event(wall_time=time.time(), step=self._step, session_log=start))
      for value in summaries:
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=value))
      self._writer.flush()
    except OSError as error:
      # An incomplete event makes the rest of a file unreadable, so continue in a new file.
      self._drop()
      if not self._warned:
        self.warn(f"{self._folder}: the log could not be written ({error.strerror}); training continues without it.")
        self._warned = True

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._drop()

  def _drop(self):
    writer, self._writer = self._writer, None
    if writer is not None:
      with contextlib.suppress(OSError):
        writer.close()
