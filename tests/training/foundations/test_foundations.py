"""Training what the release brings: it learns, resumes exactly, and leaves weights that the rest of the house uses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_sets import people, write_set
from flax.traverse_util import flatten_dict

from dicetalk_jax.data.batches.pictures import FrameBatchConfig, PortraitBatchConfig, frame_batches
from dicetalk_jax.data.batches.speech import SpeechBatchConfig
from dicetalk_jax.errors import InputError, WeightsError
from dicetalk_jax.files import replaced_folder
from dicetalk_jax.inference.conditions import whisper_states
from dicetalk_jax.inference.decoding import decode_frames, interpolate_frames
from dicetalk_jax.training.config import LoopConfig, OptimizerConfig
from dicetalk_jax.training.foundations import config as configs
from dicetalk_jax.training.foundations.audio_encoder import sinusoids, states_at, train_audio_encoder
from dicetalk_jax.training.foundations.autoencoder import (
  autoencoder_architecture,
  encode,
  latent_scale,
  signed,
  train_autoencoder,
)
from dicetalk_jax.training.foundations.autoencoder_start import as_thumbnail
from dicetalk_jax.training.foundations.frame_interpolator import train_frame_interpolator
from dicetalk_jax.training.foundations.image_encoder import recognition, train_image_encoder
from dicetalk_jax.training.loop import Status
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.initial import initial_weights
from dicetalk_jax.weights.networks import build

FAST = dict(learning_rate=3e-3, ema_decay=0.9)


def loop(steps):
  return LoopConfig(steps=steps, validate_every=1000, checkpoint_every=1000)


AUTOENCODER = configs.AutoencoderConfig(
  model=dict(block_out_channels=[32, 32], layers_per_block=1, norm_num_groups=4),
  batches=FrameBatchConfig(batch=2, frames=2),
  optimizer=OptimizerConfig(**FAST),
  loop=loop(60),
)
AUDIO_ENCODER = configs.AudioEncoderConfig(
  model=dict(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16),
  batches=SpeechBatchConfig(batch=4, frames=20, chunks=1),
  optimizer=OptimizerConfig(**FAST | {"learning_rate": 1e-2}),
  loop=loop(60),
)
IMAGE_ENCODER = configs.ImageEncoderConfig(
  model=dict(
    hidden_size=16, intermediate_size=16, projection_dim=8, num_hidden_layers=1, num_attention_heads=2, patch_size=56
  ),
  batches=PortraitBatchConfig(people=4),
  optimizer=OptimizerConfig(**FAST),
  loop=loop(40),
)
FRAME_INTERPOLATOR = configs.FrameInterpolatorConfig(
  model=dict(features=8),
  batches=FrameBatchConfig(batch=4, frames=3),
  optimizer=OptimizerConfig(**FAST | {"learning_rate": 1e-2}),
  loop=loop(120),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  clips = people(5, frames=24) + people(3, split="test", frames=24)
  return str(write_set(tmp_path_factory.mktemp("sets") / "drawn", clips))


class Heard:
  """What a stage reports: losses by step, and the scalars of its log."""

  def __init__(self, monkeypatch):
    self.losses, self.scalars = {}, {}
    monkeypatch.setattr(
      "dicetalk_jax.training.events.EventLog.scalars", lambda _, step, values: self.scalars.update(values)
    )

  def report(self, step, metrics):
    self.losses[step] = metrics["loss"]

  @property
  def fall(self):
    """The loss of the last five steps as a share of that of the first five."""
    losses = [self.losses[step] for step in sorted(self.losses)]
    return np.mean(losses[-5:]) / np.mean(losses[:5])


@pytest.fixture
def heard(monkeypatch):
  return Heard(monkeypatch)


@pytest.mark.slow
def test_an_autoencoder_draws_people_it_has_not_seen(data, tmp_path, heard):
  config = dataclasses.replace(AUTOENCODER, data=(data,))
  model, outcome = train_autoencoder(config, tmp_path, report=heard.report)
  assert outcome.status == Status.FINISHED
  assert heard.fall < 0.5
  assert heard.scalars["validation/psnr"] > 15 and heard.scalars["validation/kl"] > 0

  weights = Weights.open(tmp_path / "weights")
  assert list(weights.config["networks"]) == ["vae"]
  vae, params = weights.module("vae"), weights.load("vae")
  assert vae.scaling_factor == model.scaling_factor and vae.downscale == 2
  with frame_batches(data, config.batches, training=False) as batches:
    np.testing.assert_allclose(latent_scale(vae, params, batches), vae.scaling_factor, rtol=1e-5)
    frames = next(iter(batches))["frames"]
  mean, logvar = encode(vae, params, signed(frames))
  assert mean.shape == logvar.shape == (2, 2, 8, 8, 4)
  # The latents of training, drawn, have unit variance when scaled; four frames of all come near.
  scaled = vae.scaling_factor * (mean + jnp.exp(0.5 * logvar) * jax.random.normal(jax.random.key(0), mean.shape))
  assert 0.6 < scaled.std() < 1.6
  drawn = decode_frames(vae, params, vae.scaling_factor * mean[0], 2)
  assert drawn.shape == (2, 16, 16, 3) and np.abs(drawn - frames[0] / 255).mean() < 0.15


def test_a_decoder_alone_can_learn_while_encoded_sets_stay_true(data, tmp_path):
  architecture = autoencoder_architecture(AUTOENCODER) | {"scaling_factor": 0.7}
  first = initial_weights({"vae": architecture}, tmp_path / "first")
  config = dataclasses.replace(
    AUTOENCODER, data=(data,), weights=str(first.folder), trainable="^decoder", loop=loop(1), validation_split="none"
  )
  train_autoencoder(config, tmp_path / "decoder", warn=lambda message: None)
  then = Weights.open(tmp_path / "decoder" / "weights")
  assert then.config["networks"] == {"vae": architecture}, "latents are scaled otherwise than they were"
  before, after = (flatten_dict(weights.load("vae"), sep="/") for weights in (first, then))
  changed = {path.partition("/")[0] for path, leaf in before.items() if not np.array_equal(leaf, after[path])}
  assert changed == {"decoder"}


def test_a_new_autoencoder_begins_with_a_small_copy():
  model = build("vae", autoencoder_architecture(AUTOENCODER))
  frames = np.random.default_rng(0).uniform(-1, 1, (1, 2, 16, 16, 3)).astype(np.float32)
  params = as_thumbnail(model, model.init(jax.random.key(0), frames)["params"])
  mean, logvar = encode(model, params, frames)
  small = frames.reshape(1, 2, 8, 2, 8, 2, 3).mean((3, 5))
  # What noise there is has a standard deviation of exp(-2).
  np.testing.assert_allclose(logvar, -4, atol=1e-5)
  drawn = model.apply({"params": params}, mean, method="decode")
  large = small.repeat(2, axis=2).repeat(2, axis=3)
  for i in range(3):
    assert np.corrcoef(mean[..., i].ravel(), small[..., i].ravel())[0, 1] > 0.99
    assert np.corrcoef(drawn[..., i].ravel(), large[..., i].ravel())[0, 1] > 0.99
  # Each frame is drawn by itself.
  alone = model.apply({"params": params}, mean[:, :1], method="decode")
  np.testing.assert_allclose(alone, drawn[:, :1], atol=1e-4)


@pytest.mark.slow
def test_an_audio_encoder_hears_what_is_said_wherever_it_is_said(data, tmp_path, heard):
  config = dataclasses.replace(AUDIO_ENCODER, data=(data,))
  _, outcome = train_audio_encoder(config, tmp_path, report=heard.report)
  assert heard.fall < 0.5
  # Three tones and silence, and 40 phonemes to choose from.
  assert heard.scalars["validation/phoneme_accuracy"] > 0.8
  assert abs(heard.scalars["validation/piece_accuracy"] - heard.scalars["validation/padded_accuracy"]) < 0.1
  assert heard.scalars["validation/mouth_opening"] > 0.8 and heard.scalars["validation/mel_error"] < 0.8

  weights = Weights.open(tmp_path / "weights")
  model, params = weights.module("audio_encoder"), weights.load("audio_encoder")
  assert set(params) == set(outcome.state.params["encoder"]) | {"embed_positions"}
  np.testing.assert_allclose(params["embed_positions"]["embedding"], sinusoids(1500, 16), atol=1e-6)
  states = whisper_states(model, params, np.zeros(16_000, np.float32))
  assert states.shape == (50, 2, 16)


def test_pieces_are_heard_at_their_place():
  weights_config = {"num_mel_bins": 8, "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2}
  from dicetalk_jax.models.audio_encoder import AudioEncoder

  model = AudioEncoder(**weights_config, encoder_ffn_dim=16, max_source_positions=30)
  params = model.init(jax.random.key(0), jnp.zeros((1, 2, 8)))["params"]
  mel = jax.random.normal(jax.random.key(1), (2, 20, 8))
  found = states_at(model, params, mel, jnp.array([0, 7]))
  np.testing.assert_allclose(found[0], model.apply({"params": params}, mel[:1])[0], atol=1e-5)
  moved = {**params, "embed_positions": {"embedding": jnp.roll(params["embed_positions"]["embedding"], -7, axis=0)}}
  np.testing.assert_allclose(found[1], model.apply({"params": moved}, mel[1:])[0], atol=1e-5)


def test_an_image_encoder_knows_people_again(data, tmp_path, heard):
  config = dataclasses.replace(IMAGE_ENCODER, data=(data,))
  model, outcome = train_image_encoder(config, tmp_path, report=heard.report)
  assert heard.fall < 0.5
  assert heard.scalars["validation/retrieval"] > 0.9
  weights = Weights.open(tmp_path / "weights")
  embedding = weights.module("image_encoder").apply(
    {"params": weights.load("image_encoder")}, np.zeros((1, 224, 224, 3), np.float32)
  )
  assert embedding.shape == (1, 8)


def test_recognition_counts_other_clips_alone():
  # Two people, two clips each of two pictures: by direction a picture is nearest the other one of its own clip.
  angle = np.array([0, 1, 40, 41, 90, 91, 60, 61]) * np.pi / 180
  embedding, person, clip = np.stack([np.cos(angle), np.sin(angle)], 1), np.arange(8) // 4, np.arange(8) // 2
  # Without its own clip 40° and 41° are nearest 60°, of the other person; 60° and 61° are nearest 41°.
  assert recognition(embedding, person, clip)["nearest"] == 0.5
  found = recognition(np.stack([np.cos(angle), np.sin(angle)], 1)[::2], person[::2], clip[::2])
  # Galleries 0° and 90°, then 40° and 60°: 40° finds 0°, 60° finds 90°, 0° finds 40°, 90° finds 60°.
  assert found["retrieval"] == 1


@pytest.mark.slow
def test_a_frame_interpolator_learns_motion(data, tmp_path, heard):
  config = dataclasses.replace(FRAME_INTERPOLATOR, data=(data,))
  train_frame_interpolator(config, tmp_path, report=heard.report)
  assert heard.fall < 0.6
  # Of people it has not seen; for some forty steps it is no better than the average, until it finds the flow.
  assert heard.scalars["validation/psnr"] > heard.scalars["validation/average_psnr"] + 0.5
  weights = Weights.open(tmp_path / "weights")
  frames = np.zeros((3, 16, 16, 3), np.float32)
  network = weights.module("frame_interpolator"), weights.load("frame_interpolator")
  assert interpolate_frames(*network, frames).shape == (5, 16, 16, 3)


def test_a_run_that_goes_on_is_the_run_that_never_ended(data, tmp_path):
  config = dataclasses.replace(IMAGE_ENCODER, data=(data,))
  begun = []
  for name, steps in (("whole", 6), ("parts", 3), ("parts", 6)):
    config = dataclasses.replace(config, loop=loop(steps))
    _, outcome = train_image_encoder(config, tmp_path / name, report=lambda step, _: begun.append(step))
    assert outcome.step == steps
  assert begun == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]
  whole, parts = (Weights.open(tmp_path / name / "weights") for name in ("whole", "parts"))
  # The weights of the third step have been replaced.
  assert whole.config == parts.config
  ours, theirs = flatten_dict(parts.load("image_encoder"), sep="/"), flatten_dict(whole.load("image_encoder"), sep="/")
  for path, leaf in theirs.items():
    np.testing.assert_array_equal(ours[path], leaf, err_msg=path)
  assert not [path.name for path in (tmp_path / "parts").iterdir() if path.name.startswith(".")]


def test_a_network_joins_the_weights_that_it_begins_with(data, tmp_path):
  pose = {"pose_guider": {"features": 8, "block_features": [4, 4, 4, 4]}}
  first = initial_weights(pose, tmp_path / "first")
  config = dataclasses.replace(IMAGE_ENCODER, data=(data,), weights=str(first.folder), loop=loop(1))
  train_image_encoder(config, tmp_path / "second")
  joined = Weights.open(tmp_path / "second" / "weights")
  assert set(joined.config["networks"]) == {"pose_guider", "image_encoder"}
  jax.tree.map(np.testing.assert_array_equal, joined.load("pose_guider"), first.load("pose_guider"))

  # A network that is there goes on, whatever size a new one would have.
  still = OptimizerConfig(learning_rate=1e-12, ema_decay=0.0)
  config = dataclasses.replace(config, weights=str(joined.folder), optimizer=still, model=dict(hidden_size=32))
  train_image_encoder(config, tmp_path / "third")
  third = Weights.open(tmp_path / "third" / "weights")
  assert third.config["networks"] == joined.config["networks"]
  ours, theirs = (flatten_dict(weights.load("image_encoder"), sep="/") for weights in (third, joined))
  for path, leaf in theirs.items():
    np.testing.assert_allclose(ours[path], leaf, atol=1e-9, err_msg=path)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
  folder = tmp_path / "weights"
  for word in ("first", "second"):
    with replaced_folder(folder) as new:
      new.mkdir()
      (new / word).touch()
  assert [path.name for path in folder.iterdir()] == ["second"]
  with pytest.raises(ValueError), replaced_folder(folder) as new:
    new.mkdir()
    raise ValueError
  assert [path.name for path in folder.iterdir()] == ["second"]


def test_without_held_out_people_it_trains_all_the_same(data, tmp_path):
  said = []
  config = dataclasses.replace(IMAGE_ENCODER, data=(data,), loop=loop(1), validation_split="val")
  _, outcome = train_image_encoder(config, tmp_path, warn=said.append)
  assert outcome.status == Status.FINISHED
  assert len(said) == 1 and "without validation" in said[0]


@pytest.mark.parametrize(
  "train, config, options, words",
  [
    (train_autoencoder, AUTOENCODER, dict(kl_weight=-1.0), "kl_weight is -1.0"),
    (train_autoencoder, AUTOENCODER, dict(data=()), "no data is given"),
    (
      train_autoencoder,
      AUTOENCODER,
      dict(model=dict(block_out_channels=[32] * 6, layers_per_block=1)),
      "16x16 pixels cannot be encoded: both sides must be multiples of 32",
    ),
    (train_image_encoder, IMAGE_ENCODER, dict(batches=PortraitBatchConfig()), "5 people in 'train'"),
    (train_frame_interpolator, FRAME_INTERPOLATOR, dict(batches=FrameBatchConfig(frames=4)), "batches.frames is 4"),
  ],
)
def test_what_cannot_be_trained(train, config, options, words, data, tmp_path):
  with pytest.raises(InputError, match=words):
    train(dataclasses.replace(config, **({"data": (data,)} | options)), tmp_path)


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(weights="nowhere"), "nowhere is not a folder"),
    (dict(model=dict(features=-2)), "features is -2"),
  ],
)
def test_weights_and_sizes_that_are_none(options, words, data, tmp_path):
  with pytest.raises(WeightsError, match=words):
    train_frame_interpolator(dataclasses.replace(FRAME_INTERPOLATOR, data=(data,), **options), tmp_path)
