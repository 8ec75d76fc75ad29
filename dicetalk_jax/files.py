"""Safe paths and safe writing: the only module that knows how a file or a folder is written.

A file is written under a temporary name beside its target and then renamed, so that the target is whole or untouched.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import tempfile
import threading
import types
from collections.abc import Iterator, Mapping
from pathlib import Path

from dicetalk_jax.errors import DiceTalkError, InputError, OutputError

_PARTIAL = ".partial"
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG)


def expanded(path, what: str = "path", error: type[DiceTalkError] = InputError) -> Path:
  """`path` with a leading `~/` or `~user/` resolved; raises `error` for an empty path and for an unknown user.

  A name such as `~home.png` is a plain file name. `what` names the path's role in the message ("portrait").
  """
  text = os.fspath(path)
  if not text:
    raise error(f"{what}: the path is empty; give the name of a file or folder")
  if text != "~" and not (text.startswith("~") and "/" in text):
    return Path(path)
  try:
    return Path(path).expanduser()
  except RuntimeError:
    raise error(f"{what} {path} is in the home folder of a user who does not exist; write the path in full") from None


def existing_file(source, what: str) -> Path:
  """The path of a readable file that is not empty; `what` names its role in the message ("portrait").

  Raises InputError for a path that is missing, a folder, empty or not readable.
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


def protect_inputs(target, inputs: Mapping[str, object], inside: bool = False) -> None:
  """Raises InputError where writing `target` would replace or change one of the inputs; call it before anything slow.

  inputs: {role: path, several paths or None}, such as {"portrait": "me.jpg"}; what does not exist is skipped. Refused
  are an input under any name (symbolic and hard links, another case) and what exists inside an input folder; with
  `inside` anything inside an input folder.
  """
  for role, sources in inputs.items():
    for source in sources if isinstance(sources, list | tuple) else [sources]:
      with contextlib.suppress(OSError, ValueError):  # a name that no file can have: whoever opens it says so
        source = None if source is None else expanded(source, role)
        if source is None or not source.exists():
          continue
        if os.path.exists(target) and os.path.samefile(source, target):
          raise InputError(f"{target} is the {role} itself, which would be replaced; give another name for the result")
        parents = filter(os.path.exists, Path(os.path.realpath(target)).parents)
        if (inside or os.path.exists(target)) and any(os.path.samefile(source, parent) for parent in parents):
          raise InputError(f"{target} is inside the {role} {source}, which would change; give a name outside of it")


def check_file(path: Path, what: str, needed: int = 1 << 16) -> None:
  """Raises InputError or OutputError unless a file can be written at `path`; makes its folder where that is missing.

  It creates and removes the very names that `new_file` uses. A link is followed. `needed`: bytes that must be free.
  """
  try:
    if path.is_dir():
      raise InputError(f"{what} {path} is a folder; give the name of a file in it")
    if path.exists() and not path.is_file():
      raise InputError(f"{what} {path} is a device or pipe; give the name of a file")
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
      target.open("xb").close()
      target.unlink()
    _temporary(target).open("wb").close()
    _temporary(target).unlink()
    if free_space(target) < needed:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  except FileExistsError as error:
    raise OutputError(f"{what} {path} cannot be written: {error.filename} is a file, not a folder") from error
  except OSError as error:
    raise OutputError(f"{what} {path} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[Path]:
  """A temporary path beside `path`: the file written there takes its name when the block ends without an error.

  Else it is removed, and what `path` names stays as it was. A link is followed. The block's own errors pass.
  """
  path = Path(os.path.realpath(path))
  temporary = _temporary(path)
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


def _temporary(path: Path) -> Path:
  """Short whatever the target is called: a name has at most 255 bytes. Threads and processes each have their own."""
  return path.with_name(f"{_mark(path)}.{threading.get_native_id()}{_PARTIAL}")


def _mark(path: Path) -> str:
  return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}"


def remove_partial(path: Path) -> None:
  """Removes the temporary files of `path` that killed processes left. No other process may be writing `path`."""
  path = Path(os.path.realpath(path))
  name = re.compile(re.escape(_mark(path)) + r"\.\d+" + re.escape(_PARTIAL))
  for other in path.parent.iterdir():
    if name.fullmatch(other.name):
      other.unlink(missing_ok=True)


def fitting_name(folder: Path, stem: str, ending: str) -> str:
  """`stem` + `ending`, the stem cut to what the file system of `folder` takes."""
  try:
    limit = os.pathconf(folder, "PC_NAME_MAX")
  except (OSError, ValueError):
    limit = 143
  return os.fsencode(stem)[: limit - len(os.fsencode(ending))].decode(errors="ignore") + ending


def write_json(value, path: Path, indent: int | None = 2) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with new_file(path) as temporary:
    temporary.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


# Stands for `parallel.hosts` where one process writes alone.
_ONE_HOST = types.SimpleNamespace(is_first=lambda: True, wait_for_all=lambda name: None)
_filling: list[threading.Event] = []


def check_new(target: str | os.PathLike) -> Path:
  """The absolute path of a folder to make; OutputError where it holds something or cannot be made."""
  target = Path(os.path.realpath(expanded(target, "folder", OutputError)))
  try:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
      raise OutputError(f"{target} exists and is not an empty folder; give another name, or remove it first.")
    with contextlib.suppress(FileNotFoundError):
      target.lstat()
    # Parents are made later, so that a command that fails leaves nothing.
    parent = next(parent for parent in target.parents if parent.exists())
    with tempfile.TemporaryDirectory(prefix=".", suffix=_PARTIAL, dir=parent):
      pass
  except OSError as error:
    raise OutputError(f"{target} could not be written: {error.strerror}.") from error
  return target


def check_folder(folder: Path, what: str, marker: str | None = None) -> None:
  """Raises InputError for a file, OutputError where the folder cannot be made or written.

  marker: a file that tells a folder which a command began from a folder of other things, which is an InputError.
  """
  try:
    if not folder.exists():
      check_new(folder)
      return
    if not folder.is_dir():
      raise InputError(f"{folder} is a file; give the name of a folder for the {what}")
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if marker and others and marker not in others:
      raise InputError(f"{folder} holds other files ({', '.join(others[:3])}) and no {what}; give a new folder")
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise OutputError(f"{folder} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def new_folder(target: str | os.PathLike, needed: int = 0, hosts=_ONE_HOST) -> Iterator[Path]:
  """A folder to fill: it takes the name `target` when the block ends without an error, else nothing is left.

  What an interrupted process left is removed first. Within the block Ctrl-C waits for `stop_if_interrupted`. Several
  processes all enter it with `hosts` (is_first, wait_for_all); the first makes and renames the folder.
  Raises OutputError where the target is not empty, cannot be made, or fewer than `needed` bytes are free.
  """
  target = check_new(target)
  # The same name in every process.
  temporary = target.with_name(f"{_mark(target)}{_PARTIAL}")
  if not hosts.is_first():
    hosts.wait_for_all(f"{target} is begun")
    yield temporary
    hosts.wait_for_all(f"{target} is filled")
    hosts.wait_for_all(f"{target} is named")
    return
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    if temporary.exists():
      shutil.rmtree(temporary)
    require_space(target, needed)
    # Within a block that has its own handler, Ctrl-C is that block's.
    mine = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with interrupts(signals=(signal.SIGINT,) if mine else ()) as interrupted:
      _filling.append(interrupted)
      try:
        temporary.mkdir()
        hosts.wait_for_all(f"{target} is begun")
        yield temporary
        stop_if_interrupted()
        hosts.wait_for_all(f"{target} is filled")
        temporary.rename(target)
        hosts.wait_for_all(f"{target} is named")
      finally:
        _filling.remove(interrupted)
        shutil.rmtree(temporary, ignore_errors=True)
    if interrupted.is_set():
      raise KeyboardInterrupt
  except Exception as error:
    if reason := write_failure(error):
      raise OutputError(f"{target} could not be written: {reason}. Nothing was left there.") from error
    raise


def stop_if_interrupted() -> None:
  """Raises the KeyboardInterrupt of a Ctrl-C that came while a `new_folder` was filled."""
  if any(interrupted.is_set() for interrupted in _filling):
    raise KeyboardInterrupt


def write_failure(error: BaseException | None) -> str | None:
  """The operating system's words where `error`, or what caused it, is a failure to write."""
  while error is not None and not isinstance(error, DiceTalkError):
    if isinstance(error, OSError) and error.errno is not None:
      return error.strerror
    for code in _WRITE_ERRORS:
      if os.strerror(code) in str(error):
        return os.strerror(code)
    error = error.__cause__ or error.__context__
  return None


@contextlib.contextmanager
def replaced_folder(folder: Path, hosts=_ONE_HOST) -> Iterator[Path]:
  """A path at which the block makes a folder, which then replaces `folder`. All processes enter it."""
  new, old = (folder.with_name(f"{_mark(folder)}.{word}") for word in ("new", "old"))
  first = hosts.is_first()
  if first:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if old.exists() and not folder.exists():
      # A process was killed between the two renames.
      old.rename(folder)
    for leftover in (new, old):
      shutil.rmtree(leftover, ignore_errors=True)
  hosts.wait_for_all(f"{folder} may be written")
  yield new
  # Other processes may still read the folder under its old name.
  hosts.wait_for_all(f"{folder} is written")
  if first:
    if folder.exists():
      folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
  hosts.wait_for_all(f"{folder} has its name")


@contextlib.contextmanager
def lock(path: Path, busy: str | None, shared: bool = False) -> Iterator[None]:
  """Holds a file (made where it is missing) or a folder for this process; a killed process frees it.

  busy: sentence of the InputError where another process holds it; None waits instead. On a disk without locks it holds
  nothing. Raises OSError where `path` cannot be opened.
  """
  descriptor = os.open(path, os.O_RDONLY if path.is_dir() or shared else os.O_RDWR | os.O_CREAT, 0o666)
  try:
    try:
      fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (fcntl.LOCK_NB if busy else 0))
    except BlockingIOError:
      raise InputError(busy) from None
    except OSError:
      pass
    yield
  finally:
    os.close(descriptor)


def free_space(path: Path) -> int:
  """Free bytes on the disk of `path`, which need not exist yet."""
  while not path.exists() and path != path.parent:
    path = path.parent
  return shutil.disk_usage(path).free


def require_space(path: Path, needed: int, advice: str = "Make space, or give another folder.") -> None:
  """Raises OutputError where fewer than `needed` bytes are free on the disk of `path`: writers fail late and badly."""
  if (free := free_space(path)) < needed:
    raise OutputError(f"{path} needs {readable_size(needed)}, and {readable_size(free)} are free there. {advice}")


@contextlib.contextmanager
def interrupts(signals: tuple[int, ...] = (signal.SIGINT,), at_once: bool = False) -> Iterator[threading.Event]:
  """An event that `signals` set in a block of the main thread; the second Ctrl-C raises KeyboardInterrupt.

  at_once: the first Ctrl-C raises as well, and the event tells it to code after a library that swallowed the exception.
  Signals that are ignored stay ignored, as in the background of a shell.
  """
  event, before = threading.Event(), {}

  def handle(number, _):
    again = event.is_set()
    event.set()
    if number == signal.SIGINT and (again or at_once):
      raise KeyboardInterrupt

  if threading.current_thread() is threading.main_thread():
    for number in signals:
      if signal.getsignal(number) not in (signal.SIG_IGN, None):
        before[number] = signal.signal(number, handle)
  try:
    yield event
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def readable_size(count: int) -> str:
  return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
