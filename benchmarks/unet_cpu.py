"""Time of a full-size U-Net forward pass on a CPU in float32, compared with PyTorch (diffusers' U-Net).

    pip install diffusers requests
    python benchmarks/unet_cpu.py

Each network runs in its own process, one after the other, with the same number of threads and random weights. A process
needs about 8 GB and a few minutes; `--tiny` checks quickly that everything runs. Close other programs first: the load
average is printed with the results. On a busy machine, use `--threads 1` and compare the CPU seconds.
"""

import argparse
import json
import os
import sys

import common
import jax
import jax.numpy as jnp

from dicetalk_jax.models.unet import UNet
from dicetalk_jax.parallel.compilation import use_fast_convolutions

SIDES = PYTORCH, OURS, ADAPTED = "PyTorch (diffusers)", "dicetalk_jax without adapters", "dicetalk_jax"


def unet(adapters, tiny):
  return UNet(adapter_scales=(1.0, 1.0) if adapters else (), **(common.TINY if tiny else {}))


def measure_ours(side, shape, options):
  use_fast_convolutions()  # as every `dicetalk` command does before JAX starts
  network = unet(side == ADAPTED, options.tiny)
  inputs = common.random_arrays(common.unet_inputs(network, *shape))
  params = common.random_params(network, **inputs)
  apply = jax.jit(network.apply)

  def run():
    return apply({"params": params}, **inputs).block_until_ready()

  assert jnp.isfinite(run()).all()
  result = common.timed(run, options.repeats)
  return result | {"memory": common.peak_memory_gb(), "flops": common.flops(network, *shape)}


def measure_pytorch(shape, options):
  try:
    import torch
  except ImportError:
    sys.exit("the PyTorch measurement needs PyTorch and diffusers: pip install torch diffusers requests")
  torch.set_num_threads(options.threads)
  run = common.torch_forward(common.torch_unet(unet(False, options.tiny), torch.float32, "cpu"), *shape)
  assert run().isfinite().all()
  return common.timed(run, options.repeats) | {"memory": common.peak_memory_gb()}


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--shapes", nargs="+", default=["4x32x32", "2x64x64"], help="frames x latent height x width")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of each process")
  parser.add_argument("--tiny", action="store_true", help="small network and latents, to check that it runs")
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.tiny:
    options.shapes = ["2x8x16"]

  if options.side:
    # JAX uses as many threads as there are processors.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    shape = (1, *map(int, options.shapes[0].split("x")))
    pytorch = options.side == PYTORCH
    print(json.dumps(measure_pytorch(shape, options) if pytorch else measure_ours(options.side, shape, options)))
    return

  rows = []
  for shape in options.shapes:
    given = ["--shapes", shape, "--repeats", options.repeats, "--threads", options.threads, *["--tiny"] * options.tiny]
    results = {side: common.run_side("--side", side, *given) for side in SIDES}
    reference = results[PYTORCH]
    for side, result in results.items():
      if result is None:
        continue
      print(f"{shape} {side}: {result}", flush=True)
      # Without adapters, both networks have the same operations.
      work = result.get("flops") or (results[OURS] or {}).get("flops", float("nan"))
      rows.append(
        (
          shape,
          side,
          f"{result['median']:.2f}",
          f"{result['fastest']:.2f} to {result['slowest']:.2f}",
          f"{result['cpu']:.2f}",
          f"{result['median'] / reference['median']:.2f}" if reference else "",
          f"{work / 1e9 / result['median']:.0f}",
          f"{result['memory']:.1f}",
        )
      )
  common.print_table(
    f"One U-Net forward pass, float32, {options.threads} thread(s), median of {options.repeats}; {common.machine()}",
    ("frames × latents", "network", "seconds", "range", "CPU seconds", "/ PyTorch", "GFLOP/s", "memory, GB"),
    rows,
  )


if __name__ == "__main__":
  main()
