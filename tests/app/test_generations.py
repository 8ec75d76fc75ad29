"""The queue: one at a time, cancelled within a step, and free again whatever happens."""

import dataclasses
import pathlib
import shlex
import threading
import time

import numpy as np
import pytest
import tyro

from dicetalk_jax.app import emotions, views
from dicetalk_jax.app.generations import CANCELLED, DONE, FAILED, RUNNING, WAITING, Generations
from dicetalk_jax.app.requests import Request
from dicetalk_jax.app.results import Results, is_token
from dicetalk_jax.app.uploads import Upload, Uploads
from dicetalk_jax.cli.generate import Generate
from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import InputError
from dicetalk_jax.inference.video import Video

VISITOR, OTHER = "a" * 32, "b" * 32


class Talker:
  """Denoises `steps` steps, each when it is let; or raises."""

  def __init__(self):
    self.steps_done, self.let, self.error = 0, threading.Semaphore(0), None

  def generate(self, image, audio, emotion, *, steps, progress, show, **options):
    progress("encoding", 0, 1)
    if self.error:
      raise self.error
    progress("denoising", 0, steps)
    for step in range(steps):
      assert self.let.acquire(timeout=20)
      self.steps_done += 1
      progress("denoising", step + 1, steps)
    frames = np.full((4, 16, 16, 3), 0.5, np.float32)
    show(0, frames)
    return Video(frames, 12.5, np.zeros((4, 2, 2, 4), np.float32), np.zeros((5120, 1), np.float32), 16000, (16, 16))


class Guess:
  def learn(self, *_):
    pass


@pytest.fixture
def talker():
  return Talker()


@pytest.fixture
def queue(talker, tmp_path):
  uploads = Uploads(tmp_path / "uploads")
  queue = Generations(talker, Results(tmp_path / "results"), uploads, Guess(), max_waiting=2)
  queue.uploads = uploads
  yield queue
  queue.close()
  for _ in range(1000):
    talker.let.release()


@pytest.fixture
def ask(queue):
  """Submits a video of so many steps."""

  def submit(steps=2, visitor=VISITOR):
    files = []
    for name in ("me.png", "speech.wav"):
      path = queue.uploads.new_folder() / name
      path.write_text(name)
      files.append(Upload(path, name))
    config = GenerationConfig(steps=steps, face_box=(1, 2, 3, 4), size=64)
    return queue.submit(visitor, Request(*files, emotions.of_label("happy"), config, (16, 16), 0.32))

  return submit


def until(generation, *states):
  for _ in range(2000):
    if generation.state in states:
      return
    time.sleep(0.01)
  raise AssertionError(f"{generation.state} is none of {states}")


def until_step(generation, done):
  while generation.stage != "denoising" or generation.done < done:
    time.sleep(0.01)


def test_cancelled_within_one_step(queue, talker, ask):
  generation = ask(steps=50)
  for _ in range(3):
    talker.let.release()
  until_step(generation, 3)
  queue.cancel(generation)
  assert generation.state == RUNNING
  assert "Cancelling after this step" in views.progress(generation)
  for _ in range(10):
    talker.let.release()
  until(generation, CANCELLED)
  assert talker.steps_done == 4
  assert "Cancelled" in views.progress(generation)
  assert not [path for path in queue.uploads.folder.rglob("*") if path.is_file()]


def test_one_at_a_time_in_order(queue, talker, ask):
  first = ask(visitor=VISITOR)
  until(first, RUNNING)
  second, third = ask(visitor=OTHER), ask(visitor=OTHER)
  assert (second.state, third.state) == (WAITING, WAITING)
  assert (queue.place(second), queue.place(third)) == (1, 2)
  with pytest.raises(InputError, match="--max-waiting"):
    ask()
  queue.cancel(second)
  until(second, CANCELLED)
  assert queue.place(third) == 1
  for _ in range(4):
    talker.let.release()
  until(third, DONE)
  assert first.state == DONE
  assert first.result.video.stat().st_size > 0
  assert first.frames_done == 4
  assert not any(upload.path.exists() for made in (first, second, third) for upload in made.request.uploads)


@pytest.mark.parametrize(
  ("error", "said"),
  [
    (InputError("portrait /x is bad"), "Portrait /x is bad."),
    (MemoryError(), "too little memory"),
    (RuntimeError("RESOURCE_EXHAUSTED: 1 GB"), "too little memory"),
    (ZeroDivisionError("secret"), "a reason other than your inputs"),
  ],
)
def test_what_fails_makes_room(queue, talker, ask, error, said, capsys):
  talker.error = error
  failed = ask()
  until(failed, FAILED)
  assert said in failed.error
  assert "secret" not in views.progress(failed)
  talker.error = None
  good = ask(steps=1)
  talker.let.release()
  until(good, DONE)


def test_a_generation_is_its_visitors(queue, talker, ask):
  generation = ask(steps=1)
  assert queue.get(VISITOR, generation.id) is generation
  assert queue.get(OTHER, generation.id) is None
  assert queue.get(VISITOR, "x") is None


def test_results_stay_with_their_visitor(queue, talker, ask, tmp_path):
  for _ in range(3):
    generation = ask(steps=1)
    talker.let.release()
    until(generation, DONE)
  kept = Results(tmp_path / "results", kept=2)
  assert len(kept.of(VISITOR)) == 3
  assert kept.of(VISITOR)[0] == generation.result
  assert kept.of(OTHER) == []
  assert VISITOR not in str(generation.result.folder)
  (kept.of(VISITOR)[2].folder / "result.json").write_text("{")
  assert len(kept.of(VISITOR)) == 2
  shown = views.beside(kept.of(VISITOR))
  assert shown.count("<video") == 2
  kept.sweep(3600)
  assert kept.of(VISITOR)
  kept.sweep(-1)
  assert not kept.of(VISITOR)
  assert is_token(VISITOR)
  assert not any(map(is_token, ("", None, "../x", "A" * 32, "a" * 33)))


def test_what_visitors_say_is_escaped():
  assert "<script>" not in views.message("<script>alert(1)</script>")
  assert "<img" not in views.emotion_text("<img src=x>")


_CONFIGS = (
  GenerationConfig(),
  GenerationConfig(face_box=(1, 2, 30, 40), crop=True, size=64, steps=3, seed=4294967295, interpolate=False),
  GenerationConfig(identity_scale=2.3, audio_scale=0.1, emotion_scale=7.25, bank="nearest", dtype="float32"),
  GenerationConfig(window=4, shift=2, overlap=1, decode_chunk=4, windows_at_once=0, audio_scale=0.0, size=100.5),
  GenerationConfig(sigma_max=30.5, sigma_min=0.125),
)


@pytest.mark.parametrize("config", _CONFIGS)
@pytest.mark.parametrize("name", ["me.png", "my own 'portrait'.png", "--me.png", "é.png"])
def test_the_line_says_all_of_the_settings(config, name):
  """Read as the command line reads it, it has the request's settings to the bit, and files that are in the folder."""
  portrait, speech = Upload(pathlib.Path("/server/x"), name), Upload(pathlib.Path("/server/y"), "a b.wav")
  request = Request(portrait, speech, emotions.of_mix({"happy": 0.6, "sad": 0.35}), config, (512, 512), 1.0)
  program, verb, *words = shlex.split(request.command("w x/"))
  assert (program, verb) == ("dicetalk", "generate")
  read = tyro.cli(Generate, args=words)
  assert dataclasses.astuple(read.generation) == dataclasses.astuple(config)
  assert read.image == pathlib.Path(name)
  assert (str(read.audio), read.emotion, str(read.weights)) == ("a b.wav", "happy:0.6+sad:0.35", "w x")
  assert read.out.suffix == ".mp4"
  assert "/" not in str(read.out)


def test_the_line_leaves_out_what_the_weights_say_themselves():
  own = GenerationConfig(size=128, steps=10)
  files = Upload(pathlib.Path("/server/x"), "me.png"), Upload(pathlib.Path("/server/y"), "a.wav")
  request = Request(*files, emotions.of_mix({"happy": 1.0}), dataclasses.replace(own, steps=25), (512, 512), 1.0)
  line = request.command("w", own)
  assert "--steps 25" in line and "--size" not in line
  assert "--size 128" in request.command("w") and "--steps" not in request.command("w")
