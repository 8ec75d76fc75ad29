"""A summary of a weights folder for people: `dicetalk info`."""

import dataclasses
import pathlib

from dicetalk_jax.files import readable_size

# The sizes of an architecture that `dicetalk info` shows.
_SIZES = (
  *("block_out_channels", "num_attention_heads", "cross_attention_dim", "adapter_scales", "latent_channels"),
  *("hidden_size", "num_hidden_layers", "patch_size", "d_model", "encoder_layers", "num_mel_bins"),
  *("num_tokens", "features", "prior_dim", "num_codes", "num_classes", "speech_features", "num_layers", "inputs"),
)


@dataclasses.dataclass(frozen=True)
class NetworkInfo:
  """One network of a weights folder; `bytes` as stored."""

  parameters: int
  bytes: int
  dtypes: dict[str, int]
  architecture: dict


@dataclasses.dataclass(frozen=True)
class Info:
  """Contents of a weights folder; str() formats them for people."""

  folder: pathlib.Path
  version: int
  networks: dict[str, NetworkInfo]
  emotions: list[str]
  source: list[str]

  def __str__(self):
    rows = [f"{self.folder}: format version {self.version}", ""]
    stored = {name: ", ".join(network.dtypes) for name, network in self.networks.items()}
    width = max(map(len, ("stored as", *stored.values())))
    rows.append(f"{'network':<20}{'parameters':>14}{'size':>11}  {'stored as':<{width}}  architecture")
    for name, network in self.networks.items():
      facts = ", ".join(f"{key} {_short(value)}" for key, value in network.architecture.items() if key in _SIZES)
      size = readable_size(network.bytes)
      rows.append(f"{name:<20}{network.parameters:>14,}{size:>11}  {stored[name]:<{width}}  {facts}")
    total = sum(network.bytes for network in self.networks.values())
    parameters = sum(network.parameters for network in self.networks.values())
    rows += [f"{'all':<20}{parameters:>14,}{readable_size(total):>11}", ""]
    rows.append(f"emotions: {', '.join(self.emotions) or 'none (convert with --priors DIR to have some)'}")
    rows.append(f"source: {', '.join(self.source) or 'trained'}")
    return "\n".join(rows)


def _short(value) -> str:
  return "/".join(map(str, value)) if isinstance(value, list) else str(value)
