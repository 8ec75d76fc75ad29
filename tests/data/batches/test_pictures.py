"""Batches of pictures: what records hold, the same whoever reads them, resumable, clear where they cannot be."""

import dataclasses
import json

import numpy as np
import pytest
from data.random_clips import assert_same, take
from drawn_sets import drawn_clip, people, write_set

from dicetalk_jax.data.batches import pictures
from dicetalk_jax.data.batches.pictures import FrameBatchConfig, PortraitBatchConfig, frame_batches, portrait_batches
from dicetalk_jax.data.batches.sources import ClipSets
from dicetalk_jax.data.records import decode_frames
from dicetalk_jax.errors import InputError
from dicetalk_jax.media.image import clip_pixels

CLIPS = [*people(4, frames=12), drawn_clip("short", 2, "train0"), *people(3, split="test", frames=9)]
BY_NAME = {clip.clip: clip for clip in CLIPS}
FRAMES = FrameBatchConfig(batch=4, frames=3)
PORTRAITS = PortraitBatchConfig(people=2, pictures=2)
MAKERS = {"frames": (frame_batches, FRAMES), "portraits": (portrait_batches, PORTRAITS)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write_set(tmp_path_factory.mktemp("sets") / "drawn", CLIPS)


def test_a_run_is_what_the_record_holds(data):
  batches = frame_batches(data, dataclasses.replace(FRAMES, flip=0))
  assert batches.source.left_out == {"shorter than 3 frames": 1}
  assert batches.source.size == (16, 16)
  starts = set()
  for batch in take(batches, 6):
    assert batch["frames"].shape == (4, 3, 16, 16, 3) and batch["frames"].dtype == np.uint8
    assert batch["valid"].all()
    for i in range(4):
      clip = BY_NAME[batches.source.clips[batch["clip"][i]]]
      start = batch["start"][i]
      starts.add(int(start))
      np.testing.assert_array_equal(batch["frames"][i], decode_frames(clip.frames)[start : start + 3])
      assert batches.source.identities[batch["identity"][i]] == clip.identity
  assert len(starts) > 3


def test_an_epoch_has_every_clip_once(data):
  batches = take(frame_batches(data, FRAMES), 3)
  assert len({int(clip) for batch in batches for clip in batch["clip"]}) == 12


def test_frames_are_cut_and_mirrored_in_training_alone(data):
  config = FrameBatchConfig(batch=4, frames=3, crop=8, flip=1.0)
  batches = frame_batches(data, config)
  assert batches.source.size == (8, 8)
  for row in next(batches)["frames"]:
    assert row.shape == (3, 8, 8, 3)
  whole = decode_frames(BY_NAME[batches.source.clips[next(batches)["clip"][0]]].frames)
  assert whole.shape[1:3] == (16, 16)
  batch = next(frame_batches(data, config, training=False))
  clip = BY_NAME[batches.source.clips[batch["clip"][0]]]
  # The middle three of twelve to fourteen frames.
  start = (clip.num_frames - 3) // 2
  np.testing.assert_array_equal(batch["frames"][0], decode_frames(clip.frames)[start : start + 3])


def test_a_cut_is_of_one_place_and_side(data):
  config = FrameBatchConfig(batch=4, frames=2, crop=8, flip=0.5)
  batches = frame_batches(data, config)
  for batch in take(batches, 3):
    for i, row in enumerate(batch["frames"]):
      clip, start = BY_NAME[batches.source.clips[batch["clip"][i]]], batch["start"][i]
      whole = decode_frames(clip.frames)[start : start + 2]
      places = [whole[:, y : y + 8, x : x + 8] for y in range(9) for x in range(9)]
      assert any(np.array_equal(row, place) or np.array_equal(row, place[:, :, ::-1]) for place in places)


def test_cuts_lie_on_the_face_when_they_are_to(tmp_path):
  clips = [dataclasses.replace(clip, face_box=(18, 2, 6, 8)) for clip in people(4, size=32)]
  write_set(tmp_path / "set", clips)
  by_name, found = {clip.clip: clip for clip in clips}, {}
  for share in (1.0, 0.0):
    batches = frame_batches(tmp_path / "set", FrameBatchConfig(batch=4, frames=1, crop=8, flip=0, faces=share))
    found[share] = set()
    for batch in take(batches, 8):
      for i, row in enumerate(batch["frames"]):
        whole = decode_frames(by_name[batches.source.clips[batch["clip"][i]]].frames)[batch["start"][i]]
        found[share] |= {
          (x, y) for y in range(25) for x in range(25) if np.array_equal(row[0], whole[y : y + 8, x : x + 8])
        }
  # The middle of the face, (21, 6), is in every cut or on its edge, and cuts go to all its sides.
  assert all(13 <= x <= 21 and 0 <= y <= 6 for x, y in found[1.0])
  assert {x for x, _ in found[1.0]} >= {14, 20} and {y for _, y in found[1.0]} >= {0, 5}
  assert any(x < 10 for x, _ in found[0.0]) and any(y > 15 for _, y in found[0.0])


def test_other_colours_keep_the_picture(data):
  config = FrameBatchConfig(batch=4, frames=2, flip=0, recolour=1.0)
  plain, coloured = (next(frame_batches(data, dataclasses.replace(config, recolour=share))) for share in (0.0, 1.0))
  np.testing.assert_array_equal(plain["clip"], coloured["clip"])
  np.testing.assert_array_equal(plain["start"], coloured["start"])
  for before, after in zip(plain["frames"], coloured["frames"], strict=True):
    assert np.abs(before.astype(int) - after).mean() > 5
    # Each channel is one of those before, made lighter or darker: of the same order.
    likeness = np.corrcoef(before.reshape(-1, 3).T, after.reshape(-1, 3).T)[:3, 3:]
    assert (likeness.max(axis=0) > 0.95).all() and len(set(likeness.argmax(axis=0))) == 3


def test_finite_batches_have_every_clip_once_and_end(data):
  with frame_batches(data, FRAMES, split="test", training=False) as batches:
    assert len(batches) == 3
    found = [batch["clip"][batch["valid"]] for batch in batches]
    assert sorted(np.concatenate(found)) == list(range(9))
    assert sum(len(batch["clip"]) for batch in batches) == 12  # it starts anew
  limited = take(frame_batches(data, FRAMES, split="test", training=False, limit=5), 9)
  assert [int(clip) for batch in limited for clip in batch["clip"][batch["valid"]]] == [0, 2, 4, 6, 8]


def test_portraits_are_of_different_people_each_of_different_clips(data, monkeypatch):
  monkeypatch.setattr(pictures, "_PORTRAIT_CROP", 0)
  monkeypatch.setattr(pictures, "_PORTRAIT_FLIP", 0)
  batches = portrait_batches(data, PORTRAITS)
  for batch in take(batches, 6):
    assert batch["pixels"].shape == (4, 224, 224, 3) and batch["pixels"].dtype == np.float32
    assert batch["group"][0] == batch["group"][1] != batch["group"][2] == batch["group"][3]
    assert len(set(batch["clip"])) == 4
    for i in range(4):
      clip = BY_NAME[batches.source.clips[batch["clip"][i]]]
      assert clip.identity == batches.source.identities[batch["group"][i]]
      shown = [clip_pixels(frame) for frame in decode_frames(clip.frames)]
      assert any(np.array_equal(batch["pixels"][i], picture) for picture in shown)


def test_held_out_portraits_come_once(data):
  config = PortraitBatchConfig(people=2, pictures=4)
  batches = take(portrait_batches(data, config, split="test", training=False), 9)
  assert [int(group) for batch in batches for group in batch["group"][batch["valid"]]] == [0] * 4 + [1] * 4 + [2] * 4
  assert [batch["valid"].sum() for batch in batches] == [8, 4]


@pytest.mark.parametrize("kind", MAKERS)
def test_resumes_anywhere(kind, data):
  make, config = MAKERS[kind]
  whole = take(make(data, config, seed=3), 7)
  for at in (0, 1, 5):
    first = make(data, config, seed=3)
    for _ in range(at):
      next(first)
    state = json.loads(json.dumps(first.get_state()))
    first.close()
    second = make(data, config, seed=3)
    next(second)  # it has begun elsewhere
    second.set_state(state)
    for ours, theirs in zip(take(second, 7 - at), whole[at:], strict=True):
      assert_same(ours, theirs)
  with pytest.raises(InputError, match="seed 3"):
    make(data, config, seed=4).set_state(state)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("options", [dict(workers=2), dict(memory_gb=0.0), dict(memory_gb=2e-5)])
def test_neither_workers_nor_memory_change_a_batch(kind, options, data):
  make, config = MAKERS[kind]
  for ours, theirs in zip(take(make(data, config, **options), 4), take(make(data, config), 4), strict=True):
    assert_same(ours, theirs)


@pytest.mark.parametrize("kind", MAKERS)
def test_processes_share_a_batch(kind, data):
  make, config = MAKERS[kind]
  whole = take(make(data, config), 3)
  parts = [take(make(data, config, process_index=i, process_count=2), 3) for i in range(2)]
  for batch, *shares in zip(whole, *parts, strict=True):
    for name, array in batch.items():
      np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), array)


def test_several_sets_are_one(data, tmp_path):
  other = write_set(tmp_path / "other", [drawn_clip("other", 20, "other")])
  sets = ClipSets([data, other], "train")
  assert len(sets.index) == 14
  assert [sets.clip(i).clip for i in (0, 13)] == [sets.index.clip[0], "other"]
  np.testing.assert_array_equal(sets.frames(13, [5]), sets.frames(13)[5:6])


@pytest.mark.parametrize(
  "make, options, words",
  [
    (frame_batches, dict(data=()), "no data is given"),
    (frame_batches, dict(data="nowhere"), "nowhere is not a folder"),
    (frame_batches, dict(split="val"), "no split 'val'; it has train, test"),
    (frame_batches, dict(config=FrameBatchConfig(frames=40)), "no clip of 40 frames or more"),
    (frame_batches, dict(config=FrameBatchConfig(crop=20)), "crop is 20.*16x16"),
    (frame_batches, dict(config=FrameBatchConfig(flip=2)), "flip 2"),
    (frame_batches, dict(config=FrameBatchConfig(batch=3), process_count=2), "3 runs"),
    (frame_batches, dict(seed=-1), "seed -1"),
    (portrait_batches, dict(config=PortraitBatchConfig(people=9)), "4 people in 'train'.*needs 9"),
    (portrait_batches, dict(config=PortraitBatchConfig(pictures=1)), "1 pictures of a person"),
  ],
)
def test_what_makes_no_batch(make, options, words, data):
  with pytest.raises(InputError, match=words):
    make(**({"data": data} | options))


def test_pictures_of_several_sizes_make_no_batch(tmp_path):
  data = write_set(tmp_path / "drawn", [drawn_clip("a", 5), drawn_clip("b", 5, size=32)])
  with pytest.raises(InputError, match="16x16 and 32x32"):
    frame_batches(data, FRAMES)


def test_damaged_frames_are_named(tmp_path):
  clip = drawn_clip("broken", 5)
  data = write_set(tmp_path / "drawn", [dataclasses.replace(clip, frames=clip.frames[:50])], shards=1)
  with pytest.raises(InputError, match=r"synthetic-train.*clip broken: .*cannot be decoded"):
    next(frame_batches(data, FRAMES))
