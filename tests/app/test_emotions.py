"""The page's controls of emotion, in the grammar's words."""

import numpy as np
import pytest

from dicetalk_jax.app import emotions
from dicetalk_jax.errors import InputError
from dicetalk_jax.inference.emotion import resolve_emotion

LABELS = ("angry", "happy", "neutral", "sad")
PRIORS = {label: {"mu": np.random.default_rng(i).standard_normal(256)} for i, label in enumerate(LABELS)}


def test_each_control_says_what_the_grammar_reads():
  said = {
    emotions.of_label("happy").text: "happy",
    emotions.of_label("happy", 0.7).text: "happy:0.7",
    emotions.of_mix({"angry": 0, "happy": 0.6, "sad": 0.4}).text: "happy:0.6+sad:0.4",
    emotions.of_timeline(
      [{"time": 2.5, "weights": {"happy": 0.5}}, {"time": 0, "weights": {"neutral": 1}}]
    ).text: "0s neutral, 2.5s happy:0.5",
  }
  for text, expected in said.items():
    assert text == expected
    resolve_emotion(text, PRIORS)


def test_the_plots_keyframes_are_the_emotions():
  """The weights that the page draws give the priors that the networks get."""
  choice = emotions.of_timeline([{"time": 0, "weights": {"sad": 1}}, {"time": 1, "weights": {"happy": 1}}])
  emotion = resolve_emotion(choice.text, PRIORS)
  for keyframe in choice.keyframes:
    mixed = sum(weight * PRIORS[label]["mu"] for label, weight in keyframe["weights"].items())
    np.testing.assert_allclose(emotion.at([keyframe["time"]])[0], mixed, rtol=1e-6)


@pytest.mark.parametrize(
  ("choose", "said"),
  [
    (lambda: emotions.of_label(None), "choose an emotion"),
    (lambda: emotions.of_label("happy", None), "strength has no number"),
    (lambda: emotions.of_label("happy", float("nan")), "nan in the emotion 'happy:nan' is not between 0 and 2"),
    (lambda: emotions.of_mix(dict.fromkeys(LABELS, 0)), "at least one slider"),
    (lambda: emotions.of_mix(dict.fromkeys(LABELS, 1)), "sum to 4; they may sum to at most 2"),
    (lambda: emotions.of_timeline([]), "0 emotions"),
    (lambda: emotions.of_timeline([{"time": 1, "weights": {"sad": 1}}] * 2), "times must rise"),
    (lambda: emotions.of_timeline([{"time": -1, "weights": {"sad": 1}}]), "is negative"),
    (lambda: emotions.of_timeline([{"time": i, "weights": {"sad": 1}} for i in range(65)]), "65 emotions"),
    (lambda: emotions.of_timeline([3]), "cannot be read"),
    (lambda: emotions.of_clip(None), "give a clip"),
  ],
)
def test_what_is_no_emotion_is_said(choose, said):
  with pytest.raises(InputError, match=said):
    resolve_emotion(choose().text, PRIORS)


@pytest.mark.parametrize(
  "text", ["/etc/passwd", "../weights.npy", "mine.npy", "0s happy, 1s mine.npz", r"C:\mine", "~/x", "a. npy"]
)
def test_a_text_names_no_files_of_the_server(text):
  with pytest.raises(InputError, match="names a file"):
    emotions.check_words(text)


def test_times_and_strengths_are_no_files():
  emotions.check_words("0.5s happy:0.75+sad:.25, 0:02.5 angry")
