"""The released sampler written out: one loop over steps, one over windows, one call of the network a branch."""

import itertools
import math

import numpy as np


def released_sampler(
  network,
  noise,
  fixed,
  audio,
  emotion,
  *,
  steps,
  window,
  shift,
  overlap,
  identity_scale=3.0,
  emotion_scale=6.0,
  audio_scale=None,
  sigma_min=0.002,
  sigma_max=700.0,
  latent_scale=0.18215,
):
  """Latents (N, h, w, c), in float64 but for the network.

  network: the U-Net with its parameters, called with `UNet`'s arguments. noise (N, h, w, c). fixed: image_latents
  (h, w, c), image_token (1, d), audio and emotion: unconditional (n, d), pose_features, face_mask, as arrays by name.
  audio, emotion (n, t, d): of the frames without padding, of which there is one window more.
  """
  frames, fixed = len(noise), {name: np.asarray(value) for name, value in fixed.items()}
  assert len(audio) == len(emotion) == frames - window
  audio = np.concatenate([audio, [fixed["audio"]] * window])
  emotion = np.concatenate([emotion, [fixed["emotion"]] * window])
  low, high = sigma_min ** (1 / 7), sigma_max ** (1 / 7)
  sigmas = [(high + i / max(steps - 1, 1) * (low - high)) ** 7 for i in range(steps)] + [0.0]

  def v_of(x, seen, sigma, image, speech, feeling):
    latents = np.broadcast_to(image * fixed["image_latents"], x.shape)
    tokens = [
      own[seen] if is_seen else np.stack([none] * window)
      for own, none, is_seen in ((audio, fixed["audio"], speech), (emotion, fixed["emotion"], feeling))
    ]
    out = network(
      sample=np.float32(np.concatenate([x / math.sqrt(sigma**2 + 1), latents], axis=-1))[None],
      timestep=np.float32(0.25 * math.log(sigma)),
      image_tokens=np.float32(np.broadcast_to(image * fixed["image_token"], (1, window, *fixed["image_token"].shape))),
      adapter_tokens=tuple(np.float32(t)[None] for t in tokens),
      added_time_ids=np.float32([[12.5, 8, 16]]),
      pose_features=fixed["pose_features"],
      face_mask=fixed["face_mask"],
    )
    return np.float64(out[0])

  x = latent_scale * fixed["image_latents"] + sigma_max * np.float64(noise)
  shifted = 0
  for sigma, next_sigma in itertools.pairwise(sigmas):
    total, count = np.zeros_like(x), np.zeros(frames)
    for start in range(0, frames, window - overlap):
      seen = [(start - shifted + k) % frames for k in range(window)]
      u = v_of(x[seen], seen, sigma, 0, 0, 0)
      r = v_of(x[seen], seen, sigma, 1, 0, 0)
      c = v_of(x[seen], seen, sigma, 1, 1, 1)
      if audio_scale is None:
        v = u + identity_scale * (r - u) + emotion_scale * (c - r)
      else:
        a = v_of(x[seen], seen, sigma, 1, 1, 0)
        v = u + identity_scale * (r - u) + audio_scale * (a - r) + emotion_scale * (c - a)
      clean = x[seen] / (sigma**2 + 1) - v * sigma / math.sqrt(sigma**2 + 1)
      stepped = x[seen] + (x[seen] - clean) / sigma * (next_sigma - sigma)
      for k, frame in enumerate(seen):
        total[frame] += stepped[k]
        count[frame] += 1
    x = total / count[:, None, None, None]
    shifted = (shifted + shift) % window
  return x
