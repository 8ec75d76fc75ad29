"""The measuring network on a few drawn people, and the arithmetic of the ablations' table."""

import dataclasses

import jax
import numpy as np
import pytest
from ablations import Scores, table
from drawn_sets import people, write_set

from dicetalk_jax.data.batches.sources import ClipSets
from dicetalk_jax.errors import InputError
from dicetalk_jax.evaluation.drawn_faces import EXPRESSIONS, PORTRAITS, draw_faces
from dicetalk_jax.evaluation.measuring_stage import MeasuringConfig, check, train_measuring
from dicetalk_jax.evaluation.networks.measuring import MEASURED, Measuring, MeasuringNetwork
from dicetalk_jax.training.config import LoopConfig, OptimizerConfig
from dicetalk_jax.vocabulary import EMOTIONS, TRUTH

CONFIG = MeasuringConfig(
  people=24,
  size=64,
  batch=16,
  optimizer=OptimizerConfig(learning_rate=3e-3, ema_decay=0.9),
  loop=LoopConfig(steps=60, checkpoint_every=1000),
)


def with_neutral(clips):
  """The first clip of each person neutral, all others as they are."""
  return [dataclasses.replace(clip, emotion="neutral" if clip.clip.endswith("/0") else clip.emotion) for clip in clips]


@pytest.mark.slow
def test_it_learns_people_and_comes_back_as_it_was(tmp_path):
  losses, told = {}, []
  measuring, _ = train_measuring(
    CONFIG,
    tmp_path / "run",
    report=lambda step, m: losses.update({step: m}),
    progress=lambda stage, done, total: told.append((stage, done, total)),
  )
  assert losses[60]["loss"] < 0.7 * losses[1]["loss"] and losses[60]["identity"] < 0.5 * losses[1]["identity"]
  assert ("drawing faces", 24, 24) in told
  frames = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), np.uint8)
  ours, loaded = measuring(frames, frames[0]), Measuring.load(tmp_path / "run")(frames, frames[0])
  for mine, theirs in zip(ours, loaded, strict=True):
    np.testing.assert_array_equal(mine, theirs)
  assert ours.emotion.shape == (5, len(EMOTIONS)) and ours.face.shape == (5, len(MEASURED))
  np.testing.assert_allclose(np.linalg.norm(ours.identity, axis=-1), 1, rtol=1e-5)
  # Whole numbers and shares of one are the same picture, and so is one of many.
  np.testing.assert_allclose(
    measuring(frames[2:3] / np.float32(255), frames[0] / np.float32(255)).face, ours.face[2:3], atol=1e-4
  )


def test_the_check_counts_what_the_network_says(tmp_path):
  data = write_set(tmp_path / "set", with_neutral(people(4, clips=3, split="test", size=64)))
  params = jax.jit(MeasuringNetwork().init)(jax.random.key(0), *2 * [np.zeros((1, 64, 64, 3))])["params"]
  spread = np.ones(len(MEASURED), np.float32)
  scores = check(Measuring(params, 0 * spread, spread, (64, 64)), ClipSets(data, "test"))
  assert scores.keys() == {"emotion_accuracy", "emotion_accuracy_strongest", "identity_top1", "mouth_correlation"}
  # Any network tells patches of colour apart; they show no emotion.
  assert scores["identity_top1"] > 0.5 and scores["emotion_accuracy"] < 0.6


def test_drawn_faces_are_people_in_many_moods():
  faces = draw_faces(3, 64, seed=1)
  assert faces.portraits.shape == (3, PORTRAITS, 64, 64, 3) and faces.frames.shape == (3, EXPRESSIONS, 64, 64, 3)
  assert all(len(set(row)) == EXPRESSIONS for row in faces.emotion.tolist())
  again = draw_faces(2, 64, seed=1)
  np.testing.assert_array_equal(again.frames, faces.frames[:2])
  np.testing.assert_array_equal(again.truth, faces.truth[:2])
  # People differ more than a person's moods do.
  pictures = faces.frames.astype(float)
  within = np.abs(pictures[:, :-1] - pictures[:, 1:]).mean()
  assert np.abs(pictures[0] - pictures[1]).mean() > 2 * within > 0
  # The brows of the surprised are up, those of the angry are not.
  inner = faces.truth[..., TRUTH.index("brow_inner")]
  surprised, angry = (faces.emotion == EMOTIONS.index(name) for name in ("surprised", "angry"))
  assert inner[surprised].mean() > 0.2 > 0 > inner[angry].mean()


@pytest.mark.parametrize("change", [{"people": 1}, {"size": 72}, {"size": 32}])
def test_sizes_that_cannot_be_drawn_are_refused(change, tmp_path):
  with pytest.raises(InputError, match="give at least 2 people, and a multiple of 32"):
    train_measuring(dataclasses.replace(CONFIG, **change), tmp_path / "run")


def test_a_folder_without_a_network_says_how_to_make_one(tmp_path):
  with pytest.raises(InputError, match="give the folder of a finished `dicetalk train measuring`"):
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
