"""An evaluation: videos of people whom the model has never seen, made, measured, and put into figures."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.evaluation import identity, interpolation, lip_sync
from dicetalk_jax.evaluation.cases import TRIALS, Case, World
from dicetalk_jax.evaluation.config import EvaluationConfig
from dicetalk_jax.evaluation.emotion import Share, confusion, shares
from dicetalk_jax.evaluation.frechet import frechet_distance, video_features
from dicetalk_jax.evaluation.measurements import Measured, Store
from dicetalk_jax.evaluation.measuring import Measuring
from dicetalk_jax.evaluation.priors import PriorScores, prior_scores
from dicetalk_jax.inference.clips import ClipEmbedder, has_embedder
from dicetalk_jax.inference.jobs.runner import weights_identity
from dicetalk_jax.inference.pipeline import DiceTalk
from dicetalk_jax.vocabulary import EMOTIONS

_FPS = 25
_STRIP = 6
_FROM, _TO = "angry", "happy"


@dataclasses.dataclass(frozen=True, eq=False)
class TrialScores:
  """Of one trial: what `emotion.shares` gives, counts (8, 8), and how mouths, people and pictures come out.

  as_shown: share whose measured emotion is the portrait's, where that is another one than was asked for. mouth:
  correlation with the truth at offset 0, the mean over clips, with its 95 % interval; offset: of the highest mean, in
  frames at 25 a second; near: share of the clips whose own is within a frame of 0. similarity: mean cosine to the
  portrait. top1: share taken for the person themselves, of the gallery. frame_distance, video_distance: Fréchet's to
  the true clips. seconds: to make a video, the median.
  """

  emotion: Mapping[str, Share]
  confusion: np.ndarray
  as_shown: Share
  mouth: float
  mouth_interval: tuple[float, float]
  offset: int
  near: Share
  similarity: float
  top1: Share
  frame_distance: float
  video_distance: float
  seconds: float
  strips: list[tuple[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
  """All that was found. true: the measuring network on the true clips; floor: Fréchet's between two halves of them."""

  config: EvaluationConfig
  generation: GenerationConfig
  trials: Mapping[str, TrialScores]
  true: TrialScores
  floor: tuple[float, float]
  ways: np.ndarray
  monotony: np.ndarray
  priors: PriorScores | None


def evaluate(
  talker: DiceTalk,
  measuring: Measuring,
  out: str | os.PathLike,
  config: EvaluationConfig,
  generation: GenerationConfig,
  progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
  """Makes and measures every video that is not in `out` yet, and counts.

  `generation.seed` is of the noise, and of the people as of `dicetalk data build synthetic`: another one asks others.
  progress(stage, done, total). Raises InputError where `out` holds another evaluation, OutputError where it cannot be
  written, and what `DiceTalk.generate` raises.
  """
  report = progress or (lambda stage, done, total: None)
  world = World(generation.seed, config.people, int(generation.size), config.seconds)
  settings = dataclasses.asdict(config) | {"generation": dataclasses.asdict(generation)}
  # More of the same may be asked for later.
  for name in ("clips", "interpolations", "gallery"):
    settings.pop(name)
  made_by = {"weights": weights_identity(talker.weights), "dtype": jnp.dtype(talker.dtype).name}
  store = Store(out, settings | made_by | {"measuring network": measuring.identity})
  runner = _Runner(talker, measuring, store, generation)
  gallery = np.concatenate(
    [measuring(picture[None], picture).identity for picture in world.gallery(max(config.gallery, config.people))]
  )

  def all_of(stage, cases, made):
    found = []
    for n, case in enumerate(cases):
      report(stage, n, config.clips)
      found.append((case, made(case)))
    report(stage, config.clips, config.clips)
    return found

  true = all_of("true clips", world.cases("own clip", config.clips), lambda case: runner.true(world, case))
  trials = {
    trial: all_of(trial, world.cases(trial, config.clips), runner.made)
    for trial in TRIALS
    if trial == "label" or has_embedder(talker.weights)
  }
  ways = []
  for person in range(config.interpolations):
    report("angry to happy", person, config.interpolations)
    ends = [runner.true(world, world.own(person, name)).face.mean(0) for name in (_FROM, _TO)]
    ways.append((runner.way(world, person, config.interpolation_steps), ends))
  report("angry to happy", config.interpolations, config.interpolations)
  positions = np.array([interpolation.positions(way, *ends, measuring.face_std) for way, ends in ways])
  priors = None
  if has_embedder(talker.weights):
    priors = prior_scores(ClipEmbedder(talker.weights), world, lambda done, total: report("priors", done, total))
  everything = [measured for _, measured in true]
  halves = everything[::2], everything[1::2]
  return Evaluation(
    config,
    generation,
    {trial: _scores(found, everything, gallery) for trial, found in trials.items()},
    _scores(true, everything, gallery),
    _distances(*halves),
    positions,
    np.array([interpolation.monotony(way) for way in [*positions, positions.mean(0)]] if len(positions) else []),
    priors,
  )


class _Runner:
  """Makes videos and measures them, each once."""

  def __init__(self, talker, measuring, store, generation):
    self._talker, self._measuring, self._store, self._generation = talker, measuring, store, generation

  def made(self, case: Case) -> Measured:
    def make():
      options = dataclasses.asdict(self._generation)
      options |= {"face_box": case.face_box, "seed": 1000 * self._generation.seed + case.seed}
      begun = time.perf_counter()
      video = self._talker.generate(case.portrait, case.audio, case.emotion, **options)
      seconds = time.perf_counter() - begun
      frames = video.frames if video.fps == _FPS else np.repeat(video.frames, round(_FPS / video.fps), axis=0)
      return self._measured(frames[: len(case.opening)], case, seconds)

    return self._once(case.name, make)

  def true(self, world: World, case: Case) -> Measured:
    """The clip itself, whose sound and emotion the case has."""

    def make():
      from dicetalk_jax.world.renderer import render

      clip = case.emotion
      return self._measured(render(clip.identity, clip.parameters[: len(case.opening)], world.size), case)

    return self._once(f"true_{case.name}", make)

  def way(self, world: World, person: int, steps: int) -> np.ndarray:
    """Mean measures of the face (steps, p) from one emotion's label to the other's."""
    heard, found = world.clip(person, "neutral"), []
    for step, share in enumerate(np.linspace(0, 1, steps)):
      emotion = f"{_FROM}:{1 - share:.4f}+{_TO}:{share:.4f}"
      case = world.case(f"way {person} {step} of {steps}", person, heard, emotion, _TO, seed=person)
      found.append(self.made(case).face.mean(0))
    return np.array(found)

  def _once(self, name, make):
    if (known := self._store.get(name)) is None:
      self._store.put(name, known := make())
    return known

  def _measured(self, frames, case, seconds=0.0):
    found = self._measuring(frames, case.neutral)
    chosen = np.linspace(0, len(frames) - 1, _STRIP).astype(int)
    strip = np.concatenate(list(np.asarray(frames)[chosen]), axis=1)
    if strip.dtype != np.uint8:
      strip = np.rint(255 * strip).astype(np.uint8)
    return Measured(found.emotion.mean(0), found.identity, found.face, found.features, strip, seconds)


def _scores(found: list[tuple[Case, Measured]], true: list[Measured], gallery: np.ndarray) -> TrialScores:
  wanted = [case.wanted for case, _ in found]
  measured = [EMOTIONS[int(of.emotion.argmax())] for _, of in found]
  others = [
    name == case.shown
    for (case, _), name in zip(found, measured, strict=True)
    if case.shown not in (case.wanted, "neutral")
  ]
  moving = np.array([lip_sync.correlations(of.face[:, 0], case.opening[: len(of.face)]) for case, of in found])
  # A mouth that stands still follows nothing: it counts.
  moving = np.nan_to_num(moving)
  at_zero = moving[:, lip_sync.OFFSETS == 0][:, 0]
  best = lip_sync.OFFSETS[moving.argmax(1)]
  half = 1.96 * np.std(at_zero, ddof=1) / np.sqrt(len(at_zero)) if len(at_zero) > 1 else np.nan
  people = [identity.nearest(of.identity, gallery) == case.person for case, of in found]
  frame, video = _distances([of for _, of in found], true)
  return TrialScores(
    emotion=shares(wanted, measured),
    confusion=confusion(wanted, measured),
    as_shown=Share(sum(others), len(others)),
    mouth=float(at_zero.mean()),
    mouth_interval=(float(at_zero.mean() - half), float(at_zero.mean() + half)),
    offset=lip_sync.best_offset(moving),
    near=Share(int((np.abs(best) <= 1).sum()), len(best)),
    similarity=float(np.mean([identity.similarity(of.identity, gallery[case.person]) for case, of in found])),
    top1=Share(sum(people), len(people)),
    frame_distance=frame,
    video_distance=video,
    seconds=float(np.median([of.seconds for _, of in found])),
    strips=[(case.wanted, of.strip) for case, of in found[: len(EMOTIONS)]],
  )


def _distances(first: list[Measured], second: list[Measured]) -> tuple[float, float]:
  """Fréchet's, of frames and of pieces of video; NaN where a side has nothing."""
  if not first or not second:
    return float("nan"), float("nan")
  frames = [np.concatenate([of.features for of in side]) for side in (first, second)]
  pieces = [np.concatenate([video_features(of.features) for of in side]) for side in (first, second)]
  return frechet_distance(*frames), frechet_distance(*pieces)
