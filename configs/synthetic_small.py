"""All stages from nothing on the drawn world at 64 pixels, minutes each on a CPU. docs/training.md has all commands.

dicetalk data build synthetic --out data/small --size 64 --people 48 --test-people 12 --takes 1
dicetalk train autoencoder        --config configs/synthetic_small.py     # then audio-encoder, image-encoder
dicetalk data encode data/small encoded/small --weights runs/small/image_encoder/weights
dicetalk train embedder           --config configs/synthetic_small.py     # then adaptation

Each needs under 3 GB of memory. docs/training.md has times on two cores.
"""

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.data.batches.diffusion import DiffusionBatchConfig
from dicetalk_jax.data.batches.embedder import EmbedderBatchConfig
from dicetalk_jax.data.batches.pictures import FrameBatchConfig, PortraitBatchConfig
from dicetalk_jax.data.batches.speech import SpeechBatchConfig
from dicetalk_jax.training.config import (
  AdaptationConfig,
  EmbedderConfig,
  EmbedderModelConfig,
  LoopConfig,
  OptimizerConfig,
  SamplesConfig,
)
from dicetalk_jax.training.foundations import config as foundations
from dicetalk_jax.weights.architectures import small_conditioning, small_unet

DATA, ENCODED, RUNS = "data/small", "encoded/small", "runs/small"
# Width of tokens, embeddings, Whisper's states and priors.
WIDTH = 64


def loop(steps):
  return LoopConfig(steps=steps, log_every=50, validate_every=10**6, checkpoint_every=200)


def optimizer(rate, warmup):
  return OptimizerConfig(learning_rate=rate, warmup_steps=warmup, schedule="cosine", ema_decay=0.98)


autoencoder = foundations.AutoencoderConfig(
  out=f"{RUNS}/autoencoder",
  data=(DATA,),
  model=dict(block_out_channels=[32, 32, 64], layers_per_block=1, norm_num_groups=8),
  batches=FrameBatchConfig(batch=2, frames=2, recolour=0.2),
  # A higher rate destroys the initial parameters, which copy the picture.
  optimizer=optimizer(2e-4, 20),
  loop=loop(1000),
  kl_weight=3e-4,
)

audio_encoder = foundations.AudioEncoderConfig(
  out=f"{RUNS}/audio_encoder",
  data=(DATA,),
  weights=f"{RUNS}/autoencoder/weights",
  model=dict(d_model=WIDTH, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128),
  batches=SpeechBatchConfig(batch=16, frames=64, chunks=1),
  optimizer=optimizer(3e-3, 50),
  loop=loop(700),
)

image_encoder = foundations.ImageEncoderConfig(
  out=f"{RUNS}/image_encoder",
  data=(DATA,),
  weights=f"{RUNS}/audio_encoder/weights",
  model=dict(
    hidden_size=64,
    intermediate_size=128,
    projection_dim=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=4,
    patch_size=28,
  ),
  batches=PortraitBatchConfig(people=32, pictures=2),
  optimizer=optimizer(1e-3, 50),
  loop=loop(400),
)

embedder = EmbedderConfig(
  out=f"{RUNS}/embedder",
  weights=f"{RUNS}/image_encoder/weights",
  data=(ENCODED,),
  model=EmbedderModelConfig(features=WIDTH, num_layers=2, num_fusion_layers=2, num_heads=4, mlp=256),
  batches=EmbedderBatchConfig(groups=24, clips=3, frames=48),
  optimizer=optimizer(1e-3, 50),
  loop=loop(800),
)

_CONDITIONING = small_conditioning(32, 64, width=WIDTH, pose_features=(8, 16, 32))

adaptation = AdaptationConfig(
  out=f"{RUNS}/adaptation",
  weights=f"{RUNS}/embedder/weights",
  networks={
    "unet": small_unet((32, 64), width=WIDTH, groups=8),
    **_CONDITIONING,
    "emotion_model": _CONDITIONING["emotion_model"] | {"prior_dim": WIDTH},
  },
  emotional=(ENCODED,),
  size=64,
  trainable=("all",),
  batches=DiffusionBatchConfig(batch=4, frames=4, prior_frames=48, reference="person"),
  optimizer=optimizer(2e-3, 50),
  loop=loop(1500),
  samples=SamplesConfig(generation=GenerationConfig(steps=10, identity_scale=1.5, emotion_scale=2.0)),
  remat=False,
)
