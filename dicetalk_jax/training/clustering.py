"""How well priors separate emotions: clustering strength (Table 5) and nearest-centroid accuracy."""

import collections

import numpy as np

_TINY = np.finfo(np.float32).tiny


def clustering_strength(embedding: np.ndarray, identity: np.ndarray, emotion: np.ndarray) -> dict[str, float]:
  """clustering_strength = d_inter / d_intra, with Euclidean distances in float64.

  embedding (n, d); identity, emotion (n,) int. The categories are the emotions of each person. d_inter: mean distance
  between the centroids of two emotions of one person. d_intra: mean distance of a sample to its category's centroid.
  Both means run over people with at least two emotions, all pairs and samples alike. Rows with emotion -1 are ignored.
  Returns {} without any pair.
  """
  inter, intra = (list(distances.values()) for distances in _distances(embedding, identity, emotion))
  if not inter:
    return {}
  d_inter, d_intra = (float(np.concatenate(distances).mean()) for distances in (inter, intra))
  return {"clustering_strength": d_inter / max(d_intra, _TINY), "d_inter": d_inter, "d_intra": d_intra}


def strength_by_emotion(embedding: np.ndarray, identity: np.ndarray, emotion: np.ndarray) -> dict[int, float]:
  """`clustering_strength` of each emotion, as in Table 5: {emotion: d_inter / d_intra}.

  d_inter: mean distance of its centroid to those of the same person's other emotions. d_intra: mean distance of its
  samples to its centroid.
  """
  inter, intra = _distances(embedding, identity, emotion)
  return {int(label): float(np.mean(inter[label]) / max(np.mean(intra[label]), _TINY)) for label in sorted(inter)}


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


def _distances(embedding, identity, emotion) -> tuple[dict, dict]:
  """{emotion: distances} of centroids to those of the person's other emotions, and of samples to their centroid."""
  embedding = np.asarray(embedding, np.float64)
  inter, intra = collections.defaultdict(list), collections.defaultdict(list)
  for person in np.unique(identity):
    of_person = (identity == person) & (emotion >= 0)
    emotions = np.unique(emotion[of_person])
    samples = [embedding[of_person & (emotion == label)] for label in emotions] if len(emotions) > 1 else []
    centroids = [of_emotion.mean(0) for of_emotion in samples]
    for i, of_emotion in enumerate(samples):
      others = centroids[:i] + centroids[i + 1 :]
      inter[emotions[i]] += [np.linalg.norm(centroids[i] - other) for other in others]
      intra[emotions[i]] += list(np.linalg.norm(of_emotion - centroids[i], axis=-1))
  return inter, intra
