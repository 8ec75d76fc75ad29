"""Every knob of training once, as frozen dataclasses; presets in configs/ fill them, `--set a.b=value` changes one."""

import dataclasses
from typing import Literal

from dicetalk_jax.data.batches import EmbedderBatchConfig


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Adam, or AdamW where weights decay, of what trains."""

  learning_rate: float = 1e-4
  """The highest, after warm-up."""

  schedule: Literal["constant", "cosine", "linear"] = "constant"
  """How the learning rate goes on after warm-up, down to `final_scale` of it at the last step."""

  warmup_steps: int = 0
  """Updates over which the learning rate rises in a line to its highest."""

  final_scale: float = 0.0
  """The learning rate at the last step, as a share of the highest; of no effect where it is constant."""

  b1: float = 0.9
  """Adam's β₁."""

  b2: float = 0.999
  """Adam's β₂."""

  eps: float = 1e-8
  """Adam's ε."""

  weight_decay: float = 0.0
  """Decoupled decay (AdamW) of matrices and kernels; biases and scales do not decay."""

  clip_norm: float | None = 1.0
  """Gradients of a larger global norm are shortened to it; none: as they are."""

  accumulate: int = 1
  """Batches whose gradients are averaged for one update."""

  ema_decay: float = 0.999
  """Of the moving average of what trains, slower to begin with; 0: no average is kept."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How long to train, and what is written meanwhile."""

  steps: int = 10_000
  """Updates in all, those of earlier runs in the same folder included."""

  seed: int = 0
  """Of initial parameters, batches and every draw: the same seed and data give the same run."""

  log_every: int = 50
  """Steps between two sets of scalars in the TensorBoard log."""

  validate_every: int = 500
  """Steps between two validations; one more comes at the end."""

  checkpoint_every: int = 500
  """Steps between two checkpoints; one more comes at the end."""

  keep: int = 3
  """The newest so many checkpoints are kept."""

  keep_every: int | None = None
  """Checkpoints at multiples of so many steps are kept for good; none: only the newest."""

  max_skipped: int = 20
  """Training ends after so many steps in a row whose loss or gradients are not finite; each of them is skipped."""


@dataclasses.dataclass(frozen=True)
class EmbedderModelConfig:
  """Sizes of `models.emotion_embedder.EmotionEmbedder`; those of the data come with the data."""

  features: int = 256
  """Of the prior s and of every layer."""

  num_layers: int = 3
  """Transformer layers of each modality."""

  num_fusion_layers: int = 3
  """Cross-attentions from speech to expression (Eq. 2, 3)."""

  num_heads: int = 8
  """Of every attention."""

  mlp: int = 1024
  """Width inside a transformer layer's MLP."""

  dropout_rate: float = 0.1
  """Of attention weights and residual branches, in training."""

  fusion_scale: float = 1.0
  """λ of Eq. 3."""

  inputs: Literal["both", "video", "audio"] = "both"
  """What the embedder takes (Table 5): a modality left out is never seen, in training or after."""


@dataclasses.dataclass(frozen=True)
class EmbedderConfig:
  """Stage 1: the disentangled emotion embedder (§3.1)."""

  data: tuple[str, ...] = ()
  """Encoded folders, as `dicetalk data encode` leaves them."""

  model: EmbedderModelConfig = EmbedderModelConfig()
  """Sizes, and which modalities are taken."""

  batches: EmbedderBatchConfig = dataclasses.field(default_factory=EmbedderBatchConfig)
  """Groups, clips of each, frames, augmentation."""

  optimizer: OptimizerConfig = OptimizerConfig(warmup_steps=500, schedule="cosine")
  """Adam, learning rate, clipping, accumulation, moving average."""

  loop: LoopConfig = LoopConfig()
  """Steps, and what is written when."""

  temperature: float = 0.1
  """τ of the contrastive loss (Eq. 7)."""

  drop_video: float = 0.2
  """Share of the rows with both modalities that train without expression."""

  drop_audio: float = 0.2
  """Share of the rows with both modalities that train without speech; never both."""

  validation_split: str = "test"
  """Of the data: people that are not in training."""

  workers: int = 0
  """Processes that read data; 0: threads of this one."""
