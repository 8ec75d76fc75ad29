"""Encoded records, and the index beside them."""

import dataclasses

import numpy as np
import pytest
from data.random_clips import DIFFUSION, MEAD, write

from dicetalk_jax.data.batches.diffusion import diffusion_batches
from dicetalk_jax.data.encode.record import EncodedClip, encoded_clip, open_encoded
from dicetalk_jax.data.sets import write_set
from dicetalk_jax.errors import InputError, OutputError


def test_the_index_spares_the_records(tmp_path):
  folder = write(tmp_path / "set", MEAD)
  _, index = open_encoded(folder, "train")
  assert index.clip.tolist() == [c.clip for c in MEAD] and index.num_frames.tolist() == [c.num_frames for c in MEAD]
  for path in folder.glob("*.array_record*"):
    path.write_bytes(b"")
  assert open_encoded(folder, "train")[1].clip.tolist() == index.clip.tolist()


def test_records_come_back_as_they_were(mead):
  records, _ = open_encoded(mead, "train")
  found = encoded_clip(records[0])
  for field in dataclasses.fields(EncodedClip):
    np.testing.assert_array_equal(getattr(found, field.name), getattr(MEAD[0], field.name), err_msg=field.name)
  assert found.latents_mean.dtype == found.states.dtype == np.float16


def test_clips_of_ones_own_become_a_set(tmp_path):
  clips = [dataclasses.replace(clip, split="test" if i % 5 == 4 else "train") for i, clip in enumerate(MEAD)]
  folder = write_set(tmp_path / "set", iter(clips))
  for split in ("train", "test"):
    records, index = open_encoded(folder, split)
    expected = [clip for clip in clips if clip.split == split]
    assert index.clip.tolist() == [clip.clip for clip in expected]
    np.testing.assert_array_equal(encoded_clip(records[2]).latents_mean, expected[2].latents_mean)
  with diffusion_batches(folder, config=DIFFUSION) as batches:
    assert next(batches)["latents_mean"].shape[0] == 4
  with pytest.raises(OutputError, match="not an empty folder"):
    write_set(folder, clips)
  with pytest.raises(InputError, match="no clips to write"):
    write_set(tmp_path / "none", [])
  with pytest.raises(ZeroDivisionError):
    write_set(tmp_path / "broken", (clip if i < 17 else 1 / 0 for i, clip in enumerate(clips)))
  assert {path.name for path in tmp_path.iterdir()} == {"set"}


def test_clips_of_ones_own_without_pictures(tmp_path):
  pictures = dict.fromkeys(("latents_mean", "latents_logvar", "reference_index", "image_embedding"))
  folder = write_set(tmp_path / "set", [dataclasses.replace(clip, **pictures) for clip in MEAD])
  assert len(open_encoded(folder, "train", pictures=False)[1]) == len(MEAD)
  with pytest.raises(InputError, match="without its pictures"):
    open_encoded(folder, "train")
