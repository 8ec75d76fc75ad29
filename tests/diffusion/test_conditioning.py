"""What training and generation share: the face mask, speech windows, hidden conditions and the U-Net's inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import draw, golden

from dicetalk_jax.diffusion import conditioning
from dicetalk_jax.diffusion.edm import precondition
from dicetalk_jax.media.image import resize


def test_golden_mask_is_reproduced():
  mask = 255 * conditioning.face_mask(np.array([100, 30, 100, 135]), 200, 300)
  resized = resize(mask.astype(np.uint8), (128, 64)).astype(np.float32) / 255
  np.testing.assert_array_equal(resized[None], golden("pipeline_tiny")["face_mask"])


@pytest.mark.parametrize(
  ("box", "rows", "columns"),
  [
    ((10, 20, 30, 40), (18, 62), (9, 41)),  # centre 25, 40; half sizes 33 // 2 = 16 and 44 // 2 = 22
    ((-10, -6, 31, 13), (0, 7), (0, 22)),  # centre 5, 0; half sizes 34.1 // 2 = 17 and 14.3 // 2 = 7
    ((80, 90, 40, 40), (88, 100), (78, 100)),  # cut to the image
  ],
)
def test_mask_by_hand(box, rows, columns):
  expected = np.zeros((100, 100), np.float32)
  expected[slice(*rows), slice(*columns)] = 1
  np.testing.assert_array_equal(conditioning.face_mask(np.array(box), 100, 100), expected)


def released_mask(box, height, width):
  """The release's, in Python's own numbers."""
  x, y, w, h = box
  centre_x, centre_y, half_w, half_h = (2 * x + w) // 2, (2 * y + h) // 2, w * 1.1 // 2, h * 1.1 // 2
  mask = np.zeros((height, width), np.float32)
  mask[
    int(max(centre_y - half_h, 0)) : int(min(centre_y + half_h, height)),
    int(max(centre_x - half_w, 0)) : int(min(centre_x + half_w, width)),
  ] = 1
  return mask


def test_the_mask_of_training_is_the_release_s():
  """Not a pixel differs between a batch of float32 boxes under jit and one box of integers."""
  rng = np.random.default_rng(0)
  boxes = np.concatenate([rng.integers(0, 200, (300, 2)), rng.integers(1, 300, (300, 2))], axis=1)
  masks = jax.jit(lambda boxes: conditioning.face_mask(boxes, 200, 260))(boxes.astype(np.float32))
  for box, mask in zip(boxes, np.asarray(masks), strict=True):
    np.testing.assert_array_equal(mask, released_mask(box.tolist(), 200, 260), err_msg=str(box))
    np.testing.assert_array_equal(mask, conditioning.face_mask(box, 200, 260), err_msg=str(box))


def test_a_frame_sees_the_states_around_it():
  states = draw("states", (27, 2, 3))
  windows = conditioning.speech_windows(states, 2 * np.arange(6), 10)
  assert windows.shape == (6, 10, 2, 3)
  for j in range(6):
    for k in range(10):
      position = 4 * j + k - 4  # four zeros stand before the first state
      expected = states[position] if 0 <= position < len(states) else np.zeros((2, 3))
      np.testing.assert_array_equal(windows[j, k], expected)


def conditions(b=2, f=3):
  return conditioning.Conditions(
    image_latents=draw("image", (b, 4, 4, 4)),
    image_tokens=draw("clip", (b, 1, 8)),
    adapter_tokens=(draw("audio", (b, f, 2, 8)), draw("emotion", (b, 1, 3, 8))),
    pose_features=draw("pose", (b, 1, 4, 4, 5)),
    face_mask=np.ones((b, 32, 32), np.float32),
  )


def test_hidden_conditions_are_zeros_and_unconditional_tokens():
  whole, none = conditions(), (draw("no audio", (1, 1, 2, 8)), draw("no emotion", (1, 1, 3, 8)))
  hidden = conditioning.hide(whole, none, [[True, False, True], [False, True, False]])
  np.testing.assert_array_equal(hidden.image_latents[0], whole.image_latents[0])
  np.testing.assert_array_equal(hidden.image_tokens[0], whole.image_tokens[0])
  assert not hidden.image_latents[1].any() and not hidden.image_tokens[1].any()
  audio, emotion = hidden.adapter_tokens
  np.testing.assert_array_equal(audio[0], np.broadcast_to(none[0][0], audio[0].shape))
  np.testing.assert_array_equal(audio[1], whole.adapter_tokens[0][1])
  np.testing.assert_array_equal(emotion[0], whole.adapter_tokens[1][0])
  np.testing.assert_array_equal(emotion[1], none[1][0])
  np.testing.assert_array_equal(hidden.face_mask, whole.face_mask)


def test_one_noise_level_or_one_per_window_is_the_same_input():
  x, seen = draw("x", (2, 3, 4, 4, 4)), conditions()
  one = conditioning.unet_inputs(x, 2.5, seen)
  each = conditioning.unet_inputs(x, jnp.full(2, 2.5), seen)
  np.testing.assert_array_equal(one["sample"], each["sample"])
  np.testing.assert_allclose(one["sample"][..., :4], x * precondition(2.5).c_in, rtol=1e-6)
  np.testing.assert_array_equal(one["sample"][:, 2, ..., 4:], seen.image_latents)
  assert each["timestep"].shape == (2,) and one["added_time_ids"].tolist() == [[12.5, 8, 16]] * 2
  assert [tokens.shape for tokens in one["adapter_tokens"]] == [(2, 3, 2, 8), (2, 3, 3, 8)]
  assert one["image_tokens"].shape == (2, 3, 1, 8)
