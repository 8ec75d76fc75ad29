"""The pose guider against the golden features and PyTorch's convolutions."""

import jax
import numpy as np
import torch
from conftest import draw, golden, relative_error, stand_in
from state_dicts import to_flax

from dicetalk_jax.models.pose_guider import PoseGuider
from dicetalk_jax.weights.release.tables import POSE_GUIDER


def run(guider, state, mask):
  mask = mask.transpose(0, 2, 3, 4, 1)  # b c f h w -> b f h w c
  target = jax.eval_shape(guider.init, jax.random.key(0), mask)["params"]
  features = jax.jit(guider.apply)({"params": to_flax(POSE_GUIDER, state, target)}, mask)
  return np.asarray(features).transpose(0, 4, 1, 2, 3)  # b f h w c -> b c f h w


def test_golden():
  mask = (draw("pm", (1, 3, 2, 64, 128)) > 0).astype(np.float32)
  out = run(PoseGuider(), stand_in("pose_guider"), mask)
  assert relative_error(out, golden("pose_guider")["out"]) <= 2e-5


def test_equals_pytorch_at_other_sizes():
  state = stand_in("pose_guider_tiny", seed=3)
  mask = draw("other mask", (2, 3, 3, 40, 24))
  x = torch.from_numpy(mask.transpose(0, 2, 1, 3, 4).reshape(6, 3, 40, 24))  # b c f h w -> (b f) c h w
  names = ["conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out"]
  for name in names:
    weight, bias = (torch.from_numpy(state[f"{name}.{part}"]) for part in ("weight", "bias"))
    stride = 2 if name in ("blocks.1", "blocks.3", "blocks.5") else 1
    x = torch.nn.functional.conv2d(x, weight, bias, stride, padding=1)
    if name != "conv_out":
      x = torch.nn.functional.silu(x)
  expected = x.numpy().reshape(2, 3, 32, 5, 3).transpose(0, 2, 1, 3, 4)
  assert relative_error(run(PoseGuider(features=32), state, mask), expected) <= 2e-5
