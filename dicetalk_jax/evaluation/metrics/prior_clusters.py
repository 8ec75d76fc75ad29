"""How the priors of clips cluster: d_inter / d_intra (Table 5), nearest centroids, t-SNE (Figure 4c)."""

import dataclasses

import numpy as np

from dicetalk_jax.training.clustering import centroid_accuracy, clustering_strength, strength_by_emotion
from dicetalk_jax.vocabulary import EMOTIONS


@dataclasses.dataclass(frozen=True, eq=False)
class PriorClusters:
  """Clustering of priors.

  strength: d_inter / d_intra (Table 5) over all clips; by_emotion: the same for each emotion. accuracy: share of clips
  whose nearest centroid is their emotion's. nearness: see `nearness`. plane (n, 2): t-SNE of the priors, whose labels
  are `emotion` and `person` (n,); no rows without scikit-learn.
  """

  strength: float
  by_emotion: dict[str, float]
  accuracy: float
  nearness: float
  plane: np.ndarray
  emotion: np.ndarray
  person: np.ndarray

  @classmethod
  def of(cls, mu: np.ndarray, person: np.ndarray, emotion: np.ndarray) -> "PriorClusters":
    """mu (n, d): means of priors; person, emotion (n,): integer labels, emotion an index of EMOTIONS."""
    strengths = strength_by_emotion(mu, person, emotion)
    return cls(
      strength=clustering_strength(mu, person, emotion)["clustering_strength"],
      by_emotion={EMOTIONS[label]: value for label, value in strengths.items()},
      accuracy=centroid_accuracy(mu, person, emotion, np.arange(len(mu)))["emotion_accuracy"],
      nearness=nearness(mu, person, emotion),
      plane=_plane(mu),
      emotion=emotion,
      person=person,
    )


def nearness(mu: np.ndarray, person: np.ndarray, emotion: np.ndarray) -> float:
  """Mean distance between people within an emotion, divided by that between emotions within a person.

  Below 1, a prior says more about the emotion than about the person.
  """
  distance = np.linalg.norm(np.asarray(mu, np.float64)[:, None] - mu[None], axis=-1)
  same_person, same_emotion = person[:, None] == person, emotion[:, None] == emotion
  return float(distance[same_emotion & ~same_person].mean() / distance[same_person & ~same_emotion].mean())


def _plane(mu):
  try:
    from sklearn.manifold import TSNE
  except ImportError:
    return np.zeros((0, 2))
  return TSNE(perplexity=min(30.0, (len(mu) - 1) / 3), init="pca", random_state=0).fit_transform(mu)
