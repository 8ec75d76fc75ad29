"""Seconds a U-Net forward on a CPU, float32, beside the same blocks in PyTorch (diffusers' U-Net, without adapters).

    pip install diffusers requests
    python benchmarks/unet_cpu.py

Each side runs in its own process, one after the other, with as many threads as it is given; full-size widths, random
weights, the median of several runs. Each process needs about 8 GB and some minutes; `--tiny` shows in seconds that
everything runs. Close other programs first: the load average is printed beside the figures.
"""

import argparse
import json
import os

import common
import jax
import jax.numpy as jnp

from dicetalk_jax import cli
from dicetalk_jax.models.unet import UNet

PYTORCH, OURS, ADAPTED = "PyTorch", "dicetalk_jax, no adapters", "dicetalk_jax"


def unet(adapters, tiny):
  return UNet(adapter_scales=(1.0, 1.0) if adapters else (), **(common.TINY if tiny else {}))


def time_ours(side, shape, options):
  cli._use_fast_convolutions()  # as every `dicetalk` command does before JAX starts
  network = unet(side == ADAPTED, options.tiny)
  inputs = common.random_arrays(common.unet_inputs(network, *shape))
  params = common.random_params(network, **inputs)
  apply = jax.jit(network.apply)

  def run():
    return apply({"params": params}, **inputs).block_until_ready()

  assert jnp.isfinite(run()).all()
  return common.seconds(run, options.repeats) + []


def time_pytorch(shape, options):
  network = common.torch_unet(unet(False, options.tiny), *_float32_on_cpu(options.threads))
  run = common.torch_forward(network, *shape)
  assert run().isfinite().all()
  return common.seconds(run, options.repeats)


def _float32_on_cpu(threads):
  try:
    import torch
  except ImportError:
    raise SystemExit("The PyTorch side needs PyTorch and diffusers: pip install torch diffusers requests") from None
  torch.set_num_threads(threads)
  return torch.float32, "cpu"


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--shapes", nargs="+", default=["4x32x32", "2x64x64"], help="frames x latent height x width")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of PyTorch; JAX takes all")
  parser.add_argument("--tiny", action="store_true", help="small widths and latents, to see that it runs")
  parser.add_argument("--side", choices=(PYTORCH, OURS, ADAPTED), help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.tiny:
    options.shapes = ["2x8x16"]
  shapes = [(1, *map(int, shape.split("x"))) for shape in options.shapes]

  if options.side:
    times = time_pytorch(shapes[0], options) if options.side == PYTORCH else time_ours(options.side, shapes[0], options)
    print(json.dumps(common.summary(times) | {"memory": common.peak_memory_gb()}))
    return

  rows = []
  for shape, text in zip(shapes, options.shapes, strict=True):
    work = common.flops(unet(False, options.tiny), *shape)
    reference = None
    for side in (PYTORCH, OURS, ADAPTED):
      arguments = ["--side", side, "--shapes", text, "--repeats", options.repeats, "--threads", options.threads]
      result = common.run_side(*arguments, *["--tiny"] * options.tiny)
      if result is None:
        continue
      print(f"{text} {side}: {result}", flush=True)
      reference = result if side == PYTORCH else reference
      counted = work if side != ADAPTED else common.flops(unet(True, options.tiny), *shape)
      rows.append(
        (
          text,
          side,
          f"{result['median']:.2f}",
          f"{result['fastest']:.2f}–{result['slowest']:.2f}",
          f"{counted / 1e9 / result['median']:.0f}",
          f"{result['memory']:.1f}",
          f"{result['median'] / reference['median']:.2f}" if reference else "",
        )
      )
  common.print_table(
    f"One U-Net forward, float32, {options.threads} threads; {common.machine()}",
    ("frames × latents", "network", "seconds, median", "range", "GFLOP/s", "memory, GB", "seconds / PyTorch's"),
    rows,
  )


if __name__ == "__main__":
  main()
