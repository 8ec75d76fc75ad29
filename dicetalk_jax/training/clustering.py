"""How well priors separate emotions: clustering strength (Table 5) and nearest-centroid accuracy."""

import collections

import numpy as np


def clustering_strength(embedding: np.ndarray, identity: np.ndarray, emotion: np.ndarray) -> dict[str, float]:
  """clustering_strength = d_inter / d_intra, with Euclidean distances in float64.

  embedding (n, d); identity, emotion (n,) int. The categories are the emotions of each person. d_inter: mean distance
  between the centroids of two emotions of one person. d_intra: mean distance of a sample to its category's centroid.
  Both means run over people with at least two emotions, all pairs and samples alike. Rows with emotion -1 are ignored.
  Returns {} without any pair.
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
  """`clustering_strength` of each emotion, as in Table 5: {emotion: d_inter / d_intra}.

  d_inter: mean distance of its centroid to those of the same person's other emotions. d_intra: mean distance of its
  samples to its centroid.
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
  """Share of samples whose nearest centroid, among the emotions of their person, is that of their own emotion.

  Arguments as in `clustering_strength`; clip (n,). The centroid of a sample's own emotion leaves out its clip, so an
  emotion with a single clip of a person serves only as a wrong answer. Returns {} if no emotion has two clips.
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
  """For each person with at least two emotions: emotion -> samples (k, d)."""
  embedding = np.asarray(embedding, np.float64)
  for person in np.unique(identity):
    of_person = (identity == person) & (emotion >= 0)
    emotions = np.unique(emotion[of_person])
    if len(emotions) > 1:
      yield {label: embedding[of_person & (emotion == label)] for label in emotions}
