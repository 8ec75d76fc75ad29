"""The ablations of the paper's Table 4 on the drawn world.

    python benchmarks/ablations.py --config configs/synthetic_small.py --clips data/small --out runs/ablations

A base model is trained to generate talking faces without emotion; or `--base` gives one, whose emotion model and
emotion adapters are reset. Each variant adapts the base in the same way, with a new emotion model. Its samples of
people held out, from a neutral portrait and the sound and prior of a clip, are scored by the measuring network. Run the
same command again to resume.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import common
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dicetalk_jax.config import load_preset
from dicetalk_jax.data.batches.diffusion import diffusion_batches
from dicetalk_jax.data.batches.sampling import generator
from dicetalk_jax.data.batches.sources import ClipSets
from dicetalk_jax.errors import InputError
from dicetalk_jax.evaluation.measuring_stage import MeasuringConfig, check, train_measuring
from dicetalk_jax.evaluation.metrics.identity import similarity
from dicetalk_jax.evaluation.networks.measuring import Measuring
from dicetalk_jax.files import write_json
from dicetalk_jax.inference.decoding import decode_frames
from dicetalk_jax.inference.jobs.runner import weights_identity
from dicetalk_jax.parallel.compilation import use_fast_convolutions
from dicetalk_jax.training.adaptation import train_adaptation
from dicetalk_jax.training.config import AdaptationConfig, SamplesConfig
from dicetalk_jax.training.loop import Status
from dicetalk_jax.training.networks import Setup
from dicetalk_jax.training.overrides import override
from dicetalk_jax.training.samples import sample_latents
from dicetalk_jax.vocabulary import EMOTIONS, LEVELS
from dicetalk_jax.weights.folder import Weights

VARIANTS = {
  "the whole method": (),
  "without the emotion bank": ("conditioning=prior",),
  "without L_cls": ("objective.emotion_weight=0",),
  "learnable query": ("conditioning=learnable",),
  "deterministic prior": ("objective.sample_prior=false",),
}
_NEUTRAL, _SCORES = EMOTIONS.index("neutral"), "scores.json"
_CHOICE = 33  # stream of random numbers


@dataclasses.dataclass(frozen=True)
class Scores:
  """Emotion accuracy over all, neutral and other clips, and mean cosine between identities of frames and portrait."""

  clips: int
  emotion: float
  neutral: float
  others: float
  identity: float

  @classmethod
  def of(cls, wanted: Sequence[int], measured: Sequence[int], similarity: Sequence[float]) -> "Scores":
    wanted, right = np.asarray(wanted), np.asarray(wanted) == np.asarray(measured)
    neutral = wanted == _NEUTRAL
    shares = [float(right[group].mean()) if group.any() else float("nan") for group in (neutral, ~neutral)]
    return cls(len(wanted), float(right.mean()), *shares, float(np.mean(similarity)))


def held_out_rows(config: AdaptationConfig, clips: int | None = None) -> list[dict]:
  """Batch rows of held-out people: neutral clips and clips of the highest level, each with a portrait of another clip,
  a neutral one.

  clips: number of rows, balanced over emotions; default: all. Raises InputError when the sets have none.
  """
  batches = dataclasses.replace(config.batches, reference="person")
  rows = []
  with diffusion_batches(
    config.emotional, config=batches, split=config.validation_split, training=False, seed=config.loop.seed
  ) as held_out:
    for batch in held_out:
      rows += [
        {name: value[i] for name, value in batch.items()}
        for i in range(len(batch["valid"]))
        if batch["valid"][i] and (batch["emotion"][i] == _NEUTRAL or batch["level"][i] == LEVELS[-1])
      ]
  if not rows:
    raise InputError(
      f"{', '.join(config.emotional)}: the split '{config.validation_split}' has no labelled clips to score with"
    )
  return rows if clips is None else _balanced(rows, clips, generator(config.loop.seed, _CHOICE))


def _balanced(rows, count, rng):
  """At most `count` rows in random order, one of each emotion in turn."""
  by_emotion = collections.defaultdict(list)
  for i in rng.permutation(len(rows)):
    by_emotion[int(rows[i]["emotion"])].append(rows[i])
  turns = itertools.zip_longest(*by_emotion.values())
  return [row for turn in turns for row in turn if row is not None][:count]


def score(
  setup: Setup, params: Mapping, rows: Sequence[Mapping], measuring: Measuring, samples: SamplesConfig
) -> tuple[Scores, Scores]:
  """(scores of samples with the rows' own priors, scores of the true clips); the VAE decodes both."""
  vae = setup.weights.module("vae", setup.dtype)
  vae_params = setup.weights.load("vae", setup.dtype)

  def decode(latents):
    return decode_frames(vae, vae_params, jnp.asarray(latents), len(latents), len(latents))

  wanted, emotions, similarities = [], ([], []), ([], [])
  for i, row in enumerate(rows):
    true = setup.scaling_factor * row["latents_mean"].astype(np.float32)
    noise = np.asarray(jax.random.normal(jax.random.key(i), true.shape))
    sample = sample_latents(setup, params, row, samples.generation, noise)
    portrait = decode(setup.scaling_factor * row["image_latents"].astype(np.float32)[None])[0]
    reference = measuring(portrait[None], portrait).identity[0]
    wanted.append(int(row["emotion"]))
    for latents, emotion, similar in zip((sample, true), emotions, similarities, strict=True):
      measures = measuring(decode(latents), portrait)
      emotion.append(int(measures.emotion.mean(0).argmax()))
      similar.append(similarity(measures.identity, reference))
  return tuple(Scores.of(wanted, *columns) for columns in zip(emotions, similarities, strict=True))


def run_ablations(
  config: AdaptationConfig,
  measuring: Measuring,
  folder: pathlib.Path,
  variants: Mapping[str, Sequence[str]] = VARIANTS,
  seeds: Sequence[int] = (0,),
  clips: int | None = None,
  report: Callable[[str, int, int, dict], None] | None = None,
) -> Iterator[tuple[str, int, Scores, Scores]]:
  """Trains and scores each variant with each seed: (variant, seed, scores of samples, scores of the true clips).

  Each run has its own folder under `folder` and can be resumed. Its scores are stored there and reused for the same
  settings, weights and measuring network, so several processes can share the seeds. report(variant, seed, step,
  metrics) is called at every step.
  """
  rows, weights = held_out_rows(config, clips), weights_identity(Weights.open(config.weights))
  for name, settings in variants.items():
    for seed in seeds:
      variant = override(config, settings)
      variant = dataclasses.replace(variant, loop=dataclasses.replace(variant.loop, seed=seed))
      run = folder / name.replace(" ", "_") / str(seed)

      def report_step(step, metrics, name=name, seed=seed):
        if report:
          report(name, seed, step, metrics)

      key = {"measuring network": measuring.identity, "clips": len(rows), "weights": weights}
      key["configuration"] = dataclasses.asdict(variant)
      if (scores := _stored_scores(run, key)) is None:
        setup, outcome = train_adaptation(variant, run, report=report_step, warn=lambda message: None)
        if outcome.status != Status.FINISHED:
          return
        scores = score(setup, outcome.state.averaged(), rows, measuring, config.samples)
        write_json({"judged": key, "scores": [dataclasses.asdict(of) for of in scores]}, run / _SCORES)
      yield name, seed, *scores


def _stored_scores(run: pathlib.Path, key: Mapping) -> tuple[Scores, Scores] | None:
  """Scores in a run's folder, or None when there are none for this key."""
  try:
    stored = json.loads((run / _SCORES).read_text())
    return tuple(Scores(**of) for of in stored["scores"]) if stored["judged"] == json.loads(json.dumps(key)) else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def table(results: Sequence[tuple[str, int, Scores, Scores]]) -> str:
  """Markdown table, one row per variant: the mean over seeds, and the smallest and largest of several."""
  lines = ["| | identity similarity | emotion | neutral | other emotions |", "|---|---|---|---|---|"]

  def row(name, scores):
    cells = []
    for field in ("identity", "emotion", "neutral", "others"):
      values = [getattr(score, field) for score in scores]
      spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
      cells.append(f"{np.mean(values):.3f}{spread}")
    return f"| {name} | {' | '.join(cells)} |"

  for variant in dict.fromkeys(name for name, *_ in results):
    lines.append(row(variant, [samples for name, _, samples, _ in results if name == variant]))
  if results:
    lines.append(row("true clips", [results[0][3]]))
  return "\n".join(lines)


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
