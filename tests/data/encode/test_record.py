"""Encoded records, and the index beside them."""

import dataclasses

import numpy as np
from data.random_clips import MEAD, write

from dicetalk_jax.data.encode.record import EncodedClip, encoded_clip, open_encoded


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
