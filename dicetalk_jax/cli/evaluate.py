"""The verb `evaluate`."""

import dataclasses
import pathlib

import tyro

from dicetalk_jax.cli.terminal import progress_bars
from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.files import check_folder, protect_inputs


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """Measure a model on drawn people and sentences that no training split contains.

  Generates videos and measures emotion, lip synchronisation and identity with a network trained on true frames only.
  Writes report.md, plots.png and sheet.png. Run the same command again to resume; a larger --clips adds videos.

  Example: dicetalk evaluate --out report --measuring runs/drawn/measuring --weights weights_drawn
  """

  out: pathlib.Path
  """Folder for the report and the measurements."""

  measuring: pathlib.Path
  """Folder of a finished `dicetalk train measuring`."""

  weights: pathlib.Path | None = None
  """Weights folder, or user/repo on the Hugging Face hub. Default: the small weights inside the package."""

  clips: int = 64
  """Videos per trial."""

  people: int = 16
  """Number of people in the videos, at least 3."""

  seconds: float = 2.0
  """Maximum length of each video."""

  generation: tyro.conf.OmitArgPrefixes[GenerationConfig] = dataclasses.field(
    default_factory=lambda: GenerationConfig(size=128)
  )

  def run(self) -> None:
    import platform

    from dicetalk_jax.evaluation.drawn_cases import World, drawn_cases
    from dicetalk_jax.evaluation.evaluate import evaluate
    from dicetalk_jax.evaluation.networks.measuring import Measuring
    from dicetalk_jax.evaluation.report import check_plotting, write_report
    from dicetalk_jax.inference.pipeline import DiceTalk
    from dicetalk_jax.parallel.compilation import keep_compiled_programs
    from dicetalk_jax.weights.folder import Weights

    check_plotting()
    inputs = {"weights folder": self.weights or Weights.bundled(), "measuring network": self.measuring}
    protect_inputs(self.out, inputs, inside=True)
    check_folder(self.out, "evaluation", "settings.json")
    keep_compiled_programs()
    measuring = Measuring.load(self.measuring)
    talker = DiceTalk.load(self.weights)
    world = World(self.generation.seed, self.people, int(self.generation.size), self.seconds)
    with progress_bars() as progress:
      evaluation = evaluate(talker, measuring, drawn_cases(world, self.clips), self.out, self.generation, progress)
    path = write_report(evaluation, self.out, f"Weights: {talker.weights.folder.name}; {platform.machine()}")
    print(path.read_text())
    print(f"{path}, plots.png and sheet.png written")
