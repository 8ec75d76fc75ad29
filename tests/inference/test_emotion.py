import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, draw

from dicetalk_jax.errors import InputError
from dicetalk_jax.inference.emotion import Emotion, resolve_emotion
from dicetalk_jax.weights.priors import Prior

LABELS = ["angry", "contempt", "disgusted", "fear", "happy", "neutral", "sad", "surprised"]
PRIORS = {label: {"mu": draw(label, (256,))} for label in LABELS}
HAPPY, SAD, ANGRY, NEUTRAL = (PRIORS[label]["mu"] for label in ("happy", "sad", "angry", "neutral"))
# Weighted sums are rounded to float32 once.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def constant(spec, priors=PRIORS):
  mu = resolve_emotion(spec, priors).at([0.0, 3.7, 1000.0])
  assert mu.shape == (3, 256) and mu.dtype == np.float32
  assert (mu == mu[0]).all()
  return mu[0]


@pytest.mark.parametrize("spec", ["happy", " happy ", "Happy", "happy:1", "happy : 1.0", "happy:0.5+happy:0.5"])
def test_label(spec):
  np.testing.assert_array_equal(constant(spec), HAPPY)


def test_strength_is_measured_from_neutral():
  np.testing.assert_allclose(constant("happy:0.7"), NEUTRAL + 0.7 * (HAPPY - NEUTRAL), **CLOSE)
  np.testing.assert_allclose(constant("happy:2"), NEUTRAL + 2 * (HAPPY - NEUTRAL), **CLOSE)
  np.testing.assert_array_equal(constant("happy:0"), NEUTRAL)


def test_mix():
  np.testing.assert_allclose(constant("happy:0.6+sad:0.4"), 0.6 * HAPPY + 0.4 * SAD, **CLOSE)
  np.testing.assert_allclose(constant(" happy :0.3 + sad: 0.2 "), 0.3 * HAPPY + 0.2 * SAD + 0.5 * NEUTRAL, **CLOSE)
  np.testing.assert_allclose(constant("happy+sad+angry"), (HAPPY + SAD + ANGRY) / 3, **CLOSE)


def test_neutral_is_needed_only_to_scale():
  priors = {label: PRIORS[label] for label in ("happy", "sad")}
  np.testing.assert_array_equal(constant("happy", priors), HAPPY)
  np.testing.assert_allclose(constant("happy:0.6+sad:0.4", priors), 0.6 * HAPPY + 0.4 * SAD, **CLOSE)
  with pytest.raises(InputError, match="neutral"):
    resolve_emotion("happy:0.7", priors)


@pytest.mark.parametrize(
  "spec",
  ["0s neutral, 2s happy, 5s angry", "0ms neutral,2000ms   happy ,0:05 angry", " 0 s neutral, 2.0s happy, 5.s angry"],
)
def test_timeline_passes_through_its_priors_smoothly(spec):
  emotion = resolve_emotion(spec, PRIORS)
  np.testing.assert_array_equal(emotion.at([0, 2, 5]), np.stack([NEUTRAL, HAPPY, ANGRY]))
  np.testing.assert_array_equal(emotion.at([7.0, 1e6]), np.stack([ANGRY, ANGRY]))
  np.testing.assert_allclose(emotion.at([1.0])[0], (NEUTRAL + HAPPY) / 2, **CLOSE)
  u = 0.25
  w = 3 * u**2 - 2 * u**3
  np.testing.assert_allclose(emotion.at([2.75])[0], (1 - w) * HAPPY + w * ANGRY, **CLOSE)
  # Smooth: the speed vanishes at the keyframes, and no two 12.5 fps frames are far apart.
  speed = np.linalg.norm(np.diff(emotion.at(np.arange(0, 6, 0.001)), axis=0), axis=1)
  assert speed[[0, 1999, 2000, 4998, 5500]].max() < 0.01 * speed.max()


def test_timeline_holds_before_its_first_time_and_mixes():
  emotion = resolve_emotion("1.5s happy:0.5, 1:02.5 happy:0.6+sad:0.4", PRIORS)
  assert emotion.seconds.tolist() == [1.5, 62.5]
  np.testing.assert_array_equal(emotion.at([0.0]), emotion.at([1.5]))
  np.testing.assert_allclose(emotion.at([0.0])[0], (NEUTRAL + HAPPY) / 2, **CLOSE)
  np.testing.assert_allclose(emotion.at([62.5])[0], 0.6 * HAPPY + 0.4 * SAD, **CLOSE)


@pytest.mark.parametrize(
  "spec, text",
  [
    ("happy", "happy"),
    ("happy:0.70", "happy 0.7"),
    ("happy:0.6+surprised:.4", "happy 0.6 + surprised 0.4"),
    ("sad+happy", "sad + happy"),
    ("0s neutral,500ms happy:0.5, 1:05 sad+happy", "0s neutral, 0.5s happy 0.5, 65s sad + happy"),
    (GOLDEN / "emotion.npy", "emotion.npy"),
    (f"0s happy, 2s {GOLDEN / 'emotion.npy'}", "0s happy, 2s emotion.npy"),
    (np.zeros((26, 256)), "26 given priors over 2s"),
  ],
)
def test_text(spec, text):
  assert str(resolve_emotion(spec, PRIORS)) == text


def test_prior_file_stands_for_a_label(tmp_path):
  released = np.load(GOLDEN / "emotion.npy", allow_pickle=True).item()["mu"][0]
  for spec in (GOLDEN / "emotion.npy", str(GOLDEN / "emotion.npy"), f" {GOLDEN / 'emotion.npy'} "):
    np.testing.assert_array_equal(constant(spec, {}), released)
  np.testing.assert_allclose(
    constant(f"{GOLDEN / 'emotion.npy'}:0.5+sad:0.5"), 0.5 * released + 0.5 * SAD, rtol=1e-5, atol=1e-6
  )
  with pytest.raises(InputError, match="not a number"):
    resolve_emotion(f"{GOLDEN / 'emotion.npy'}:x", PRIORS)
  odd = tmp_path / "0s happy, or+so:2.npy"
  np.save(odd, SAD)
  np.testing.assert_array_equal(constant(str(odd)), SAD)


def test_label_wins_over_a_file_of_its_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "happy").write_bytes(b"")
  np.testing.assert_array_equal(constant("happy"), HAPPY)
  np.save(tmp_path / "mine.npy", SAD)
  np.testing.assert_array_equal(constant("mine.npy"), SAD)


@pytest.mark.parametrize("shape", [(256,), (1, 256), (1, 1, 1, 1, 256), (256, 1)])
def test_array(shape):
  np.testing.assert_array_equal(constant(HAPPY.reshape(shape)), HAPPY)
  np.testing.assert_array_equal(constant(jnp.asarray(HAPPY).reshape(shape)), HAPPY)
  np.testing.assert_array_equal(constant(HAPPY.reshape(shape).tolist()), HAPPY)
  np.testing.assert_array_equal(constant({"mu": HAPPY.reshape(shape), "sigma": np.ones(256)}), HAPPY)
  np.testing.assert_array_equal(constant(np.array({"mu": HAPPY.reshape(shape)}, dtype=object)), HAPPY)


def test_prior_and_emotion():
  np.testing.assert_array_equal(constant(Prior(HAPPY)), HAPPY)
  emotion = resolve_emotion("happy", PRIORS)
  assert resolve_emotion(emotion, {}) is emotion


@pytest.mark.parametrize("shape", [(30, 256), (1, 30, 256), (1, 1, 30, 1, 256)])
def test_sequence_is_one_prior_a_frame(shape):
  frames = draw("frames", (30, 256))
  emotion = resolve_emotion(frames.reshape(shape), PRIORS)
  np.testing.assert_array_equal(emotion.at(np.arange(30) / 12.5), frames)
  np.testing.assert_allclose(emotion.at([0.25 / 12.5])[0], 0.75 * frames[0] + 0.25 * frames[1], **CLOSE)
  np.testing.assert_array_equal(emotion.at([100.0])[0], frames[-1])


def test_other_prior_sizes():
  emotion = resolve_emotion("happy", {"happy": {"mu": np.ones(8)}}, prior_size=8)
  assert emotion.at(np.zeros(3)).shape == (3, 8)
  with pytest.raises(InputError, match="has 256 numbers"):
    resolve_emotion(emotion, PRIORS)


def test_emotion_cannot_change_and_keeps_nothing_of_the_caller():
  mu = np.stack([HAPPY, SAD])
  emotion = Emotion([0, 2], mu, "mine")
  mu[:] = 0
  np.testing.assert_array_equal(emotion.at([0.0])[0], HAPPY)
  for array in (emotion.mu, emotion.seconds):
    with pytest.raises(ValueError):
      array[0] = 0
  with pytest.raises(AttributeError):
    emotion.text = "other"
  resolve_emotion("happy", PRIORS).at([0.0])[:] = 0
  assert HAPPY.any()


@pytest.mark.parametrize(
  "seconds, mu", [([0, 2], np.zeros((3, 4))), ([0], np.zeros(4)), ([], np.zeros((0, 4))), ([np.nan], np.zeros((1, 4)))]
)
def test_emotion_of_odd_shapes(seconds, mu):
  with pytest.raises(InputError):
    Emotion(seconds, mu)


@pytest.mark.parametrize(
  "spec, message",
  [
    ("", "is empty"),
    ("  ", "is empty"),
    ("hapy", "know angry, contempt, .*, surprised. Did you mean 'happy'"),
    ("disgust", "Did you mean 'disgusted'"),
    ("xyzzy", "'xyzzy' is not known; these weights know angry"),
    ("happy:0.5+hapy:0.5", "Did you mean 'happy'"),
    ("happy:", "strength '' .* is not a number"),
    ("happy:abc", "'abc' .* is not a number"),
    ("happy:0.5:0.5", "not known"),
    ("happy:nan", "not between 0 and 2"),
    ("happy:inf", "not between 0 and 2"),
    ("happy:-0.5", "not between 0 and 2"),
    ("happy:2.1", "not between 0 and 2"),
    ("happy:1.5+sad:1.5", "sum to 3"),
    ("happy:0.5+sad", "Some emotions of the mix"),
    ("happy++sad", "label is missing"),
    ("+happy", "label is missing"),
    ("happy+", "label is missing"),
    (":0.5", "label is missing"),
    (":", "label is missing"),
    (",", "empty entry"),
    ("0s happy,", "empty entry"),
    ("happy, sad", "'happy' .* has no time"),
    ("0s happy, sad", "'sad' .* has no time"),
    ("0s happy, 2ssad", "has no time"),
    ("0s", "no emotion after it"),
    ("0s happy, 2s", "no emotion after it"),
    ("0 happy, 2 sad", "'0 happy' has no unit"),
    ("0.5 happy", "has no unit: .* 'happy:0.7'"),
    ("-1s happy, 2s sad", "negative"),
    ("0s happy, 1:75 sad", "write 65s or 1:05"),
    ("0s happy, 5s sad, 2s angry", "5s is followed by 2s"),
    ("2s happy, 2000ms sad", "2s is followed by 2s"),
    ("9" * 400 + "s happy", "seconds from 0"),
    ("0s happy, 2s hapy", "Did you mean 'happy'"),
    ("0s happy, 2s sad:x", "is not a number"),
    ("absent.npy", "absent.npy was not found"),
    ("folder/happy", "folder/happy was not found"),
    ("absent.mp4", "absent.mp4 was not found"),
    ("0s happy, 2s absent.npy:0.5", "absent.npy was not found"),
    ("x, " * 400, "has no time"),
    (None, "An emotion is a label"),
    (0.7, "An emotion is a label"),
    (b"happy", "An emotion is a label"),
    (np.zeros(255), r"shape \(255,\)"),
    (np.zeros((16, 16)), r"shape \(16, 16\)"),
    (np.zeros((0, 256)), r"shape \(0, 256\)"),
    (np.zeros((2, 3, 256)), r"shape \(2, 3, 256\)"),
    (np.full((3, 256), np.nan), "NaN or infinite"),
    (np.full(256, 1e300), "NaN or infinite"),
    (["happy", "sad"], "not an array of numbers"),
    ([[1.0], [1.0, 2.0]], "not an array of numbers"),
    ({"mean": np.zeros(256)}, "key mu"),
    ({"mu": np.zeros(256), "label": "happy"}, "key mu"),
    ({"happy"}, "not an array of numbers"),
  ],
)
def test_bad_input(spec, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match=message) as raised:
    resolve_emotion(spec, PRIORS)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["clip.mp4", "Clip.MOV", "expression.mat", "voice.wav"])
def test_clip_needs_an_embedder(tmp_path, name):
  (tmp_path / name).write_bytes(b"0")
  for spec in (tmp_path / name, str(tmp_path / name), f"0s happy, 2s {tmp_path / name}"):
    with pytest.raises(InputError, match="needs an emotion embedder in the weights, and these weights have none"):
      resolve_emotion(spec, PRIORS)


def test_weights_without_priors():
  for priors in ({}, None):
    with pytest.raises(InputError, match="hold no emotion priors; add them with `dicetalk convert --priors DIR`"):
      resolve_emotion("happy", priors)


def test_real_priors(examples):
  from dicetalk_jax.weights.priors import read_priors

  priors = read_priors(examples / "emotion_priors")
  emotion = resolve_emotion("0s neutral, 2s happy, 5s angry", priors)
  mu = emotion.at(np.arange(75) / 12.5)
  np.testing.assert_array_equal(mu[0], priors["neutral"]["mu"])
  np.testing.assert_array_equal(mu[25], priors["happy"]["mu"])
  assert np.linalg.norm(np.diff(mu, axis=0), axis=1).max() < 2.0
