"""The published files from the Hugging Face hub into the released layout."""

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator

from huggingface_hub import HfApi, errors, get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm

from dicetalk_jax.conversion.released import DOCUMENTS, OWN, PARTS, PRIOR_FOLDERS, SVD, WHISPER, candidates, shards
from dicetalk_jax.errors import OutputError, WeightsError

Progress = Callable[[str, int, int], None]
_PARTIAL = ".download"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def download(
  target: str | os.PathLike,
  dicetalk: str = "EEEELY/DICE-Talk",
  svd: str = "stabilityai/stable-video-diffusion-img2vid-xt",
  whisper: str = "openai/whisper-tiny",
  token: str | None = None,
  endpoint: str | None = None,
  progress: Progress | None = None,
) -> pathlib.Path:
  """Fetches the files that `convert` reads from three repositories of the hub into `target`; returns it.

  Files that are there already stay, and one that was cut short goes on where it stopped. token: of an account that has
  accepted the licences; None takes the one that `hf auth login` or HF_TOKEN gave. endpoint: of a mirror. progress is
  called with (file, bytes done, bytes in all).
  Raises WeightsError where a repository, file, permission or connection is missing, OutputError where `target` cannot
  be written.
  """
  target = pathlib.Path(target).expanduser()
  repositories = {repo: _Repository(repo, token, endpoint) for repo in (dicetalk, svd, whisper)}
  own, video, speech = (repositories[repo] for repo in (dicetalk, svd, whisper))
  with _writing(target):
    for part in PARTS:
      if part.folder.startswith(SVD) or part.folder == WHISPER:
        root, repository = (SVD, video) if part.folder.startswith(SVD) else (WHISPER, speech)
        within = part.folder.removeprefix(root).removeprefix("/")
        _fetch_network(repository, within, part.stems, target, part.folder, progress)
        repository.fetch(f"{within}/config.json".lstrip("/"), target / part.folder / "config.json", target, progress)
      else:
        _fetch_network(own, None, part.stems, target, part.folder, progress)
      if part.overlay:
        _fetch_network(own, None, (part.overlay,), target, OWN, progress)
    for path in DOCUMENTS:
      root, _, name = path.partition("/")
      repository = video if root == SVD else speech
      if name in repository.names:
        repository.fetch(name, target / path, target, progress)
    for name in own.names:
      path = pathlib.PurePosixPath(name)
      if path.suffix == ".npy" and path.parent.name in {pathlib.PurePosixPath(f).name for f in PRIOR_FOLDERS}:
        own.fetch(name, target / PRIOR_FOLDERS[0] / path.name, target, progress)
    shutil.rmtree(target / _PARTIAL, ignore_errors=True)
  return target


def _fetch_network(repository, within: str | None, stems, target: pathlib.Path, folder: str, progress) -> None:
  """One network's file, or its index and shards; `within` the repository's folder, or None where any will do."""
  for name, is_index in candidates(stems, folder):
    found = repository.find(name, within)
    if found is None:
      continue
    repository.fetch(found, target / folder / name, target, progress)
    if is_index:
      for shard in dict.fromkeys(shards(target / folder / name).values()):
        repository.fetch(str(pathlib.PurePosixPath(found).with_name(shard)), target / folder / shard, target, progress)
    return
  raise WeightsError(
    f"The repository {repository.name} has no weights named {' or '.join(stems)}{f' in {within}' if within else ''}; "
    "is it the right one?"
  )


class _Repository:
  """One repository of the hub at its newest commit."""

  def __init__(self, name: str, token: str | None, endpoint: str | None):
    self.name, self.token, self.endpoint = name, token, endpoint
    with self._explained():
      info = HfApi(endpoint=endpoint, token=token).model_info(name)
    self.commit, self.names = info.sha, [file.rfilename for file in info.siblings or ()]

  def find(self, name: str, within: str | None) -> str | None:
    """The path of a file in the repository: in the folder `within`, or the one nearest the top."""
    if within is not None:
      path = f"{within}/{name}".lstrip("/")
      return path if path in self.names else None
    same = [path for path in self.names if path.rpartition("/")[2] == name]
    return min(same, key=lambda path: path.count("/"), default=None)

  def fetch(self, name: str, path: pathlib.Path, target: pathlib.Path, progress: Progress | None) -> None:
    """Downloads `name` to `path`, going on where an earlier download stopped."""
    url = hf_hub_url(self.name, name, revision=self.commit, endpoint=self.endpoint)
    with self._explained():
      metadata = get_hf_file_metadata(url, token=self.token, endpoint=self.endpoint)
    if path.is_file() and metadata.size == path.stat().st_size:
      return
    # Named by its content, so that a file that changed upstream is not continued with another's bytes.
    partial = target / _PARTIAL / re.sub(r"\W", "_", f"{self.name}_{name}_{metadata.etag}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    relative = path.relative_to(target).as_posix()
    done = partial.stat().st_size if partial.exists() else 0
    if metadata.size is not None and (free := shutil.disk_usage(target).free) < metadata.size - done:
      raise OutputError(f"{relative} needs {metadata.size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {target}.")
    with partial.open("ab") as file, self._explained():
      http_get(
        url,
        file,
        resume_size=done,
        headers=build_hf_headers(token=self.token),
        expected_size=metadata.size,
        tqdm_class=_reporting_to(progress, relative),
      )
    _verify(partial, metadata.etag, relative)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(path)

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    page = f"{self.endpoint or 'https://huggingface.co'}/{self.name}"
    try:
      yield
    except errors.GatedRepoError:
      raise WeightsError(
        f"{self.name} is behind a licence: accept it at {page} while logged in, then give that account's token "
        "(--token, HF_TOKEN or `hf auth login`)."
      ) from None
    except errors.RepositoryNotFoundError:
      raise WeightsError(
        f"The repository {self.name} was not found at {page}; check its name and, if it is private, that the token is "
        "one that may see it."
      ) from None
    except errors.HFValidationError as error:
      raise WeightsError(f"'{self.name}' is not the name of a repository, owner/name: {error}.") from None
    except errors.HfHubHTTPError as error:
      status = error.response.status_code if error.response is not None else None
      if status in (401, 403):
        raise WeightsError(
          f"The hub refused {self.name} ({status}): the token is wrong, expired or may not read this repository; make "
          "one that may read at https://huggingface.co/settings/tokens."
        ) from None
      raise WeightsError(
        f"The hub answered {status or error} for {self.name}; what has arrived is kept, run the same command later."
      ) from None
    except (errors.HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
      raise WeightsError(
        f"No connection to {page} ({error}); what has arrived is kept, run the same command again once there is one."
      ) from None


def _reporting_to(progress: Progress | None, name: str) -> type[tqdm]:
  """A bar that draws nothing and tells `progress`."""

  class Bar(tqdm):
    def __init__(self, *_, total=None, initial=0, **__):
      super().__init__(disable=True)
      self.done, self.whole = initial, total or 0

    def update(self, n=1):
      self.done += n
      if progress:
        progress(name, self.done, self.whole)

  return Bar


def _verify(path: pathlib.Path, etag: str | None, name: str) -> None:
  """The hub's tag of a large file is its SHA-256."""
  if not etag or not _SHA256.fullmatch(etag):
    return
  with path.open("rb") as file:
    found = hashlib.file_digest(file, "sha256").hexdigest()
  if found != etag:
    path.unlink()
    raise WeightsError(f"{name} arrived damaged (its SHA-256 is not the hub's); run the same command again.")


@contextlib.contextmanager
def _writing(target: pathlib.Path) -> Iterator[None]:
  try:
    target.mkdir(parents=True, exist_ok=True)
    yield
  except OSError as error:
    if error.errno is None:
      raise WeightsError(
        f"A download ended early ({error}); run the same command again, it goes on from there."
      ) from None
    raise OutputError(f"{target} could not be written: {error.strerror}; what has arrived is kept there.") from error
