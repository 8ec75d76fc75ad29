"""Each metric on an input whose value is known, and the drawn cases."""

import numpy as np
import pytest

from dicetalk_jax.errors import InputError
from dicetalk_jax.evaluation.drawn_cases import TRIALS, World, drawn_cases
from dicetalk_jax.evaluation.metrics import identity, interpolation, lip_sync
from dicetalk_jax.evaluation.metrics.emotion import Share, confusion, shares
from dicetalk_jax.evaluation.metrics.frechet import PIECE, frechet_distance, video_features
from dicetalk_jax.evaluation.metrics.prior_clusters import nearness


def test_shares_by_group_and_wilsons_interval():
  wanted = ["angry", "angry", "neutral", "sad"]
  groups = shares(wanted, ["angry", "happy", "neutral", "neutral"])
  assert groups["all eight"] == Share(2, 4) and groups["the paper's four"] == Share(1, 2)
  assert groups["neutral"] == Share(1, 1) and groups["not neutral"] == Share(1, 3)
  # Wilson 1927, worked out elsewhere: 15 of 20.
  assert Share(15, 20).interval == pytest.approx((0.5313, 0.8881), abs=5e-5)
  assert Share(20, 20).interval[1] == pytest.approx(1) and str(Share(0, 0)) == "none"
  table = confusion(wanted, ["angry", "happy", "neutral", "neutral"])
  assert table.sum() == 4 and table[0, 0] == 1 and table[0, 4] == 1 and table[6, 5] == 1


def test_a_late_mouth_is_found_late():
  true = np.random.default_rng(0).standard_normal(60)
  late = np.concatenate([np.zeros(3), true[:-3]])
  correlations = lip_sync.correlations(late, true)
  assert correlations[lip_sync.OFFSETS == 3] == pytest.approx(1) and abs(correlations[lip_sync.OFFSETS == 0]) < 0.5
  assert lip_sync.best_offset(correlations[None]) == 3
  assert lip_sync.best_offset(lip_sync.correlations(true, late)[None]) == -3
  assert np.isnan(lip_sync.correlations(np.ones(60), true)).all(), "a mouth that stands still follows nothing"


def test_frechet_distance_of_known_gaussians():
  rng = np.random.default_rng(0)
  first = rng.standard_normal((4000, 3))
  # Same samples, moved and stretched along the axes: |m|² + Σ (1 − s)² of the samples' own deviations, nearly 1.
  assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
  assert frechet_distance(first, first + np.array([3, 0, 4])) == pytest.approx(25, rel=1e-9)
  assert frechet_distance(first, first * [1, 2, 3]) == pytest.approx(1 + 4, rel=0.1)
  # Fewer samples than features: covariances without full rank.
  few = rng.standard_normal((4, 9))
  assert np.isfinite(frechet_distance(few, few + 1)) and frechet_distance(few, few + 1) == pytest.approx(9, rel=1e-6)


def test_video_features_see_movement_that_frames_do_not():
  still = np.repeat(np.arange(4.0), 4)[:, None]
  shaken = np.array([0, 3, 1, 2] * 4, float)[:, None]
  assert video_features(still).shape == (16 // PIECE, 3)
  assert video_features(shaken)[0, 2] > video_features(still)[0, 2]


def test_likeness_and_the_nearest_of_a_gallery():
  gallery = np.eye(3)
  made = np.array([[0.1, 0.9, 0.0], [0.0, 0.8, 0.2]])
  assert identity.nearest(made, gallery) == 1
  assert identity.similarity(made, gallery[1]) > 0.98 and identity.similarity(made, gallery[0]) < 0.1


def test_a_way_is_steady_or_is_not():
  start, end, scale = np.array([0.0, 1.0]), np.array([1.0, 0.0]), np.array([1.0, 2.0])
  steps = np.linspace(start, end, 9)
  positions = interpolation.positions(steps, start, end, scale)
  np.testing.assert_allclose(positions, np.linspace(0, 1, 9))
  assert interpolation.monotony(positions) == pytest.approx(1)
  assert interpolation.monotony(positions[::-1]) == pytest.approx(-1)
  assert interpolation.monotony(positions[[0, 2, 1, 3, 4, 5, 6, 7, 8]]) < 1


def test_nearness_is_below_one_where_emotions_say_more_than_people():
  person, emotion = np.repeat([0, 1], 2), np.tile([0, 1], 2)
  of_emotion = np.stack([10.0 * emotion, 1.0 * person], 1)
  assert nearness(of_emotion, person, emotion) == pytest.approx(0.1)
  assert nearness(of_emotion[:, ::-1] * [10, 0.1], person, emotion) == pytest.approx(10)


def test_what_a_trial_mixes_is_of_different_people():
  world = World(seed=3, people=4, size=64, seconds=1.0)
  trials = drawn_cases(world, 4).trials
  cases = list(trials["others' clips"])
  assert len({case.name for case in cases}) == 4 and len({case.wanted for case in cases}) > 1
  for case in cases:
    assert case.shown != case.wanted == case.emotion.emotion
    assert case.emotion.person % 4 != case.person and len(case.audio) == 640 * len(case.opening) <= 16000
    assert case.portrait.shape == case.rest.shape == (64, 64, 3)
  assert {case.shown for case in trials["label"]} == {"neutral"}
  own = trials["own clip"][0]
  np.testing.assert_array_equal(own.audio, own.emotion.audio[: len(own.audio)])
  assert len(own.true_frames()) == len(own.opening), "the true clip is known where sound and emotion are of one"
  assert cases[0].true_frames is None
  with pytest.raises(InputError, match="at least 3"):
    World(people=2)
  assert set(TRIALS) == {"own clip", "label", "others' clips"}
