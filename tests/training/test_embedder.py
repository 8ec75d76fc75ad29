"""Stage 1: what is dropped and passed over, and that it learns to tell emotions of people it has not seen."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import NETWORKS
from training.encoded_clips import write_clips

from dicetalk_jax.data.batches.embedder import EmbedderBatchConfig, embedder_batches
from dicetalk_jax.data.encode.networks import fingerprint
from dicetalk_jax.data.encode.record import FORMAT, VERSION
from dicetalk_jax.diffusion.losses import info_nce
from dicetalk_jax.errors import InputError
from dicetalk_jax.parallel.mesh import MeshConfig
from dicetalk_jax.training.config import EmbedderConfig, EmbedderModelConfig, LoopConfig, OptimizerConfig
from dicetalk_jax.training.embedder import (
  drop_modalities,
  embed,
  embedder_loss,
  embedder_model,
  separation,
  train_embedder,
)
from dicetalk_jax.training.loop import Status
from dicetalk_jax.weights.architectures import small_conditioning
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.initial import initial_weights
from dicetalk_jax.weights.networks import network_shapes

CONFIG = EmbedderConfig(
  model=EmbedderModelConfig(features=16, num_layers=1, num_fusion_layers=1, num_heads=2, mlp=16),
  batches=EmbedderBatchConfig(groups=6, clips=2, frames=8),
  optimizer=OptimizerConfig(learning_rate=3e-3, ema_decay=0.9),
  mesh=MeshConfig(1, 1, 1),
  loop=LoopConfig(steps=60, validate_every=1000, checkpoint_every=1000),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return str(write_clips(tmp_path_factory.mktemp("sets") / "drawn"))


@pytest.fixture(scope="module")
def batch(data):
  with embedder_batches(data, CONFIG.batches) as batches:
    return next(batches)


def test_rows_lose_one_modality_and_never_both():
  has = np.array([[True, True]] * 4000 + [[True, False]] * 100 + [[False, True]] * 100 + [[False, False]] * 3)
  frames = np.arange(5) < 4
  masks = has[:, :1] & frames, has[:, 1:] & frames
  video, audio = map(np.asarray, drop_modalities(jax.random.key(0), *map(jnp.asarray, masks), 0.3, 0.2))
  seen, heard = video.any(-1), audio.any(-1)
  assert (seen | heard)[:4200].all()
  # Binomial of 4000: four standard deviations are 0.03.
  assert abs((~seen[:4000]).mean() - 0.3) < 0.03 and abs((~heard[:4000]).mean() - 0.2) < 0.03
  np.testing.assert_array_equal(video[4000:], masks[0][4000:])
  np.testing.assert_array_equal(audio[4000:], masks[1][4000:])
  assert (video[seen] == masks[0][seen]).all() and (audio[heard] == masks[1][heard]).all()


def model_and_params(batch, **options):
  config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, dropout_rate=0.0, **options))
  model = embedder_model(config, batch)
  inputs = [batch[name] for name in ("expression", "expression_mask", "speech", "speech_mask")]
  return model, jax.jit(model.init)(jax.random.key(0), *inputs)["params"], inputs


def test_the_loss_is_of_priors_that_are_drawn(batch):
  model, params, inputs = model_and_params(batch)
  loss_fn = jax.jit(embedder_loss(model, 0.5, 0.0, 0.0))
  key = jax.random.key(5)
  loss, metrics = loss_fn(params, batch, key)
  prior = jax.jit(model.apply)({"params": params}, *inputs)
  s = prior.mu + prior.sigma * jax.random.normal(jax.random.split(key, 3)[2], prior.mu.shape)
  np.testing.assert_allclose(loss, info_nce(s, batch["group"], temperature=0.5), rtol=1e-4)
  np.testing.assert_allclose(metrics["mu_norm"], jnp.linalg.norm(prior.mu, axis=-1).mean(), rtol=1e-4)
  assert loss_fn(params, batch, jax.random.key(6))[0] != loss


@pytest.mark.parametrize("inputs, absent", [("video", "expression_mask"), ("audio", "speech_mask")])
def test_rows_that_say_nothing_are_passed_over(inputs, absent, batch):
  model, params, _ = model_and_params(batch, inputs=inputs)
  loss_fn = jax.jit(embedder_loss(model, 0.5, 0.4, 0.4))
  # As a row that only fills a batch.
  unfilled = batch | {"valid": batch["valid"] & (np.arange(12) != 3)}
  silent = batch | {absent: batch[absent] & (np.arange(12) != 3)[:, None]}
  key = jax.random.key(0)
  ours, theirs = loss_fn(params, silent, key), loss_fn(params, unfilled, key)
  np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
  assert abs(ours[0] - loss_fn(params, batch, key)[0]) > 1e-4


def test_it_learns_to_tell_emotions_of_people_it_has_not_seen(data, tmp_path):
  config = dataclasses.replace(CONFIG, data=(data,))
  losses = {}
  model, outcome = train_embedder(config, tmp_path, report=lambda step, metrics: losses.update({step: metrics["loss"]}))
  assert outcome.status == Status.FINISHED
  first, last = (np.mean([losses[step] for step in steps]) for steps in (range(1, 6), range(51, 61)))
  assert last < 0.5 * first
  with embedder_batches(data, config.batches, split="test", training=False) as held_out:
    embedded = embed(model, outcome.state.averaged(), held_out)
    untrained = model_and_params(next(iter(held_out)))[1]
    before = separation(embed(model, untrained, held_out))
  # 6 groups of 2 windows, without what fills a batch.
  assert embedded["mu"].shape == (12, 16)
  found = separation(embedded)
  assert found["clustering_strength"] > before["clustering_strength"]
  assert found["emotion_accuracy"] == 1


def test_clips_without_coefficients_or_held_out_people_train_an_embedder_of_speech(tmp_path):
  data, said = str(write_clips(tmp_path / "drawn", expression=False)), []
  config = dataclasses.replace(CONFIG, data=(data,), loop=LoopConfig(steps=2), validation_split="val")
  _, outcome = train_embedder(config, tmp_path / "run", warn=said.append)
  assert outcome.status == Status.FINISHED and outcome.state.skipped == 0
  assert len(said) == 1 and "without validation" in said[0]


def test_sound_of_another_whisper_is_refused(tmp_path):
  architecture = NETWORKS["audio_encoder"] | {"d_model": 8}
  shapes = network_shapes("audio_encoder", architecture)
  params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
  weights = Weights.save(tmp_path / "weights", {"audio_encoder": params}, {"networks": {"audio_encoder": architecture}})
  data = write_clips(tmp_path / "drawn")
  config = dataclasses.replace(CONFIG, data=(str(data),), weights=str(weights.folder))
  config = dataclasses.replace(config, loop=LoopConfig(steps=1))
  for number in (fingerprint(params), "0" * 16):
    encoding = {"format": FORMAT, "version": VERSION, "networks": {"audio_encoder": number, "vae": "of no interest"}}
    (data / "encoding.json").write_text(json.dumps(encoding))
    if number == "0" * 16:
      with pytest.raises(InputError, match="another audio encoder than that of"):
        train_embedder(config, tmp_path / "other")
    else:
      assert train_embedder(config, tmp_path / "run")[1].step == 1


def test_an_embedder_that_would_not_fit_the_weights_is_refused_before_it_trains(data, tmp_path):
  model = {"emotion_model": small_conditioning(8, 8)["emotion_model"] | {"prior_dim": 64}}
  weights = initial_weights(model, tmp_path / "weights")
  config = dataclasses.replace(CONFIG, data=(data,), weights=str(weights.folder))
  with pytest.raises(InputError, match="emotion_embedder has features 16 and the emotion_model has prior_dim 64"):
    train_embedder(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_the_embedder_of_the_weights_is_fine_tuned_on_request(data, tmp_path):
  still = OptimizerConfig(learning_rate=1e-12, ema_decay=0.0)
  config = dataclasses.replace(CONFIG, data=(data,), loop=LoopConfig(steps=1), optimizer=still)
  said = []
  train_embedder(config, tmp_path / "first")
  config = dataclasses.replace(config, weights=str(tmp_path / "first" / "weights"))
  seeded = dataclasses.replace(config, loop=LoopConfig(steps=1, seed=1))
  train_embedder(dataclasses.replace(seeded, init="weights"), tmp_path / "tuned", warn=said.append)
  assert said == []
  train_embedder(seeded, tmp_path / "new", warn=said.append)
  assert "A new embedder starts from seed 1" in said[0]
  first, tuned, new = (
    Weights.open(tmp_path / name / "weights").load("emotion_embedder")["w_s"] for name in ("first", "tuned", "new")
  )
  np.testing.assert_allclose(tuned, first, atol=1e-9)
  assert np.abs(new - first).max() > 1e-3
  with pytest.raises(InputError, match="init=weights needs weights with an emotion embedder"):
    train_embedder(dataclasses.replace(config, weights="", init="weights"), tmp_path / "none")


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(drop_video=0.7, drop_audio=0.4), "drop_video is 0.7 and drop_audio 0.4"),
    (dict(drop_audio=-0.1), "-0.1"),
    (dict(temperature=0.0), "temperature is 0.0"),
    (dict(data=()), "no data"),
    (
      dict(model=EmbedderModelConfig(features=16, num_heads=3)),
      "features is 16; give a multiple of model.num_heads, 3",
    ),
    (dict(model=EmbedderModelConfig(num_layers=0)), "model.num_layers is 0"),
    (dict(model=EmbedderModelConfig(dropout_rate=1.0)), "dropout_rate is 1.0"),
  ],
)
def test_what_cannot_be_trained(options, words, data, tmp_path):
  with pytest.raises(InputError, match=words):
    train_embedder(dataclasses.replace(CONFIG, **({"data": (data,)} | options)), tmp_path)
