"""The evaluation loop: generate each case, measure it, and compute the scores."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.evaluation.cases import Case, Cases
from dicetalk_jax.evaluation.measurements import Measurement, Store
from dicetalk_jax.evaluation.metrics import identity, interpolation, lip_sync
from dicetalk_jax.evaluation.metrics.emotion import Share, confusion, shares
from dicetalk_jax.evaluation.metrics.frechet import frechet_distance, video_features
from dicetalk_jax.evaluation.metrics.prior_clusters import PriorClusters
from dicetalk_jax.evaluation.networks.measuring import Measuring
from dicetalk_jax.inference.clips import ClipEmbedder, has_embedder
from dicetalk_jax.inference.jobs.runner import weights_identity
from dicetalk_jax.inference.pipeline import DiceTalk
from dicetalk_jax.vocabulary import EMOTIONS, FPS

_STRIP = 6  # frames in a strip


@dataclasses.dataclass(frozen=True, eq=False)
class TrialScores:
  """Scores of one trial.

  emotion: accuracy by group, see `metrics.emotion.shares`; confusion (8, 8). as_shown: share of videos that show the
  portrait's emotion where another was wanted. mouth: mean correlation of mouth opening at offset 0, with its 95 %
  interval; offset: offset of the highest mean correlation, in frames at 25 a second; near: share of videos whose own
  best offset is within one frame of 0. similarity: mean cosine to the person's gallery portrait; top1: share of videos
  nearest to their own person in the gallery. frame_distance, video_distance: Fréchet distances to the true clips.
  seconds: median generation time. strips: (wanted emotion, picture) of the first videos.
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
  """Results of an evaluation.

  true: scores of the true clips, the upper limit of any model; floor: Fréchet distances (frames, video) between two
  halves of the true clips. ways (k, steps): positions along each interpolation; monotony (k + 1,): Spearman correlation
  of each and of their mean. priors: None for weights without an emotion embedder.
  """

  cases: Cases
  generation: GenerationConfig
  trials: Mapping[str, TrialScores]
  true: TrialScores | None
  floor: tuple[float, float]
  ways: np.ndarray
  monotony: np.ndarray
  priors: PriorClusters | None


def evaluate(
  talker: DiceTalk,
  measuring: Measuring,
  cases: Cases,
  out: str | os.PathLike,
  generation: GenerationConfig,
  progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
  """Generates and measures every case without a measurement in `out`, and computes the scores.

  Cases whose emotion is a clip are skipped for weights without an emotion embedder. progress: called with (stage, done,
  total). Raises InputError when `out` holds another evaluation, OutputError when it cannot be written, and what
  `DiceTalk.generate` raises.
  """
  report = progress or (lambda stage, done, total: None)
  embedder = ClipEmbedder(talker.weights) if has_embedder(talker.weights) else None
  settings = cases.settings | {
    "generation": dataclasses.asdict(generation),
    "weights": weights_identity(talker.weights),
    "dtype": jnp.dtype(talker.dtype).name,
    "measuring network": measuring.identity,
  }
  runner = _Runner(talker, measuring, Store(out, settings), generation)
  gallery = runner.gallery(cases.gallery)

  def items(stage, sequence):
    for i, item in enumerate(sequence):
      report(stage, i, len(sequence))
      yield item
    report(stage, len(sequence), len(sequence))

  true, trials = [], {}
  for trial, of_trial in cases.trials.items():
    videos = []
    for case in items(trial, of_trial):
      if case.true_frames:
        true.append((case, runner.true_clip(case)))
      if embedder or isinstance(case.emotion, str):
        videos.append((case, runner.video(case)))
    if videos:
      trials[trial] = videos
  ways = []
  for way in items("interpolation", cases.ways):
    start, end = (runner.true_clip(case).face.mean(0) for case in (way.start, way.end))
    faces = np.array([runner.video(case).face.mean(0) for case in way.steps])
    ways.append(interpolation.positions(faces, start, end, measuring.face_std))
  priors = None
  if embedder and len(cases.clips):
    rows = [(person, emotion, embedder.prior(clip).mu) for person, emotion, clip in items("priors", cases.clips)]
    person, emotion, mu = (np.array(column) for column in zip(*rows, strict=True))
    priors = PriorClusters.of(mu, person, emotion)
  references = [measurement for _, measurement in true]
  return Evaluation(
    cases=cases,
    generation=generation,
    trials={trial: _scores(videos, references, gallery) for trial, videos in trials.items()},
    true=_scores(true, references, gallery) if true else None,
    floor=_distances(references[::2], references[1::2]),
    ways=np.array(ways),
    monotony=np.array([interpolation.monotony(way) for way in [*ways, np.mean(ways, axis=0)]] if ways else []),
    priors=priors,
  )


class _Runner:
  """Generates and measures videos, each once."""

  def __init__(self, talker, measuring, store, generation):
    self._talker, self._measuring, self._store, self._generation = talker, measuring, store, generation

  def video(self, case: Case) -> Measurement:
    def generate():
      options = dataclasses.asdict(self._generation)
      options |= {"face_box": case.face_box, "seed": 1000 * self._generation.seed + case.seed}
      video = self._talker.generate(case.portrait, case.audio, case.emotion, **options)
      frames = video.frames if video.fps == FPS else np.repeat(video.frames, round(FPS / video.fps), axis=0)
      return frames if case.opening is None else frames[: len(case.opening)]

    return self._measure(case.name, generate, case.rest)

  def true_clip(self, case: Case) -> Measurement:
    return self._measure(f"true_{case.name}", case.true_frames, case.rest)

  def gallery(self, portraits) -> np.ndarray:
    """Identity features (k, d) of k portraits."""
    return self._measure(f"gallery_{len(portraits)}", lambda: np.stack(list(portraits)), portraits[0]).identity

  def _measure(self, name, make_frames, rest):
    if (measurement := self._store.get(name)) is None:
      start = time.perf_counter()
      frames = make_frames()
      seconds = time.perf_counter() - start
      measures = self._measuring(frames, rest)
      strip = np.concatenate(list(frames[np.linspace(0, len(frames) - 1, _STRIP).astype(int)]), axis=1)
      strip = strip if strip.dtype == np.uint8 else np.rint(255 * strip).astype(np.uint8)
      fields = measures._asdict() | {"emotion": measures.emotion.mean(0)}
      self._store.put(name, measurement := Measurement(**fields, strip=strip, seconds=seconds))
    return measurement


def _scores(videos: list[tuple[Case, Measurement]], true: list[Measurement], gallery: np.ndarray) -> TrialScores:
  emotions = [(case, EMOTIONS[int(measured.emotion.argmax())]) for case, measured in videos if case.wanted]
  wanted, shown = [case.wanted for case, _ in emotions], [emotion for _, emotion in emotions]
  portraits = [emotion == case.shown for case, emotion in emotions if case.shown not in (None, case.wanted, "neutral")]
  # A mouth that does not move has no correlation; it counts as 0.
  correlations = np.nan_to_num(
    [lip_sync.correlations(m.face[:, 0], case.opening[: len(m.face)]) for case, m in videos if case.opening is not None]
  ).reshape(-1, len(lip_sync.OFFSETS))
  at_zero = correlations[:, lip_sync.OFFSETS == 0][:, 0]
  half = 1.96 * np.std(at_zero, ddof=1) / np.sqrt(len(at_zero)) if len(at_zero) > 1 else np.nan
  mouth = _mean(at_zero)
  people = [(case.person, measured.identity) for case, measured in videos if case.person is not None]
  frame_distance, video_distance = _distances([measured for _, measured in videos], true)
  return TrialScores(
    emotion=shares(wanted, shown),
    confusion=confusion(wanted, shown),
    as_shown=Share.of(portraits),
    mouth=mouth,
    mouth_interval=(mouth - half, mouth + half),
    offset=lip_sync.best_offset(correlations) if len(correlations) else 0,
    near=Share.of(np.abs(lip_sync.OFFSETS[correlations.argmax(1)]) <= 1),
    similarity=_mean([identity.similarity(features, gallery[person]) for person, features in people]),
    top1=Share.of([identity.nearest(features, gallery) == person for person, features in people]),
    frame_distance=frame_distance,
    video_distance=video_distance,
    seconds=float(np.median([measured.seconds for _, measured in videos])),
    strips=[(case.wanted, measured.strip) for case, measured in videos[: len(EMOTIONS)]],
  )


def _mean(values) -> float:
  return float(np.mean(values)) if len(values) else float("nan")


def _distances(first: list[Measurement], second: list[Measurement]) -> tuple[float, float]:
  """Fréchet distances of frames and of pieces of video; NaN when a side is empty."""
  if not first or not second:
    return float("nan"), float("nan")
  frames = [np.concatenate([video.features for video in side]) for side in (first, second)]
  pieces = [np.concatenate([video_features(video.features) for video in side]) for side in (first, second)]
  return frechet_distance(*frames), frechet_distance(*pieces)
