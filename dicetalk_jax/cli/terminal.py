"""Progress and Ctrl-C on a terminal, for every verb."""

import contextlib

from rich.console import Console
from rich.progress import (
  BarColumn,
  DownloadColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)
from rich.text import Text

from dicetalk_jax.files import interrupts

console = Console(stderr=True, highlight=False)
# Exit code of a run that was stopped and saved (EX_TEMPFAIL): the same command continues it.
STOPPED = 75


@contextlib.contextmanager
def progress_bars(of_bytes=False, one_bar=False):
  """Progress bars with the time left: one per stage of progress(stage, done, total), or one for all stages."""
  columns = (
    TextColumn("{task.description}"),
    BarColumn(),
    DownloadColumn() if of_bytes else MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
  )
  # Started by the first stage, so that earlier errors draw no bar.
  bars, tasks = Progress(*columns, console=console), {}

  def progress(stage, done, total):
    if not tasks:
      bars.start()
    bar = None if one_bar else stage
    if bar not in tasks:
      tasks[bar] = bars.add_task(stage, total=total)
    bars.update(tasks[bar], description=stage, completed=done, total=total)

  try:
    yield progress
  finally:
    if tasks:
      bars.stop()


@contextlib.contextmanager
def interruptible_bars(one_bar=False, shown=True):
  """`progress_bars` that also raise the KeyboardInterrupt of an earlier Ctrl-C.

  JAX calls some callbacks from C++, where a KeyboardInterrupt is printed and lost.
  """
  with progress_bars(one_bar=one_bar) as show, interrupts(at_once=True) as interrupted:

    def progress(stage, done, total):
      if interrupted.is_set():
        raise KeyboardInterrupt
      if shown:
        show(stage, done, total)

    yield progress


def say(*lines: str):
  """Prints lines to the standard error, as they are: a path may contain what rich takes for markup."""
  for line in lines:
    console.print(line, soft_wrap=True, markup=False)


def say_error(error):
  """Prints an error."""
  console.print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
