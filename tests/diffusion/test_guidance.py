"""Guidance against the released rule, written out."""

import numpy as np
import pytest
from conftest import draw

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.diffusion import guidance
from dicetalk_jax.inference.conditions import AUDIO, EMOTION

# By what a branch sees: nothing, the image, speech too, emotion too.
NAMES = {(False,) * 3: "u", (True, False, False): "i", (True, True, False): "s", (True,) * 3: "c"}


def test_three_branches_are_the_released_rule():
  branches, scales = guidance.of_settings(GenerationConfig(), (AUDIO, EMOTION))
  assert branches == ((False, False, False), (True, False, False), (True, True, True))
  u, r, c = outputs = draw("outputs", (3, 2, 5, 4))
  expected = u + 3.0 * (r - u) + 6.0 * (c - r)
  np.testing.assert_allclose(guidance.guide(outputs, np.array(scales)), expected, rtol=1e-5, atol=1e-5)


def test_a_scale_for_speech_adds_the_branch_that_sees_no_emotion():
  branches, scales = guidance.of_settings(GenerationConfig(audio_scale=2.0), (AUDIO, EMOTION))
  assert [NAMES[branch] for branch in branches] == list("uisc") and scales == (3.0, 2.0, 6.0)
  u, r, a, c = outputs = draw("outputs4", (4, 2, 5, 4))
  expected = u + 3.0 * (r - u) + 2.0 * (a - r) + 6.0 * (c - a)
  np.testing.assert_allclose(guidance.guide(outputs, np.array(scales)), expected, rtol=1e-5, atol=1e-5)


def test_an_audio_scale_of_zero_is_a_scale():
  branches, scales = guidance.plan(3.0, (0.0, 6.0))
  assert len(branches) == 4 and scales == (3.0, 0.0, 6.0)


def test_a_model_of_speech_alone_has_three_branches():
  config = GenerationConfig(identity_scale=2.0, audio_scale=7.5)
  expected = ((False, False), (True, False), (True, True)), (2.0, 7.5)
  assert guidance.of_settings(config, (AUDIO,)) == expected


@pytest.mark.parametrize(
  ("scales", "counts"),
  [
    ((None, 6.0, 2.0), (0, 1, 3, 4)),
    ((None, 6.0, None), (0, 1, 4)),  # after the last scale: the last branch
    ((None, None), (0, 3)),  # no scale at all: that of the image
    ((4.0, None, 2.0), (0, 1, 2, 4)),
    ((), (0, 1)),
  ],
)
def test_a_condition_without_a_scale_shares_a_branch(scales, counts):
  branches, _ = guidance.plan(3.0, scales)
  assert tuple(sum(branch) for branch in branches) == counts
  assert all(branch == tuple(sorted(branch, reverse=True)) for branch in branches)


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
  every = "uic" if len(scales) == 2 else "uisc"
  outputs = draw("outputs4", (4, 2, 5, 4))[: len(every)]
  branches, left = guidance.plan(scales[0], (None, scales[1]) if len(scales) == 2 else scales[1:])
  assert "".join(NAMES[branch] for branch in branches) == sees and len(left) == len(branches) - 1
  places = [every.index(NAMES[branch]) for branch in branches]
  expected = guidance.guide(outputs, np.array(scales))
  result = guidance.guide(outputs[places], np.array(left, np.float32))
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
  for place in places:
    changed = outputs.copy()
    changed[place] += 1
    assert np.abs(guidance.guide(changed, np.array(scales)) - expected).max() > 0.5
