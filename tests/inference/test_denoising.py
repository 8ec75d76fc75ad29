"""The denoising loop against the released sampler written out, window by window and branch by branch."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import draw, relative_error
from talkers import minute_unet

from dicetalk_jax.diffusion import guidance
from dicetalk_jax.inference.conditions import TokenTable
from dicetalk_jax.inference.denoising import Constants, Plan, denoise, denoise_windows

SCALE = 0.18215
HEIGHT, WIDTH = 8, 16
# One window for all tests: the compiled program depends on it.
WINDOW = 5


@functools.cache
def compiled_unet():
  unet, params = minute_unet()
  return functools.partial(jax.jit(unet.apply), {"params": params})


def constants():
  mask = np.zeros((1, 8 * HEIGHT, 8 * WIDTH), np.float32)
  mask[:, 20:50, 40:100] = 1
  return Constants(
    image_latents=jnp.asarray(draw("image", (HEIGHT, WIDTH, 4))),
    image_token=jnp.asarray(draw("clip", (1, 1024))),
    audio=jnp.asarray(draw("no audio", (32, 1024))),
    emotion=jnp.asarray(draw("no emotion", (32, 1024))),
    pose_features=jnp.asarray(draw("pose", (1, 1, HEIGHT, WIDTH, 32))),
    face_mask=jnp.asarray(mask),
  )


def tables(frames, padding=WINDOW):
  """Tokens of `frames` frames and of padding: each frame its own audio, two emotions in turn."""
  fixed = constants()
  audio = np.concatenate([draw("audio", (40, 32, 1024))[:frames], fixed.audio[None]])
  emotion = np.concatenate([draw("emotion", (2, 32, 1024)), fixed.emotion[None]])
  audio_table = TokenTable(jnp.asarray(audio), np.arange(frames)).padded(padding)
  return audio_table, TokenTable(jnp.asarray(emotion), np.arange(frames) % 2).padded(padding)


def run(frames, plan, audio_scale=None, progress=None):
  unet, params = minute_unet()
  audio, emotion = tables(frames, plan.window)
  noise = jnp.asarray(draw("noise", (frames + plan.window, HEIGHT, WIDTH, 4)))
  scales, branches = guidance.scales(3.0, 6.0, audio_scale), guidance.branches(audio_scale)
  return denoise(unet, params, noise, audio, emotion, constants(), plan, scales, branches, SCALE, progress)


def released_sampler(frames, steps, window, shift, overlap, audio_scale=None, sigma_min=0.002, sigma_max=700.0):
  """What the release computes, in one loop over steps and one over windows, in float64 but for the network."""
  fixed = jax.tree.map(np.asarray, constants())
  n = frames + window
  audio = np.concatenate([draw("audio", (40, 32, 1024))[:frames], [fixed.audio] * window])
  emotion = np.stack([*(draw("emotion", (2, 32, 1024))[i % 2] for i in range(frames)), *[fixed.emotion] * window])
  low, high = sigma_min ** (1 / 7), sigma_max ** (1 / 7)
  sigmas = [(high + i / max(steps - 1, 1) * (low - high)) ** 7 for i in range(steps)] + [0.0]
  x = SCALE * fixed.image_latents + sigma_max * draw("noise", (n, HEIGHT, WIDTH, 4)).astype(np.float64)
  shifted = 0
  for sigma, next_sigma in zip(sigmas[:-1], sigmas[1:], strict=True):
    total, count = np.zeros_like(x), np.zeros(n)
    for start in range(0, n, window - overlap):
      frame = [(start - shifted + k) % n for k in range(window)]

      def network(image, speech, feeling, frame=frame, sigma=sigma, x=x):
        latents = np.broadcast_to(image * fixed.image_latents, (window, HEIGHT, WIDTH, 4))
        out = compiled_unet()(
          sample=np.float32(np.concatenate([x[frame] / math.sqrt(sigma**2 + 1), latents], axis=-1))[None],
          timestep=np.float32(0.25 * math.log(sigma)),
          image_tokens=np.float32(np.broadcast_to(image * fixed.image_token, (1, window, 1, 1024))),
          adapter_tokens=tuple(
            np.float32(own[frame] if seen else [none] * window)[None]
            for own, none, seen in ((audio, fixed.audio, speech), (emotion, fixed.emotion, feeling))
          ),
          added_time_ids=np.float32([[12.5, 8, 16]]),
          pose_features=fixed.pose_features,
          face_mask=fixed.face_mask,
        )
        return np.float64(out[0])

      u, r, c = network(0, 0, 0), network(1, 0, 0), network(1, 1, 1)
      if audio_scale is None:
        v = u + 3.0 * (r - u) + 6.0 * (c - r)
      else:
        a = network(1, 1, 0)
        v = u + 3.0 * (r - u) + audio_scale * (a - r) + 6.0 * (c - a)
      clean = x[frame] / (sigma**2 + 1) - v * sigma / math.sqrt(sigma**2 + 1)
      stepped = x[frame] + (x[frame] - clean) / sigma * (next_sigma - sigma)
      for k, index in enumerate(frame):
        total[index] += stepped[k]
        count[index] += 1
    x = total / count[:, None, None, None]
    shifted = (shifted + shift) % window
  return x


@pytest.mark.parametrize(
  ("frames", "steps", "shift", "overlap", "audio_scale"),
  [
    (10, 3, 2, 0, None),  # windows fill the circle
    (8, 3, 7, 0, None),  # the last window runs into the first; the shift is longer than a window
    (6, 2, 3, 2, None),
    (3, 2, 1, 4, None),  # windows a single frame apart
    (2, 1, 0, 1, None),
    (7, 3, 2, 1, 2.5),
    (5, 2, 2, 0, 0.0),
  ],
)
def test_equals_the_released_sampler(frames, steps, shift, overlap, audio_scale):
  found = run(frames, Plan(steps, WINDOW, shift, overlap), audio_scale)
  assert found.shape == (frames + WINDOW, HEIGHT, WIDTH, 4)
  expected = released_sampler(frames, steps, WINDOW, shift, overlap, audio_scale)
  # float32 against float64 outside the network, which itself is float32 in both.
  assert relative_error(found, expected) <= 1e-5


def test_the_order_of_the_branches_and_the_shift_are_noticed():
  """The tolerance above tells one setting from another."""
  expected = released_sampler(7, 3, WINDOW, 2, 1, 2.5)
  for shift, overlap, audio_scale in ((3, 1, 2.5), (2, 0, 2.5), (2, 1, 2.4), (2, 1, None)):
    assert relative_error(run(7, Plan(3, WINDOW, shift, overlap), audio_scale), expected) > 1e-4


def test_equal_scales_for_speech_and_emotion_are_the_three_branches():
  plan = Plan(2, WINDOW, 2, 1)
  assert relative_error(run(6, plan, 6.0), run(6, plan)) <= 1e-5


def test_windows_side_by_side_change_nothing():
  plan = Plan(3, WINDOW, 2, 1)
  alone = run(6, plan)  # 11 frames in 3 windows: groups of 2 leave one with a padding window
  for group in (2, 3, 0):
    found = run(6, Plan(3, WINDOW, 2, 1, group))
    assert relative_error(found, alone) <= 1e-5, group


def test_videos_of_any_length_share_one_program():
  run(4, Plan(1, WINDOW, 2, 1))
  before = denoise_windows._cache_size()
  for frames, steps, shift, overlap in ((2, 1, 0, 0), (9, 2, 3, 1), (17, 1, 1, 2)):
    run(frames, Plan(steps, WINDOW, shift, overlap))
  assert denoise_windows._cache_size() == before


def test_progress_counts_every_group_of_every_step():
  calls = []
  run(6, Plan(2, WINDOW, 2, 0), progress=lambda done, total: calls.append((done, total)))
  assert calls == [(k, 6) for k in range(1, 7)]


def test_the_noise_levels_of_the_weights_are_used():
  found = run(2, Plan(2, WINDOW, 1, sigma_min=0.01, sigma_max=80.0))
  expected = released_sampler(2, 2, WINDOW, 1, 0, sigma_min=0.01, sigma_max=80.0)
  assert relative_error(found, expected) <= 1e-5
