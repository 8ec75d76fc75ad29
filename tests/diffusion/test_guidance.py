"""Guidance against the released rule, written out."""

import numpy as np
import pytest
from conftest import draw

from dicetalk_jax.diffusion import guidance


def test_three_branches_are_the_released_rule():
  assert guidance.branches() == ((False, False, False), (True, False, False), (True, True, True))
  u, r, c = outputs = draw("outputs", (3, 2, 5, 4))
  expected = u + 3.0 * (r - u) + 6.0 * (c - r)
  np.testing.assert_allclose(guidance.guide(outputs, np.array(guidance.scales())), expected, rtol=1e-5, atol=1e-5)


def test_a_scale_for_speech_adds_the_branch_that_sees_no_emotion():
  assert guidance.branches(2.0) == (*guidance.branches()[:2], (True, True, False), guidance.FULL)
  assert guidance.scales(3.0, 6.0, 2.0) == (3.0, 2.0, 6.0)
  u, r, a, c = outputs = draw("outputs4", (4, 2, 5, 4))
  expected = u + 3.0 * (r - u) + 2.0 * (a - r) + 6.0 * (c - a)
  found = guidance.guide(outputs, np.array(guidance.scales(3.0, 6.0, 2.0)))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_one_scale_for_speech_and_emotion_is_the_three_branches():
  outputs = draw("outputs4", (4, 2, 5, 4))
  three = guidance.guide(outputs[[0, 1, 3]], np.array(guidance.scales(3.0, 6.0)))
  four = guidance.guide(outputs, np.array(guidance.scales(3.0, 6.0, 6.0)))
  np.testing.assert_allclose(four, three, rtol=1e-5, atol=1e-5)


def test_an_audio_scale_of_zero_is_a_scale():
  assert len(guidance.branches(0.0)) == 4
  assert guidance.scales(3.0, 6.0, 0.0) == (3.0, 0.0, 6.0)


@pytest.mark.parametrize("audio_scale", [None, 1.0])
def test_scales_of_one_are_the_last_branch(audio_scale):
  outputs = draw("outputs", (len(guidance.branches(audio_scale)), 7))
  found = guidance.guide(outputs, np.array(guidance.scales(1.0, 1.0, audio_scale)))
  np.testing.assert_allclose(found, outputs[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("scales", "sees"),
  [
    ((3.0, 6.0), "uic"),
    ((1.0, 6.0), "ic"),
    ((6.0, 6.0), "uc"),
    ((1.0, 1.0), "c"),
    ((0.0, 6.0), "uic"),
    ((3.0, 2.0, 6.0), "uisc"),
    ((1.0, 2.0, 6.0), "isc"),
    ((1.0, 1.0, 6.0), "sc"),
    ((2.0, 2.0, 6.0), "usc"),
    ((3.0, 6.0, 6.0), "uic"),
    ((3.0, 1.0, 1.0), "uic"),
    ((2.0, 2.0, 2.0), "uc"),
  ],
)
def test_branches_that_cancel_need_not_run(scales, sees):
  """Fewer branches, the same result, and another without any of those that are left."""
  every = guidance.branches(None if len(scales) == 2 else 0.0)
  outputs = draw("outputs4", (4, 2, 5, 4))[: len(every)]
  branches, left = guidance.needed(every, scales)
  named = dict(zip((guidance.UNCONDITIONAL, guidance.IMAGE, guidance.SPEECH, guidance.FULL), "uisc", strict=True))
  assert "".join(named[branch] for branch in branches) == sees and len(left) == len(branches) - 1
  places = [every.index(branch) for branch in branches]
  expected = guidance.guide(outputs, np.array(scales))
  found = guidance.guide(outputs[places], np.array(left, np.float32))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  for place in places:
    changed = outputs.copy()
    changed[place] += 1
    assert np.abs(guidance.guide(changed, np.array(scales)) - expected).max() > 0.5
