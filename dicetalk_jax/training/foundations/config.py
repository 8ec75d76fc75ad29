"""Every knob of training the networks that the published release brings: VAE, Whisper, CLIP, RIFE."""

import dataclasses

from dicetalk_jax.data.batches.pictures import FrameBatchConfig, PortraitBatchConfig
from dicetalk_jax.data.batches.speech import SpeechBatchConfig
from dicetalk_jax.training.config import LoopConfig, OptimizerConfig


@dataclasses.dataclass(frozen=True)
class AutoencoderModelConfig:
  """Sizes of `models.vae.VAE`; the release's are the defaults."""

  block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
  """Of each level, multiples of `norm_num_groups`; each level after the first halves the size."""

  layers_per_block: int = 2
  """Residual blocks of a level; the decoder has one more."""

  latent_channels: int = 4
  """Of the latents that the diffusion model works on."""

  norm_num_groups: int = 32
  """Of every normalisation: at least four channels each, or colours are lost."""


@dataclasses.dataclass(frozen=True)
class AudioEncoderModelConfig:
  """Sizes of `models.audio_encoder.AudioEncoder`; Whisper-tiny's are the defaults. It always hears 30 s, as Whisper."""

  num_mel_bins: int = 80
  """Of the spectrogram."""

  d_model: int = 384
  """Width of its states."""

  encoder_layers: int = 4
  """Transformer layers."""

  encoder_attention_heads: int = 6
  """Of every layer."""

  encoder_ffn_dim: int = 1536
  """Width inside a layer's MLP."""


@dataclasses.dataclass(frozen=True)
class ImageEncoderModelConfig:
  """Sizes of `models.image_encoder.ImageEncoder`; the release's ViT-H/14 are the defaults. It sees 224×224 pixels."""

  hidden_size: int = 1280
  """Width of its layers."""

  intermediate_size: int = 5120
  """Width inside a layer's MLP."""

  projection_dim: int = 1024
  """Of the embedding: the U-Net's cross_attention_dim."""

  num_hidden_layers: int = 32
  """Transformer layers."""

  num_attention_heads: int = 16
  """Of every layer."""

  patch_size: int = 14
  """Side of a patch in pixels, of 224."""


@dataclasses.dataclass(frozen=True)
class FrameInterpolatorModelConfig:
  """Sizes of `models.frame_interpolator.FrameInterpolator`; RIFE's are the defaults."""

  features: int = 90
  """Channels of its blocks; even."""


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
  """The VAE, by drawing frames again: L1 + a Laplacian pyramid + KL, of latents that are drawn."""

  out: str = "runs/autoencoder"
  """Folder of the run: checkpoints, log, and the weights folder that it ends with."""

  data: tuple[str, ...] = ()
  """Sets of clips, as `dicetalk data build` leaves them."""

  weights: str = ""
  """Weights folder that the result joins; training goes on from its VAE, where it has one. None: it alone."""

  model: AutoencoderModelConfig = AutoencoderModelConfig()
  """Sizes of a new VAE."""

  trainable: str = ""
  """A regular expression: the parameters that it is found in the paths of train. With "^decoder" the latents of sets
  that are encoded stay true, and only how they are drawn improves; empty: all train."""

  batches: FrameBatchConfig = dataclasses.field(default_factory=FrameBatchConfig)
  """Runs, frames of each, augmentation."""

  optimizer: OptimizerConfig = dataclasses.field(
    default_factory=lambda: OptimizerConfig(warmup_steps=500, schedule="cosine")
  )
  """Adam, learning rate, clipping, accumulation, moving average."""

  loop: LoopConfig = dataclasses.field(
    default_factory=lambda: LoopConfig(steps=100_000, validate_every=5_000, checkpoint_every=1_000)
  )
  """Steps, and what is written when."""

  pyramid_weight: float = 1.0
  """Of the pyramid's bands, beside L1."""

  pyramid_levels: int = 4
  """Bands, each of half the size of the one before."""

  kl_weight: float = 1e-4
  """Of the mean KL of a latent number from a standard normal: more gives smoother latents and softer pictures."""

  validation_split: str = "test"
  """Of the data: people that are not in training."""

  validation_clips: int = 64
  """At most so many of its clips, spread over all, are drawn in a validation."""

  scaling_clips: int = 256
  """At most so many clips of training tell the spread of latents, of which `scaling_factor` is made."""

  memory_gb: float = 2.0
  """Decoded frames that are kept, for speed alone."""

  workers: int = 0
  """Processes that read data; 0: threads of this one."""


@dataclasses.dataclass(frozen=True)
class AudioEncoderConfig:
  """Whisper's encoder, by linear heads on its states: what is said, how the mouth is held, and how it sounds."""

  out: str = "runs/audio_encoder"
  """Folder of the run: checkpoints, log, and the weights folder that it ends with."""

  data: tuple[str, ...] = ()
  """Sets of drawn clips, whose truth is known, as `dicetalk data build synthetic` leaves them."""

  weights: str = ""
  """Weights folder that the result joins; training goes on from its encoder, where it has one. None: it alone."""

  model: AudioEncoderModelConfig = AudioEncoderModelConfig()
  """Sizes of a new encoder."""

  batches: SpeechBatchConfig = dataclasses.field(default_factory=SpeechBatchConfig)
  """Pieces, their frames, whole chunks, loudness."""

  optimizer: OptimizerConfig = dataclasses.field(
    default_factory=lambda: OptimizerConfig(learning_rate=1e-3, warmup_steps=200, schedule="cosine")
  )
  """Adam, learning rate, clipping, accumulation, moving average."""

  loop: LoopConfig = dataclasses.field(
    default_factory=lambda: LoopConfig(steps=20_000, validate_every=2_000, checkpoint_every=1_000)
  )
  """Steps, and what is written when."""

  phoneme_weight: float = 1.0
  """Of the cross-entropy of phonemes."""

  mouth_weight: float = 1.0
  """Of the squared error of mouth opening and width, in their standard deviations."""

  mel_weight: float = 1.0
  """Of the squared error of the frame's own spectrum, which keeps pitch and loudness in the states."""

  validation_split: str = "test"
  """Of the data: people and sentences that are not in training."""

  validation_clips: int = 64
  """At most so many of its clips, spread over all, are heard in a validation."""

  memory_gb: float = 2.0
  """Spectrograms that are kept, for speed alone; a clip of 4 s takes 0.13 MB."""

  workers: int = 0
  """Processes that read data; 0: threads of this one."""


@dataclasses.dataclass(frozen=True)
class ImageEncoderConfig:
  """CLIP's vision encoder, by contrast of people (as Eq. 7, 8): a person's pictures are alike, whatever the emotion."""

  out: str = "runs/image_encoder"
  """Folder of the run: checkpoints, log, and the weights folder that it ends with."""

  data: tuple[str, ...] = ()
  """Sets of clips, as `dicetalk data build` leaves them."""

  weights: str = ""
  """Weights folder that the result joins; training goes on from its encoder, where it has one. None: it alone."""

  model: ImageEncoderModelConfig = ImageEncoderModelConfig()
  """Sizes of a new encoder."""

  batches: PortraitBatchConfig = dataclasses.field(default_factory=PortraitBatchConfig)
  """People, pictures of each, augmentation."""

  optimizer: OptimizerConfig = dataclasses.field(
    default_factory=lambda: OptimizerConfig(learning_rate=1e-3, warmup_steps=200, schedule="cosine")
  )
  """Adam, learning rate, clipping, accumulation, moving average."""

  loop: LoopConfig = dataclasses.field(
    default_factory=lambda: LoopConfig(steps=10_000, validate_every=1_000, checkpoint_every=1_000)
  )
  """Steps, and what is written when."""

  temperature: float = 0.1
  """τ of the contrastive loss."""

  validation_split: str = "test"
  """Of the data: people that are not in training."""

  validation_pictures: int = 8
  """Of each held-out person, each of another clip, as far as there are so many."""

  memory_gb: float = 2.0
  """Decoded frames that are kept, for speed alone."""

  workers: int = 0
  """Processes that read data; 0: threads of this one."""


@dataclasses.dataclass(frozen=True)
class FrameInterpolatorConfig:
  """RIFE, by drawing the middle one of three consecutive frames at 25 fps: L1 + a Laplacian pyramid."""

  out: str = "runs/frame_interpolator"
  """Folder of the run: checkpoints, log, and the weights folder that it ends with."""

  data: tuple[str, ...] = ()
  """Sets of clips, as `dicetalk data build` leaves them."""

  weights: str = ""
  """Weights folder that the result joins; training goes on from its network, where it has one. None: it alone."""

  model: FrameInterpolatorModelConfig = FrameInterpolatorModelConfig()
  """Sizes of a new network."""

  batches: FrameBatchConfig = dataclasses.field(default_factory=lambda: FrameBatchConfig(batch=16, frames=3))
  """Runs of three frames, augmentation."""

  optimizer: OptimizerConfig = dataclasses.field(
    default_factory=lambda: OptimizerConfig(learning_rate=3e-4, warmup_steps=500, schedule="cosine")
  )
  """Adam, learning rate, clipping, accumulation, moving average."""

  loop: LoopConfig = dataclasses.field(
    default_factory=lambda: LoopConfig(steps=50_000, validate_every=5_000, checkpoint_every=1_000)
  )
  """Steps, and what is written when."""

  pyramid_weight: float = 1.0
  """Of the pyramid's bands, beside L1."""

  pyramid_levels: int = 4
  """Bands, each of half the size of the one before."""

  validation_split: str = "test"
  """Of the data: people that are not in training."""

  validation_clips: int = 64
  """At most so many of its clips, spread over all, are drawn in a validation."""

  memory_gb: float = 2.0
  """Decoded frames that are kept, for speed alone."""

  workers: int = 0
  """Processes that read data; 0: threads of this one."""
