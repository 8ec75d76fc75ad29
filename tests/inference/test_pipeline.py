"""A video from a portrait, speech and an emotion: the golden one, others against the release's recipe written out."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import soundfile
import soxr
from conftest import GOLDEN, draw, golden, relative_error
from PIL import Image
from reference import released_sampler
from talkers import golden_talker, minute_talker
from video_files import probe

from dicetalk_jax.errors import InputError, WeightsError
from dicetalk_jax.inference import denoising
from dicetalk_jax.inference.pipeline import DiceTalk
from dicetalk_jax.media.audio import log_mel, read_audio, read_sound
from dicetalk_jax.media.face import Face

PORTRAIT, SPEECH, BOX = GOLDEN / "portrait.png", GOLDEN / "speech.wav", (100, 30, 100, 135)
# What most tests here share, so that few programs are compiled: 64×128 pixels, windows of 5 frames.
SMALL = dict(face_box=BOX, size=64, steps=1, window=5, shift=2, interpolate=False)
OF_WEIGHTS = dict(size=64, steps=2, window=5, shift=2, sigma_max=80.0, sigma_min=0.05)
OF_WEIGHTS |= dict(identity_scale=1.5, emotion_scale=2.0, decode_chunk=1)


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
  return minute_talker(tmp_path_factory)


@functools.cache
def speech(seconds=0.4, start=0.2):
  """Some of the golden speech, (array, rate): 0.4 s are five frames."""
  sound, rate = read_sound(SPEECH)
  return sound[round(start * rate) : round((start + seconds) * rate)], rate


def test_the_golden_video(tmp_path_factory):
  talker, expected, stages = golden_talker(tmp_path_factory), golden("pipeline_tiny"), []
  arguments = dict(face_box=BOX, size=64, window=6, shift=2, interpolate=False)
  noise = draw("noise", (1, 22, 4, 8, 16))[0].transpose(0, 2, 3, 1)
  video = talker.generate(
    PORTRAIT,
    SPEECH,
    GOLDEN / "emotion.npy",
    **arguments,
    steps=4,
    noise=noise,
    progress=lambda *call: stages.append(call),
  )
  # PyTorch's own float32 and float64 differ by 5e-6 here.
  assert relative_error(video.latents.transpose(0, 3, 1, 2)[None], expected["latents"]) <= 1e-4
  # frames, height, width, channel -> channel, frames, height, width
  assert relative_error(video.frames.transpose(3, 0, 1, 2)[None], expected["frames"]) <= 1e-4
  assert video.fps == 12.5 and video.notes == () and video.portrait_size == (300, 200)
  assert [call for call in stages if call[0] == "denoising"] == [("denoising", k, 16) for k in range(17)]
  assert stages[0] == ("encoding", 0, 4) and stages[-1] == ("decoding", 16, 16)

  # Another length, seed, emotion and number of steps at this resolution run the program that is there.
  before = denoising.denoise_windows._cache_size()
  other = talker.generate(PORTRAIT, speech(), "0s sad, 0.2s angry", **arguments, steps=1, seed=5)
  assert other.latents.shape == (5 + 6, 8, 16, 4)
  assert np.isfinite(other.frames).all()
  assert denoising.denoise_windows._cache_size() == before


def recipe(talker, pixels, box, sound, mu_of_frame, *, seed, window, bank, decode_chunk, **sampling):
  """released-model.md's recipe for a portrait of 100×200 pixels at size 64, from modules and plain numpy."""

  @functools.cache
  def network(name, **options):
    module = talker.weights.module(name)
    return functools.partial(jax.jit(functools.partial(module.apply, **options)), {"params": talker.weights.load(name)})

  x, y, w, h = box
  centre_x, centre_y, half_w, half_h = (2 * x + w) // 2, (2 * y + h) // 2, w * 1.1 // 2, h * 1.1 // 2
  mask = np.zeros(pixels.shape[:2], np.uint8)
  mask[int(centre_y - half_h) : int(centre_y + half_h), int(centre_x - half_w) : int(centre_x + half_w)] = 255
  lanczos = Image.Resampling.LANCZOS
  picture = Image.fromarray(pixels).resize((64, 128), lanczos)
  mask = np.float32(Image.fromarray(mask).resize((64, 128), lanczos)) / 255
  signed = np.float32(picture) / 127.5 - 1
  mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
  clip = ((np.float32(picture.resize((224, 224), lanczos)) / 255 - mean) / std).astype(np.float32)

  image_latents = network("vae", method="encode")(signed[None])[0][0]
  samples = read_audio(sound)
  frames = len(samples) // 640 // 2
  states = np.asarray(network("audio_encoder")(log_mel(samples)))[0, : 2 * (len(samples) // 640)]
  states = np.concatenate([np.zeros((4, *states.shape[1:])), states, np.zeros((6, *states.shape[1:]))])
  heard = np.float32([states[4 * j : 4 * j + 10] for j in range(frames)] + [np.zeros((10, *states.shape[1:]))])
  audio = np.asarray(network("audio_projection")(heard))
  felt = np.float32([mu_of_frame(j) for j in range(frames)] + [np.zeros(256)])
  emotion = np.asarray(network("emotion_model", bank=bank)(felt))
  fixed = dict(
    image_latents=image_latents,
    image_token=network("image_encoder")(clip[None]),
    audio=audio[-1],
    emotion=emotion[-1],
    pose_features=network("pose_guider")(np.repeat(mask[None, None, :, :, None], 3, axis=-1)),
    face_mask=mask[None],
  )
  noise = np.asarray(jax.random.normal(jax.random.key(seed), (frames + window, *image_latents.shape)))
  latents = released_sampler(network("unet"), noise, fixed, audio[:-1], emotion[:-1], window=window, **sampling)
  chunks = [latents[k : k + decode_chunk] / 0.18215 for k in range(0, frames, decode_chunk)]
  pictures = np.concatenate([network("vae", method="decode")(np.float32(chunk[None]))[0] for chunk in chunks])
  return latents, np.clip((pictures[:frames] + 1) / 2, 0, 1)


def test_other_settings_follow_the_released_recipe(talker):
  """Nothing as in the golden video: upright, another seed, overlapping windows, the nearest code, four branches."""
  pixels = np.array(Image.open(PORTRAIT).convert("RGB"))[:, 80:180]
  box, sound = (12, 40, 70, 101), speech()
  sampling = dict(steps=2, sigma_max=80.0, sigma_min=0.02, shift=3, overlap=1)
  sampling |= dict(identity_scale=2.0, audio_scale=3.0, emotion_scale=4.0)
  options = dict(seed=11, window=4, bank="nearest", decode_chunk=3, **sampling)
  video = talker.generate(
    pixels, sound, "0s sad, 160ms happy:0.5", face_box=box, size=64, interpolate=False, windows_at_once=2, **options
  )

  priors = talker.weights.priors()
  neutral, sad, happy = (priors[label]["mu"] for label in ("neutral", "sad", "happy"))
  happy = neutral + 0.5 * (happy - neutral)
  # 160 ms are two frames; halfway the smooth step is at a half.
  latents, frames = recipe(
    talker, pixels, box, sound, lambda j: sad + (0, 0.5, 1)[min(j, 2)] * (happy - sad), **options
  )
  assert video.frames.shape == (5, 128, 64, 3)
  # The stated difference of the whole pipeline, as for the golden video.
  assert relative_error(video.latents, latents) <= 1e-4
  assert relative_error(video.frames, frames) <= 1e-4


@pytest.mark.slow
def test_weights_say_how_they_are_meant_to_be_used(talker):
  own = DiceTalk(dataclasses.replace(talker.weights, config=talker.weights.config | {"generation": OF_WEIGHTS}))
  settings = {name: value for name, value in SMALL.items() if name not in OF_WEIGHTS}
  ours = own.generate(PORTRAIT, speech(), "happy", **settings)
  theirs = talker.generate(PORTRAIT, speech(), "happy", **(SMALL | OF_WEIGHTS))
  np.testing.assert_array_equal(ours.latents, theirs.latents)
  np.testing.assert_array_equal(ours.frames, theirs.frames)
  # What a caller says goes before it, and the release's settings are those of weights that say nothing.
  stronger = own.generate(PORTRAIT, speech(), "happy", **settings, emotion_scale=6.0)
  assert not np.array_equal(stronger.latents, ours.latents)
  assert talker.weights.generation.size == 512 and talker.weights.generation.steps == 25
  wrong = dataclasses.replace(talker.weights, config=talker.weights.config | {"generation": {"colour": 1}})
  with pytest.raises(WeightsError, match=r"generation is .*colour.*wanted settings of dicetalk generate"):
    DiceTalk(wrong).generate(PORTRAIT, speech(), "happy", **SMALL)


def test_bfloat16_stays_near_float32(talker):
  noise = draw("noise", (10, 8, 16, 4))
  arguments = SMALL | dict(steps=2, noise=noise)
  expected = talker.generate(PORTRAIT, speech(), "sad", **arguments)
  found = talker.generate(PORTRAIT, speech(), "sad", **arguments, dtype="bfloat16")
  assert found.latents.dtype == found.frames.dtype == np.float32
  error = relative_error(found.latents, expected.latents)
  # Rounding to 2^-9 in every layer, and guidance that multiplies differences by 6.
  assert 1e-4 < error < 0.1
  assert np.abs(found.frames - expected.frames).mean() < 0.02
  # Of that call alone.
  np.testing.assert_array_equal(talker.generate(PORTRAIT, speech(), "sad", **arguments).latents, expected.latents)


def test_the_seed_decides(talker):
  def latents(**change):
    return talker.generate(PORTRAIT, speech(), "happy", **SMALL | change).latents

  first = latents(seed=3)
  np.testing.assert_array_equal(latents(seed=3), first)
  np.testing.assert_array_equal(
    latents(seed=4, noise=np.asarray(jax.random.normal(jax.random.key(3), first.shape))), first
  )
  assert relative_error(latents(seed=4), first) > 0.1


def test_a_face_box_is_what_a_detector_would_find(talker):
  boxes = [Face((10, 10, 40, 50), 0.9), Face(BOX, 0.6)]
  found = talker.generate(PORTRAIT, speech(), "happy", **SMALL | {"face_box": None}, detector=lambda image: boxes)
  by_hand = talker.generate(PORTRAIT, speech(), "happy", **SMALL)
  np.testing.assert_array_equal(found.latents, by_hand.latents)
  assert by_hand.notes == ()
  assert len(found.notes) == 1
  assert "2 faces" in found.notes[0] and "100 30 100 135" in found.notes[0] and "--face-box" in found.notes[0]


def test_silence_is_fine_and_said(talker):
  video = talker.generate(PORTRAIT, np.zeros(6400, np.float32), "happy", **SMALL)
  assert len(video.frames) == 5 and np.isfinite(video.frames).all()
  assert len(video.notes) == 1 and "silent" in video.notes[0]


def test_an_array_is_16_khz_sound_of_any_sample_type(talker):
  sound = read_audio(speech())
  expected = talker.generate(PORTRAIT, sound, "happy", **SMALL)
  assert expected.sample_rate == 16000
  np.testing.assert_array_equal(expected.audio, sound[:, None])
  whole = np.rint(sound * 32767).astype(np.int16)
  found = talker.generate(PORTRAIT, whole, "happy", **SMALL)
  # A step of 16 bits.
  np.testing.assert_allclose(found.audio, expected.audio, atol=1 / 16000)
  assert relative_error(found.latents, expected.latents) <= 1e-2


BAD = [
  ({"noise": np.zeros((9, 8, 16, 4), np.float32)}, r"noise \(9, 8, 16, 4\).*\(10, 8, 16, 4\)"),
  ({"noise": np.full((10, 8, 16, 4), np.nan, np.float32)}, "finite"),
  ({"noise": np.zeros((10, 8, 16, 4), np.int32)}, "noise"),
  ({"bank": "most"}, "bank 'most'.*all, nearest"),
  ({"dtype": "float16"}, "dtype float16.*bfloat16, float32"),
  ({"dtype": "none"}, "dtype none"),
  ({"overlap": 5}, "overlap 5 with a window of 5"),
  ({"overlap": -1}, "overlap -1"),
  ({"window": 0}, "window 0"),
  ({"shift": -1}, "shift -1"),
  ({"shift": 1.5}, "shift 1.5"),
  ({"steps": 0}, "steps 0"),
  ({"steps": 2.0}, "steps 2.0"),
  ({"steps": True}, "steps True"),
  ({"windows_at_once": -1}, "windows_at_once -1"),
  ({"sigma_max": 0.001}, r"sigma_max 0.001.*above 0\.002"),
  ({"sigma_max": float("inf")}, "sigma_max inf"),
  ({"sigma_min": 0}, "sigma_min 0 .*above 0"),
  ({"sigma_min": float("nan")}, "sigma_min nan"),
  ({"sigma_min": 700.0}, r"sigma_max 700\.0 .*above 700\.0"),
  ({"sigma_min": 0.1, "sigma_max": 0.05}, r"sigma_max 0\.05 .*above 0\.1"),
  ({"size": 0}, "size 0"),
  ({"size": -512}, "size -512"),
  ({"size": float("nan")}, "size nan"),
  ({"decode_chunk": 0}, "decode_chunk 0"),
  ({"seed": -1}, "seed -1"),
  ({"seed": 2**32}, "seed 4294967296"),
  ({"identity_scale": float("inf")}, "identity_scale inf"),
  ({"audio_scale": float("nan")}, "audio_scale nan"),
  ({"audio_scale": "6"}, "audio_scale 6"),
  ({"face_box": (400, 30, 100, 135)}, "outside the image"),
  ({"emotion": "hapy"}, "'hapy' is not known.*'happy'"),
  ({"emotion": "2s happy, 1s sad"}, "must rise"),
  ({"audio": np.zeros(2559, np.float32)}, "at least two frames"),
  ({"audio": np.full(16000, np.nan, np.float32)}, "NaN"),
  ({"audio": GOLDEN / "missing.wav"}, "missing.wav"),
  ({"image": GOLDEN / "emotion.npy"}, "emotion.npy"),
]


@pytest.mark.parametrize(("change", "text"), BAD, ids=lambda value: ",".join(value) if isinstance(value, dict) else "")
def test_what_cannot_be_used_is_refused_before_a_network_is_read(talker, change, text):
  fresh = DiceTalk(talker.weights)
  arguments = SMALL | {"image": PORTRAIT, "audio": speech(), "emotion": "happy"} | change
  with pytest.raises(InputError, match=text):
    fresh.generate(**arguments)
  assert not fresh._params


def test_a_bad_dtype_is_refused_on_loading(talker):
  with pytest.raises(InputError, match="float64"):
    DiceTalk.load(talker.weights.folder, dtype=np.float64)


def test_the_emotions_are_the_labels_of_the_weights(talker):
  assert talker.emotions == sorted(["angry", "contempt", "disgusted", "fear", "happy", "neutral", "sad", "surprised"])


def assert_plays(path, size, seconds):
  info = probe(path)
  assert (info.width, info.height) == size
  assert info.fps == 25 and info.video_codec == "h264" and info.audio_codec == "aac"
  assert abs(info.duration - seconds) <= 0.040
  assert abs(info.audio_duration - seconds) <= 0.040


def test_weights_that_cannot_interpolate_are_refused_before_anything_slow(talker, tmp_path, monkeypatch):
  networks = {name: of for name, of in talker.weights.config["networks"].items() if name != "frame_interpolator"}
  without = dataclasses.replace(talker.weights, config=dict(talker.weights.config) | {"networks": networks})
  monkeypatch.setattr(talker, "weights", without)
  begun = []
  with pytest.raises(WeightsError, match="has no frame_interpolator, which 25"):
    talker.generate(PORTRAIT, SPEECH, "happy", **SMALL | {"interpolate": True}, progress=lambda *of: begun.append(of))
  assert not begun


def test_the_saved_video_plays(talker, tmp_path):
  video = talker.generate(PORTRAIT, SPEECH, "happy", **SMALL | {"interpolate": True})
  assert video.fps == 25 and video.frames.shape == (31, 64, 128, 3)
  sound, rate = read_sound(SPEECH)
  np.testing.assert_array_equal(video.audio, sound)
  assert_plays(video.save(tmp_path / "small.mp4"), (128, 64), len(sound) / rate)
  assert_plays(video.save(tmp_path / "large.mp4", keep_resolution=True), (300, 200), len(sound) / rate)


@pytest.mark.parametrize(
  ("portrait", "sound", "rate", "own_size"),
  [
    ("f30.png", "acknowledgement_english.m4a", 48000, (256, 256)),
    ("male_face.png", "male.wav", 24000, (552, 672)),  # 551×672: H.264 wants even sides
  ],
)
def test_real_portraits_and_speech(talker, examples, tmp_path, portrait, sound, rate, own_size):
  """The face found, the sound as a file gives it, and a file of 44.1 kHz written from it."""
  sound, found_rate = read_sound(examples / "speech" / sound)
  assert found_rate == rate
  sound = sound[rate : 2 * rate]
  arguments = SMALL | dict(face_box=None, interpolate=True)
  video = talker.generate(examples / "portraits" / portrait, (sound, rate), "happy:0.6+surprised:0.4", **arguments)
  assert video.frames.shape == (2 * 12 - 1, 64, 64, 3)
  assert np.isfinite(video.frames).all() and video.frames.std() > 0.01
  assert_plays(video.save(tmp_path / "video.mp4"), (64, 64), 1.0)
  assert_plays(video.save(tmp_path / "own.mp4", keep_resolution=True), own_size, 1.0)

  soundfile.write(tmp_path / "speech.wav", soxr.resample(sound, rate, 44100), 44100)
  again = talker.generate(examples / "portraits" / portrait, tmp_path / "speech.wav", "angry", **arguments)
  assert again.sample_rate == 44100
  assert_plays(again.save(tmp_path / "again.mp4"), (64, 64), 1.0)


def test_the_sound_of_a_real_video(talker, examples, tmp_path):
  sound, rate = read_sound(examples / "talking_head_with_audio.mp4")
  sound = sound[: round(1.23 * rate)]
  video = talker.generate(
    examples / "portraits" / "f30.png", (sound, rate), "neutral", **SMALL | dict(face_box=None, interpolate=True)
  )
  assert_plays(video.save(tmp_path / "video.mp4"), (64, 64), 1.23)
