"""Full-size generation on one accelerator: time of a guided step and of a video, memory, share of the matrix peak.

    pip install torch diffusers requests        # for the PyTorch row, which is optional
    python benchmarks/unet_gpu.py

512×512 pixels, windows of 25 frames, three guidance branches, bfloat16, random weights. Each row is measured in its own
process, one after the other. PyTorch runs diffusers' U-Net without adapters, with fused attention. The matrix peak is
that of a large bfloat16 product on the same device. `--tiny` checks on any machine that everything runs.
"""

import argparse
import dataclasses
import json
import sys
import time

import common
import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.diffusion import edm, guidance
from dicetalk_jax.diffusion.conditioning import Conditions
from dicetalk_jax.diffusion.samplers import euler
from dicetalk_jax.inference.conditions import AUDIO, EMOTION, TokenTable
from dicetalk_jax.inference.decoding import decode_frames
from dicetalk_jax.inference.denoising import denoise, denoise_windows, window_groups
from dicetalk_jax.models.unet import UNet
from dicetalk_jax.models.vae import VAE

PEAK = "matrix product"
STEP = "guided step"
FORWARDS = "three forwards without adapters"
PYTORCH = "three forwards without adapters, PyTorch (diffusers)"
VIDEO = "video"
SIDES = (PEAK, STEP, FORWARDS, PYTORCH, VIDEO)
CONFIG = GenerationConfig()
PLAN = guidance.of_settings(CONFIG, (AUDIO, EMOTION))


def unet(options, adapters=True):
  scales = (1.0, 1.0) if adapters else ()
  return UNet(adapter_scales=scales, dtype=jnp.bfloat16, **(common.TINY if options.tiny else {}))


def shape(options):
  """Windows, frames, latent height and width."""
  return (1, 3, 8, 8) if options.tiny else (1, 25, 64, 64)


def device_memory_gb():
  """Peak memory of the device in this process; NaN where the backend does not report it."""
  return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", float("nan")) / 1e9


def measured(run, options):
  return common.timed(run, options.repeats) | {"memory": device_memory_gb()}


def matrix_product(options):
  n, calls = (256, 2) if options.tiny else (8192, 20)
  a, b = jax.random.normal(jax.random.key(0), (2, n, n), jnp.bfloat16)

  @jax.jit
  def products(a, b):
    # Each product is the input of the next, so XLA cannot drop one; 1/√n keeps the scale.
    return jax.lax.fori_loop(0, calls, lambda _, x: (x @ b) * jnp.bfloat16(n**-0.5), a)

  result = measured(lambda: products(a, b).block_until_ready(), options)
  return result | {"flops": 2.0 * calls * n**3}


def conditions(network, options):
  """Random conditions of a video: constants, audio and emotion tokens of a frame, noise of a window."""
  _, f, h, w = shape(options)
  c, d = network.out_channels, network.cross_attention_dim
  shapes = dict(
    constants=Conditions((1, h, w, c), (1, 1, d), (), (1, 1, h, w, network.block_out_channels[0]), (1, h, w)),
    tokens=[(32, d), (32, d)],
    noise=(f, h, w, c),
  )
  generator = np.random.default_rng(1)
  return jax.tree.map(
    lambda shape: jnp.asarray(generator.standard_normal(shape, np.float32)),
    shapes,
    is_leaf=lambda node: isinstance(node, tuple) and len(node) > 0,
  )


def guided_step(options):
  network = unet(options)
  params = common.random_params(network, **common.unet_inputs(network, *shape(options)))
  given = conditions(network, options)
  windows, frames = shape(options)[:2]
  tokens = tuple(jnp.broadcast_to(each, (windows, frames, *each.shape)) for each in given["tokens"])
  constants = given["constants"].replace(adapter_tokens=tuple(each[None, None] for each in given["tokens"]))
  sigmas, scales = edm.karras_sigmas(CONFIG.steps)[10:12], np.array(PLAN.scales, np.float32)

  def run():
    x = given["noise"][None]
    out, _ = denoise_windows(network, PLAN.branches, euler, params, x, tokens, constants, sigmas, scales)
    return out.block_until_ready()

  assert jnp.isfinite(run()).all()
  return measured(run, options) | {"flops": len(PLAN.branches) * common.flops(network, *shape(options))}


def three_forwards(options):
  network = unet(options, adapters=False)
  inputs = common.random_arrays(common.unet_inputs(network, *shape(options)))
  params = common.random_params(network, **inputs)

  @jax.jit
  def forwards(params, inputs):
    def forward(scale):
      return network.apply({"params": params}, **inputs | {"sample": scale * inputs["sample"]})

    return jax.lax.map(forward, jnp.ones(len(PLAN.branches)))

  result = measured(lambda: forwards(params, inputs).block_until_ready(), options)
  return result | {"flops": len(PLAN.branches) * common.flops(network, *shape(options))}


def three_forwards_pytorch(options):
  try:
    import torch
  except ImportError:
    sys.exit("the PyTorch row needs PyTorch and diffusers: pip install torch diffusers requests")
  if not (torch.cuda.is_available() or options.tiny):
    sys.exit("the PyTorch row needs a PyTorch with GPU support; this one finds no GPU")
  device = "cuda" if torch.cuda.is_available() else "cpu"
  forward = common.torch_forward(common.torch_unet(unet(options), torch.bfloat16, device), *shape(options))

  def run():
    for _ in PLAN.branches:
      forward()

  result = common.timed(run, options.repeats)
  return result | {"memory": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")}


def video(options):
  """All steps for one window of frames plus the window of padding of every video, then decoding."""
  network, window = unet(options), shape(options)[1]
  widths = dict(block_out_channels=(32, 32, 64, 64), layers_per_block=1) if options.tiny else {}
  vae = VAE(dtype=jnp.bfloat16, **widths)
  params = common.random_params(network, **common.unet_inputs(network, *shape(options)))
  images = jax.ShapeDtypeStruct((1, 2, 2 * vae.downscale, 2 * vae.downscale, vae.in_channels), jnp.float32)
  vae_params = common.random_params(vae, images=images)
  given = conditions(network, options)
  noise = jnp.concatenate([given["noise"]] * 2)
  index = np.zeros(len(noise), int)
  tables = [TokenTable(tokens[None], index) for tokens in given["tokens"]]
  config = dataclasses.replace(CONFIG, steps=2 if options.tiny else CONFIG.steps, window=window)

  def run():
    latents = denoise(network, params, noise, tables, given["constants"], config, PLAN, vae.scaling_factor)
    latents.block_until_ready()
    middle = time.perf_counter()
    frames = decode_frames(vae, vae_params, latents, window)
    run.decoding = time.perf_counter() - middle
    return frames

  assert np.isfinite(run()).all()  # and compiles
  start = time.perf_counter()
  run()
  total = time.perf_counter() - start
  calls = sum(len(window_groups(config, len(noise), step)) for step in range(config.steps))
  return {"median": total, "decoding": run.decoding, "calls": calls, "memory": device_memory_gb()}


_MEASURE = dict(zip(SIDES, (matrix_product, guided_step, three_forwards, three_forwards_pytorch, video), strict=True))


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--repeats", type=int, default=10)
  parser.add_argument("--tiny", action="store_true", help="small networks and latents, to check that it runs")
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.side:
    device = {"device": jax.local_devices()[0].device_kind} if options.side == PEAK else {}
    print(json.dumps(_MEASURE[options.side](options) | device))
    return

  results = {}
  for side in SIDES:
    results[side] = common.run_side("--side", side, "--repeats", options.repeats, *["--tiny"] * options.tiny)
    print(f"{side}: {results[side]}", flush=True)
  results = {side: result for side, result in results.items() if result}
  if FORWARDS in results and PYTORCH in results:
    results[PYTORCH]["flops"] = results[FORWARDS]["flops"]
  if PEAK not in results:
    sys.exit("the matrix product failed; see the message above")
  peak = results[PEAK]["flops"] / results[PEAK]["median"]

  rows = []
  for side, result in results.items():
    rate = result["flops"] / result["median"] if "flops" in result else None
    name = side
    if side == VIDEO:
      name = f"video: {result['calls']} guided steps, then decoding ({result['decoding']:.1f} s)"
    rows.append(
      (
        name,
        f"{result['median']:.3f}",
        f"{rate / 1e12:.1f}" if rate else "",
        f"{100 * rate / peak:.0f} %" if rate else "",
        f"{result['memory']:.1f}",
      )
    )
  _, frames, height, width = shape(options)
  common.print_table(
    f"{results[PEAK]['device']}: {frames} frames of {8 * height}×{8 * width}, {len(PLAN.branches)} branches, bfloat16, "
    f"median of {options.repeats}; jax {jax.__version__}",
    ("", "seconds", "TFLOP/s", "share of the matrix peak", "peak memory, GB"),
    rows,
  )


if __name__ == "__main__":
  main()
