"""A weights folder's description, its config.json."""

import json
import math
import pathlib

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.weights.tensors import network_files

FORMAT = "dicetalk_jax weights"
VERSION = 2
CONFIG = "config.json"
SOURCE = "source.json"
PRIORS = "emotion_priors.safetensors"
RETAINED = "retained"


def read_json(path: pathlib.Path) -> dict:
  """A JSON object; WeightsError if the file is missing or holds something else."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise WeightsError(f"{path} is missing.") from None
  except (OSError, ValueError) as error:
    raise WeightsError(f"{path} cannot be read as JSON: {error}.") from None
  if not isinstance(value, dict):
    raise WeightsError(f"{path} holds a JSON {type(value).__name__}; an object is required.")
  return value


def read_config(folder: pathlib.Path) -> dict:
  """The config.json of a weights folder; WeightsError if it is not one that this version can read."""
  if not folder.is_dir():
    raise WeightsError(f"{folder} is not a folder; a weights folder is made by `dicetalk convert SOURCE WEIGHTS`.")
  if not (folder / CONFIG).is_file():
    hint = (
      "it is in the released layout: run `dicetalk convert` on it"
      if (folder / "DICE-Talk").is_dir()
      else ("it is not a weights folder, or one whose writing was interrupted")
    )
    raise WeightsError(f"{folder} has no {CONFIG}; {hint}.")
  config = read_json(folder / CONFIG)
  check_config(config, folder / CONFIG)
  files = {name: network_files(folder, name) for name in config["networks"]}
  if missing := [name for name, paths in files.items() if not paths or not all(path.is_file() for path in paths)]:
    raise WeightsError(f"{folder} is incomplete: {', '.join(missing)} missing; convert or copy the weights again.")
  return config


def check_config(config: dict, path: pathlib.Path) -> None:
  """WeightsError if `config`, which is in the file `path`, is not that of a weights folder of this format version."""
  version = config.get("version")
  if config.get("format") != FORMAT or type(version) is not int or version < 1:
    raise WeightsError(f'{path} does not belong to a weights folder, which has "format": "{FORMAT}".')
  if version > VERSION:
    raise WeightsError(
      f"{path.parent} has format version {version}, this version reads {VERSION}; update dicetalk-jax."
    )
  if version < VERSION:
    raise WeightsError(
      f"{path.parent} has format version {version} (Orbax), this version reads {VERSION} (safetensors): run `dicetalk "
      "convert` or `dicetalk pack` again on what it was made from, or `dicetalk export --all` with the version that "
      "wrote it and `dicetalk convert` with this one."
    )
  networks = config.get("networks")
  if not isinstance(networks, dict) or not networks:
    raise WeightsError(f"{path} lists no networks.")
  for name, architecture in networks.items():
    if not isinstance(architecture, dict):
      raise WeightsError(f"{path}: networks.{name} is {_short(architecture)}; an object with its sizes is required.")
  for name in ("emotions", "source"):
    names = config.get(name, [])
    if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
      raise WeightsError(f"{path}: {name} is {_short(names)}; a list of names is required.")
  check_sampler(config.get("sampler", {}), path)


def check_sampler(sampler, path: pathlib.Path) -> None:
  """WeightsError, with `path` in it, if a noise level is not a positive number."""
  if not isinstance(sampler, dict):
    raise WeightsError(f"{path}: the sampler is {_short(sampler)}; an object with sigma_min and sigma_max is required.")
  for name in ("sigma_min", "sigma_max"):
    sigma = sampler.get(name)
    is_number = isinstance(sigma, int | float) and not isinstance(sigma, bool) and math.isfinite(sigma)
    if sigma is not None and not (is_number and sigma > 0):
      raise WeightsError(f"{path}: {name} is {_short(sigma)}; a number above 0 is required.")


def _short(value) -> str:
  return json.dumps(value, ensure_ascii=False)[:80]
