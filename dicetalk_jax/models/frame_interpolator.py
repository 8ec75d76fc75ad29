"""RIFE's intermediate flow network (Huang et al. 2022, HDv3): the frame half-way between two."""

import flax.linen as nn
import jax
import jax.numpy as jnp

# The coarsest block works at a quarter of the size and halves it twice more, and RIFE's own inference doubles that.
_MULTIPLE = 32
_SCALES = (4, 2, 1)


def warp(image, flow):
  """Samples `image` (b, h, w, c) at each pixel's place plus `flow` (b, h, w, 2) = (Δx, Δy) in pixels -> (b, h, w, c).

  Bilinear; beyond the border the border's value holds. In float32, for half precision cannot tell pixels apart.
  """
  b, h, w, c = image.shape
  x = jnp.clip(jnp.arange(w, dtype=jnp.float32) + flow[..., 0].astype(jnp.float32), 0, w - 1)
  y = jnp.clip(jnp.arange(h, dtype=jnp.float32)[:, None] + flow[..., 1].astype(jnp.float32), 0, h - 1)
  left, top = jnp.floor(x).astype(jnp.int32), jnp.floor(y).astype(jnp.int32)
  right, bottom = jnp.minimum(left + 1, w - 1), jnp.minimum(top + 1, h - 1)
  to_right, to_bottom = (x - left)[..., None], (y - top)[..., None]
  pixels = image.astype(jnp.float32).reshape(b, h * w, c)

  def at(row, column):
    return jnp.take_along_axis(pixels, (row * w + column).reshape(b, h * w, 1), axis=1).reshape(b, h, w, c)

  upper = (1 - to_right) * at(top, left) + to_right * at(top, right)
  lower = (1 - to_right) * at(bottom, left) + to_right * at(bottom, right)
  return (1 - to_bottom) * upper + to_bottom * lower


def _resize(x, height, width):
  """Bilinear without antialiasing, half-pixel centres: (b, h, w, c) -> (b, height, width, c)."""
  return jax.image.resize(x, (x.shape[0], height, width, x.shape[-1]), "linear", antialias=False)


def _swap(flow):
  """Exchanges the flows towards the first and towards the second frame, (b, h, w, 4)."""
  return jnp.concatenate([flow[..., 2:], flow[..., :2]], axis=-1)


class PReLU(nn.Module):
  """max(x, 0) + negative_slope · min(x, 0), a slope a channel: (..., c) -> (..., c)."""

  @nn.compact
  def __call__(self, x):
    negative_slope = self.param("negative_slope", nn.initializers.constant(0.25), (x.shape[-1],))
    return jnp.where(x >= 0, x, negative_slope.astype(x.dtype) * x)


class FlowBlock(nn.Module):
  """Refines flow and mask at one scale.

  frames (b, h, w, 7): both warped frames and the mask; flow (b, h, w, 4) in pixels -> changes of flow (b, h, w, 4) and
  of mask (b, h, w, 1), both float32.
  """

  scale: int
  features: int = 90
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, frames, flow):
    h, w = flow.shape[1:3]

    def conv(x, features, stride, name):
      x = nn.Conv(features, (3, 3), (stride, stride), padding=1, dtype=self.dtype, name=f"{name}_0")(x)
      return PReLU(name=f"{name}_1")(x)

    def upscale(x, features, name):
      # With the kernel transposed, the padding is that of the dilated input: 4 - 1 - 1 on each side.
      return nn.ConvTranspose(
        features, (4, 4), (2, 2), padding=((2, 2), (2, 2)), transpose_kernel=True, dtype=self.dtype, name=name
      )(x)

    def head(x, features, name):
      x = PReLU(name=f"{name}_1")(upscale(x, self.features // 2, f"{name}_0"))
      x = upscale(x, features, f"{name}_2").astype(jnp.float32)
      return _resize(x, h, w)

    small = h // self.scale, w // self.scale
    x = jnp.concatenate([_resize(frames, *small), _resize(flow, *small) / self.scale], axis=-1)
    x = conv(x, self.features // 2, 2, "conv0_0")
    x = conv(x, self.features, 2, "conv0_1")
    for i in range(4):
      x += conv(conv(x, self.features, 1, f"convblock{i}_0"), self.features, 1, f"convblock{i}_1")
    return head(x, 4, "conv1") * self.scale, head(x, 1, "conv2")


class FrameInterpolator(nn.Module):
  """The frame between two: first, second (b, h, w, 3) in [0, 1] -> middle (b, h, w, 3) in [0, 1], float32.

  Any height and width: frames are padded with zeros below and on the right to multiples of 32 and the result is cut,
  as RIFE's inference does.
  """

  features: int = 90
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.block0, self.block1, self.block2 = (FlowBlock(scale, self.features, self.dtype) for scale in _SCALES)

  def __call__(self, first, second):
    return self.estimate(first, second)[2]

  def estimate(self, first, second):
    """(flow, mask, middle): where the middle frame's pixels come from, and how much of the first frame is in them.

    flow (b, h, w, 4): (Δx, Δy) into the first frame, then into the second, in pixels. mask (b, h, w, 1) in [0, 1].
    """
    b, h, w, _ = first.shape
    padding = ((0, 0), (0, -h % _MULTIPLE), (0, -w % _MULTIPLE), (0, 0))
    first, second = (jnp.pad(frame.astype(jnp.float32), padding) for frame in (first, second))

    warped_first, warped_second = first, second
    flow = jnp.zeros((*first.shape[:3], 4), jnp.float32)
    mask = jnp.zeros((*first.shape[:3], 1), jnp.float32)
    for block in (self.block0, self.block1, self.block2):
      # Both directions of time go through the block side by side in the batch; their answers are averaged.
      forward = jnp.concatenate([warped_first, warped_second, mask], axis=-1)
      backward = jnp.concatenate([warped_second, warped_first, -mask], axis=-1)
      flow_change, mask_change = block(jnp.concatenate([forward, backward]), jnp.concatenate([flow, _swap(flow)]))
      flow += (flow_change[:b] + _swap(flow_change[b:])) / 2
      mask += (mask_change[:b] - mask_change[b:]) / 2
      warped_first, warped_second = warp(first, flow[..., :2]), warp(second, flow[..., 2:])

    mask = nn.sigmoid(mask)
    middle = warped_first * mask + warped_second * (1 - mask)
    return flow[:, :h, :w], mask[:, :h, :w], middle[:, :h, :w]
