"""The ablations of Table 4: each part of the method left out, trained alike, and judged on people it has not seen."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.data.batches.diffusion import diffusion_batches
from dicetalk_jax.data.batches.sampling import generator
from dicetalk_jax.errors import InputError
from dicetalk_jax.evaluation.measuring import Measuring
from dicetalk_jax.inference.decoding import decode_frames
from dicetalk_jax.inference.jobs.runner import weights_identity
from dicetalk_jax.training.adaptation import train_adaptation
from dicetalk_jax.training.config import AdaptationConfig, SamplesConfig
from dicetalk_jax.training.loop import Status
from dicetalk_jax.training.networks import Setup
from dicetalk_jax.training.overrides import override
from dicetalk_jax.training.samples import prior_means, sample_latents
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
_JUDGED = 33  # what a random draw is for


@dataclasses.dataclass(frozen=True)
class Scores:
  """Of a number of clips: shares whose measured emotion is the prior's, and mean cosine of made frames and portrait."""

  clips: int
  emotion: float
  neutral: float
  others: float
  identity: float

  @classmethod
  def of(cls, wanted: Sequence[int], found: Sequence[int], similarity: Sequence[float]) -> "Scores":
    wanted, right = np.asarray(wanted), np.asarray(wanted) == np.asarray(found)
    is_neutral = wanted == _NEUTRAL
    shares = [float(right[chosen].mean()) if chosen.any() else float("nan") for chosen in (is_neutral, ~is_neutral)]
    return cls(len(wanted), float(right.mean()), *shares, float(np.mean(similarity)))


def judged_rows(config: AdaptationConfig, clips: int | None = None) -> list[dict]:
  """Rows of held-out people: neutral clips and those of the highest level, the portrait of another, neutral clip.

  clips: as many of them, of every emotion alike.
  """
  batches = dataclasses.replace(config.batches, reference="person")
  rows = []
  with diffusion_batches(
    config.emotional, config=batches, split=config.validation_split, training=False, seed=config.loop.seed
  ) as found:
    for batch in found:
      rows += [
        {name: value[i] for name, value in batch.items()}
        for i in range(len(batch["valid"]))
        if batch["valid"][i] and (batch["emotion"][i] == _NEUTRAL or batch["level"][i] == LEVELS[-1])
      ]
  if not rows:
    raise InputError(f"{', '.join(config.emotional)} has no labelled clips in '{config.validation_split}' to judge by")
  return rows if clips is None else _of_every_emotion(rows, clips, generator(config.loop.seed, _JUDGED))


def _of_every_emotion(rows, count, rng):
  """`count` of the rows, or all, in random order: one of each emotion in turn, for as long as there are any."""
  taken = collections.Counter()
  ranked = []
  for i in rng.permutation(len(rows)):
    emotion = int(rows[i]["emotion"])
    ranked.append((taken[emotion], i))
    taken[emotion] += 1
  return [rows[i] for _, i in sorted(ranked, key=lambda one: one[0])[:count]]


def judge(
  setup: Setup, params: Mapping, rows: Sequence[Mapping], measuring: Measuring, samples: SamplesConfig
) -> tuple[Scores, Scores]:
  """(scores of what is made for `rows` with their own priors, scores of the true clips), both seen through the VAE."""
  vae = setup.weights.module("vae", setup.dtype)
  vae_params = setup.weights.load("vae", setup.dtype)

  def pictures(latents):
    return decode_frames(vae, vae_params, jnp.asarray(latents), len(latents), len(latents))

  wanted, emotions, similarities = [], {"made": [], "true": []}, {"made": [], "true": []}
  for i, row in enumerate(rows):
    true = setup.scaling_factor * row["latents_mean"].astype(np.float32)
    (mu,) = prior_means(setup.modules, params, {name: value[None] for name, value in row.items()})
    noise = np.asarray(jax.random.normal(jax.random.key(i), true.shape))
    made = sample_latents(setup, params, row, mu, samples, noise)
    portrait = pictures(setup.scaling_factor * row["image_latents"].astype(np.float32)[None])[0]
    shown = measuring(portrait[None], portrait).identity.mean(0)
    wanted.append(int(row["emotion"]))
    for name, latents in (("made", made), ("true", true)):
      found = measuring(pictures(latents), portrait)
      emotions[name].append(int(found.emotion.mean(0).argmax()))
      identity = found.identity.mean(0)
      similarities[name].append(float(identity @ shown / np.linalg.norm(identity) / np.linalg.norm(shown)))
  made, true = (Scores.of(wanted, emotions[name], similarities[name]) for name in ("made", "true"))
  return made, true


def run_ablations(
  config: AdaptationConfig,
  measuring: Measuring,
  folder: pathlib.Path,
  variants: Mapping[str, Sequence[str]] = VARIANTS,
  seeds: Sequence[int] = (0,),
  clips: int | None = None,
  report: Callable[[str, int, int, dict], None] | None = None,
) -> Iterator[tuple[str, int, Scores, Scores]]:
  """Trains and judges each variant with each seed: (variant, seed, scores of what it makes, of the true clips).

  Each is a run in a folder of its own under `folder`, which goes on where it was stopped; one of the same settings and
  weights that was judged alike is not judged again, so that several processes may share the seeds. report(variant,
  seed, step, metrics) is called with every step.
  """
  rows, weights = judged_rows(config, clips), weights_identity(Weights.open(config.weights))
  for name, settings in variants.items():
    for seed in seeds:
      changed = override(config, settings)
      changed = dataclasses.replace(changed, loop=dataclasses.replace(changed.loop, seed=seed))
      run = folder / name.replace(" ", "_") / str(seed)

      def told(step, metrics, name=name, seed=seed):
        if report:
          report(name, seed, step, metrics)

      judged = {"measuring network": measuring.identity, "clips": len(rows), "weights": weights}
      judged["configuration"] = dataclasses.asdict(changed)
      if (known := _known(run, judged)) is None:
        setup, outcome = train_adaptation(changed, run, report=told, warn=lambda message: None)
        if outcome.status != Status.FINISHED:
          return
        known = judge(setup, outcome.state.averaged(), rows, measuring, config.samples)
        scores = [dataclasses.asdict(of) for of in known]
        (run / _SCORES).write_text(json.dumps({"judged": judged, "scores": scores}, indent=2) + "\n")
      yield name, seed, *known


def _known(run: pathlib.Path, judged: Mapping) -> tuple[Scores, Scores] | None:
  """What a run was judged to be, if it was judged in this way."""
  try:
    found = json.loads((run / _SCORES).read_text())
    return tuple(Scores(**of) for of in found["scores"]) if found["judged"] == json.loads(json.dumps(judged)) else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def table(results: Sequence[tuple[str, int, Scores, Scores]]) -> str:
  """Markdown: a row a variant, the mean over seeds, and the largest and smallest where there are several."""
  lines = ["| | identity similarity | emotion | neutral | other emotions |", "|---|---|---|---|---|"]

  def row(name, scores):
    cells = []
    for field in ("identity", "emotion", "neutral", "others"):
      values = [getattr(score, field) for score in scores]
      spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
      cells.append(f"{np.mean(values):.3f}{spread}")
    return f"| {name} | {' | '.join(cells)} |"

  for variant in dict.fromkeys(name for name, *_ in results):
    lines.append(row(variant, [made for name, _, made, _ in results if name == variant]))
  if results:
    lines.append(row("true clips", [results[0][3]]))
  return "\n".join(lines)
