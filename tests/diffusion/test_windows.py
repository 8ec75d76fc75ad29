"""The window plan against the released rule, walked through frame by frame."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import draw

from dicetalk_jax.diffusion import windows


def released_plan(frames, window, overlap, shift, steps):
  """The windows of each step, as the release runs them: starts, then the shift, then the modulo, in plain Python."""
  plans, shifted = [], 0
  for _ in range(steps):
    plan, start = [], 0
    while start < frames:
      plan.append([(start - shifted + k) % frames for k in range(window)])
      start += window - overlap
    plans.append(plan)
    shifted = (shifted + shift) % window
  return plans


SETTINGS = [
  (frames, window, overlap, shift)
  for frames, window, shift in itertools.product((1, 5, 16, 22, 50, 51), (1, 2, 6, 25), (0, 1, 7, 30))
  for overlap in {0, 1, window // 2, window - 1}
  if overlap < window
]


def test_plans_are_the_released_for_many_settings():
  assert len(SETTINGS) > 200
  for frames, window, overlap, shift in SETTINGS:
    expected = released_plan(frames, window, overlap, shift, steps=9)
    for step in range(9):
      found = windows.plan(frames, window, overlap, windows.shift_at(step, shift, window))
      assert found.dtype == np.int32
      assert found.tolist() == expected[step], (frames, window, overlap, shift, step)


def test_every_frame_is_in_a_window_whatever_the_settings():
  for frames, window, overlap, shift in SETTINGS:
    for step in range(3):
      plan = windows.plan(frames, window, overlap, windows.shift_at(step, shift, window))
      assert set(plan.ravel()) == set(range(frames))


@pytest.mark.parametrize(
  ("window", "shift", "overlap", "text"),
  [
    (0, 0, 0, "window 0"),
    (5, 0, 5, "overlap 5"),
    (5, 0, 9, "overlap 9"),
    (5, 0, -1, "overlap -1"),
    (5, -2, 0, "shift"),
  ],
)
def test_a_plan_that_cannot_be_run_is_refused(window, shift, overlap, text):
  with pytest.raises(ValueError, match=text):
    windows.check(window, shift, overlap)


def test_no_frames_are_refused():
  with pytest.raises(ValueError, match="0 frames"):
    windows.plan(0, 5)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_groups_hold_every_window_once_and_pad_with_zero_weight(size):
  indices = windows.plan(23, 6, 1)
  groups = list(windows.groups(indices, size))
  assert len(groups) == -(-len(indices) // size)
  assert all(part.shape == (size, 6) and weights.shape == (size,) for part, weights in groups)
  counted = np.concatenate([part[weights == 1] for part, weights in groups])
  np.testing.assert_array_equal(counted, indices)
  for part, weights in groups:
    assert set(weights) <= {0, 1}
    # What fills a group is a window that exists: it may be computed, only not counted.
    assert all(row.tolist() in indices.tolist() for row in part)


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_scatter_averages_where_windows_overlap(size):
  frames, window = 23, 6
  indices = windows.plan(frames, window, overlap=2, shifted=3)
  results = draw("results", (len(indices), window, 2, 3))
  seen = [[] for _ in range(frames)]
  for row, values in zip(indices, results, strict=True):
    for frame, value in zip(row, values, strict=True):
      seen[frame].append(value)
  assert {len(values) for values in seen} == {1, 2}

  total, count = jnp.zeros((frames, 2, 3)), jnp.zeros(frames)
  for k, (part, weights) in enumerate(windows.groups(indices, size)):
    real = results[k * size : (k + 1) * size]
    # What a padding window computes must not count, whatever it is.
    padding = np.full((size - len(real), *real.shape[1:]), 1e6, np.float32)
    total, count = windows.scatter(total, count, part, weights, np.concatenate([real, padding]))
  np.testing.assert_array_equal(count, [len(values) for values in seen])
  expected = np.stack([np.mean(values, axis=0) for values in seen])
  np.testing.assert_allclose(total / count[:, None, None], expected, rtol=1e-5, atol=1e-5)


def test_a_window_longer_than_the_circle_averages_its_own_turns():
  indices = windows.plan(3, 7)
  results = np.arange(7, dtype=np.float32).reshape(1, 7, 1)
  total, count = windows.scatter(jnp.zeros((3, 1)), jnp.zeros(3), indices, np.ones(1, np.float32), results)
  np.testing.assert_allclose(total[:, 0] / count, [(0 + 3 + 6) / 3, (1 + 4) / 2, (2 + 5) / 2])
