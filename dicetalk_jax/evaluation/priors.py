"""What the emotion embedder says of people it has never seen: clustering (Table 5), and what lies near what."""

import dataclasses
from collections.abc import Callable

import numpy as np

from dicetalk_jax.evaluation.cases import World
from dicetalk_jax.inference.clips import ClipEmbedder
from dicetalk_jax.training.clustering import centroid_accuracy, clustering_strength, strength_by_emotion
from dicetalk_jax.vocabulary import EMOTIONS

_TAKES = 3


@dataclasses.dataclass(frozen=True, eq=False)
class PriorScores:
  """Of clips' priors: strength: d_inter / d_intra (Table 5), over all and by emotion; accuracy: by nearest centroid.

  nearness: mean distance of priors of the same emotion and other people, divided by that of the same person and other
  emotions; below 1 an emotion says more than a person. plane (n, 2): the priors by t-SNE, of `emotion` and `person`
  (n,); empty without scikit-learn.
  """

  strength: float
  by_emotion: dict[str, float]
  accuracy: float
  nearness: float
  plane: np.ndarray
  emotion: np.ndarray
  person: np.ndarray


def prior_scores(
  embedder: ClipEmbedder, world: World, progress: Callable[[int, int], None] = lambda done, total: None
) -> PriorScores:
  """Of `world.people` people's clips, each emotion three times: other sentences, other performances."""
  mu, person, emotion = [], [], []
  for i in range(world.people):
    progress(i, world.people)
    for label, name in enumerate(EMOTIONS):
      for take in range(_TAKES):
        mu.append(embedder.prior(world.clip(i, name, 10 + take)).mu)
        person.append(i)
        emotion.append(label)
  progress(world.people, world.people)
  mu, person, emotion = np.stack(mu), np.array(person), np.array(emotion)
  strengths = strength_by_emotion(mu, person, emotion)
  return PriorScores(
    strength=clustering_strength(mu, person, emotion)["clustering_strength"],
    by_emotion={EMOTIONS[label]: value for label, value in strengths.items()},
    accuracy=centroid_accuracy(mu, person, emotion, np.arange(len(mu)))["emotion_accuracy"],
    nearness=nearness(mu, person, emotion),
    plane=_plane(mu),
    emotion=emotion,
    person=person,
  )


def nearness(mu: np.ndarray, person: np.ndarray, emotion: np.ndarray) -> float:
  """Mean distance over pairs of one emotion and two people, by that over pairs of one person and two emotions."""
  distance = np.linalg.norm(np.asarray(mu, np.float64)[:, None] - mu[None], axis=-1)
  same_person, same_emotion = person[:, None] == person, emotion[:, None] == emotion
  return float(distance[same_emotion & ~same_person].mean() / distance[same_person & ~same_emotion].mean())


def _plane(mu):
  try:
    from sklearn.manifold import TSNE
  except ImportError:
    return np.zeros((0, 2))
  return TSNE(perplexity=min(30.0, (len(mu) - 1) / 3), init="pca", random_state=0).fit_transform(mu)
