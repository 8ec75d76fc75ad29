"""What a batch for the diffusion holds: whose frames, portraits and priors."""

import dataclasses

import numpy as np
import pytest
from data.random_clips import DIFFUSION, HDTF, LAYERS, MEAD, WIDTH, make, take, write

from dicetalk_jax.data.batches.diffusion import diffusion_batches
from dicetalk_jax.diffusion.conditioning import speech_windows
from dicetalk_jax.errors import InputError


def test_emotional_and_regular_clips_come_one_to_one(mead, hdtf):
  batches = make("diffusion", mead, hdtf)
  names = batches.source.clips
  for batch in take(batches, 6):
    assert (batch["emotion"] >= 0).tolist() == [True, False, True, False]
    assert all(
      names[i].startswith(("M003", "W009")) == (e >= 0) for i, e in zip(batch["clip"], batch["emotion"], strict=True)
    )


def test_an_epoch_has_every_clip_once_and_short_ones_never(mead, hdtf):
  batches = make("diffusion", mead, hdtf)
  assert batches.source.left_out["shorter than 49 frames"] == 1
  seen = np.concatenate([batch["clip"] for batch in take(batches, 18)])
  emotional, regular = seen[0::2], seen[1::2]
  usable = [i for i, c in enumerate(MEAD + HDTF) if c.num_frames >= 49]
  assert sorted(emotional[:18]) == sorted(emotional[18:]) == usable[:18]
  for epoch in regular[:35].reshape(5, 7):
    assert sorted(epoch) == usable[18:]
  assert emotional[:18].tolist() != emotional[18:].tolist()


def test_one_set_alone_gives_all(mead, hdtf):
  assert all((batch["emotion"] >= 0).all() for batch in take(diffusion_batches(mead, config=DIFFUSION), 3))
  assert all((batch["emotion"] < 0).all() for batch in take(diffusion_batches((), [hdtf], DIFFUSION), 3))


def test_diffusion_rows_are_of_their_clip(mead, hdtf):
  clips, phases = MEAD + HDTF, set()
  for batch in take(make("diffusion", mead, hdtf), 6):
    assert batch["latents_mean"].shape == (4, 25, 8, 8, 4)
    assert batch["audio"].shape == (4, 25, 10, LAYERS, WIDTH)
    assert batch["valid"].all()
    for i in range(4):
      c, start = clips[batch["clip"][i]], batch["start"][i]
      phases.add(int(start) % 2)
      frames = start + 2 * np.arange(25)
      np.testing.assert_array_equal(batch["latents_mean"][i], c.latents_mean[frames])
      np.testing.assert_array_equal(batch["latents_logvar"][i], c.latents_logvar[frames])
      # With a frame of silence before, odd frames become even ones.
      odd = start % 2
      states = np.pad(c.states, ((2 * odd, 4), (0, 0), (0, 0)))
      whole = speech_windows(states, 2 * np.arange(len(states) // 4), 10)
      np.testing.assert_array_equal(batch["audio"][i], whole[(start + odd) // 2 :][:25])
      reference = [
        k for k, r in enumerate(c.reference_index) if np.array_equal(c.latents_mean[r], batch["image_latents"][i])
      ]
      np.testing.assert_array_equal(batch["image_embedding"][i], c.image_embedding[reference[0]])
      x, y, w, h = batch["mask_box"][i]
      assert abs(w / 32 - 1) <= 0.1 + 1e-6 and abs(h / 40 - w / 32) < 1e-6
      assert abs(x + w / 2 - 32) <= 0.05 * 32 + 1e-4 and abs(y + h / 2 - 28) <= 0.05 * 40 + 1e-4
      assert (batch["emotion"][i], batch["level"][i]) == (c.emotion, c.level)
      assert batch["image_size"][i].tolist() == [64, 64]
  assert phases == {0, 1}


def test_the_portrait_may_be_of_another_clip_of_the_person(mead, hdtf):
  config = dataclasses.replace(DIFFUSION, reference="person")
  clips = {c.clip: c for c in MEAD + HDTF}

  def portraits(batch, source):
    """(the clip, the clips that its portrait is of), row by row."""
    for i in np.flatnonzero(batch["valid"]):
      portrait = batch["image_latents"][i]
      found = [c for c in clips.values() if any(np.array_equal(c.latents_mean[r], portrait) for r in c.reference_index)]
      yield clips[source.clips[batch["clip"][i]]], found

  with make("diffusion", mead, hdtf, config=config) as batches:
    seen = [pair for batch, _ in zip(batches, range(8), strict=False) for pair in portraits(batch, batches.source)]
  for clip, (portrait,) in seen:
    assert portrait.identity == clip.identity
    # "long" is the only clip of its person.
    assert (portrait.clip == clip.clip) == (clip.clip == "long")
  with make("diffusion", mead, hdtf, config=config, training=False) as batches:
    held = [pair for batch in batches for pair in portraits(batch, batches.source)]
  assert all(portrait.emotion == 5 for clip, (portrait,) in held if clip.source == "mead")


def test_the_prior_window_is_of_the_clip_and_masked_after_its_end(mead, hdtf):
  clips = MEAD + HDTF
  lengths = set()
  for batch in take(make("diffusion", mead, hdtf), 12):
    for i in range(4):
      c = clips[batch["clip"][i]]
      n = int(batch["speech_mask"][i].sum())
      assert n == min(64, c.num_frames)
      lengths.add(n)
      speech = c.states[:, -1].astype(np.float32).reshape(-1, 2, WIDTH).mean(axis=1)
      rows = [
        s for s in range(c.num_frames - n + 1) if np.allclose(speech[s : s + n], batch["speech"][i][:n], atol=1e-6)
      ]
      assert len(rows) == 1 and not batch["speech"][i][n:].any()
      if len(c.expression):
        np.testing.assert_allclose(batch["expression"][i][:n], c.expression[rows[0] : rows[0] + n], atol=1e-6)
        assert not batch["expression"][i][n:].any()
        assert (batch["expression_mask"][i] == batch["speech_mask"][i]).all()
      else:
        assert not batch["expression_mask"][i].any() and not batch["expression"][i].any()
  assert {55, 64} <= lengths


def test_the_prior_may_be_of_any_clip_of_the_emotion_and_level(mead, hdtf):
  config = dataclasses.replace(DIFFUSION, prior="emotion")
  clips = {c.clip: c for c in MEAD + HDTF}

  def told_by(batch, i):
    """The clip whose speech the prior's window is."""
    n = int(batch["speech_mask"][i].sum())
    for c in clips.values():
      speech = c.states[:, -1].astype(np.float32).reshape(-1, 2, WIDTH).mean(axis=1)
      if any(np.allclose(speech[s : s + n], batch["speech"][i][:n], atol=1e-6) for s in range(len(speech) - n + 1)):
        return c
    raise AssertionError("the window is of no clip")

  with make("diffusion", mead, hdtf, config=config) as batches:
    seen = [
      (clips[batches.source.clips[batch["clip"][i]]], told_by(batch, i)) for batch in take(batches, 8) for i in range(4)
    ]
  labelled = [pair for pair in seen if pair[0].emotion >= 0]
  assert all((own.emotion, own.level) == (other.emotion, other.level) for own, other in labelled)
  # Both of the two people who have each.
  assert {own.identity != other.identity for own, other in labelled} == {True, False}
  assert all(own.clip == other.clip for own, other in seen if own.emotion < 0)
  with make("diffusion", mead, hdtf, config=config, training=False) as batches:
    for batch in batches:
      for i in np.flatnonzero(batch["valid"]):
        assert told_by(batch, i).clip == batches.source.clips[batch["clip"][i]]


def test_clips_of_a_low_level_may_be_portraits_alone(mead, hdtf):
  config = dataclasses.replace(DIFFUSION, reference="person", min_level=3)
  neutral = 5
  strong = {i for i, c in enumerate(MEAD) if c.level == 3 or c.emotion == neutral}
  with make("diffusion", mead, hdtf, config=config) as batches:
    assert batches.source.left_out["below level 3"] == len(MEAD) - len(strong)
    seen = take(batches, 10)
  learnt = [int(i) for batch in seen for i in batch["clip"]]
  # Talks, which have no level, are all learnt.
  assert set(learnt) == strong | {len(MEAD) + i for i, c in enumerate(HDTF) if c.num_frames >= 49}
  assert any(MEAD[i].level < 3 and MEAD[i].emotion == neutral for i in strong)
  low = [c for i, c in enumerate(MEAD) if i not in strong]
  shown = [portrait for batch in seen for portrait in batch["image_latents"]]
  assert any(np.array_equal(c.latents_mean[r], portrait) for c in low for r in c.reference_index for portrait in shown)
  # What is held out is measured whole.
  with make("diffusion", mead, hdtf, config=config, training=False) as batches:
    held = {int(i) for batch in batches for i in batch["clip"][batch["valid"]]}
  assert held >= set(range(len(MEAD)))


def test_a_level_that_no_clip_has_is_refused(tmp_path, mead):
  with pytest.raises(InputError, match="min_level 4 is no level of emotion; those are 1, 2 and 3, 0 for all"):
    diffusion_batches(mead, config=dataclasses.replace(DIFFUSION, min_level=4))
  folder = write(tmp_path / "weak", [c for c in MEAD if c.emotion != 5 and c.level < 3])
  with pytest.raises(InputError, match="weak has no clip of level 3 or more in 'train'; set a lower min_level"):
    diffusion_batches([folder], config=dataclasses.replace(DIFFUSION, min_level=3))


def test_a_portrait_of_something_else_is_refused(mead, hdtf):
  with pytest.raises(InputError, match="'somebody'"):
    make("diffusion", mead, hdtf, config=dataclasses.replace(DIFFUSION, reference="somebody"))
  with pytest.raises(InputError, match="prior 'somebody'"):
    make("diffusion", mead, hdtf, config=dataclasses.replace(DIFFUSION, prior="somebody"))
