"""The verb `plan`."""

import dataclasses
import pathlib
from typing import Annotated, Literal

import tyro

from dicetalk_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Plan:
  """Tell what a step of training would take on a mesh of devices, none of which has to be here.

  Example: dicetalk plan --config configs/adaptation_512.py --set batches.batch=64 --mesh fsdp=64 --device v5e
  """

  config: pathlib.Path
  """Preset of `train adaptation` or `train embedder`, a Python file such as those in configs/."""

  mesh: str
  """How many devices each axis has, as in data=4,fsdp=16; axes: data, fsdp, tensor."""

  set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="A.B=VALUE")] = ()
  """Change one setting of the preset, such as batches.batch=64; as often as wanted."""

  device: str = "v5e"
  """What the devices are: v5e, v5p, h100 (400 Gb/s for each GPU) or h100-node (for each host of 8)."""

  stage: Literal["adaptation", "embedder"] | None = None
  """Which stage is planned, of a preset that has both."""

  compile: bool = True
  """Compile the step, minutes at full size; without, only what shapes and shardings say, in well under a minute."""

  compiler: Literal["cpu", "tpu"] = "cpu"
  """The CPU's for simulated devices, or that of TPUs, without TPUs: it needs libtpu, as requirements-tpu.txt has it."""

  efficiency: float = 0.4
  """Share of the devices' peak that products are taken to reach."""

  text: pathlib.Path | None = None
  """Write the compiled program there, to look at."""

  def run(self):
    from dicetalk_jax.parallel.mesh import MeshConfig
    from dicetalk_jax.planning.devices import device_kind
    from dicetalk_jax.planning.training import plan_training
    from dicetalk_jax.training.overrides import override

    kind, mesh = device_kind(self.device), MeshConfig.parse(self.mesh)
    if self.compiler == "tpu" and not kind.shapes:
      raise InputError(f"the compiler of TPUs does not know a {kind.name}; plan it with --compiler cpu")
    config = override(self._preset(), self.set)
    compiler = self.compiler if self.compile else "none"
    plan = plan_training(config, mesh, kind, compiler, self.efficiency, self.text.write_text if self.text else None)
    print(plan)

  def _preset(self):
    from dicetalk_jax.config import load_preset
    from dicetalk_jax.training.config import AdaptationConfig, EmbedderConfig

    kinds = {"adaptation": AdaptationConfig, "embedder": EmbedderConfig}
    for name, kind in kinds.items():
      if self.stage in (name, None):
        try:
          return load_preset(self.config, kind)
        except InputError:
          if self.stage or name == "embedder":
            raise
    raise AssertionError("one of them is there, or has raised")
