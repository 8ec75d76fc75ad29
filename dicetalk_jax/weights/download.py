"""Downloads the published files from the Hugging Face hub into the released layout."""

import hashlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm

from dicetalk_jax.errors import OutputError, WeightsError
from dicetalk_jax.files import expanded, free_space, readable_size
from dicetalk_jax.weights.hub import check_answer, explained
from dicetalk_jax.weights.networks import NETWORKS
from dicetalk_jax.weights.release.layouts import DICETALK, candidates, shards

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

  Complete files stay, and a partial one is continued. token: of an account that has accepted the licences; by default
  that of `hf auth login` or HF_TOKEN. endpoint: of a mirror. progress(file, bytes done, bytes in total) is called along
  the way.
  Raises WeightsError if a repository, file, permission or connection is missing, OutputError if `target` cannot be
  written.
  """
  target = expanded(target, "target", OutputError).absolute()
  layout, names = DICETALK, {"own": dicetalk, "svd": svd, "whisper": whisper}
  repositories = {key: _Repository(name, token, endpoint, target, progress) for key, name in names.items()}
  own = repositories["own"]

  def source(path: str) -> tuple["_Repository", str | None]:
    """The repository of a file of the layout and the file's path in it; None: anywhere."""
    root, _, within = path.partition("/")
    return (repositories[layout.repositories[root]], within) if root in layout.repositories else (own, None)

  try:
    target.mkdir(parents=True, exist_ok=True)
    for files in (row.files[layout.name] for row in NETWORKS.values() if row.published and layout.name in row.files):
      repository, within = source(files.written)
      if files.config_required:
        repository.fetch(source(files.config)[1], files.config)
      repository.fetch_network(files.written, files.base_names(), within)
      if files.overlay:
        own.fetch_network(files.overlay, candidates(files.overlay))
    for path in (*layout.settings.values(), *layout.documents):
      repository, within = source(path)
      if within in repository.names:
        repository.fetch(within, path)
    for name in own.names:
      path = pathlib.PurePosixPath(name)
      if path.suffix == ".npy" and path.parent.name in {pathlib.PurePosixPath(f).name for f in layout.prior_folders}:
        own.fetch(name, f"{layout.prior_folders[0]}/{path.name}")
    shutil.rmtree(target / _PARTIAL, ignore_errors=True)
  except OSError as error:
    raise OutputError(f"{target} could not be written: {error.strerror}; what has arrived is kept there.") from error
  return target


class _Repository:
  """One repository of the hub at its newest commit."""

  def __init__(self, name, token, endpoint, target: pathlib.Path, progress: Progress | None):
    self.name, self.token, self.endpoint, self.target, self.progress = name, token, endpoint, target, progress
    with explained(self.name, self.endpoint):
      info = HfApi(endpoint=endpoint, token=token).model_info(name)
    self.commit, self.names = info.sha, [file.rfilename for file in info.siblings or ()]

  def fetch_network(self, file: str, names: Iterable[tuple[str, bool]], within: str | None = None) -> None:
    """Fetches one network's file, or its index and shards, to the folder of `file` in the target.

    names: see `candidates`. within: path of `file` in the repository; None takes the file nearest to the top, because
    some repositories have these in a folder.
    """
    folder = pathlib.PurePosixPath(file).parent
    for name, is_index in names:
      if within is not None:
        paths = [path for path in self.names if path == str(pathlib.PurePosixPath(within).with_name(name))]
      else:
        paths = [path for path in self.names if path.rpartition("/")[2] == name]
      if paths:
        nearest = min(paths, key=lambda path: path.count("/"))
        self.fetch(nearest, f"{folder}/{name}")
        for shard in dict.fromkeys(shards(self.target / folder / name).values()) if is_index else ():
          self.fetch(str(pathlib.PurePosixPath(nearest).with_name(shard)), f"{folder}/{shard}")
        return
    name = pathlib.PurePosixPath(file).name if within is None else within
    raise WeightsError(f"The repository {self.name} has no {name}; is it the right one?")

  def fetch(self, name: str, relative: str) -> None:
    """Downloads `name` to `relative` within the target; continues a partial file."""
    path = self.target / relative
    url = hf_hub_url(self.name, name, revision=self.commit, endpoint=self.endpoint)
    with explained(self.name, self.endpoint):
      metadata = get_hf_file_metadata(url, token=self.token, endpoint=self.endpoint)
    check_answer(url, metadata.commit_hash)
    if path.is_file() and metadata.size == path.stat().st_size:
      return
    # Named by its content, so that a file which changed upstream is not continued.
    partial = self.target / _PARTIAL / re.sub(r"\W", "_", f"{self.name}_{name}_{metadata.etag}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    done = partial.stat().st_size if partial.exists() else 0
    if metadata.size is not None and (free := free_space(self.target)) < metadata.size - done:
      needed = f"{readable_size(metadata.size)}, and {readable_size(free)} are free in {self.target}"
      raise OutputError(f"{relative} needs {needed}; what has arrived is kept.")
    with partial.open("ab") as file, explained(self.name, self.endpoint):
      http_get(
        url,
        file,
        resume_size=done,
        headers=build_hf_headers(token=self.token),
        expected_size=metadata.size,
        tqdm_class=_reporting_to(self.progress, relative),
      )
    _verify(partial, metadata.etag, relative)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(path)


def _reporting_to(progress: Progress | None, name: str) -> type[tqdm]:
  """A progress bar that draws nothing and calls `progress`."""

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
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  if digest != etag:
    path.unlink()
    raise WeightsError(f"{name} arrived damaged (its SHA-256 is not the hub's); run the same command again.")
