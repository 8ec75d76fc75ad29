"""The denoising loop against the released sampler written out, window by window and branch by branch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import draw, relative_error
from reference import released_sampler
from talkers import CHANNELS, minute_unet

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.diffusion import guidance
from dicetalk_jax.diffusion.conditioning import Conditions
from dicetalk_jax.inference.conditions import TokenTable
from dicetalk_jax.inference.denoising import denoise, denoise_windows

SCALE = 0.18215
HEIGHT, WIDTH = 8, 16
# One window for all tests: the compiled program depends on it.
WINDOW = 5


@functools.cache
def compiled_unet():
  unet, params = minute_unet()
  return functools.partial(jax.jit(unet.apply), {"params": params})


def settings(steps, shift, overlap, at_once=1, **levels):
  return GenerationConfig(steps=steps, window=WINDOW, shift=shift, overlap=overlap, windows_at_once=at_once, **levels)


def constants():
  mask = np.zeros((1, 8 * HEIGHT, 8 * WIDTH), np.float32)
  mask[:, 20:50, 40:100] = 1
  return dict(
    image_latents=draw("image", (HEIGHT, WIDTH, 4)),
    image_token=draw("clip", (1, 1024)),
    audio=draw("no audio", (32, 1024)),
    emotion=draw("no emotion", (32, 1024)),
    pose_features=draw("pose", (1, 1, HEIGHT, WIDTH, CHANNELS)),
    face_mask=mask,
  )


def tables(frames, padding=WINDOW):
  """Tokens of `frames` frames and of padding: each frame its own audio, two emotions in turn."""
  fixed = constants()
  audio = np.concatenate([draw("audio", (40, 32, 1024))[:frames], fixed["audio"][None]])
  emotion = np.concatenate([draw("emotion", (2, 32, 1024)), fixed["emotion"][None]])
  audio_table = TokenTable(jnp.asarray(audio), np.arange(frames)).padded(padding)
  return audio_table, TokenTable(jnp.asarray(emotion), np.arange(frames) % 2).padded(padding)


def run(frames, config, audio_scale=None, progress=None):
  unet, params = minute_unet()
  noise = jnp.asarray(draw("noise", (frames + WINDOW, HEIGHT, WIDTH, 4)))
  fixed = {name: jnp.asarray(array) for name, array in constants().items()}
  fixed = Conditions(
    fixed["image_latents"][None], fixed["image_token"][None], (), fixed["pose_features"], fixed["face_mask"]
  )
  plan = guidance.plan(3.0, (audio_scale, 6.0))
  return denoise(unet, params, noise, tables(frames), fixed, config, plan, SCALE, progress=progress)


def expected(frames, steps, shift, overlap, audio_scale=None, **sigmas):
  audio, emotion = (np.asarray(table[np.arange(frames)]) for table in tables(frames))
  return released_sampler(
    compiled_unet(),
    draw("noise", (frames + WINDOW, HEIGHT, WIDTH, 4)),
    constants(),
    audio,
    emotion,
    steps=steps,
    window=WINDOW,
    shift=shift,
    overlap=overlap,
    audio_scale=audio_scale,
    **sigmas,
  )


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
  found = run(frames, settings(steps, shift, overlap), audio_scale)
  assert found.shape == (frames + WINDOW, HEIGHT, WIDTH, 4)
  reference = expected(frames, steps, shift, overlap, audio_scale)
  # A step down from σ = 700 leaves 700 times float32's 6e-8 on a result near 1.
  assert relative_error(found, reference) <= 6e-5


def test_the_order_of_the_branches_and_the_shift_are_noticed():
  """The tolerance above tells one setting from another."""
  reference = expected(7, 3, 2, 1, 2.5)
  for shift, overlap, audio_scale in ((3, 1, 2.5), (2, 0, 2.5), (2, 1, 2.4), (2, 1, None)):
    assert relative_error(run(7, settings(3, shift, overlap), audio_scale), reference) > 1e-3


def test_equal_scales_for_speech_and_emotion_are_the_three_branches():
  plan = settings(2, 2, 1)
  assert relative_error(run(6, plan, 6.0), run(6, plan)) <= 1e-5


def test_windows_side_by_side_change_nothing():
  plan = settings(3, 2, 1)
  alone = run(6, plan)  # 11 frames in 3 windows: groups of 2 leave one with a padding window
  for group in (2, 3, 0):
    found = run(6, settings(3, 2, 1, group))
    assert relative_error(found, alone) <= 1e-5, group


def test_videos_of_any_length_share_one_program():
  run(4, settings(1, 2, 1))
  before = denoise_windows._cache_size()
  for frames, steps, shift, overlap in ((2, 1, 0, 0), (9, 2, 3, 1), (17, 1, 1, 2)):
    run(frames, settings(steps, shift, overlap))
  assert denoise_windows._cache_size() == before


def test_progress_counts_every_group_of_every_step():
  calls = []
  run(6, settings(2, 2, 0), progress=lambda done, total: calls.append((done, total)))
  assert calls == [(k, 6) for k in range(7)]


def test_the_noise_levels_of_the_weights_are_used():
  found = run(2, settings(2, 1, 0, sigma_min=0.01, sigma_max=80.0))
  reference = expected(2, 2, 1, 0, sigma_min=0.01, sigma_max=80.0)
  assert relative_error(found, reference) <= 6e-5
