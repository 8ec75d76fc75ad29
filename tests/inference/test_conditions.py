"""The stages on the way to the golden pipeline, and what they do with other sounds, emotions and portraits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, draw, golden, relative_error
from talkers import golden_talker

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import InputError
from dicetalk_jax.inference import conditions
from dicetalk_jax.inference.emotion import Emotion
from dicetalk_jax.inference.portrait import portrait_conditions, prepare_portrait
from dicetalk_jax.media.audio import log_mel, read_audio
from dicetalk_jax.media.face import Face
from dicetalk_jax.media.image import read_image
from dicetalk_jax.models.audio_projection import AudioProjection

# What PyTorch's own float32 and float64 differ by at the end of the pipeline is 5e-6; a stage may be 1e-4 away.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
  return golden_talker(tmp_path_factory)


@pytest.fixture(scope="module")
def network(talker):
  """name -> (module, parameters)."""
  return functools.cache(lambda name: (talker.weights.module(name), talker.weights.load(name)))


@functools.cache
def speech():
  return read_audio(GOLDEN / "speech.wav")


@functools.cache
def portrait():
  return prepare_portrait(GOLDEN / "portrait.png", 64, (100, 30, 100, 135))


def emotion_tokens(talker, emotion, frames, **options):
  return conditions.token_table(talker, conditions.EMOTION, emotion, frames, GenerationConfig(**options))


@pytest.mark.parametrize(
  ("stage", "ours"),
  [
    ("ref_image", lambda: portrait().signed.transpose(2, 0, 1)),
    ("face_mask", lambda: portrait().face_mask[None]),
    ("clip_pixel_values", lambda: portrait().clip_pixels.transpose(2, 0, 1)[:, ::8, ::8]),
    ("wav_16k", lambda: speech()),
    ("mel", lambda: log_mel(speech())[0].T[:, :160]),
  ],
)
def test_inputs_are_the_golden(stage, ours):
  assert relative_error(ours(), golden("pipeline_tiny")[stage]) <= TOLERANCE


def test_whisper_states_are_the_golden(network):
  states = conditions.whisper_states(*network("audio_encoder"), speech())
  assert states.shape == (2 * (len(speech()) // 640), 5, 384)
  assert relative_error(states[None, ::10], golden("pipeline_tiny")["whisper_states"]) <= TOLERANCE


def test_audio_tokens_are_the_golden(talker):
  table = conditions.token_table(talker, conditions.AUDIO, speech(), 16, GenerationConfig())
  expected = golden("pipeline_tiny")
  tokens = np.asarray(table[np.arange(16)])
  assert tokens.shape == (16, 32, 1024)
  assert relative_error(tokens[::7], expected["audio_tokens"]) <= TOLERANCE
  assert relative_error(np.asarray(table.unconditional)[::4], expected["audio_tokens_uncond"]) <= TOLERANCE


def test_emotion_tokens_are_the_golden(talker):
  table = emotion_tokens(talker, talker.resolve_emotion(GOLDEN / "emotion.npy"), 16)
  expected = golden("pipeline_tiny")
  for frame in (0, 15):
    assert relative_error(np.asarray(table[frame])[::4], expected["emotion_tokens"]) <= TOLERANCE
  assert relative_error(np.asarray(table.unconditional)[::4], expected["emotion_tokens_uncond"]) <= TOLERANCE
  # The label was converted from the same file.
  label = emotion_tokens(talker, talker.resolve_emotion("happy"), 1)
  np.testing.assert_array_equal(label.rows, table.rows)


def test_the_image_embedding_is_the_golden(talker):
  constants = portrait_conditions(talker, portrait())
  assert constants.image_latents.shape == (1, 8, 16, 4)
  assert relative_error(constants.image_tokens[0], golden("pipeline_tiny")["clip_image_embeds"]) <= TOLERANCE


def test_a_timeline_moves_the_tokens(talker):
  emotion = talker.resolve_emotion("0s neutral, 0.4s happy")
  table = emotion_tokens(talker, emotion, 9)
  tokens = np.asarray(table[np.arange(9)])
  # 0.4 s are 5 frames: four on the way, then the emotion holds and is computed once.
  assert len(table.rows) == 6 + 1
  first, *_, last = (
    np.asarray(emotion_tokens(talker, talker.resolve_emotion(label), 1)[0]) for label in ("neutral", "happy")
  )
  assert relative_error(tokens[0], first) <= 1e-6
  assert relative_error(tokens[5], last) <= 1e-6
  np.testing.assert_array_equal(tokens[5:], np.repeat(tokens[5:6], 4, axis=0))
  for k in range(5):
    assert relative_error(tokens[k], tokens[k + 1]) > 1e-3


def test_the_nearest_code_gives_other_tokens_than_the_whole_bank(talker, network):
  module, params = network("emotion_model")
  emotion = talker.resolve_emotion("happy:0.5+sad:0.5")
  nearest = emotion_tokens(talker, emotion, 3, bank="nearest")
  expected, _ = jax.jit(functools.partial(module.apply, method="retrieve"))({"params": params}, emotion.at([0.0]))
  assert relative_error(nearest[1], expected[0]) <= 1e-5
  assert relative_error(nearest[1], emotion_tokens(talker, emotion, 3)[1]) > 1e-2


@pytest.mark.parametrize("samples", [2560, 3199, 3200, 12345, 480001, 1_000_000])
def test_frames_of_a_sound(samples):
  assert conditions.frame_count(samples) == samples // 640 // 2


def test_a_sound_of_more_than_thirty_seconds_is_encoded_in_chunks(network):
  """Each chunk alone, its states laid end to end."""
  sound = 0.1 * draw("long sound", (485_000,))
  states = conditions.whisper_states(*network("audio_encoder"), sound)
  assert states.shape == (2 * (485_000 // 640), 5, 384)
  np.testing.assert_allclose(states[:1500], conditions.whisper_states(*network("audio_encoder"), sound[:480_000]))
  rest = conditions.whisper_states(*network("audio_encoder"), sound[480_000:])
  np.testing.assert_allclose(states[1500 : 1500 + len(rest)], rest)


def test_tokens_do_not_depend_on_the_batch_they_are_computed_in():
  module = AudioProjection(hidden=8, num_tokens=2, features=4)
  rows = draw("rows", (130, 3, 2, 5))
  params = module.init(jax.random.key(0), rows[:1])
  found = conditions.in_batches(lambda part: module.apply(params, part), rows, 64, jnp.float32)
  np.testing.assert_allclose(found, module.apply(params, rows), atol=1e-5)
  assert conditions.in_batches(lambda part: jnp.asarray(part), rows[:3], 64, jnp.bfloat16).dtype == jnp.bfloat16


def test_padding_frames_have_unconditional_tokens():
  table = conditions.TokenTable(jnp.asarray(draw("rows", (4, 2, 3))), np.array([0, 2, 1])).padded(2)
  np.testing.assert_array_equal(table[np.arange(5)], table.rows[np.array([0, 2, 1, 3, 3])])
  np.testing.assert_array_equal(table[np.array([[1, 4], [0, 0]])], table.rows[np.array([[2, 3], [0, 0]])])
  np.testing.assert_array_equal(table.unconditional, table.rows[3])


def test_emotions_given_a_frame_each_are_kept_apart(talker):
  """More priors than are computed at a time; frames of one prior share its tokens."""
  mu = draw("priors", (6, 256))[[0, 1, 2, 3, 4, 5, 2]]
  table = emotion_tokens(talker, Emotion(np.arange(7) / 12.5, mu, smooth=False), 7)
  assert len(table.rows) == 6 + 1
  np.testing.assert_array_equal(table[2], table[6])
  for k in (0, 5):
    alone = emotion_tokens(talker, Emotion([0.0], mu[k : k + 1]), 1)
    assert relative_error(table[k], alone[0]) <= 1e-5


def test_a_detector_finds_the_largest_face_and_counts_all():
  small, large = Face((10, 10, 40, 50), 0.9), Face((100, 30, 100, 135), 0.6)
  seen = []

  def detector(image):
    seen.append(image)
    return [small, large]

  found = prepare_portrait(GOLDEN / "portrait.png", 64, detector=detector)
  np.testing.assert_array_equal(seen[0], read_image(GOLDEN / "portrait.png"))
  assert found.faces == 2 and found.box == large.box
  by_hand = portrait()
  assert by_hand.faces is None
  np.testing.assert_array_equal(found.mask, by_hand.mask)


def test_a_crop_is_a_square_around_the_face():
  found = prepare_portrait(GOLDEN / "portrait.png", 64, (100, 30, 100, 135), crop=True)
  # The box grows by half its size, cut to 300×200: 200 wide, 200 high.
  assert found.original_size == (200, 200)
  assert found.image.shape == (64, 64, 3)
  assert found.box == (50, 30, 100, 135)
  rows, columns = np.nonzero(found.mask > 127)
  # The mask is a tenth larger than the box, on 64 of 200 pixels.
  assert abs((columns.max() + 1 - columns.min()) - 1.1 * 100 * 64 / 200) <= 1
  assert abs((rows.max() + 1 - rows.min()) - 1.1 * 135 * 64 / 200) <= 1


@pytest.mark.parametrize(
  ("arguments", "text"),
  [
    ({"face_box": (400, 30, 100, 135)}, "outside the image of 300x200"),
    ({"face_box": (10, 30, 0, 135)}, "must be positive"),
    ({"size": 0}, "size 0"),
    ({"size": -64, "face_box": (100, 30, 100, 135)}, "size -64"),
    ({"detector": lambda image: []}, "no face was found"),
  ],
)
def test_a_portrait_that_cannot_be_used_is_refused(arguments, text):
  with pytest.raises(InputError, match=text):
    prepare_portrait(
      GOLDEN / "portrait.png", **{"size": 64, "detector": lambda image: [Face((9, 9, 9, 9), 1)]} | arguments
    )
