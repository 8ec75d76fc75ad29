"""Every knob of an evaluation."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """How much is made and measured."""

  clips: int = 64
  """Videos of each trial."""

  people: int = 16
  """Held-out people who speak in them."""

  gallery: int = 100
  """People among whom a face is looked for."""

  interpolations: int = 4
  """People whose face goes from angry to happy."""

  interpolation_steps: int = 9
  """Steps of that way, a video each."""

  seconds: float = 2.0
  """Of each video at most."""
