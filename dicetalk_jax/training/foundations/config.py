"""Settings of the stages that train the networks of the published release from nothing: VAE, Whisper, CLIP, RIFE."""

import dataclasses
from collections.abc import Mapping

from dicetalk_jax.data.batches.pictures import FrameBatchConfig, PortraitBatchConfig
from dicetalk_jax.data.batches.speech import SpeechBatchConfig
from dicetalk_jax.parallel.mesh import MeshConfig
from dicetalk_jax.training.config import LoopConfig, OptimizerConfig, StageConfig


@dataclasses.dataclass(frozen=True)
class FoundationConfig(StageConfig):
  """Settings of these stages. Training continues from the weights' own network if they have one."""

  data: tuple[str, ...] = ()
  """Sets of clips, as `dicetalk data build` writes them."""

  model: Mapping = dataclasses.field(default_factory=dict)
  """Sizes of a new network: entries of its config.json that differ from the release's."""

  optimizer: OptimizerConfig = dataclasses.field(
    default_factory=lambda: OptimizerConfig(learning_rate=1e-3, warmup_steps=200, schedule="cosine")
  )
  """Optimizer, learning rate, clipping, accumulation, moving average."""

  loop: LoopConfig = dataclasses.field(
    default_factory=lambda: LoopConfig(steps=20_000, validate_every=2_000, checkpoint_every=1_000)
  )
  """Steps, logging, validation, checkpoints."""

  mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(1, 1, 1))
  """Devices of this host as data x fsdp x tensor."""


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig(FoundationConfig):
  """The VAE: L1, a Laplacian pyramid and the KL divergence of its latents."""

  trainable: str = ""
  """Regular expression of the parameter paths that train; empty: all. `^decoder` keeps encoded sets valid."""

  batches: FrameBatchConfig = dataclasses.field(default_factory=FrameBatchConfig)
  """Runs of frames, their length, augmentation."""

  kl_weight: float = 1e-4
  """Weight of the mean KL divergence of a latent value from a standard normal. More gives smoother latents and softer
  pictures."""

  STAGE = "autoencoder"


@dataclasses.dataclass(frozen=True)
class AudioEncoderConfig(FoundationConfig):
  """Whisper's encoder: linear heads read phoneme, mouth and spectrum from its states. Needs drawn clips."""

  batches: SpeechBatchConfig = dataclasses.field(default_factory=SpeechBatchConfig)
  """Pieces of speech, their frames, whole chunks, loudness."""

  STAGE = "audio_encoder"


@dataclasses.dataclass(frozen=True)
class ImageEncoderConfig(FoundationConfig):
  """CLIP's vision encoder: pictures of one person are alike (a contrastive loss as in Eq. 7, 8)."""

  batches: PortraitBatchConfig = dataclasses.field(default_factory=PortraitBatchConfig)
  """People, pictures of each, augmentation."""

  STAGE = "image_encoder"


@dataclasses.dataclass(frozen=True)
class FrameInterpolatorConfig(FoundationConfig):
  """RIFE: the middle one of three consecutive frames at 25 fps, by L1 and a Laplacian pyramid."""

  batches: FrameBatchConfig = dataclasses.field(default_factory=lambda: FrameBatchConfig(batch=16, frames=3))
  """Runs of three frames, augmentation."""

  STAGE = "frame_interpolator"
