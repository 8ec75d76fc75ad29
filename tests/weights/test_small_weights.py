"""The small model inside the package: what it makes of people whom no training has seen."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from dicetalk_jax.data.build.synthetic import test_person as unseen
from dicetalk_jax.evaluation.drawn_cases import World
from dicetalk_jax.inference.pipeline import DiceTalk
from dicetalk_jax.media.image import clip_pixels
from dicetalk_jax.vocabulary import EMOTIONS, SAMPLE_RATE
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.world.drawing import draw_clip

PEOPLE = [(person, emotion) for person in range(3) for emotion in ("angry", "happy")]


@pytest.fixture(scope="module")
def weights():
  return Weights.open(Weights.bundled())


@pytest.fixture(scope="module")
def image_embeddings(weights):
  """Pictures -> their embeddings (pictures, width), each of length 1."""
  params = {"params": weights.load("image_encoder", jnp.float32)}
  encode = functools.partial(jax.jit(weights.module("image_encoder").apply), params)

  def embed(pictures):
    embeddings = np.concatenate([encode(clip_pixels(picture)[None]) for picture in pictures])
    return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)

  return embed


def test_it_is_small_and_whole(weights):
  size = sum(path.stat().st_size for path in weights.folder.rglob("*") if path.is_file())
  assert size <= 20 * 2**20
  assert set(weights.config["networks"]) >= {"unet", "vae", "emotion_embedder", "frame_interpolator"}
  assert sorted(weights.priors()) == sorted(EMOTIONS)
  assert all((prior["sigma"] > 0).any() for prior in weights.priors().values())
  assert weights.generation.size == 128


def test_pictures_come_back_and_people_are_told_apart(weights, image_embeddings):
  clips = [draw_clip(unseen(7, person), emotion, 1, "Rain is likely today.") for person, emotion in PEOPLE]
  frames = np.stack([clip.frames[10:11] for clip in clips])
  vae, params = weights.module("vae"), {"params": weights.load("vae", jnp.float32)}
  signed = np.float32(frames) / 127.5 - 1
  mean, _ = jax.jit(functools.partial(vae.apply, method="encode"))(params, signed.reshape(-1, *frames.shape[2:]))
  drawn = jax.jit(functools.partial(vae.apply, method="decode"))(params, mean[:, None])
  error = np.square(drawn - signed).mean((1, 2, 3, 4))
  decibels = 10 * np.log10(4 / error)
  # 28.9 to 31.4 dB.
  assert (decibels > 27).all(), decibels

  embeddings = image_embeddings(clip.frames[10] for clip in clips)
  alike = embeddings @ embeddings.T - 2 * np.eye(len(clips))
  assert alike.argmax(-1).tolist() == [1, 0, 3, 2, 5, 4]


def test_a_portrait_speaks_and_stays_the_person(image_embeddings):
  """The image encoder takes what is made for the person; whether emotions are obeyed is for `dicetalk evaluate`."""
  world, talker = World(people=6, seconds=0.32), DiceTalk.load()
  portrait, box = world.portrait(2)
  audio, _ = world.sound(world.clip(2, "neutral"))
  options = dict(face_box=box, interpolate=False, steps=4)
  made = {emotion: talker.generate(portrait, audio, emotion, **options).frames for emotion in ("happy", "angry")}
  assert all(frames.shape == (4, 128, 128, 3) for frames in made.values())
  # Noise would be further off, and a model without an ear for the emotion would make both alike.
  assert all(np.abs(frames - portrait / 255).mean() < 0.12 for frames in made.values())
  assert np.abs(made["happy"] - made["angry"]).mean() > 0.005
  gallery = image_embeddings(world.face_at_rest(i) for i in range(6))
  for frames in made.values():
    assert (gallery @ image_embeddings(np.rint(255 * frames).astype(np.uint8)).mean(0)).argmax() == 2


def test_the_demo_takes_it(tmp_path):
  sound = tmp_path / "mine.wav"
  soundfile.write(sound, World().clip(3, "sad").audio[: SAMPLE_RATE // 2], SAMPLE_RATE)
  command = [sys.executable, "-m", "dicetalk_jax.cli.demo", "--out", str(tmp_path / "demo"), "--audio", str(sound)]
  command += ["--emotion", "angry"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "drawn people only" in done.stdout
  assert {path.name for path in (tmp_path / "demo").iterdir()} == {"angry.mp4", "portrait.png", "sheet.png"}
