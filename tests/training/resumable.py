"""A tiny run of the embedder to be killed at any moment: DATA FOLDER LOSSES STEPS -> the losses, and final.npz."""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from dicetalk_jax.data.batches.embedder import EmbedderBatchConfig
from dicetalk_jax.training.config import EmbedderConfig, EmbedderModelConfig, LoopConfig, OptimizerConfig
from dicetalk_jax.training.embedder import train_embedder

CONFIG = dict(
  model=EmbedderModelConfig(features=16, num_layers=1, num_fusion_layers=1, num_heads=2, mlp=16),
  batches=EmbedderBatchConfig(groups=3, clips=2, frames=8),
)


def main():
  data, folder, losses, steps = sys.argv[1:]
  config = EmbedderConfig(
    data=(data,),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5, schedule="cosine", accumulate=2, ema_decay=0.9),
    loop=LoopConfig(steps=int(steps), seed=7, log_every=5, validate_every=40, checkpoint_every=4, keep=2),
    **CONFIG,
  )
  with open(losses, "a", buffering=1) as log:

    def report(step, metrics):
      log.write(f"{step} {metrics['loss'].hex()} {metrics['grad_norm'].hex()}\n")

    _, outcome = train_embedder(config, folder, report=report)
    log.write(f"{outcome.status.value}\n")
  state = outcome.state.replace(opt_state=jax.tree.leaves(outcome.state.opt_state))
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  np.savez(f"{folder}/final.npz", **{jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


if __name__ == "__main__":
  main()
