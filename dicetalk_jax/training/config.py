"""Every knob of training once, as frozen dataclasses; presets in configs/ fill them, `--set a.b=value` changes one."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.data.batches.diffusion import DiffusionBatchConfig
from dicetalk_jax.data.batches.embedder import EmbedderBatchConfig
from dicetalk_jax.diffusion.losses import SIGMA_MEAN, SIGMA_STD
from dicetalk_jax.parallel.mesh import MeshConfig


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Adam, AdamW where weights decay, or Muon, of what trains."""

  kind: Literal["adam", "muon"] = "adam"
  """Muon (Jordan et al. 2024): kernels of products and convolutions move by orthogonalised momentum, about as far as
  Adam would move them (Liu et al. 2025), all else by Adam with Nesterov's momentum."""

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

  out: str = "runs/embedder"
  """Folder of the run: checkpoints, log, and the weights folder that it ends with."""

  weights: str = ""
  """Weights folder that the data was encoded with; the run ends with a copy that has the embedder. None: it alone."""

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

  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  """The devices of all hosts as data x fsdp x tensor; a batch, of all hosts together, is split over data and fsdp."""

  workers: int = 0
  """Processes that read data; 0: threads of this one."""


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """What Eq. 15 is made of, and how often a condition is dropped (§4.1). Drops exclude each other."""

  drop_audio: float = 0.05
  """Share of samples whose speech is dropped."""

  drop_image: float = 0.05
  """Share of samples whose portrait is dropped."""

  drop_emotion: float = 0.05
  """Share of samples whose emotion is dropped."""

  drop_all: float = 0.05
  """Share of samples of which everything is dropped."""

  emotion_weight: float = 0.1
  """λ of Eq. 15; the paper does not say its value. 0 is the ablation without L_cls."""

  sample_prior: bool = True
  """s is drawn from the embedder's Gaussian (Eq. 6); without, it is the mean, the ablation of the emotion prior."""

  sigma_mean: float = SIGMA_MEAN
  """Of ln σ."""

  sigma_std: float = SIGMA_STD
  """Of ln σ."""


@dataclasses.dataclass(frozen=True)
class SamplesConfig:
  """Clips of held-out people that are generated at each validation, to look at."""

  clips: int = 2
  """How many; 0: none."""

  generation: GenerationConfig = dataclasses.field(default_factory=lambda: GenerationConfig(steps=10))
  """How they are generated. Each is one window of the clip's size, so size, window, shift and overlap do not matter."""


_OWN = (r"^audio_projection/", r"^emotion_model/", r"^pose_guider/")
# What may train, by name: regular expressions of "network/path".
TRAINABLE = {
  "adapters": (r"^unet/.*/attn2/to_[kv]_ip_\d+/", *_OWN),
  "attention": (r"^unet/.*attentions_\d+/", *_OWN),
  "all": (r"^unet/", *_OWN),
}


@dataclasses.dataclass(frozen=True)
class AdaptationConfig:
  """Stage 2: the compositional adaptation of the diffusion model (§3.3, §4.1)."""

  out: str = "runs/adaptation"
  """Folder of the run: checkpoints, log, samples, and the weights folder that it ends with."""

  weights: str = "weights"
  """Weights folder to begin with, that the data was encoded with; it has the emotion embedder."""

  networks: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
  """Architectures of networks that the weights do not have, which then begin untrained."""

  emotional: tuple[str, ...] = ()
  """Encoded folders of clips whose emotions are known."""

  regular: tuple[str, ...] = ()
  """Encoded folders of other clips; half of each batch is of these (§4.1)."""

  size: int = int(GenerationConfig.size)
  """Height and width of the clips, in pixels."""

  trainable: tuple[str, ...] = ("adapters",)
  """What trains: adapters, attention or all, or regular expressions of parameter paths (unet/…, emotion_model/…)."""

  conditioning: Literal["bank", "prior", "learnable"] = "bank"
  """How the prior becomes E_s: the paper's bank, or the prior alone, or learnt queries that look at it."""

  objective: ObjectiveConfig = ObjectiveConfig()
  """Eq. 15: weights, drops, noise levels; its other ablations."""

  batches: DiffusionBatchConfig = dataclasses.field(default_factory=DiffusionBatchConfig)
  """Clips in a batch, their frames, augmentation."""

  optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, warmup_steps=500)
  """Adam, learning rate, clipping, accumulation, moving average."""

  loop: LoopConfig = LoopConfig()
  """Steps, and what is written when."""

  samples: SamplesConfig = dataclasses.field(default_factory=SamplesConfig)
  """Clips to look at."""

  dtype: Literal["bfloat16", "float32"] | None = None
  """What the networks compute in, and what the frozen U-Net is kept in; none: bfloat16, float32 on a CPU."""

  remat: bool | Literal["apart"] = True
  """Compute each block's inside anew in the backward pass: a third more arithmetic for a small part of the memory.

  apart: parts of blocks once more by themselves, each in a branch that the compiler moves nothing out of; for seven
  tenths more arithmetic less memory, and the way for a CPU, whose compiler else has all insides at once.
  """

  remat_policy: str | None = None
  """What is kept all the same, of jax.checkpoint_policies: dots_with_no_batch_dims_saveable, … ; none: nothing."""

  validation_split: str = "test"
  """Of the data: people that are not in training."""

  validation_batches: int = 8
  """The loss is validated on so many batches."""

  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  """The devices of all hosts as data x fsdp x tensor; a batch, of all hosts together, is split over data and fsdp."""

  workers: int = 0
  """Processes that read data; 0: threads of this one."""
