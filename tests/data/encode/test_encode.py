"""Encoding a set of drawn clips with small networks: right values, resumable, shared by hosts, clear where it fails."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from random_weights import random_weights

from dicetalk_jax.data.batches.diffusion import DiffusionBatchConfig, diffusion_batches
from dicetalk_jax.data.encode.networks import Batcher
from dicetalk_jax.data.encode.record import LARGE, encoded_clip, open_encoded
from dicetalk_jax.data.encode.runner import encode
from dicetalk_jax.data.records import Clip, decode_frames, encode_frames, features
from dicetalk_jax.data.sets import serialize, shard_name, write_info, write_shard
from dicetalk_jax.errors import InputError
from dicetalk_jax.inference.conditions import whisper_states
from dicetalk_jax.media.image import clip_pixels, to_signed

FLOAT16 = dict(rtol=2**-10, atol=2**-12)  # what is stored has eleven bits
PARTS = {"train": [2, 0, 1], "test": [1]}


def drawn_clip(name, frames, split="train", size=(64, 64), emotion="happy", expression=True):
  rng = np.random.default_rng([frames, *name.encode()])
  h, w = size
  base = rng.integers(0, 255, (h // 8, w // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
  video, count = encode_frames(np.roll(base, i, axis=1) for i in range(frames))
  return Clip(
    **dict(clip=name, source="mead", identity="M003", video=name, frames=video, num_frames=count, height=h, width=w),
    face_box=(16, 8, 32, 40),
    audio=(0.1 * rng.standard_normal(count * 640)).astype(np.float32),
    emotion=emotion,
    level=2,
    expression=rng.standard_normal((count, 64)).astype(np.float32) if expression else None,
    split=split,
    sentence="a dog",
  )


def write(folder, clips, parts=PARTS, name="drawn"):
  """A set of clips as building leaves it."""
  folder.mkdir(parents=True)
  record, splits = features(), {}
  for split, sizes in parts.items():
    left = [clip for clip in clips if clip.split == split]
    for i, size in enumerate(sizes):
      part, left = left[:size], left[size:]
      examples = [serialize(record, clip.example()) for clip in part]
      splits.setdefault(split, []).append(write_shard(folder / shard_name(name, split, i, len(sizes)), examples))
  write_info(folder, name, record, splits)
  return folder


CLIPS = [
  drawn_clip("a", 12),
  drawn_clip("b", 51, emotion=None),
  drawn_clip("c", 7, expression=False),
  drawn_clip("d", 9, "test"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  return random_weights(tmp_path_factory.mktemp("weights") / "weights")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  return write(tmp_path_factory.mktemp("sets") / "clips", CLIPS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, clips, weights):
  folder = tmp_path_factory.mktemp("sets") / "encoded"
  seen = []
  done = encode(clips, folder, weights, progress=lambda *event: seen.append(event))
  assert (done.clips, done.kept_shards, done.complete) == (4, 0, True)
  assert seen == [("encoding clips", i, 4) for i in range(5)]
  return folder


@pytest.fixture(scope="module")
def heard(tmp_path_factory, clips, weights):
  folder = tmp_path_factory.mktemp("sets") / "heard"
  encode(clips, folder, weights, what="audio")
  return folder


def read(folder, split):
  records, _ = open_encoded(folder, split, pictures=False)
  return [encoded_clip(records[i]) for i in range(len(records))]


def assert_same_set(ours, theirs):
  """What the networks give may differ by a rounding: another process, or a busy one, adds in another order."""
  for split in PARTS:
    for a, b in zip(read(ours, split), read(theirs, split), strict=True):
      for name in vars(a):
        if name in LARGE and getattr(a, name) is not None:
          np.testing.assert_allclose(getattr(a, name), getattr(b, name), **FLOAT16, err_msg=name)
        else:
          np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_values_are_those_of_the_networks(whole, weights):
  vae, clip_encoder, whisper = (weights.module(name) for name in ("vae", "image_encoder", "audio_encoder"))
  params = {name: weights.load(name) for name in ("vae", "image_encoder", "audio_encoder")}
  encoded = jax.jit(lambda images: vae.apply({"params": params["vae"]}, images, method="encode"))
  embed = jax.jit(lambda pixels: clip_encoder.apply({"params": params["image_encoder"]}, pixels))
  found = read(whole, "train") + read(whole, "test")
  for ours, clip in zip(found, CLIPS, strict=True):
    n, frames = clip.num_frames, decode_frames(clip.frames)
    moments = [encoded(to_signed(frames[i : i + 2])) for i in range(0, n - 1, 2)]
    mean, logvar = map(np.concatenate, zip(*moments, strict=True))
    assert ours.latents_mean.dtype == np.float16 and ours.latents_mean.shape == (
      n,
      clip.height // 8,
      clip.width // 8,
      4,
    )
    np.testing.assert_allclose(ours.latents_mean[: len(mean)], mean, **FLOAT16)
    np.testing.assert_allclose(ours.latents_logvar[: len(mean)], logvar, **FLOAT16)
    assert len(mean) >= n - 1
    assert ours.reference_index.tolist() == list(range(0, n, 10))
    embedding = np.concatenate([embed(clip_pixels(frames[i])[None]) for i in ours.reference_index])
    np.testing.assert_allclose(ours.image_embedding, embedding, **FLOAT16)
    states = whisper_states(whisper, params["audio_encoder"], clip.audio)
    assert states.shape == ours.states.shape == (2 * n, 3, 64)
    np.testing.assert_allclose(ours.states, states, **FLOAT16)
    example = clip.example()
    for name in ("clip", "source", "split", "identity", "video", "sentence", "emotion", "level", "num_frames"):
      assert getattr(ours, name) == (example[name] if name != "emotion" else [4, -1, 4, 4][CLIPS.index(clip)])
    np.testing.assert_array_equal(ours.expression, example["expression"])
    assert ours.face_box == clip.face_box and ours.truth.shape[0] == 0


def test_rows_of_several_shapes_go_back_to_who_gave_them():
  batches, found = [], {}

  def total(rows):
    batches.append(rows.shape)
    return rows.sum(axis=1), rows.max(axis=1)

  batcher = Batcher(total, 4)
  rows = [np.full(3 if i in (5, 6, 7, 13) else 2, i) for i in range(19)]
  for i, row in enumerate(rows):
    batcher.put(row, lambda *results, i=i: found.update({i: results}))
  batcher.finish()
  assert found == {i: (row.sum(), i) for i, row in enumerate(rows)}
  assert set(batches) == {(4, 2), (4, 3)}


def test_sound_of_more_than_one_chunk(tmp_path, weights):
  clip = drawn_clip("long", 760)
  folder = write(tmp_path / "clips", [clip], {"train": [1]})
  encode(folder, tmp_path / "audio", weights, what="audio")
  (found,) = read(tmp_path / "audio", "train")
  states = whisper_states(weights.module("audio_encoder"), weights.load("audio_encoder"), clip.audio)
  np.testing.assert_allclose(found.states, states, **FLOAT16)
  assert found.latents_mean is None and found.expression.shape == (760, 64)
  with pytest.raises(InputError, match="without its pictures"):
    diffusion_batches(tmp_path / "audio")


def test_the_set_trains(whole):
  batch = next(diffusion_batches(whole, config=DiffusionBatchConfig(batch=2)))
  assert batch["latents_mean"].shape == (2, 25, 8, 8, 4) and batch["image_embedding"].shape == (2, 64)
  assert json.loads((whole / "encoding.json").read_text())["sizes"]["downscale"] == 8
  assert open_encoded(whole, "train")[1].clip.tolist() == ["a", "b", "c"]
  assert (whole / "index-train.npz").exists()


def test_parts_make_the_whole(tmp_path, clips, weights, whole):
  first = encode(clips, tmp_path / "parts", weights, part=(0, 2))
  assert not first.complete
  with pytest.raises(InputError, match="run the same `dicetalk data encode`"):
    diffusion_batches(tmp_path / "parts")
  second = encode(clips, tmp_path / "parts", weights, part=(1, 2))
  assert second.complete and first.clips + second.clips == 4
  assert_same_set(tmp_path / "parts", whole)
  again = encode(clips, tmp_path / "parts", weights)
  assert (again.clips, again.kept_shards, again.complete) == (0, 4, True)


KILLED = """
import os, signal, sys
from dicetalk_jax.data.encode import runner as module
def progress(what, done, total):
  if done == 3:
    os.kill(os.getpid(), signal.SIGKILL)
module.encode(*sys.argv[1:4], what="audio", progress=progress)
"""


def test_goes_on_after_being_killed(tmp_path, clips, weights, heard):
  folder = tmp_path / "encoded"
  killed = subprocess.run([sys.executable, "-c", KILLED, clips, folder, weights.folder], timeout=120)
  assert killed.returncode == -signal.SIGKILL
  kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.array_record*of-00003")}
  assert kept and not (folder / "dataset_info.json").exists()
  done = encode(clips, folder, weights, what="audio")
  assert done.complete and done.kept_shards >= 1 and 0 < done.clips < 4
  assert kept == {path: path.stat().st_mtime_ns for path in kept}
  assert_same_set(folder, heard)
  assert not list(folder.glob("*.partial"))


def test_bound_to_what_it_was_begun_with(tmp_path, clips, weights, whole):
  others = [
    (dict(what="audio"), "what all, not audio"),
    (dict(reference_every=5), "reference_every 10, not 5"),
    (dict(dtype="bfloat16"), "dtype float32, not bfloat16"),
    (dict(weights=random_weights(tmp_path / "weights", seed=1)), "other weights of the vae"),
    (dict(data=write(tmp_path / "clips", CLIPS[:1], {"train": [1]})), "other clips"),
  ]
  for options, said in others:
    with pytest.raises(InputError, match=said):
      encode(**(dict(data=clips, target=whole, weights=weights) | options))
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "thesis.tex").write_text("x")
  for call, said in [
    (lambda: encode(clips, clips, weights), "is the data set itself"),
    (lambda: encode(whole, tmp_path / "x", weights), "no clips as `dicetalk data build`"),
    (lambda: encode(tmp_path / "none", tmp_path / "x", weights), "not a folder"),
    (lambda: encode(clips, tmp_path / "full", weights), "thesis.tex"),
    (lambda: encode(clips, tmp_path / "x", weights, what="video"), "all, audio"),
    (lambda: encode(clips, tmp_path / "x", weights, part=(2, 2)), "part 2 of 2"),
    (lambda: encode(clips, tmp_path / "x", weights, batch=0), "batch 0"),
    (lambda: encode(clips, tmp_path / "x", weights, dtype="int8"), "bfloat16, float32"),
  ]:
    with pytest.raises(InputError, match=said):
      call()


HOLDS = """
import sys, time
from dicetalk_jax.data.encode import runner as module
def progress(*_):
  print("begun", flush=True)
  time.sleep(60)
module.encode(*sys.argv[1:4], what="audio", progress=progress)
"""


def test_one_process_a_part(tmp_path, clips, weights):
  command = [sys.executable, "-c", HOLDS, clips, tmp_path / "encoded", weights.folder]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
    try:
      assert other.stdout.readline() == "begun\n"
      with pytest.raises(InputError, match="another process"):
        encode(clips, tmp_path / "encoded", weights, what="audio")
    finally:
      other.kill()
  assert encode(clips, tmp_path / "encoded", weights, what="audio").complete


def test_a_damaged_file_is_named_and_what_is_finished_stays(tmp_path, weights):
  folder = write(tmp_path / "clips", [drawn_clip(name, 40) for name in "abc"], {"train": [1, 1, 1]})
  path = folder / shard_name("drawn", "train", 1, 3)
  intact = path.read_bytes()
  os.truncate(path, len(intact) // 2)
  with pytest.raises(InputError, match="damaged") as caught:
    encode(folder, tmp_path / "encoded", weights, what="audio", threads=1)
  assert path.name in str(caught.value)
  first = tmp_path / "encoded" / shard_name("drawn", "train", 0, 3)
  before = first.stat().st_mtime_ns
  path.write_bytes(intact)
  done = encode(folder, tmp_path / "encoded", weights, what="audio")
  assert (done.complete, done.clips, done.kept_shards) == (True, 2, 1)
  assert first.stat().st_mtime_ns == before


def test_frames_that_cannot_be_used_name_their_clip(tmp_path, weights):
  bad = dataclasses.replace(drawn_clip("torn", 10), frames=b"no video")
  with pytest.raises(InputError, match="clip torn"):
    encode(write(tmp_path / "torn", [bad], {"train": [1]}), tmp_path / "x", weights)
  odd = drawn_clip("odd", 10, size=(72, 64))
  odd = dataclasses.replace(odd, height=68)
  with pytest.raises(InputError, match=r"clip odd.*64x68 pixels.*multiples of 8"):
    encode(write(tmp_path / "odd", [odd], {"train": [1]}), tmp_path / "y", weights)


FULL = """
import resource, signal, sys
from dicetalk_jax.data.encode import runner as module
from dicetalk_jax.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def progress(what, done, total):
  if done == 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))
try:
  module.encode(*sys.argv[1:4], what="audio", progress=progress)
except OutputError as error:
  print(error)
"""


def test_a_disk_that_takes_no_more(tmp_path, clips, weights, heard):
  folder = tmp_path / "encoded"
  full = subprocess.run(
    [sys.executable, "-c", FULL, clips, folder, weights.folder], stdout=subprocess.PIPE, text=True, timeout=120
  )
  assert "cannot be written (File too large)" in full.stdout and "make space" in full.stdout, full.stdout
  assert not (folder / "dataset_info.json").exists() and not list(folder.glob("*.partial"))
  done = encode(clips, folder, weights, what="audio")
  assert done.complete
  assert_same_set(folder, heard)
