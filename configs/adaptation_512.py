"""Stage 2 of the paper: Stable Video Diffusion adapted to speech and emotion, 512×512, 25 frames at 12.5 a second.

dicetalk data encode data/mead encoded/mead --weights runs/embedder/weights     # and hdtf, voxceleb2
dicetalk train adaptation --config configs/adaptation_512.py

`--dry-run` prints parameters, memory and FLOP by group. The weights are the release's, or Stable Video Diffusion's in
the same layout, with the embedder of stage 1. `trainable` selects what trains.
"""

from dicetalk_jax.data.batches.diffusion import DiffusionBatchConfig
from dicetalk_jax.training.config import AdaptationConfig, LoopConfig, OptimizerConfig
from dicetalk_jax.weights.architectures import RELEASED

config = AdaptationConfig(
  out="runs/adaptation",
  weights="runs/embedder/weights",
  networks=RELEASED,
  emotional=("encoded/mead",),
  regular=("encoded/hdtf", "encoded/voxceleb2"),
  size=512,
  trainable=("attention",),
  batches=DiffusionBatchConfig(batch=4),
  optimizer=OptimizerConfig(learning_rate=1e-5, warmup_steps=500, accumulate=2, ema_decay=0.9999),
  loop=LoopConfig(steps=100_000, validate_every=2000, checkpoint_every=1000),
  workers=8,
)
