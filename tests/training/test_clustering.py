"""Clustering strength and nearest-centroid accuracy, by hand."""

import numpy as np
import pytest

from dicetalk_jax.training.clustering import centroid_accuracy, clustering_strength

# Person 0 has emotions at 0 and 10 along one axis, person 1 at 100 and 104 with another at 100 of a second axis.
POINTS = np.array([[0, -1], [0, 1], [10, -3], [10, 3], [100, 0], [104, 0], [100, 100]], np.float32)
IDENTITY = np.array([0, 0, 0, 0, 1, 1, 1])
EMOTION = np.array([2, 2, 5, 5, 0, 1, 2])
CLIP = np.arange(7)


def test_strength_is_between_emotions_of_a_person_over_within():
  found = clustering_strength(POINTS, IDENTITY, EMOTION)
  inter = np.mean([10, 4, 100, np.hypot(4, 100)])
  intra = np.mean([1, 1, 3, 3, 0, 0, 0])
  assert found["d_inter"] == pytest.approx(inter) and found["d_intra"] == pytest.approx(intra)
  assert found["clustering_strength"] == pytest.approx(inter / intra)


def test_strength_knows_nothing_of_scale_and_place_of_people_or_of_rows_without_emotion():
  moved = 3 * np.concatenate([POINTS, [[50, 50], [9e9, 0]]]) + 7
  moved[:4] += 1000
  identity, emotion = np.append(IDENTITY, [2, 0]), np.append(EMOTION, [3, -1])
  found = clustering_strength(moved, identity, emotion)["clustering_strength"]
  assert found == pytest.approx(clustering_strength(POINTS, IDENTITY, EMOTION)["clustering_strength"])


def test_without_two_emotions_of_one_person_there_is_nothing():
  alone = np.arange(7)
  assert clustering_strength(POINTS, alone, EMOTION) == {}
  assert centroid_accuracy(POINTS, alone, EMOTION, CLIP) == {}


def test_accuracy_leaves_a_samples_own_clip_out():
  assert centroid_accuracy(POINTS, IDENTITY, EMOTION, CLIP) == {"emotion_accuracy": 1.0}
  # Of one clip each: nothing to measure by, though windows of it lie together.
  assert centroid_accuracy(POINTS, IDENTITY, EMOTION, np.array([0, 0, 1, 1, 2, 3, 4])) == {}
  # A sample near its own emotion only because it is counted in it.
  x = np.array([[0.0], [10.0], [9.0], [9.5]])
  found = centroid_accuracy(x, np.zeros(4, int), np.array([0, 0, 1, 1]), np.arange(4))
  assert found == {"emotion_accuracy": 0.5}


def test_an_emotion_of_a_single_clip_is_there_to_be_confused_with():
  x = np.array([[0.0], [2.0], [1.4]])
  emotion = np.array([0, 0, 1])
  # 0 is nearer to 1.4 than to 2, and 2 nearer to 1.4 than to 0.
  assert centroid_accuracy(x, np.zeros(3, int), emotion, np.arange(3)) == {"emotion_accuracy": 0.0}
