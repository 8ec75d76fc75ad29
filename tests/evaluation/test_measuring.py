"""The measuring network on a few drawn people, and the arithmetic of the ablations' table."""

import dataclasses

import numpy as np
import pytest
from drawn_sets import people, write_set

from dicetalk_jax.data.clip_sets import ClipSets
from dicetalk_jax.data.records import EMOTIONS
from dicetalk_jax.errors import InputError
from dicetalk_jax.evaluation.ablations import Scores, table
from dicetalk_jax.evaluation.measuring import MEASURED, Measuring, MeasuringConfig, check, train_measuring
from dicetalk_jax.training.config import LoopConfig, OptimizerConfig

CONFIG = MeasuringConfig(
  batch=16,
  optimizer=OptimizerConfig(learning_rate=3e-3, ema_decay=0.9),
  loop=LoopConfig(steps=60, checkpoint_every=1000),
)


def with_neutral(clips):
  """The first clip of each person neutral, all others as they are."""
  return [dataclasses.replace(clip, emotion="neutral" if clip.clip.endswith("/0") else clip.emotion) for clip in clips]


@pytest.mark.slow
def test_it_learns_people_and_comes_back_as_it_was(tmp_path):
  clips = with_neutral(people(6, clips=2, size=32) + people(4, clips=3, split="test", size=32))
  data = str(write_set(tmp_path / "set", clips))
  losses = {}
  measuring, _ = train_measuring(
    dataclasses.replace(CONFIG, data=(data,)), tmp_path / "run", report=lambda step, m: losses.update({step: m["loss"]})
  )
  assert losses[60] < 0.5 * losses[1]
  found = check(measuring, ClipSets(data, "test"))
  assert found.keys() == {
    *("emotion_accuracy", "emotion_accuracy_strongest", "identity_top1", "mouth_correlation"),
  }
  assert found["identity_top1"] > 0.6, "of four people whom it has not seen; chance is 0.25"
  frames = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), np.uint8)
  ours, loaded = measuring(frames, frames[0]), Measuring.load(tmp_path / "run")(frames, frames[0])
  for mine, theirs in zip(ours, loaded, strict=True):
    np.testing.assert_array_equal(mine, theirs)
  assert ours.emotion.shape == (5, len(EMOTIONS)) and ours.face.shape == (5, len(MEASURED))
  np.testing.assert_allclose(np.linalg.norm(ours.identity, axis=-1), 1, rtol=1e-5)
  # Whole numbers and shares of one are the same picture, and so is one of many.
  np.testing.assert_allclose(
    measuring(frames[2:3] / np.float32(255), frames[0] / np.float32(255)).face, ours.face[2:3], atol=1e-4
  )


def test_clips_without_truth_are_no_ground_to_learn_on(tmp_path):
  data = str(write_set(tmp_path / "set", with_neutral(people(2, size=32, truth=False))))
  with pytest.raises(InputError, match="no truth"):
    train_measuring(dataclasses.replace(CONFIG, data=(data,)), tmp_path / "run")
  with pytest.raises(InputError, match="make it with `dicetalk train measuring`"):
    Measuring.load(tmp_path)


def test_scores_and_their_table():
  neutral, happy, sad = (EMOTIONS.index(name) for name in ("neutral", "happy", "sad"))
  scores = Scores.of([neutral, happy, sad, happy], [neutral, happy, happy, sad], [1.0, 0.5, 0.5, 0.0])
  assert scores == Scores(4, 0.5, 1.0, 1 / 3, 0.5)
  worse = Scores.of([neutral, happy], [happy, sad], [0.0, 0.0])
  text = table([("ours", 0, scores, scores), ("ours", 1, worse, scores), ("other", 0, worse, scores)])
  rows = text.splitlines()[2:]
  assert (
    rows[0]
    == "| ours | 0.250 (0.000 to 0.500) | 0.250 (0.000 to 0.500) | 0.500 (0.000 to 1.000) | 0.167 (0.000 to 0.333) |"
  )
  assert rows[1].startswith("| other | 0.000 | 0.000 |") and rows[2].startswith("| true clips | 0.500 |")
