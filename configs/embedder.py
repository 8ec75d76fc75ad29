"""Stage 1 of the paper: the emotion embedder on MEAD and HDTF.

dicetalk data encode data/mead encoded/mead --weights weights --what audio      # and hdtf; it needs audio only
dicetalk train embedder --config configs/embedder.py

The embedder has 5.6 million parameters and trains in under 2 GB on any accelerator. `--dry-run` prints more.
"""

from dicetalk_jax.data.batches.embedder import EmbedderBatchConfig
from dicetalk_jax.training.config import EmbedderConfig, LoopConfig, OptimizerConfig

config = EmbedderConfig(
  out="runs/embedder",
  weights="weights",
  data=("encoded/mead", "encoded/hdtf"),
  batches=EmbedderBatchConfig(groups=64, clips=4, frames=64),
  optimizer=OptimizerConfig(learning_rate=1e-4, schedule="cosine", warmup_steps=1000),
  loop=LoopConfig(steps=50_000, validate_every=1000, checkpoint_every=1000),
  workers=4,
)
