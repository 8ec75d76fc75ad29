"""How well priors tell emotions apart: clustering strength (Table 5) and nearest-centroid accuracy."""

import collections

import numpy as np


def clustering_strength(embedding: np.ndarray, identity: np.ndarray, emotion: np.ndarray) -> dict[str, float]:
  """d_inter / d_intra with a person's emotions as the categories, and the two: Euclidean, in float64.

  embedding (n, d), identity, emotion (n,) int. d_inter: mean distance between the centroids of two emotions of one
  person; d_intra: mean distance of a sample to the centroid of its person and emotion, over people with two emotions or
  more, all pairs and all samples alike. Rows of emotion -1 are passed over. Without a pair there is nothing: {}.
  """
  inter, intra = [], []
  for samples in _people(embedding, identity, emotion):
    centroids = np.stack([of_emotion.mean(0) for of_emotion in samples.values()])
    first, second = np.triu_indices(len(centroids), 1)
    inter.append(np.linalg.norm(centroids[first] - centroids[second], axis=-1))
    intra += [np.linalg.norm(x - c, axis=-1) for x, c in zip(samples.values(), centroids, strict=True)]
  if not inter:
    return {}
  d_inter, d_intra = (float(np.concatenate(distances).mean()) for distances in (inter, intra))
  return {
    "clustering_strength": d_inter / max(d_intra, np.finfo(np.float32).tiny),
    "d_inter": d_inter,
    "d_intra": d_intra,
  }


def strength_by_emotion(embedding: np.ndarray, identity: np.ndarray, emotion: np.ndarray) -> dict[int, float]:
  """`clustering_strength` of each emotion apart, as Table 5 lists it: {emotion: d_inter / d_intra}.

  d_inter: mean distance of its centroid to those of the same person's other emotions; d_intra: of its samples to it.
  """
  inter, intra = collections.defaultdict(list), collections.defaultdict(list)
  for samples in _people(embedding, identity, emotion):
    centroids = {label: of_emotion.mean(0) for label, of_emotion in samples.items()}
    for label, of_emotion in samples.items():
      inter[label] += [np.linalg.norm(centroids[label] - c) for other, c in centroids.items() if other != label]
      intra[label] += list(np.linalg.norm(of_emotion - centroids[label], axis=-1))
  tiny = np.finfo(np.float32).tiny
  return {int(label): float(np.mean(inter[label]) / max(np.mean(intra[label]), tiny)) for label in sorted(inter)}


def centroid_accuracy(
  embedding: np.ndarray, identity: np.ndarray, emotion: np.ndarray, clip: np.ndarray
) -> dict[str, float]:
  """Share of the samples whose own person's nearest emotion centroid is that of their emotion.

  As of `clustering_strength`, clip (n,): of a sample's own emotion the centroid is that of the other clips, so that
  emotions of which a person has one clip are only there to be confused with. {} where there is no other.
  """
  embedding, right = np.asarray(embedding, np.float64), []
  for person in np.unique(identity):
    of_person = (identity == person) & (emotion >= 0)
    emotions = np.unique(emotion[of_person])
    if len(emotions) < 2:
      continue
    masks = [of_person & (emotion == label) for label in emotions]
    centroids = np.stack([embedding[mask].mean(0) for mask in masks])
    for i in np.flatnonzero(of_person):
      own = int(np.searchsorted(emotions, emotion[i]))
      others = masks[own] & (clip != clip[i])
      if others.any():
        distance = np.linalg.norm(centroids - embedding[i], axis=-1)
        distance[own] = np.linalg.norm(embedding[others].mean(0) - embedding[i])
        right.append(distance.argmin() == own)
  return {"emotion_accuracy": float(np.mean(right))} if right else {}


def _people(embedding, identity, emotion):
  """emotion -> samples (k, d), of each person with two emotions or more."""
  embedding = np.asarray(embedding, np.float64)
  for person in np.unique(identity):
    of_person = (identity == person) & (emotion >= 0)
    emotions = np.unique(emotion[of_person])
    if len(emotions) > 1:
      yield {label: embedding[of_person & (emotion == label)] for label in emotions}
