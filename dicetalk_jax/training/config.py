"""Settings of training as frozen dataclasses. Presets in configs/ fill them; `--set a.b=value` changes one."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Literal

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.data.batches.diffusion import DiffusionBatchConfig
from dicetalk_jax.data.batches.embedder import EmbedderBatchConfig
from dicetalk_jax.diffusion.losses import SIGMA_MEAN, SIGMA_STD
from dicetalk_jax.errors import InputError
from dicetalk_jax.parallel.mesh import MeshConfig


def check_least(config, least: Mapping[str, float], prefix: str = "") -> None:
  """Raises InputError for a setting below its least value, {"group.setting": least value}. None is no such value."""
  for path, smallest in least.items():
    value = operator.attrgetter(path)(config)
    if value is not None and value < smallest:
      raise InputError(f"{prefix}{path} is {value}; give a number of at least {smallest}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Adam (AdamW with weight decay) or Muon."""

  kind: Literal["adam", "muon"] = "adam"
  """Optimizer. `muon` (Jordan et al. 2024) updates kernels by orthogonalised momentum, scaled to the size of Adam's
  updates (Liu et al. 2025), and all other parameters by Adam with Nesterov momentum."""

  learning_rate: float = 1e-4
  """Peak learning rate, reached after the warm-up."""

  schedule: Literal["constant", "cosine", "linear"] = "constant"
  """Learning rate after the warm-up: constant, or decaying to 0 at the last step."""

  warmup_steps: int = 0
  """Updates over which the learning rate rises linearly to its peak."""

  weight_decay: float = 0.0
  """Decoupled weight decay (AdamW) of matrices and kernels. Biases and scales do not decay."""

  clip_norm: float | None = 1.0
  """Maximum global norm of the gradients. `none`: no clipping."""

  accumulate: int = 1
  """Batches whose gradients are averaged for one update."""

  ema_decay: float = 0.999
  """Decay of the moving average (EMA) of the trained parameters, lower at the start. 0: no average."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """Number of steps, and how often the run logs, validates and saves."""

  steps: int = 10_000
  """Updates in total, including those of earlier starts in the same folder."""

  seed: int = 0
  """Seed of initial parameters, batches and noise. The same seed and data give the same run."""

  log_every: int = 50
  """Steps between two points of the TensorBoard log."""

  validate_every: int = 500
  """Steps between two validations. There is one more at the end."""

  checkpoint_every: int = 500
  """Steps between two checkpoints. There is one more at the end."""

  keep: int = 3
  """Number of newest checkpoints to keep."""

  keep_every: int | None = None
  """Also keep the checkpoints at multiples of this step for good. `none`: keep only the newest."""

  max_skipped: int = 20
  """End the run after this many consecutive steps with a non-finite loss or gradient. Each of them is skipped."""


@dataclasses.dataclass(frozen=True)
class StageConfig:
  """Settings that all stages share."""

  out: str = ""
  """Run folder: checkpoints, TensorBoard log and, at the end, the result. Default: runs/STAGE."""

  weights: str = ""
  """Weights folder to start from. The result is a copy of it with the trained networks. Empty: start from nothing."""

  optimizer: OptimizerConfig = OptimizerConfig(warmup_steps=500, schedule="cosine")
  """Optimizer, learning rate, clipping, accumulation, moving average."""

  loop: LoopConfig = LoopConfig()
  """Steps, logging, validation, checkpoints."""

  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  """Devices of all hosts as data x fsdp x tensor. A batch is split over data and fsdp."""

  workers: int = 0
  """Processes that read data. 0: read in threads of this process."""

  validation_split: str = "test"
  """Split of the data to validate on. Its people are not in training."""

  STAGE = ""

  def __post_init__(self):
    object.__setattr__(self, "out", self.out or f"runs/{self.STAGE}")


@dataclasses.dataclass(frozen=True)
class EmbedderModelConfig:
  """Sizes of a new `models.emotion_embedder.EmotionEmbedder`. The data decides the size of its inputs."""

  features: int = 256
  """Width of the emotion prior s and of every layer."""

  num_layers: int = 3
  """Transformer layers of each modality."""

  num_fusion_layers: int = 3
  """Cross-attention layers from speech to expression (Eq. 2, 3)."""

  num_heads: int = 8
  """Attention heads of every layer."""

  mlp: int = 1024
  """Hidden width of each transformer layer's MLP."""

  dropout_rate: float = 0.1
  """Dropout of attention weights and residual branches in training."""

  fusion_scale: float = 1.0
  """λ of Eq. 3."""

  inputs: Literal["both", "video", "audio"] = "both"
  """Modalities that the embedder takes (Table 5). It ignores the other one in training and in use."""


@dataclasses.dataclass(frozen=True)
class EmbedderConfig(StageConfig):
  """Stage 1: the disentangled emotion embedder (§3.1)."""

  data: tuple[str, ...] = ()
  """Encoded sets, as `dicetalk data encode` writes them."""

  init: Literal["seed", "weights"] = "seed"
  """Initial parameters: drawn from the seed, or the embedder of the weights (fine-tuning; `model` is then ignored)."""

  model: EmbedderModelConfig = EmbedderModelConfig()
  """Sizes and modalities of a new embedder."""

  batches: EmbedderBatchConfig = dataclasses.field(default_factory=EmbedderBatchConfig)
  """Groups, clips of each group, frames, augmentation."""

  temperature: float = 0.1
  """τ of the contrastive loss (Eq. 7)."""

  drop_video: float = 0.2
  """Share of the clips with both modalities that train without expression."""

  drop_audio: float = 0.2
  """Share of the clips with both modalities that train without speech."""

  STAGE = "embedder"


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """Terms of Eq. 15, and how often a condition is dropped (§4.1). A sample has at most one of the four drops."""

  drop_audio: float = 0.05
  """Share of samples without speech."""

  drop_image: float = 0.05
  """Share of samples without portrait."""

  drop_emotion: float = 0.05
  """Share of samples without emotion."""

  drop_all: float = 0.05
  """Share of samples without any condition."""

  emotion_weight: float = 0.1
  """λ of Eq. 15. The paper does not give its value. 0: the ablation without L_cls."""

  sample_prior: bool = True
  """Draw s from the embedder's Gaussian (Eq. 6). False: use its mean, the ablation of the Gaussian prior."""

  sigma_mean: float = SIGMA_MEAN
  """Mean of ln σ."""

  sigma_std: float = SIGMA_STD
  """Standard deviation of ln σ."""


@dataclasses.dataclass(frozen=True)
class SamplesConfig:
  """Videos of held-out people that each validation generates, to look at."""

  clips: int = 2
  """Number of videos. 0: none."""

  generation: GenerationConfig = dataclasses.field(default_factory=lambda: GenerationConfig(steps=10))
  """Settings of the generation. Each video is one window of the clip's size; size, window, shift and overlap are
  ignored."""


_CONDITIONING = (r"^audio_projection/", r"^emotion_model/", r"^pose_guider/")
# Names for what may train: regular expressions of "network/path".
TRAINABLE = {
  "adapters": (r"^unet/.*/attn2/to_[kv]_ip_\d+/", *_CONDITIONING),
  "attention": (r"^unet/.*attentions_\d+/", *_CONDITIONING),
  "all": (r"^unet/", *_CONDITIONING),
}


@dataclasses.dataclass(frozen=True)
class AdaptationConfig(StageConfig):
  """Stage 2: the compositional adaptation of the diffusion model (§3.3, §4.1).

  Its weights are those that encoded the data; they have the emotion embedder.
  """

  networks: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
  """Architectures, as in config.json, of networks that the weights do not have. These start untrained."""

  emotional: tuple[str, ...] = ()
  """Encoded sets of clips with known emotions."""

  regular: tuple[str, ...] = ()
  """Encoded sets of other clips. Half of each batch comes from these (§4.1)."""

  size: int = int(GenerationConfig.size)
  """Height and width of the clips, in pixels."""

  trainable: tuple[str, ...] = ("adapters",)
  """What trains: `adapters`, `attention`, `all`, or regular expressions of paths (unet/…, emotion_model/…)."""

  conditioning: Literal["bank", "prior", "learnable"] = "bank"
  """How the prior s becomes the emotion tokens E_s: by the paper's bank, alone, or by learnt queries (Table 4)."""

  objective: ObjectiveConfig = ObjectiveConfig()
  """Terms of Eq. 15: weights, drops, noise levels."""

  batches: DiffusionBatchConfig = dataclasses.field(default_factory=DiffusionBatchConfig)
  """Clips of a batch, their frames, augmentation."""

  optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, warmup_steps=500)
  """Optimizer, learning rate, clipping, accumulation, moving average."""

  samples: SamplesConfig = dataclasses.field(default_factory=SamplesConfig)
  """Videos to look at."""

  dtype: Literal["bfloat16", "float32"] | None = None
  """Compute type of the U-Net, and storage type where it is frozen. `none`: bfloat16, or float32 on a CPU."""

  remat: bool | Literal["apart"] = True
  """Recompute the inside of each block in the backward pass: a third more arithmetic, a small part of the memory.
  `apart`: recompute parts of blocks as well, each in a conditional that the compiler moves nothing out of: seven tenths
  more arithmetic, the least memory. Use it on a CPU, whose compiler otherwise holds the insides of all blocks."""

  validation_batches: int = 8
  """Batches of the validation loss."""

  STAGE = "adaptation"
