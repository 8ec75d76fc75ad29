"""What can be learnt from the drawn world, measured on held-out people and sentences.

    python benchmarks/world.py

Accuracy of linear classifiers of the eight emotions from a clip's true face parameters, its expression coefficients, or
its sound, and the correlation of mouth opening and energy of the sound, frame by frame. Takes two minutes.
"""

import argparse
import concurrent.futures
import multiprocessing

import common
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dicetalk_jax.data.build.runner import Job, begin_worker
from dicetalk_jax.data.build.synthetic import SyntheticLayout
from dicetalk_jax.media.audio import HOP_SAMPLES, log_mel
from dicetalk_jax.vocabulary import EMOTIONS, SAMPLES_PER_FRAME, TRUTH
from dicetalk_jax.world.drawing import perform


def measure(job: Job) -> dict:
  """Label and statistics of a scene."""
  scene = job.work
  clip = perform(scene.person, scene.emotion, scene.level, scene.sentence, scene.take)
  face = clip.truth[:, [i for i, name in enumerate(TRUTH) if name != "phoneme"]]
  mel = log_mel(clip.audio)[0][: len(clip.audio) // HOP_SAMPLES]
  energy = np.sqrt(np.square(clip.audio.reshape(-1, SAMPLES_PER_FRAME)).mean(axis=1))
  return {
    "split": job.split,
    "emotion": EMOTIONS.index(scene.emotion),
    "level": scene.level,
    "true face parameters": np.concatenate([face.mean(0), face.std(0), *np.percentile(face, [10, 90], axis=0)]),
    "expression coefficients": np.concatenate([clip.expression.mean(0), clip.expression.std(0)]),
    "sound alone": np.concatenate([mel.mean(0), mel.std(0), [len(clip.audio)]]),
    "lips": np.corrcoef(energy, clip.truth[:, TRUTH.index("mouth_opening")])[0, 1],
  }


def recognised(scenes, of):
  """Accuracy on held-out clips, over all and at each level."""
  split = {name: [scene for scene in scenes if scene["split"] == name] for name in ("train", "test")}
  model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000, C=0.3))
  model.fit([scene[of] for scene in split["train"]], [scene["emotion"] for scene in split["train"]])
  right = model.predict([scene[of] for scene in split["test"]]) == [scene["emotion"] for scene in split["test"]]
  levels = np.array([scene["level"] for scene in split["test"]])
  return [right.mean(), *(right[levels == level].mean() for level in (1, 2, 3))]


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--people", type=int, default=40)
  parser.add_argument("--test-people", type=int, default=12)
  options = parser.parse_args()
  jobs = SyntheticLayout(people=options.people, test_people=options.test_people, takes=1).listing().jobs
  spawned = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(mp_context=spawned, initializer=begin_worker) as pool:
    scenes = list(pool.map(measure, jobs, chunksize=8))
  rows = []
  for of in ("true face parameters", "expression coefficients", "sound alone"):
    rows.append([of, *(f"{share:.3f}" for share in recognised(scenes, of))])
  title = f"Accuracy of a linear emotion classifier, {options.test_people} held-out people (chance {1 / len(EMOTIONS)})"
  common.print_table(title, ("from", "all", "level 1", "level 2", "level 3"), rows)
  lips = [scene["lips"] for scene in scenes]
  print(
    f"mouth opening and energy: correlation {np.mean(lips):.2f}, in 95 of 100 clips over {np.percentile(lips, 5):.2f}"
  )


if __name__ == "__main__":
  main()
