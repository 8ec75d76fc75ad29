"""RIFE against the golden flow, mask and frame, and its warp and layers against PyTorch's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import weights
from conftest import draw, golden, manifest, relative_error
from state_dicts import to_flax

from dicetalk_jax.models.frame_interpolator import FrameInterpolator, _resize, warp
from dicetalk_jax.weights.release.tables import FRAME_INTERPOLATOR


@functools.cache
def load(seed=0):
  interpolator = FrameInterpolator()
  frame = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  target = jax.eval_shape(interpolator.init, jax.random.key(0), frame, frame)["params"]
  # The golden network's names lack the `module.` that the published file's have.
  names = {name.removeprefix("module."): shape for name, shape in manifest("rife_flownet").items()}
  state = {name: weights.tensor(name, tuple(shape), seed) for name, shape in names.items()}
  slopes = [name for name, value in state.items() if name.endswith(".weight") and value.ndim == 1]
  state |= {name: state[name] * np.float32(0.25) for name in slopes}
  return interpolator, {"params": to_flax(FRAME_INTERPOLATOR, state, target)}, state


def images(name, shape):
  return (np.tanh(draw(name, shape)) + 1) / 2


def channels_last(x):
  return np.asarray(x).transpose(0, 2, 3, 1)


def channels_first(x):
  return np.asarray(x).transpose(0, 3, 1, 2)


def test_golden():
  interpolator, params, _ = load()
  first = images("i0", (1, 3, 64, 96))
  second = np.roll(first, 3, axis=3)
  estimate = jax.jit(functools.partial(interpolator.apply, method="estimate"))
  flow, mask, middle = estimate(params, channels_last(first), channels_last(second))
  expected = golden("rife")
  assert relative_error(channels_first(flow), expected["flow"]) <= 2e-5
  assert relative_error(channels_first(mask), expected["mask"]) <= 2e-5
  assert relative_error(channels_first(middle), expected["out"]) <= 2e-5
  middle_alone = jax.jit(interpolator.apply)(params, channels_last(first), channels_last(second))
  assert relative_error(middle_alone, middle) <= 1e-6


def test_equals_pytorch_at_another_seed_and_size():
  interpolator, params, state = load(seed=5)
  first, second = images("a", (2, 3, 96, 32)), images("b", (2, 3, 96, 32))
  expected = _interpolate_in_pytorch(state, torch.from_numpy(first), torch.from_numpy(second))
  middle = jax.jit(interpolator.apply)(params, channels_last(first), channels_last(second))
  assert relative_error(channels_first(middle), expected) <= 2e-5


def _interpolate_in_pytorch(state, first, second):
  """The same network on PyTorch's own operators."""
  F = torch.nn.functional
  state = {name: torch.from_numpy(value) for name, value in state.items()}

  def layer(x, name, stride):
    x = F.conv2d(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"], stride, padding=1)
    return F.prelu(x, state[f"{name}.1.weight"])

  def head(x, name):
    x = F.conv_transpose2d(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"], 2, padding=1)
    x = F.prelu(x, state[f"{name}.1.weight"])
    return F.conv_transpose2d(x, state[f"{name}.2.weight"], state[f"{name}.2.bias"], 2, padding=1)

  def block(name, x, flow, scale):
    resize = functools.partial(F.interpolate, mode="bilinear", align_corners=False, recompute_scale_factor=False)
    x = torch.cat([resize(x, scale_factor=1 / scale), resize(flow, scale_factor=1 / scale) / scale], dim=1)
    x = layer(layer(x, f"{name}.conv0.0", 2), f"{name}.conv0.1", 2)
    for i in range(4):
      x = x + layer(layer(x, f"{name}.convblock{i}.0", 1), f"{name}.convblock{i}.1", 1)
    flow, mask = head(x, f"{name}.conv1"), head(x, f"{name}.conv2")
    return resize(flow, scale_factor=scale) * scale, resize(mask, scale_factor=scale)

  b, _, h, w = first.shape
  flow, mask = torch.zeros(b, 4, h, w), torch.zeros(b, 1, h, w)
  warped = first, second
  for i, scale in enumerate((4, 2, 1)):
    flow0, mask0 = block(f"block{i}", torch.cat([*warped, mask], dim=1), flow, scale)
    swapped = torch.cat([flow[:, 2:], flow[:, :2]], dim=1)
    flow1, mask1 = block(f"block{i}", torch.cat([warped[1], warped[0], -mask], dim=1), swapped, scale)
    flow = flow + (flow0 + torch.cat([flow1[:, 2:], flow1[:, :2]], dim=1)) / 2
    mask = mask + (mask0 - mask1) / 2
    warped = _warp_in_pytorch(first, flow[:, :2]), _warp_in_pytorch(second, flow[:, 2:])
  mask = torch.sigmoid(mask)
  return (warped[0] * mask + warped[1] * (1 - mask)).numpy()


def _warp_in_pytorch(image, flow):
  h, w = image.shape[2:]
  y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
  grid = torch.stack([2 * (x + flow[:, 0]) / (w - 1) - 1, 2 * (y + flow[:, 1]) / (h - 1) - 1], dim=-1)
  return torch.nn.functional.grid_sample(image, grid, "bilinear", "border", align_corners=True)


def test_warp_equals_grid_sample():
  image = draw("image", (2, 3, 19, 33))
  # Up to far beyond the border.
  flow = 15 * draw("flow", (2, 2, 19, 33))
  expected = _warp_in_pytorch(torch.from_numpy(image), torch.from_numpy(flow)).numpy()
  assert relative_error(channels_first(warp(channels_last(image), channels_last(flow))), expected) <= 2e-5


def test_warp_by_whole_pixels_is_exact():
  image = draw("image", (1, 6, 8, 3))
  flow = np.broadcast_to(np.float32([2, -1]), (1, 6, 8, 2))  # (Δx, Δy)
  expected = np.pad(image, ((0, 0), (1, 0), (0, 2), (0, 0)), mode="edge")[:, :6, 2:]
  np.testing.assert_array_equal(warp(image, flow), expected)


@pytest.mark.parametrize("size", [(16, 24), (8, 12), (64, 96), (128, 192)])
def test_resize_equals_interpolate(size):
  x = draw("map", (2, 3, 32, 48))
  expected = torch.nn.functional.interpolate(torch.from_numpy(x), size, mode="bilinear", align_corners=False).numpy()
  assert relative_error(channels_first(_resize(channels_last(x), *size)), expected) <= 1e-6


def test_any_size_is_padded_with_zeros_and_cut():
  interpolator, params, _ = load()
  first, second = channels_last(images("a", (1, 3, 45, 70))), channels_last(images("b", (1, 3, 45, 70)))
  padding = ((0, 0), (0, 19), (0, 26), (0, 0))
  interpolate = jax.jit(interpolator.apply)
  expected = interpolate(params, np.pad(first, padding), np.pad(second, padding))[:, :45, :70]
  middle = interpolate(params, first, second)
  assert middle.shape == (1, 45, 70, 3)
  assert relative_error(middle, expected) <= 1e-6


def test_pairs_of_a_batch_are_independent_and_the_order_of_frames_does_not_matter():
  interpolator, params, _ = load()
  first, second = channels_last(images("a", (2, 3, 32, 64))), channels_last(images("b", (2, 3, 32, 64)))
  interpolate = jax.jit(interpolator.apply)
  together = interpolate(params, first, second)
  others = np.stack([first[1], first[1]])
  changed = interpolate(params, others, second)
  assert relative_error(changed[1], together[1]) <= 1e-6
  assert relative_error(changed[0], together[0]) > 1e-2
  # Both directions are averaged, so time reversed gives the same middle.
  assert relative_error(together, interpolate(params, second, first)) <= 1e-5
  assert (together >= 0).all() and (together <= 1).all()
