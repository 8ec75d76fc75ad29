"""The weights folder that a finished run writes."""

import os
from collections.abc import Mapping

from dicetalk_jax.errors import InputError, OutputError
from dicetalk_jax.files import expanded, replaced_folder
from dicetalk_jax.parallel import hosts
from dicetalk_jax.weights.folder import Weights

# Sizes that must agree between two networks: (network, its size, other network, its size).
_SIZES = (
  ("emotion_embedder", "features", "emotion_model", "prior_dim"),
  ("emotion_embedder", "speech_features", "audio_encoder", "d_model"),
  ("emotion_model", "features", "unet", "cross_attention_dim"),
  ("audio_projection", "features", "unet", "cross_attention_dim"),
  ("image_encoder", "projection_dim", "unet", "cross_attention_dim"),
  ("audio_projection", "d_model", "audio_encoder", "d_model"),
  ("vae", "latent_channels", "unet", "out_channels"),
)


def check_sizes(weights: Weights | None, architectures: Mapping[str, Mapping]) -> None:
  """Raises InputError if networks of these architectures would not fit the others of a weights folder.

  Every stage calls it before it trains: its result replaces the network in a copy of the folder.
  """
  networks = ({} if weights is None else weights.config["networks"]) | dict(architectures)
  for one, size, other, wanted in _SIZES:
    if one in networks and other in networks and {one, other} & set(architectures):
      ours, theirs = networks[one].get(size), networks[other].get(wanted)
      if None not in (ours, theirs) and ours != theirs:
        raise InputError(
          f"the {one} has {size} {ours} and the {other} has {wanted} {theirs}, and they must be equal; change the "
          f"configuration, or start from weights without that network ({'none' if weights is None else weights.folder})"
        )


def write_result(
  folder: str | os.PathLike,
  base: Weights | None,
  networks: Mapping[str, Mapping],
  architectures: Mapping[str, Mapping],
  config: Mapping | None = None,
) -> Weights:
  """Writes the weights folder of a finished run, whole, in place of an earlier one. All processes call it.

  Args:
    folder: result folder.
    base: weights to copy; None writes `networks` alone.
    networks: trained networks, name -> nested parameters.
    architectures: their entries in config.json.
    config: other top-level entries of config.json.

  Raises OutputError if the folder cannot be written.
  """
  try:
    with replaced_folder(expanded(folder), hosts) as target:
      if base is None:
        Weights.save(target, networks, {"networks": dict(architectures)} | dict(config or {}))
      else:
        base.derive(target, networks, architectures, config=config or {})
  except (OutputError, OSError) as error:
    reason = str(error) if isinstance(error, OutputError) else f"{folder} could not be written: {error.strerror}."
    raise OutputError(
      f"{reason} Training has finished and its last checkpoint is complete: fix this, and the same command writes the "
      "weights."
    ) from error
  return Weights.open(folder)
