"""All stages from nothing on the drawn world at 128 pixels, on a CPU.

dicetalk data build synthetic --out data/drawn --people 48 --test-people 12 --takes 1
dicetalk data build synthetic --out data/people --people 650 --test-people 4 --takes 1 --scenes 6 --longest 24 \
  --seed 3 --voices any
for stage in autoencoder image-encoder audio-encoder; do
  dicetalk train $stage --config configs/synthetic_128.py
done
dicetalk train autoencoder --config configs/synthetic_128.py --out runs/drawn/faces \
  --set weights=runs/drawn/audio_encoder/weights --set data=data/people --set batches.faces=0.8 --set batches.batch=8 \
  --set batches.frames=1 --set optimizer.kind=muon --set loop.steps=2800
dicetalk train frame-interpolator --config configs/synthetic_128.py
for set in drawn people; do
  dicetalk data encode data/$set encoded/$set --weights runs/drawn/frame_interpolator/weights
done
dicetalk train embedder   --config configs/synthetic_128.py
dicetalk train adaptation --config configs/synthetic_128.py
dicetalk widen runs/drawn/adaptation/weights runs/drawn/wider
dicetalk train adaptation --config configs/synthetic_128.py --out runs/drawn/wide \
  --set weights=runs/drawn/wider --set optimizer.schedule=constant --set loop.steps=900
dicetalk train adaptation --config configs/synthetic_128.py --out runs/drawn/windows \
  --set weights=runs/drawn/wide/weights --set batches.batch=4 --set batches.frames=4 --set loop.steps=3000
for run in 0 1; do
  dicetalk train adaptation --config configs/synthetic_128.py --out runs/drawn/strong_$run \
    --set weights=runs/drawn/windows/weights --set batches.min_level=3 --set objective.sigma_mean=1 \
    --set optimizer.schedule=constant --set loop.steps=1500 --set loop.seed=$run
done
dicetalk average runs/drawn/strong_[01]/weights --out runs/drawn/strong
for frames in 1 2; do
  dicetalk train adaptation --config configs/synthetic_128.py --out runs/drawn/last_$frames \
    --set weights=runs/drawn/strong --set batches.min_level=3 --set objective.sigma_mean=1 \
    --set batches.frames=$frames --set batches.batch=$((16 / frames)) --set loop.steps=760 --set loop.seed=$frames
done
dicetalk average runs/drawn/last_[12]/weights --out runs/drawn/last
dicetalk priors encoded/drawn --weights runs/drawn/last --out weights_drawn --min-level 3
dicetalk pack weights_drawn small --config configs/synthetic_128.py

Needs up to 3.5 GB of memory. docs/training.md has times on two cores, and describes the result in the package.
"""

import dataclasses

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.data.batches.diffusion import DiffusionBatchConfig
from dicetalk_jax.data.batches.embedder import EmbedderBatchConfig
from dicetalk_jax.data.batches.pictures import FrameBatchConfig, PortraitBatchConfig
from dicetalk_jax.data.batches.speech import SpeechBatchConfig
from dicetalk_jax.evaluation.measuring_stage import MeasuringConfig
from dicetalk_jax.training.config import (
  AdaptationConfig,
  EmbedderConfig,
  EmbedderModelConfig,
  LoopConfig,
  ObjectiveConfig,
  OptimizerConfig,
  SamplesConfig,
)
from dicetalk_jax.training.foundations import config as foundations
from dicetalk_jax.weights.architectures import small_conditioning, small_unet

# Defaults that `dicetalk pack` stores in the weights. Noise above 30 hides a latent of this size completely and noise
# below 0.1 is invisible, so steps there are wasted. The VAE learnt from single frames and decodes several worse.
generation = GenerationConfig(
  size=128,
  steps=6,
  sigma_max=30.0,
  sigma_min=0.1,
  window=4,
  shift=1,
  identity_scale=1.0,
  emotion_scale=5.0,
  decode_chunk=1,
)
# In PEOPLE, voices have any emotion. If voice and face always agreed, the U-Net would take the emotion from the voice.
DATA, ENCODED, PEOPLE, RUNS = "data/drawn", "encoded/drawn", "encoded/people", "runs/drawn"
# Width of tokens, embeddings, Whisper's states and priors.
WIDTH = 64


def loop(steps):
  return LoopConfig(steps=steps, log_every=50, validate_every=10**6, checkpoint_every=200)


def optimizer(rate, warmup, decay=0.98):
  return OptimizerConfig(learning_rate=rate, warmup_steps=warmup, schedule="cosine", ema_decay=decay)


autoencoder = foundations.AutoencoderConfig(
  out=f"{RUNS}/autoencoder",
  data=(DATA,),
  model=dict(block_out_channels=[32, 32, 64, 64], layers_per_block=1, latent_channels=8, norm_num_groups=8),
  # A quarter of each picture: more pictures for the same arithmetic.
  batches=FrameBatchConfig(batch=4, frames=2, crop=64, recolour=0.2),
  optimizer=optimizer(1e-3, 100),
  loop=loop(3000),
  kl_weight=3e-4,
)

image_encoder = foundations.ImageEncoderConfig(
  out=f"{RUNS}/image_encoder",
  data=(DATA,),
  weights=f"{RUNS}/autoencoder/weights",
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

audio_encoder = foundations.AudioEncoderConfig(
  out=f"{RUNS}/audio_encoder",
  data=(DATA,),
  weights=f"{RUNS}/image_encoder/weights",
  model=dict(d_model=WIDTH, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128),
  batches=SpeechBatchConfig(batch=16, frames=64, chunks=1),
  optimizer=optimizer(3e-3, 50),
  loop=loop(700),
)

frame_interpolator = foundations.FrameInterpolatorConfig(
  out=f"{RUNS}/frame_interpolator",
  data=(DATA,),
  weights=f"{RUNS}/faces/weights",
  model=dict(features=24),
  batches=FrameBatchConfig(batch=4, frames=3, recolour=0.2),
  optimizer=optimizer(5e-4, 50),
  loop=loop(800),
)

embedder = EmbedderConfig(
  out=f"{RUNS}/embedder",
  weights=f"{RUNS}/frame_interpolator/weights",
  data=(ENCODED, PEOPLE),
  model=EmbedderModelConfig(features=WIDTH, num_layers=2, num_fusion_layers=2, num_heads=4, mlp=256),
  # All 22 emotions with their levels in each batch, of any person, so that priors do not depend on the person.
  batches=EmbedderBatchConfig(groups=22, clips=4, frames=48, group="emotion"),
  optimizer=optimizer(1e-3, 50),
  loop=loop(900),
)

_CONDITIONING = small_conditioning(32, 64, width=WIDTH, pose_features=(8, 16, 32, 32))

adaptation = AdaptationConfig(
  out=f"{RUNS}/adaptation",
  weights=f"{RUNS}/embedder/weights",
  networks={
    "unet": small_unet((32, 64), width=WIDTH, latents=8, groups=8),
    **_CONDITIONING,
    "emotion_model": _CONDITIONING["emotion_model"] | {"prior_dim": WIDTH},
  },
  emotional=(PEOPLE,),
  size=128,
  trainable=("all",),
  # Single frames of many clips teach emotions, windows teach motion: docs/training.md has the figures. The prior comes
  # from any clip of the emotion; a clip's own prior would identify the clip, which the network would memorise.
  batches=DiffusionBatchConfig(batch=16, frames=1, prior_frames=48, reference="person", prior="emotion"),
  # Learns more per step than Adam.
  optimizer=dataclasses.replace(optimizer(1.5e-3, 50, 0.995), kind="muon"),
  # Small latents need less noise: what hides half of 64x64 values hides all of 16x16.
  objective=ObjectiveConfig(sigma_mean=0.5, sigma_std=1.4),
  loop=loop(6000),
  samples=SamplesConfig(generation=generation),
  remat=False,
)

# The network of `dicetalk evaluate`. It trains on true frames only.
measuring = MeasuringConfig(out=f"{RUNS}/measuring", data=(DATA,), people=6000)
