"""Weights folders on the Hugging Face hub, and the hub's refusals as sentences."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

from dicetalk_jax.errors import OutputError, WeightsError
from dicetalk_jax.weights.description import CONFIG, PRIORS, check_config, read_json
from dicetalk_jax.weights.tensors import index_name, network_files


def is_repository(weights: str | os.PathLike) -> bool:
  """Whether this may name a repository of the hub, `user/repo`."""
  return re.fullmatch(r"\w[\w.-]*/[\w.-]*\w", os.fspath(weights)) is not None


def fetch_weights(repository: str, endpoint: str | None = None, cache: str | os.PathLike | None = None) -> pathlib.Path:
  """Fetches the weights folder that is the repository `user/repo`; returns its place in the hub's cache.

  config.json, the networks that it lists and the priors are fetched; what only an export needs is not. endpoint: of a
  mirror, cache: another folder; by default HF_ENDPOINT and HF_HOME decide. HF_TOKEN and HF_HUB_OFFLINE are honoured.
  Raises WeightsError if the repository, a file, permission or connection is missing, OutputError if the disk is full.
  """
  from huggingface_hub import HfApi, hf_hub_download
  from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
  )

  def fetch(name: str) -> pathlib.Path | None:
    """A file of the repository in the cache; None if the repository does not have it."""
    where = {"endpoint": endpoint, "cache_dir": cache, "local_files_only": unreachable is not None}
    try:
      return pathlib.Path(hf_hub_download(repository, name, revision=commit, **where))
    except LocalEntryNotFoundError as error:
      raise unreachable or error from None
    except EntryNotFoundError:
      return None

  with explained(repository, endpoint):
    # Asked first, because the download itself tries for half a minute to connect.
    commit, unreachable = None, None
    try:
      HfApi(endpoint=endpoint).model_info(repository)
    except HfHubHTTPError:
      raise
    except (OfflineModeIsEnabled, HTTPError) as error:
      unreachable = error
    if (path := fetch(CONFIG)) is None:
      raise WeightsError(f"The repository {repository} has no {CONFIG}, so it is not a weights folder.")
    config = read_json(path)
    check_config(config, path)
    # From then on of the same commit; asked for by name, the cache also knows it offline.
    folder, commit = path.parent, path.parent.name
    for name in config["networks"]:
      if not network_files(folder, name) and fetch(f"{name}.safetensors") is None:
        fetch(index_name(name))
      for path in network_files(folder, name):
        if not path.is_file():
          fetch(path.name)
    if config.get("emotions"):
      fetch(PRIORS)
  return folder


@contextlib.contextmanager
def explained(repository: str, endpoint: str | None = None) -> Iterator[None]:
  """Turns what the hub's library raises into a WeightsError of one sentence, and a full disk into an OutputError."""
  from huggingface_hub import constants, errors

  page = f"{endpoint or constants.ENDPOINT}/{repository}"
  try:
    yield
  except errors.GatedRepoError:
    raise WeightsError(
      f"{repository} is behind a licence: accept it at {page} while logged in, then give that account's token "
      "(--token, HF_TOKEN or `hf auth login`)."
    ) from None
  except errors.RepositoryNotFoundError:
    raise WeightsError(
      f"The repository {repository} was not found at {page}; check its name and, if it is private, that the token may "
      "read it."
    ) from None
  except errors.HFValidationError as error:
    raise WeightsError(f"'{repository}' is not the name of a repository, owner/name: {error}.") from None
  except errors.HfHubHTTPError as error:
    status = error.response.status_code if error.response is not None else None
    if status in (401, 403):
      raise WeightsError(
        f"The hub refused {repository} ({status}): the token is wrong, expired or may not read this repository; make "
        "one that may read at https://huggingface.co/settings/tokens."
      ) from None
    raise WeightsError(
      f"The hub answered {status or _line(error)} for {repository}; run the same command later, it continues from "
      "there."
    ) from None
  except (errors.HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
    raise WeightsError(
      f"No connection to {page} ({_line(error)}); once there is one, run the same command again, it continues from "
      "there."
    ) from None
  except OSError as error:
    if error.errno is None:
      raise WeightsError(
        f"The download of {repository} ended early ({_line(error)}); run the same command again, it continues from "
        "there."
      ) from None
    raise OutputError(f"Files of {repository} could not be written: {error.strerror}.") from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise _not_the_hub(page, _line(error)) from None


def _not_the_hub(page: str, cause: str) -> WeightsError:
  return WeightsError(
    f"What answered for {page} is not the hub ({cause}): a network that wants a login first may answer in its place; "
    "log in there or use another network, then run the same command again."
  )


def check_answer(page: str, commit: str | None) -> None:
  """WeightsError if a file's headers lack the commit, which the hub always sends."""
  if commit is None:
    raise _not_the_hub(page, "its answer names no commit")


def _line(error: BaseException) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:")[:200]
