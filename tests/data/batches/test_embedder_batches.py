"""What a batch for the embedder holds: which windows are a group, and how they are cut."""

import dataclasses
import itertools

import numpy as np
import pytest
from data.random_clips import EMBEDDER, HDTF, LAYERS, MEAD, WIDTH, clip, make, take, write

from dicetalk_jax.data.batches.embedder import EmbedderBatchConfig, embedder_batches
from dicetalk_jax.errors import InputError


def test_embedder_groups(mead, hdtf):
  batches = make("embedder", mead, hdtf)
  source, clips = batches.source, MEAD + HDTF
  assert source.left_out == {"groups of one short clip": 1}  # "short" has 48 frames, two windows want 54
  assert len(source.groups) == 6 + 3 + 1
  seen = []
  for batch in take(batches, 4):
    assert batch["expression"].shape == (8, 24, 64)
    pairs = batch["group"].reshape(4, 2)
    assert (pairs[:, 0] == pairs[:, 1]).all() and len(set(pairs[:, 0])) == 4
    seen.append(pairs[:, 0])
    for a, b in batch["clip"].reshape(4, 2):
      one, other = clips[a], clips[b]
      assert (one.identity, one.emotion) == (other.identity, other.emotion)
      assert one.emotion >= 0 or one.video == other.video
      assert a != b or one.clip == "long"
    for i, c in enumerate(batch["clip"]):
      assert source.clips[c] == clips[c].clip and source.identities[batch["identity"][i]] == clips[c].identity
      assert batch["emotion"][i] == clips[c].emotion and batch["level"][i] == clips[c].level
      assert batch["expression_mask"][i].any() == bool(len(clips[c].expression))
  assert len(set(np.concatenate(seen[:2]))) == 8  # an epoch is of whole batches, without repeats


def test_embedder_groups_of_an_emotion_whoever_feels_it(mead, hdtf):
  clips = MEAD + HDTF
  config = dataclasses.replace(EMBEDDER, group="emotion")
  batches = make("embedder", mead, hdtf, config=config)
  known = {(clip.emotion, clip.level) for clip in clips if clip.emotion >= 0}
  assert sum(name.startswith("emotion") for name in batches.source.groups) == len(known)
  for batch in take(batches, 12):
    assert len(set(batch["group"])) == 4
    for a, b in batch["clip"].reshape(4, 2):
      one, other = clips[a], clips[b]
      assert (one.emotion, one.level) == (other.emotion, other.level)
      # Two people feel each, and a pair is of different clips.
      assert one.identity != other.identity if one.emotion >= 0 else one.video == other.video
  with pytest.raises(InputError, match="group 'voice' is not known; choose person or emotion"):
    make("embedder", mead, hdtf, config=dataclasses.replace(EMBEDDER, group="voice"))


def test_windows_of_one_clip_do_not_overlap(hdtf):
  ramp = np.arange(400, dtype=np.float16)[:, None, None] * np.ones((1, LAYERS, WIDTH), np.float16)
  ramped = dataclasses.replace(clip("ramp", 200, "WRA"), states=ramp)
  folder = write(
    hdtf.parent / "ramp", [ramped, clip("a/1", 70, "A", video="a"), clip("a/2", 70, "A", video="a")], shards=1
  )
  config = EmbedderBatchConfig(groups=2, clips=4, frames=30, speed=0.1, jitter=0)
  speeds = []
  for batch in take(embedder_batches(folder, config), 20):
    spans = sorted((row[0, 0], row[-1, 0]) for row in batch["speech"][batch["clip"] == 0])
    assert len(spans) == 4 and all(a[1] < b[0] for a, b in itertools.pairwise(spans))
    speeds += [(last - first) / 2 / 29 for first, last in spans]
    assert np.bincount(batch["clip"], minlength=3).tolist() == [4, 2, 2]
  assert 0.9 - 1e-3 <= min(speeds) < 0.95 and 1.05 < max(speeds) <= 1.1 + 1e-3


def test_both_modalities_are_resampled_together(tmp_path):
  time = np.arange(200, dtype=np.float32)
  states = np.repeat(time, 2)[:, None, None] * np.ones((1, 1, 4), np.float32)
  expression = np.repeat(time[:, None], 64, axis=1)
  made = [
    dataclasses.replace(clip(f"a/{i}", 200, "A", video="a"), states=states.astype(np.float16), expression=expression)
    for i in range(2)
  ]
  folder = write(tmp_path / "set", made)
  batch = take(embedder_batches(folder, EmbedderBatchConfig(1, 2, 50, speed=0.1, jitter=0)), 1)[0]
  np.testing.assert_allclose(batch["expression"][..., 0], batch["speech"][..., 0], atol=1e-3)
  steps = np.diff(batch["speech"][..., 0], axis=1)
  np.testing.assert_allclose(steps, np.broadcast_to(steps[:, :1], steps.shape), atol=1e-3)
  jittered = take(embedder_batches(folder, EmbedderBatchConfig(1, 2, 50, speed=0, jitter=0.05)), 1)[0]
  noise = jittered["expression"] - jittered["speech"][..., :1]
  assert np.isclose(noise.std(), 0.05 * np.arange(50).std(), rtol=0.05)
