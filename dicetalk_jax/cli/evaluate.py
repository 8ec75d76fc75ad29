"""The verb `evaluate`."""

import dataclasses
import pathlib

import tyro

from dicetalk_jax.cli.terminal import progress_bars
from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.evaluation.config import EvaluationConfig


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """Measure how well a model does what it is told, on drawn people and sentences that it has never seen.

  Makes videos, measures emotion, lips and likeness with a network that has seen true frames alone, and writes report.md
  with plots and pictures. The same command goes on where it was stopped; more clips may be asked for later.

  Example: dicetalk evaluate --out report --measuring runs/drawn/measuring --weights weights_drawn
  """

  out: pathlib.Path
  """Folder of the report and of all measurements."""

  measuring: pathlib.Path
  """Folder of `dicetalk train measuring`."""

  weights: pathlib.Path | None = None
  """Weights folder; default: the small weights inside the package."""

  evaluation: tyro.conf.OmitArgPrefixes[EvaluationConfig] = dataclasses.field(default_factory=EvaluationConfig)

  generation: tyro.conf.OmitArgPrefixes[GenerationConfig] = dataclasses.field(
    default_factory=lambda: GenerationConfig(size=128)
  )

  def run(self) -> None:
    import platform

    from dicetalk_jax.evaluation.evaluate import evaluate
    from dicetalk_jax.evaluation.measuring import Measuring
    from dicetalk_jax.evaluation.report import check_plotting, write_report
    from dicetalk_jax.inference.pipeline import DiceTalk
    from dicetalk_jax.parallel.compilation import keep_compiled_programs

    check_plotting()
    keep_compiled_programs()
    measuring = Measuring.load(self.measuring)
    talker = DiceTalk.load(self.weights)
    with progress_bars() as progress:
      found = evaluate(talker, measuring, self.out, self.evaluation, self.generation, progress)
    made_with = f"Weights: {talker.weights.folder.name}; {platform.machine()}"
    path = write_report(found, self.out, made_with)
    print(path.read_text())
    print(f"{path}: with plots.png and sheet.png beside it")
