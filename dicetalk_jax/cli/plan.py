"""The verb `plan`."""

import dataclasses
import pathlib
from typing import Annotated, Literal

import tyro

from dicetalk_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Plan:
  """Predict memory, FLOP, traffic and time of a training step on devices that need not be here.

  Example: dicetalk plan --config configs/adaptation_512.py --set batches.batch=64 --mesh fsdp=64 --device v5e
  """

  config: pathlib.Path
  """Preset of `train adaptation` or `train embedder`: a Python file such as those in configs/."""

  mesh: str
  """Devices of each mesh axis, such as data=4,fsdp=16. The axes are data, fsdp, tensor."""

  set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="A.B=VALUE")] = ()
  """Change settings of the preset, such as batches.batch=64."""

  device: str = "v5e"
  """Kind of device: v5e, v5p, h100 (400 Gb/s for each GPU) or h100-node (400 Gb/s for each host of 8)."""

  stage: Literal["adaptation", "embedder"] | None = None
  """Stage to plan, if the preset has both."""

  compile: bool = False
  """Also compile the step for simulated devices, minutes at full size, to include activations in the memory."""

  efficiency: float = 0.4
  """Share of the devices' peak FLOP/s that matrix products reach."""

  def run(self):
    from dicetalk_jax.parallel.mesh import MeshConfig
    from dicetalk_jax.training.overrides import override

    config, mesh = override(self._preset(), self.set), MeshConfig.parse(self.mesh)
    from dicetalk_jax.planning.devices import device_kind
    from dicetalk_jax.planning.training import plan_training

    print(plan_training(config, mesh, device_kind(self.device), self.efficiency, self.compile))

  def _preset(self):
    from dicetalk_jax.config import load_preset
    from dicetalk_jax.training.config import AdaptationConfig, EmbedderConfig

    kinds = {"adaptation": AdaptationConfig, "embedder": EmbedderConfig}
    if self.stage:
      return load_preset(self.config, kinds[self.stage])
    try:
      return load_preset(self.config, AdaptationConfig)
    except InputError:
      return load_preset(self.config, EmbedderConfig)
