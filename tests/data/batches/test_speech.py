"""Batches of speech: what is heard is what Whisper is given, with the truth of the same frames beside it."""

import dataclasses
import json

import numpy as np
import pytest
from drawn_sets import drawn_clip, people, write_set

from dicetalk_jax.data.batches.speech import SpeechBatchConfig, speech_batches
from dicetalk_jax.errors import InputError
from dicetalk_jax.media.audio import log_mel
from dicetalk_jax.vocabulary import TRUTH

CLIPS = [*people(3, clips=2), *people(2, split="test")]
BY_NAME = {clip.clip: clip for clip in CLIPS}
CONFIG = SpeechBatchConfig(batch=4, frames=20, chunks=1, gain=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write_set(tmp_path_factory.mktemp("sets") / "drawn", CLIPS)


def phonemes(clip):
  return clip.truth[:, TRUTH.index("phoneme")].astype(int)


def test_held_out_clips_are_heard_as_when_a_video_is_made(data):
  with speech_batches(data, CONFIG, split="test", training=False) as batches:
    found = list(batches)
  assert [batch["valid"].sum() for batch in found] == [4, 2]
  for row in range(4):
    batch = found[0]
    clip = BY_NAME[batches.source.clips[batch["clip"][row]]]
    np.testing.assert_array_equal(batch["mask"][row], np.arange(750) < clip.num_frames)
    np.testing.assert_array_equal(batch["phoneme"][row][: clip.num_frames], phonemes(clip))
    mel = log_mel(clip.audio)[0]
    # The window at the end still hears the last samples, where silence is filled in here.
    end = 4 * clip.num_frames
    np.testing.assert_array_equal(batch["mel"][row][:end], mel[:end])
    np.testing.assert_allclose(batch["mel"][row][end + 2 :], mel[end + 2 :], atol=1e-6)
  assert set(found[0]) == {"mel", "offset", "phoneme", "mouth", "mask", "identity", "clip", "valid"}


def test_pieces_are_parts_of_clips_with_their_truth(data):
  batches = speech_batches(data, CONFIG)
  own, elsewhere = 0, 0
  for _ in range(12):
    batch = next(batches)
    for row in range(4):
      clip = BY_NAME[batches.source.clips[batch["clip"][row]]]
      count = batch["mask"][row].sum()
      assert count >= 10 and batch["mask"][row][:count].all()
      mel, said = log_mel(clip.audio)[0], phonemes(clip)
      starts = [
        start
        for start in range(clip.num_frames - count + 1)
        if np.array_equal(batch["mel"][row][: 4 * count], mel[4 * start : 4 * (start + count)])
      ]
      assert len(starts) == 1
      np.testing.assert_array_equal(batch["phoneme"][row][:count], said[starts[0] : starts[0] + count])
      assert 0 <= batch["offset"][row] <= 2 * (750 - 20)
      own += batch["offset"][row] == 2 * starts[0]
      elsewhere += batch["offset"][row] != 2 * starts[0]
  batches.close()
  # Half of 48: four standard deviations are 14.
  assert abs(own - 24) < 14 and elsewhere > 5


def test_chunks_are_clips_one_after_another(data):
  batches = speech_batches(data, CONFIG)
  lengths = set()
  for _ in range(6):
    batch = next(batches)
    assert batch["chunk_mel"].shape == (1, 3000, 80) and batch["chunk_mask"].shape == (1, 750)
    mask, mel = batch["chunk_mask"][0], batch["chunk_mel"][0]
    assert mask[0] and mel.max() - mel.min() <= 2 + 1e-6
    lengths.add(int(mask.sum()))
    first = next(i for i, clip in enumerate(CLIPS) if np.allclose(log_mel(clip.audio)[0][8:40], mel[8:40], atol=1e-5))
    count = CLIPS[first].num_frames
    np.testing.assert_array_equal(batch["chunk_phoneme"][0][:count], phonemes(CLIPS[first]))
  batches.close()
  assert len(lengths) > 2


def test_mouths_are_in_standard_deviations(data):
  batches = speech_batches(data, CONFIG, training=False)
  mouth = np.concatenate([batch["mouth"][batch["mask"] & batch["valid"][:, None]] for batch in batches])
  np.testing.assert_allclose(mouth.mean(axis=0), 0, atol=1e-5)
  np.testing.assert_allclose(mouth.std(axis=0), 1, atol=1e-5)


def test_louder_is_higher_everywhere(data):
  plain = next(speech_batches(data, CONFIG))
  loud = next(speech_batches(data, dataclasses.replace(CONFIG, gain=6.0)))
  difference = (loud["mel"] - plain["mel"]).reshape(4, -1)
  np.testing.assert_allclose(difference, np.broadcast_to(difference[:, :1], difference.shape), atol=1e-6)
  # 40 dB are 1.
  assert 0 < np.abs(difference).max() <= 6 / 40


def test_resumes_anywhere_and_memory_changes_nothing(data):
  with speech_batches(data, CONFIG, seed=3) as batches:
    whole = [next(batches) for _ in range(5)]
  first = speech_batches(data, CONFIG, seed=3)
  next(first), next(first)
  state = json.loads(json.dumps(first.get_state()))
  first.close()
  with speech_batches(data, CONFIG, seed=3, memory_gb=0.0) as second:
    second.set_state(state)
    for theirs in whole[2:]:
      ours = next(second)
      assert ours.keys() == theirs.keys()
      for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_processes_share_a_batch(data):
  config = dataclasses.replace(CONFIG, chunks=2)
  whole = next(speech_batches(data, config))
  parts = [next(speech_batches(data, config, process_index=i, process_count=2)) for i in range(2)]
  for name, array in whole.items():
    np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(config=SpeechBatchConfig(frames=751)), "frames 751"),
    (dict(config=SpeechBatchConfig(batch=3), process_count=2), "3 pieces"),
    (dict(config=SpeechBatchConfig(batch=2), process_count=2), "1 chunks"),
    (dict(data=()), "no data is given"),
  ],
)
def test_what_makes_no_batch(options, words, data):
  with pytest.raises(InputError, match=words):
    speech_batches(**({"data": data} | options))


def test_clips_without_truth_are_told(tmp_path):
  data = write_set(tmp_path / "drawn", [drawn_clip("filmed", 20, truth=False)])
  with pytest.raises(InputError, match="clip filmed has no phonemes"):
    speech_batches(data, CONFIG)
