"""The emotion of a clip by the embedder: of what training took it from, of long and short clips, within the grammar."""

import types

import numpy as np
import pytest
import scipy.io
import soundfile
from conftest import GOLDEN, draw, relative_error
from release import small_weights
from talkers import embedding_weights, minute_talker, with_embedder

from dicetalk_jax.data.batches.windows import Sequences
from dicetalk_jax.data.encode.record import EncodedClip
from dicetalk_jax.errors import InputError, WeightsError
from dicetalk_jax.inference.clips import ClipEmbedder, pooled
from dicetalk_jax.inference.conditions import whisper_states
from dicetalk_jax.inference.pipeline import DiceTalk
from dicetalk_jax.media.video import write_video
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.world.drawing import perform

SPEECH = GOLDEN / "speech.wav"
FRAMES = 20  # of `with_embedder`
# One program on a row alone and among others.
CLOSE = 2e-6


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  return embedding_weights(tmp_path_factory)


@pytest.fixture(scope="module")
def embedder(weights):
  return ClipEmbedder(weights)


def apply(weights, expression=None, speech=None, frames=FRAMES):
  """μ and σ of one window, by the network itself."""
  n = len(speech if expression is None else expression)
  mask, inputs = np.arange(frames) < n, []
  for sequence, width in ((expression, 64), (speech, 384)):
    given = np.zeros((n, width), np.float32) if sequence is None else sequence
    inputs += [np.pad(given, ((0, frames - n), (0, 0)))[None], (mask & (sequence is not None))[None]]
  params = {"params": weights.load("emotion_embedder")}
  return [np.asarray(part[0]) for part in weights.module("emotion_embedder").apply(params, *inputs)]


def test_a_short_clip_is_one_masked_window(embedder, weights):
  expression, speech = draw("expression", (13, 64)), draw("speech", (13, 384))
  for given in ({"expression": expression, "speech": speech}, {"expression": expression}, {"speech": speech}):
    nothing = {"expression": np.zeros((0, 64), np.float32), "speech": np.zeros((0, 384), np.float32)}
    (prior,) = embedder.priors([Sequences(**nothing | given)])
    mu, sigma = apply(weights, **given)
    assert relative_error(prior.mu, mu) < CLOSE and relative_error(prior.sigma, sigma) < CLOSE
    # The mask hides what is after the end, whatever the window's length.
    assert relative_error(prior.mu, apply(weights, **given, frames=13)[0]) < CLOSE


def test_a_long_clip_is_the_mean_of_windows_over_all_of_it(embedder, weights):
  expression, speech = draw("expression", (50, 64)), draw("speech", (50, 384))
  windows = [apply(weights, expression[i : i + FRAMES], speech[i : i + FRAMES]) for i in (0, 15, 30)]
  (prior,) = embedder.priors([Sequences(expression, speech)])
  assert relative_error(prior.mu, np.mean([mu for mu, _ in windows], axis=0)) < CLOSE
  assert relative_error(prior.sigma, pooled(*zip(*windows, strict=True)).sigma) < CLOSE


def test_many_clips_keep_their_order(embedder):
  clips = [Sequences(draw(f"e{n}", (n, 64)), draw(f"s{n}", (n, 384))) for n in (5, 130, 7, 400, 20, 21, 60)]
  together, alone = list(embedder.priors(clips)), [next(embedder.priors([clip])) for clip in clips]
  assert len(together) == len(clips)
  for ours, theirs in zip(together, alone, strict=True):
    assert relative_error(ours.mu, theirs.mu) < CLOSE and relative_error(ours.sigma, theirs.sigma) < CLOSE
  assert list(embedder.priors([])) == []


def test_pooling_is_the_variance_of_a_mixture():
  mu, sigma = np.array([[0.0, 1.0], [4.0, 1.0]]), np.array([[1.0, 2.0], [1.0, 0.0]])
  prior = pooled(mu, sigma)
  np.testing.assert_allclose(prior.mu, [2, 1])
  np.testing.assert_allclose(prior.sigma, np.sqrt([1 + 4, 2]), rtol=1e-6)


def test_a_drawn_clip_is_heard_as_its_encoded_record_is(embedder, weights):
  clip = perform(3, "happy", 3, "We will be there by noon.")
  n = len(clip.expression)
  states = whisper_states(weights.module("audio_encoder"), weights.load("audio_encoder"), clip.audio)
  record = dict(clip="", source="", split="", identity="", video="", sentence="", emotion=4, level=3, num_frames=n)
  record |= dict(height=64, width=64, face_box=(0, 0, 1, 1), truth=clip.truth, expression=clip.expression)
  encoded = Sequences.of(EncodedClip(**record, states=states.astype(np.float16)))
  (wanted,) = embedder.priors([encoded])
  assert relative_error(embedder.prior(clip).mu, wanted.mu) < 1e-5
  # Either alone is another prior, and no less of one.
  for without in ("audio", "expression"):
    given = types.SimpleNamespace(**{"audio": clip.audio, "expression": clip.expression} | {without: None})
    assert 0.01 < relative_error(embedder.prior(given).mu, wanted.mu) < 10
  with pytest.raises(InputError, match=rf"the clip has {n} frames of expression and sound for {n - 5} at 25"):
    embedder.prior(types.SimpleNamespace(expression=clip.expression, audio=clip.audio[: -5 * 640]))
  with pytest.raises(InputError, match=r"expression of the clip has shape \(9, 63\)"):
    embedder.prior(types.SimpleNamespace(expression=np.zeros((9, 63)), audio=None))


@pytest.fixture
def files(tmp_path):
  """Two files of coefficients, a sound, and a video whose coefficients lie beside it."""
  for name in ("a", "b", "film"):
    scipy.io.savemat(tmp_path / f"{name}.mat", {"coeff": draw(name, (25, 257))})
  np.save(tmp_path / "c.npy", draw("c", (25, 64)))
  sound, rate = soundfile.read(SPEECH, dtype="float32")
  soundfile.write(tmp_path / "voice.wav", sound[: 2 * rate], rate)
  write_video(tmp_path / "film.mp4", np.full((25, 32, 32, 3), 0.5, np.float32), 25, sound[:rate, None], rate)
  write_video(tmp_path / "bare.mp4", np.full((25, 32, 32, 3), 0.5, np.float32), 25, sound[:rate, None], rate)
  return tmp_path


def test_clips_stand_for_labels(weights, embedder, files, monkeypatch):
  monkeypatch.chdir(files)
  talker = DiceTalk.load(weights, dtype="float32")
  mu = {name: embedder.prior(files / name).mu for name in ("a.mat", "b.mat", "c.npy", "voice.wav", "film.mp4")}
  happy = weights.priors()["happy"]["mu"]
  for name, wanted in mu.items():
    for spec in (name, files / name, str(files / name)):
      emotion = talker.resolve_emotion(spec)
      assert str(emotion) == name
      np.testing.assert_array_equal(emotion.mu, wanted[None])
  half = talker.resolve_emotion("a.mat:0.5+b.mat:0.5")
  np.testing.assert_allclose(half.mu[0], (mu["a.mat"] + mu["b.mat"]) / 2, atol=1e-6)
  assert str(half) == "a.mat 0.5 + b.mat 0.5"
  timeline = talker.resolve_emotion("0s film.mp4, 2s happy:0.5+voice.wav:0.5, 3s c.npy")
  wanted = np.stack([mu["film.mp4"], (happy + mu["voice.wav"]) / 2, mu["c.npy"]])
  np.testing.assert_allclose(timeline.at([0, 2, 3]), wanted, atol=1e-6)
  clip = perform(1, "sad", 2, "She is here.")
  assert str(talker.resolve_emotion(clip)) == "given clip"
  np.testing.assert_array_equal(talker.resolve_emotion(clip).mu[0], embedder.prior(clip).mu)
  with pytest.raises(InputError, match=r"absent\.mat was not found"):
    talker.resolve_emotion("absent.mat")


def test_a_video_talks_with_the_emotion_of_another(tmp_path_factory, files):
  talker = minute_talker(tmp_path_factory)
  talker = DiceTalk.load(with_embedder(talker.weights, files / "weights"), dtype="float32")
  options = dict(face_box=(100, 30, 100, 135), size=64, steps=1, window=5, shift=2, interpolate=False)
  sound, rate = soundfile.read(SPEECH, dtype="float32")
  say = (sound[: round(0.4 * rate)], rate)
  video = talker.generate(GOLDEN / "portrait.png", say, files / "bare.mp4", **options)
  (note,) = video.notes
  assert note.startswith("bare.mp4 has no coefficients") and note.endswith("from its sound alone.")
  mu = ClipEmbedder(talker.weights).prior(files / "bare.mp4").mu
  same = talker.generate(GOLDEN / "portrait.png", say, mu, **options)
  assert relative_error(video.frames, same.frames) < 1e-5 and same.notes == ()
  assert not np.allclose(
    video.latents, talker.generate(GOLDEN / "portrait.png", say, files / "a.mat", **options).latents
  )


def test_an_embedder_of_one_modality_says_what_it_lacks(weights, files, tmp_path):
  video, audio = (ClipEmbedder(with_embedder(weights, tmp_path / name, inputs=name)) for name in ("video", "audio"))
  with pytest.raises(InputError, match=r"voice\.wav has no expression coefficients, which this emotion embedder needs"):
    video.prior(files / "voice.wav")
  with pytest.raises(InputError, match=r"a\.mat has no sound, which this emotion embedder needs"):
    audio.prior(files / "a.mat")
  audio.prior(files / "bare.mp4")
  assert audio.notes == []
  both = ClipEmbedder(weights)
  both.prior(files / "bare.mp4")
  both.prior(files / "bare.mp4")
  assert len(both.notes) == 1
  # To it the film is a sound, which with pictures ends as they do and without them a little later.
  assert relative_error(audio.prior(files / "film.mp4").mu, audio.prior(files / "bare.mp4").mu) < 1e-3


def test_weights_that_cannot_tell_the_emotion_say_so(tmp_path_factory, weights, tmp_path):
  small = Weights.open(small_weights(tmp_path_factory))
  with pytest.raises(WeightsError, match="has no emotion_embedder, which the emotion of a clip needs; train one with"):
    ClipEmbedder(small)
  for clip in (SPEECH, perform(1, "sad", 2, "She is here.")):
    with pytest.raises(InputError, match="needs an emotion embedder in the weights, and these weights have none"):
      DiceTalk.load(small).resolve_emotion(clip)
  for change, words in (
    ({"features": 128}, "features 128 and an emotion_model of prior_dim 256"),
    ({"speech_features": 512}, "speech_features 512 and an audio_encoder of d_model 384"),
  ):
    with pytest.raises(WeightsError, match=words):
      ClipEmbedder(with_embedder(weights, tmp_path / next(iter(change)), **change))
  wrong = weights.derive(tmp_path / "wrong", config={"emotion_embedder": {"frames": 0}})
  with pytest.raises(WeightsError, match=r"emotion_embedder\.frames is 0, wanted a whole number"):
    ClipEmbedder(wrong)


def test_real_coefficients_stay_finite(embedder, examples):
  paths = sorted((examples / "mead").glob("M030*.mat"))
  mu = np.stack([embedder.prior(path).mu for path in paths])
  assert np.isfinite(mu).all() and len(np.unique(mu.round(4), axis=0)) == len(paths)
