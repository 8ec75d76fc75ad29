"""Small runs of both stages, for tests on several devices and processes, and a program that does one of them.

    python small_runs.py STAGE FOLDER DATA WEIGHTS data,fsdp,tensor STEPS [SETTING=VALUE...]

prints JSON lines, with each step's loss, as it goes, and joins other processes where the environment says so. It wants
tests/ and tests/golden/ on PYTHONPATH.
"""

import json
import sys

from random_weights import random_weights
from talkers import stand_in_params
from training.encoded_clips import write_clips

from dicetalk_jax.data.batches.diffusion import DiffusionBatchConfig
from dicetalk_jax.data.batches.embedder import EmbedderBatchConfig
from dicetalk_jax.parallel.mesh import MeshConfig, batch_share, make_mesh
from dicetalk_jax.training.adaptation import train_adaptation
from dicetalk_jax.training.config import (
  AdaptationConfig,
  EmbedderConfig,
  EmbedderModelConfig,
  LoopConfig,
  OptimizerConfig,
  SamplesConfig,
)
from dicetalk_jax.training.embedder import train_embedder
from dicetalk_jax.training.overrides import override
from dicetalk_jax.weights.architectures import small_conditioning, small_unet

EMBEDDER = dict(features=128, expression_features=64, speech_features=64, num_layers=1, num_fusion_layers=1, mlp=256)
EMBEDDER |= dict(num_heads=8, dropout_rate=0.0, fusion_scale=1.0, inputs="both")


def write_data(folder):
  return write_clips(folder, people=("M003", "W009", "M005", "W011"), pictures=True, states=(3, 64))


def write_weights(folder):
  """Small random weights: a U-Net of one level, wide enough for its kernels to be split over eight devices."""
  conditioning = small_conditioning(128, 128, codes=8, pose_features=(8, 16, 16, 32))
  conditioning["emotion_model"] |= {"prior_dim": EMBEDDER["features"]}
  architectures = {"unet": small_unet((128,), head=16), "emotion_embedder": EMBEDDER, **conditioning}
  networks = {name: stand_in_params(name, config) for name, config in architectures.items()}
  return random_weights(folder.with_name("random")).derive(folder, networks, architectures)


def configuration(stage, data, weights, mesh, steps, settings=()):
  common = dict(
    mesh=mesh,
    optimizer=OptimizerConfig(learning_rate=3e-4, ema_decay=0.5),
    loop=LoopConfig(steps=steps, checkpoint_every=10**6, validate_every=10**6),
  )
  if stage == "embedder":
    model = {name: EMBEDDER[name] for name in ("features", "num_layers", "num_fusion_layers", "num_heads", "mlp")}
    batches = EmbedderBatchConfig(groups=8, clips=2, frames=8)
    config = EmbedderConfig(data=(str(data),), model=EmbedderModelConfig(**model), batches=batches, **common)
  else:
    config = AdaptationConfig(
      weights=str(weights),
      emotional=(str(data),),
      size=64,
      trainable=("attention",),
      batches=DiffusionBatchConfig(batch=8, frames=2, prior_frames=8),
      samples=SamplesConfig(clips=0),
      validation_batches=1,
      **common,
    )
  return override(config, settings)


def train(stage, config, folder, report=None, warn=lambda message: None):
  return {"embedder": train_embedder, "adaptation": train_adaptation}[stage](config, folder, report=report, warn=warn)


def main():
  stage, folder, data, weights, mesh, steps, *settings = sys.argv[1:]
  import jax

  from dicetalk_jax.parallel import hosts

  jax.config.update("jax_num_cpu_devices", 4)
  jax.config.update("jax_default_matmul_precision", "highest")
  hosts.connect()
  config = configuration(stage, data, weights, MeshConfig(*map(int, mesh.split(","))), int(steps), settings)

  print(json.dumps({"share": batch_share(make_mesh(config.mesh))}), flush=True)

  def report(step, metrics):
    print(json.dumps({"step": step, "loss": metrics["loss"]}), flush=True)

  _, outcome = train(stage, config, folder, report)
  print(json.dumps({"ended": outcome.status.value, "after": outcome.step}), flush=True)


if __name__ == "__main__":
  main()
