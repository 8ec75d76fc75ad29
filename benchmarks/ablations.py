"""The ablations of the paper's Table 4 on the drawn world.

    python benchmarks/ablations.py --config configs/synthetic_small.py --clips data/small --out runs/ablations

A base model is trained to generate talking faces without emotion; or `--base` gives one, whose emotion model and
emotion adapters are reset. Each variant adapts the base in the same way, with a new emotion model. Its samples of
people held out, from a neutral portrait and the sound and prior of a clip, are scored by the measuring network. Run the
same command again to resume.
"""

import argparse
import dataclasses
import pathlib
import time

import common
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.config import load_preset
from dicetalk_jax.data.batches.sources import ClipSets
from dicetalk_jax.evaluation.ablations import VARIANTS, run_ablations, table
from dicetalk_jax.evaluation.measuring import MeasuringConfig, check, train_measuring
from dicetalk_jax.evaluation.networks.measuring import Measuring
from dicetalk_jax.parallel.compilation import use_fast_convolutions
from dicetalk_jax.training.adaptation import train_adaptation
from dicetalk_jax.training.config import AdaptationConfig
from dicetalk_jax.training.overrides import override
from dicetalk_jax.weights.folder import Weights

# The base sees an emotion only when its speech is dropped: too rarely to learn it.
BASE = ("objective.drop_emotion=0.85", "objective.emotion_weight=0", "samples.clips=0")


def measuring_network(options):
  folder, clips = options.measuring or options.out / "measuring", ClipSets(options.clips, "test")
  if not options.measuring and not (folder / "measuring.safetensors").is_file():
    loop = dataclasses.replace(MeasuringConfig().loop, steps=options.measuring_steps)
    size = clips.one_size(np.arange(len(clips.index)))[0]
    train_measuring(MeasuringConfig(size=size, loop=loop), folder, report=printer("measuring", loop))
  measuring = Measuring.load(folder)
  scores = {name: round(value, 3) for name, value in check(measuring, clips).items()}
  print("measuring network on true frames of people held out:", scores, flush=True)
  return measuring


def printer(name, loop):
  start = time.perf_counter()

  def report(step, metrics):
    if step % loop.log_every == 0 or step == loop.steps:
      shown = {
        key: round(value, 4) for key, value in metrics.items() if key in ("loss", "denoising", "emotion", "accuracy")
      }
      print(f"{name}: step {step}, {time.perf_counter() - start:.0f} s, {shown}", flush=True)

  return report


def base_weights(config, options):
  """Weights of the base without its emotion model, so that each variant starts with a new one."""
  folder = options.out / "base_without_emotion"
  if not folder.exists():
    if not options.base:
      base = override(config, [*BASE, f"loop.steps={options.base_steps}"])
      train_adaptation(base, options.out / "base", report=printer("base", base.loop))
    trained = Weights.open(options.base or options.out / "base" / "weights")
    networks = {name: trained.load(name) for name in trained.config["networks"] if name != "emotion_model"}
    if options.base:
      networks["unet"] = without_emotion(networks["unet"])
    Weights.save(folder, networks, trained.config)
  return folder


def without_emotion(unet):
  """Resets the emotion adapters of a U-Net to copies of the projections beside them, as new adapters start."""
  flat = flatten_dict(unet, sep="/")
  for path in flat:
    layer, adapter, _ = path.partition("_ip_1/")
    if adapter:
      flat[path] = flat[f"{layer}/kernel"]
  return unflatten_dict(flat, sep="/")


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/synthetic_small.py", help="preset of the adaptation")
  parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change a setting of the preset")
  parser.add_argument("--clips", required=True, help="built set whose test split the measuring network is checked on")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/ablations"))
  parser.add_argument(
    "--base", type=pathlib.Path, help="weights folder that the variants start from; default: trained here"
  )
  parser.add_argument("--base-steps", type=int, default=1500)
  parser.add_argument("--steps", type=int, default=400, help="steps of each variant")
  parser.add_argument(
    "--measuring", type=pathlib.Path, help="folder of `dicetalk train measuring`; default: trained here"
  )
  parser.add_argument("--measuring-steps", type=int, default=MeasuringConfig().loop.steps)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0])
  parser.add_argument(
    "--variants",
    nargs="+",
    choices=list(VARIANTS),
    default=list(VARIANTS),
    help="variants to run, for example to share them among devices",
  )
  parser.add_argument(
    "--trainable", default="attention", help="which parameters of the base are trained: attention, all, …"
  )
  parser.add_argument("--judged", type=int, default=64, help="number of clips to sample with each variant")
  options = parser.parse_args()
  use_fast_convolutions()
  options.out.mkdir(parents=True, exist_ok=True)
  measuring = measuring_network(options)
  config = override(load_preset(options.config, AdaptationConfig), options.set)
  weights = base_weights(config, options)
  config = override(config, [f"weights={weights}", f"loop.steps={options.steps}", f"trainable={options.trainable}"])
  results = []

  def report(variant, seed, step, metrics):
    if step % config.loop.log_every == 0:
      print(f"{variant}, seed {seed}: step {step}, denoising {metrics['denoising']:.4f}", flush=True)

  variants = {name: VARIANTS[name] for name in options.variants}
  for result in run_ablations(
    config, measuring, options.out, variants, options.seeds, clips=options.judged, report=report
  ):
    results.append(result)
    print(table(results), flush=True)
  base = options.base or f"{options.base_steps} steps"
  print(f"\nbase: {base}; variants: {options.steps} steps, seeds {options.seeds}; {common.machine()}")


if __name__ == "__main__":
  main()
