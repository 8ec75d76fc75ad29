"""The drawn world carries what a model is to learn: measured on what is true, on what is heard and on coefficients."""

import itertools

import numpy as np
import pytest
from scipy.signal import stft
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from dicetalk_jax.errors import InputError
from dicetalk_jax.vocabulary import EMOTIONS, EXPRESSION_DIM, SAMPLE_RATE, SAMPLES_PER_FRAME, TRUTH
from dicetalk_jax.world.coefficients import coefficients
from dicetalk_jax.world.drawing import draw_clip, perform
from dicetalk_jax.world.parameters import OF_FACE, PARAMETERS, column
from dicetalk_jax.world.phonemes import INDEX
from dicetalk_jax.world.sentences import sentences

CHANCE = 1 / len(EMOTIONS)
TRAIN_PEOPLE, TEST_PEOPLE = range(60), range(1000, 1010)


def troupe(people, split, emotions):
  """People, each with so many of the emotions; levels and sentences take turns, so that neither tells the emotion."""
  texts = sorted(sentences(split), key=len)
  texts = texts[: len(texts) // 3]  # short ones, for a quick test
  clips = []
  for i, person in enumerate(people):
    for j in range(emotions):
      emotion = EMOTIONS[(i + j) % len(EMOTIONS)]
      level = 1 if emotion == "neutral" else 1 + (i + 2 * j) % 3
      clips.append(perform(person, emotion, level, texts[(7 * i + 3 * j) % len(texts)]))
  return clips


@pytest.fixture(scope="module", autouse=True)
def one_thread():
  """Small products of matrices only lose by threads, most of all on a machine that is busy with other tests."""
  with threadpool_limits(1):
    yield


@pytest.fixture(scope="module")
def train():
  return troupe(TRAIN_PEOPLE, "train", 4)


@pytest.fixture(scope="module")
def test():
  return troupe(TEST_PEOPLE, "test", len(EMOTIONS))


def of(clip, name):
  return clip.truth[:, TRUTH.index(name)]


def statistics(series):
  """(n, d) over a clip -> what stays of it when the order in time is forgotten."""
  return np.concatenate([series.mean(0), series.std(0), *np.percentile(series, (10, 50, 90), axis=0)])


def seen(clip):
  return statistics(np.delete(clip.truth, TRUTH.index("phoneme"), axis=1))


def tracked(clip):
  return np.concatenate([clip.expression.mean(0), clip.expression.std(0)])


def heard(clip):
  """Loudness and its movement in 24 bands, and the period of the voice: nothing of the segments."""
  _, _, spectrum = stft(clip.audio, SAMPLE_RATE, nperseg=400, noverlap=240)
  edges = np.geomspace(3, 200, 25).astype(int)
  power = np.abs(spectrum) ** 2
  bands = np.log(1e-9 + np.stack([power[a : max(b, a + 1)].sum(0) for a, b in itertools.pairwise(edges)]))
  loud = bands.max(0) > bands.max() - 6
  frames = np.lib.stride_tricks.sliding_window_view(clip.audio, 1024)[::320]
  turned = np.fft.irfft(np.abs(np.fft.rfft(frames * np.hanning(1024), 2048)) ** 2)[:, :400]
  lag = 35 + turned[:, 35:].argmax(1)  # 40 to 457 Hz
  voiced = turned[np.arange(len(lag)), lag] > 0.4 * turned[:, 0] + 1e-6
  pitch = np.log(SAMPLE_RATE / lag[voiced]) if voiced.sum() > 3 else np.zeros(1)
  tune = [pitch.mean(), pitch.std(), *np.percentile(pitch, (10, 90)), loud.mean(), voiced.mean()]
  change = np.abs(np.diff(bands[:, loud], axis=1)).mean(1)
  return np.concatenate([bands[:, loud].mean(1), bands[:, loud].std(1), change, tune])


def recognised(features, train, test):
  """Accuracy on people and sentences that the classifier has not met."""
  classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=400))
  classifier.fit([features(c) for c in train], [c.emotion for c in train])
  return classifier.score([features(c) for c in test], [c.emotion for c in test])


def test_people_and_sentences_are_held_out():
  assert not set(sentences("train")) & set(sentences("test"))


def test_the_face_shows_the_emotion(train, test):
  assert recognised(seen, train, test) >= 0.95


def test_the_face_shows_it_to_the_coefficients_too(train, test):
  assert recognised(tracked, train, test) >= 0.85


def test_the_voice_lets_it_be_heard(train, test):
  assert recognised(heard, train, test) >= 3 * CHANCE


def test_no_single_thing_gives_the_emotion_away(train, test):
  """A model has to look at the whole face."""
  for name in TRUTH:
    if name != "phoneme":
      single = recognised(lambda clip, name=name: statistics(of(clip, name)[:, None]), train, test)
      assert single < 0.7, (name, single)


def test_sentences_do_not_give_the_emotion_away(train, test):
  def said(clip):
    return np.bincount(of(clip, "phoneme").astype(int), minlength=len(INDEX)) / len(clip.truth)

  assert recognised(said, train, test) < 2.5 * CHANCE


def test_mouths_open_with_the_sound(train):
  found = []
  for clip in train[::3]:
    level = np.sqrt(np.mean(clip.audio.reshape(-1, SAMPLES_PER_FRAME) ** 2, 1))
    found.append(np.corrcoef(level, of(clip, "mouth_opening"))[0, 1])
  assert np.mean(found) >= 0.5
  assert np.percentile(found, 5) > 0.2


def test_mouths_are_closed_in_the_middle_of_bilabials(train):
  """And far more open in open vowels, of the same clips."""
  closed, opened = [], []
  for clip in train:
    for segment in clip.speech.segments:
      frame = min(int((segment.start + segment.end) / 2 * 25), len(clip.truth) - 1)
      if segment.phoneme in ("P", "B", "M"):
        closed.append(of(clip, "mouth_opening")[frame])
      elif segment.phoneme in ("AA", "AE", "AY"):
        opened.append(of(clip, "mouth_opening")[frame])
  assert min(len(closed), len(opened)) > 200
  assert np.percentile(closed, 98) < 0.012  # of a face height: about a pixel and a half at 128
  assert np.percentile(opened, 10) > 4 * np.percentile(closed, 98)


def test_related_emotions_look_alike(train):
  features = np.stack([seen(clip) for clip in train])
  features = (features - features.mean(0)) / features.std(0)
  names = np.array([clip.emotion for clip in train])
  centres = {e: features[names == e].mean(0) for e in EMOTIONS}

  def alike(a, b):
    """The cosine between what two emotions do to a neutral face."""
    a, b = centres[a] - centres["neutral"], centres[b] - centres["neutral"]
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

  families = (("angry", "disgusted"), ("contempt", "disgusted"), ("fear", "surprised"))
  for a, b in families:
    assert alike(a, b) > 0.5
    others = [e for e in EMOTIONS if e not in ("neutral", *(name for f in families for name in f if {a, b} & set(f)))]
    assert alike(a, b) > max(alike(one, other) for one in (a, b) for other in others), (a, b)
  far = np.linalg.norm(centres["sad"] - centres["happy"])
  assert np.linalg.norm(centres["sad"] - centres["neutral"]) < 0.75 * far


def test_stronger_levels_are_farther_from_neutral():
  text = sentences("train")[0]

  def distance(level):
    return np.mean(
      [np.linalg.norm(seen(perform(p, "happy", level, text)) - seen(perform(p, "neutral", 1, text))) for p in range(4)]
    )

  distances = [distance(level) for level in (1, 2, 3)]
  assert distances[0] < distances[1] < distances[2]


def test_coefficients_are_a_persons_own_but_hold_the_face(train):
  clips = [clip for clip in train if clip.person == 7]
  parameters = np.concatenate([clip.parameters for clip in clips])
  values = coefficients(7, parameters)
  np.testing.assert_array_equal(values, np.concatenate([clip.expression for clip in clips]))
  assert values.shape == (len(parameters), EXPRESSION_DIM) and values.dtype == np.float32
  half = np.arange(len(values)) % 2 == 0
  scaler = StandardScaler().fit(values[half])
  fit = Ridge(1.0).fit(scaler.transform(values[half]), parameters[half])
  residual = parameters[~half] - fit.predict(scaler.transform(values[~half]))
  explained = 1 - residual.var(0) / np.maximum(parameters[~half].var(0), 1e-9)
  for i in OF_FACE:
    assert explained[i] > 0.8, (PARAMETERS[i].name, explained[i])
  # The same face on another person: another offset, as far away as an emotion.
  rest = np.zeros((1, len(PARAMETERS)))
  offsets = np.concatenate([coefficients(person, rest) for person in range(30)])
  moved = np.stack([clip.expression.mean(0) for clip in clips])
  assert 0.5 < np.linalg.norm(offsets.std(0)) / np.linalg.norm(moved.std(0)) < 2.5


def test_coefficients_have_the_size_of_real_ones(train, examples):
  from scipy.io import loadmat

  real = [loadmat(path)["coeff"][:, 80:144] for path in sorted((examples / "mead").glob("*.mat"))]
  drawn = [clip.expression for clip in train if clip.level == 3 or clip.emotion == "neutral"]

  def blocks(clips, measure):
    return np.sqrt(np.mean(np.mean([measure(c) for c in clips], 0).reshape(-1, 16) ** 2, 1))

  for measure in (lambda c: c.std(0), lambda c: np.diff(c, axis=0).std(0), lambda c: np.abs(c.mean(0))):
    ratio = blocks(drawn, measure) / blocks(real, measure)
    assert (ratio > 0.5).all() and (ratio < 2).all(), ratio


def test_coefficients_know_nothing_of_head_and_eyes():
  rng = np.random.default_rng(0)
  still, moved = np.zeros((2, 5, len(PARAMETERS)))
  for parameter in PARAMETERS:
    if parameter.of_head:
      column(moved, parameter.name)[:] = rng.uniform(parameter.low, parameter.high, 5)
  np.testing.assert_array_equal(coefficients(3, still), coefficients(3, moved))


def test_a_clip_is_the_same_every_time_and_whole():
  first, again = (draw_clip(5, "fear", 2, "Did you see it?", take=1, size=64) for _ in range(2))
  n = len(first.frames)
  for name in ("frames", "audio", "expression", "truth", "parameters"):
    assert getattr(first, name).tobytes() == getattr(again, name).tobytes(), name
  assert first.face_box == again.face_box
  assert first.frames.shape == (n, 64, 64, 3) and first.frames.dtype == np.uint8
  assert len(first.audio) == n * SAMPLES_PER_FRAME
  assert first.truth.shape == (n, len(TRUTH)) and first.truth.dtype == np.float32
  assert np.isfinite(first.truth).all()
  x, y, w, h = first.face_box
  assert 0 <= x < x + w <= 64 and 0 <= y < y + h <= 64 and w * h > 0.05 * 64 * 64


def test_another_take_is_another_performance_of_the_same_person():
  first, second = (perform(5, "fear", 2, "Did you see it?", take) for take in (0, 1))
  assert first.identity == second.identity
  n = min(len(first.truth), len(second.truth))
  assert np.abs(first.truth[:n] - second.truth[:n]).max() > 0.05
  assert len(first.audio) != len(second.audio) or not np.array_equal(first.audio, second.audio)


def test_truth_shows_blinks_in_the_lids():
  clip = perform(2, "surprised", 3, sentences("train")[1])
  blink = column(clip.parameters, "blink")
  assert (of(clip, "lid")[blink == 1] == -1).all()
  np.testing.assert_array_equal(of(clip, "lid")[blink == 0], column(clip.parameters, "lid")[blink == 0])
  np.testing.assert_array_equal(of(clip, "yaw"), column(clip.parameters, "yaw"))


@pytest.mark.parametrize(("emotion", "level"), [("joy", 1), ("neutral", 2), ("sad", 0)])
def test_what_cannot_be_played_is_said_before_anything_is_computed(emotion, level):
  with pytest.raises(InputError, match=emotion):
    perform(1, emotion, level, "Hello.")


def test_a_voice_may_have_an_emotion_of_its_own():
  text = "The train to the coast leaves at nine."
  for person in (3, 4, 5):
    happy, sad = perform(person, "happy", 3, text), perform(person, "sad", 3, text)
    both = perform(person, "happy", 3, text, voice=("sad", 3))
    for measured, like, unlike in ((tracked, happy, sad), (heard, sad, happy)):
      near, far = (np.linalg.norm(measured(both) - measured(other)) for other in (like, unlike))
      assert near < 0.5 * far, (person, measured.__name__, near, far)
    # Lips go with what is heard.
    assert len(both.truth) == len(both.audio) // SAMPLES_PER_FRAME
    again = perform(person, "happy", 3, text, voice=("happy", 3))
    np.testing.assert_array_equal(again.audio, happy.audio)
  with pytest.raises(InputError, match="emotion 'glad'"):
    perform(3, "happy", 3, text, voice=("glad", 3))
