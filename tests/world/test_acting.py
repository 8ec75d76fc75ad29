"""Acting: speech wins over emotion, faces move as people's do, and emotions change over time."""

import numpy as np
import pytest

from dicetalk_jax.errors import InputError
from dicetalk_jax.vocabulary import EMOTIONS, FPS
from dicetalk_jax.world.acting import act
from dicetalk_jax.world.expressions import draw_style, expression
from dicetalk_jax.world.parameters import PARAMETERS, clipped, column
from dicetalk_jax.world.phonemes import LIP_COLUMNS
from dicetalk_jax.world.speakers import draw_voice, prosody
from dicetalk_jax.world.visemes import frame_phonemes, lips
from dicetalk_jax.world.voice import speak

# The upper lip comes down where a phoneme closes the lips, within a frame or two.
SPEECH = (*LIP_COLUMNS, "blink", "upper_lip")
FEATURES = [p.name for p in PARAMETERS if not p.of_head and p.name not in SPEECH]


def level_of(emotion):
  return 1 if emotion == "neutral" else 3


@pytest.fixture(scope="module")
def speech():
  """Several seconds with many closed lips."""
  text = "My mother bought a big apple pie, and Bob put the paper map on the table before breakfast."
  return speak(text, draw_voice(3), prosody("neutral", 1, 3), 3)


@pytest.fixture(scope="module")
def n(speech):
  return int(np.ceil(speech.duration * FPS))


def played(speech, n, emotion, seed=0, person=1):
  return act(draw_style(person), emotion, level_of(emotion), speech, n, seed)


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_every_emotion_keeps_to_what_a_face_can_do(speech, n, emotion):
  parameters = played(speech, n, emotion)
  assert parameters.shape == (n, len(PARAMETERS)) and parameters.dtype == np.float32
  assert np.isfinite(parameters).all() and np.array_equal(parameters, clipped(parameters))


def test_same_seed_same_performance_and_another_seed_another(speech, n):
  first, again, other = (played(speech, n, "happy", seed) for seed in (5, 5, 6))
  assert np.array_equal(first, again)
  for name in ("yaw", "corner_left", "brow_outer"):
    assert np.abs(column(first, name) - column(other, name)).max() > 0.02, name
  jaws = np.corrcoef(column(first, "jaw"), column(other, "jaw"))[0, 1]
  assert jaws > 0.95  # what is said moves the jaw, not the dice


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_lips_follow_the_phonemes_whatever_is_felt(speech, n, emotion):
  parameters, spoken = played(speech, n, emotion), lips(speech.segments, n)
  wanted = {name: spoken[:, i] for i, name in enumerate(LIP_COLUMNS)}
  closed = wanted["lip_press"] > 0.9
  assert closed.sum() >= 6
  assert column(parameters, "lip_press")[closed].min() > 0.85
  assert column(parameters, "upper_lip")[closed].max() < 0.12
  for name in ("lip_round", "lip_tuck", "tongue"):
    np.testing.assert_allclose(column(parameters, name), wanted[name], atol=1e-6)
  for name, least in (("jaw", 0.9), ("lip_width", 0.75)):
    assert np.corrcoef(column(parameters, name), wanted[name])[0, 1] > least, name
  # Between words an emotion may press the lips; within a vowel it does not.
  vowels = wanted["jaw"] > 0.5
  assert column(parameters, "lip_press")[vowels].max() < 0.25


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_the_features_move_without_jumps(speech, n, emotion):
  for seed in range(4):
    steps = np.abs(np.diff(played(speech, n, emotion, seed), axis=0))
    for name in FEATURES:
      assert column(steps, name).max() < 0.35, (name, seed)
    for name in ("yaw", "pitch", "roll"):
      assert column(steps, name).max() < 0.08, (name, seed)  # radians a frame: 2 a second


def test_strong_expressions_do_not_freeze(speech, n):
  for person in range(10):
    parameters = played(speech, n, "happy", person, person)
    for name in ("corner_left", "cheek"):
      values = column(parameters, name)[n // 3 : -12]
      assert (values == 1).mean() < 0.05 and values.std() > 0.005, (name, person)


def test_blinks_are_short_whole_and_neither_rare_nor_constant(speech, n):
  blinks, seconds = 0, 0.0
  for seed in range(40):
    shut = column(played(speech, n, "neutral", seed, person=seed), "blink") > 0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], shut, [0]])))
    lengths = edges[1::2] - edges[::2]
    whole = lengths[edges[1::2] < n]
    assert np.isin(whole, (3, 4, 5)).all()
    assert (edges[2::2] - edges[1:-1:2] >= 10).all()  # a pause after each
    blinks, seconds = blinks + len(lengths), seconds + n / FPS
  assert 0.15 < blinks / seconds < 0.45  # speakers' 10 to 26 a minute (Bentivoglio et al., 1997)


def test_eyes_hold_the_onlooker_while_the_head_sways(speech, n):
  steps = [np.diff(played(speech, n, "happy", seed), axis=0) for seed in range(6)]
  yaw, gaze = (np.concatenate([column(s, name) for s in steps]) for name in ("yaw", "gaze_x"))
  still = np.abs(gaze) < 0.1  # no saccade
  assert np.corrcoef(yaw[still], gaze[still])[0, 1] < -0.4


def test_fear_trembles(speech, n):
  def trembling(emotion):
    brows = np.stack([column(played(speech, n, emotion, seed), "brow_inner") for seed in range(4)])
    return np.abs(np.diff(brows, 2, axis=1)).mean()

  assert trembling("fear") > 2 * trembling("neutral") and trembling("fear") > 2 * trembling("happy")


def test_levels_grow():
  style = draw_style(4)
  for emotion in EMOTIONS:
    if emotion != "neutral":
      sizes = [np.linalg.norm(expression(emotion, level, style).target) for level in (1, 2, 3)]
      np.testing.assert_allclose(np.array(sizes) / sizes[2], (0.5, 0.75, 1.0))


def test_people_smile_differently_but_all_smile():
  targets = np.stack([expression("happy", 3, draw_style(person)).target for person in range(40)])
  corners = (column(targets, "corner_left") + column(targets, "corner_right")) / 2
  assert corners.min() > 0.3 and corners.std() > 0.1


def test_contempt_is_on_the_favourite_side():
  for person in range(12):
    style = draw_style(person)
    target = expression("contempt", 3, style).target
    left, right = column(target, "corner_left"), column(target, "corner_right")
    assert (right - left) * style.side > 0.3
    assert column(target, "brow_tilt") * style.side > 0.2


def test_a_timeline_changes_the_emotion_smoothly(speech, n):
  middle = n / FPS / 2
  parameters = act(draw_style(2), [(0, "sad", 3), (middle, "happy", 3)], None, speech, n, 1)
  t = (np.arange(n) + 0.5) / FPS
  corner = (column(parameters, "corner_left") + column(parameters, "corner_right")) / 2
  before, after = corner[(t > 0.8) & (t < middle - 0.6)], corner[(t > middle + 0.7) & (t < t[-1] - 0.6)]
  assert before.mean() < -0.25 and after.mean() > 0.3
  assert np.abs(np.diff(corner)).max() < 0.3
  assert column(parameters, "lip_press")[lips(speech.segments, n)[:, LIP_COLUMNS.index("lip_press")] > 0.9].min() > 0.85


def test_a_timeline_of_one_is_the_emotion(speech, n):
  whole = played(speech, n, "angry")
  np.testing.assert_array_equal(act(draw_style(1), [(0, "angry", 3)], None, speech, n, 0), whole)


def test_brows_rise_on_stressed_syllables(speech, n):
  stressed = np.zeros(n, bool)
  for segment in speech.segments:
    if segment.stress:
      stressed[int(segment.start * FPS) : int(segment.end * FPS) + 1] = True
  voiced = frame_phonemes(speech.segments, n) > 0
  brows = np.mean([column(played(speech, n, "happy", seed), "brow_outer") for seed in range(30)], 0)
  assert brows[stressed].mean() > brows[voiced & ~stressed].mean() + 0.01


@pytest.mark.parametrize(
  ("emotion", "level", "text"),
  [
    ("furious", 1, "furious"),
    ("neutral", 3, "level 1 only"),
    ("happy", 4, "levels 1, 2 and 3; level 4"),
    ([], None, "empty"),
    ([(0, "sad", 1), (0, "happy", 1)], None, "must rise"),
    ([(0, "sad", 1), (2, "joy", 1)], None, "joy"),
  ],
)
def test_what_cannot_be_acted_is_said(speech, n, emotion, level, text):
  with pytest.raises(InputError, match=text):
    act(draw_style(1), emotion, level, speech, n, 0)
