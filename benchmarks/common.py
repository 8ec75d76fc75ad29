"""Shared by the benchmarks: measurements in separate processes, random weights, timing, tables."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from dicetalk_jax.models import attention
from dicetalk_jax.models.unet import UNet

FPS_BUCKET_NOISE = (12.5, 8.0, 16.0)


def run_side(*arguments):
  """Runs this script in a new process with other arguments and returns the JSON of its last line; None if it failed.

  In a process of its own, a measurement shares no memory, threads or caches with the others.
  """
  done = subprocess.run([sys.executable, sys.argv[0], *map(str, arguments)], stdout=subprocess.PIPE, text=True)
  if done.returncode:
    print(f"{' '.join(map(str, arguments))}: failed with exit code {done.returncode}", file=sys.stderr)
    return None
  return json.loads(done.stdout.splitlines()[-1])


def timed(run, repeats):
  """Times of `repeats` calls of `run`, after one call that is not counted. `run` must wait for the device.

  cpu: processor seconds per call over all threads; with one thread, other programs hardly affect it.
  """
  run()
  wall, cpu = [], []
  for _ in range(repeats):
    start, cpu_start = time.perf_counter(), time.process_time()
    run()
    wall.append(time.perf_counter() - start)
    cpu.append(time.process_time() - cpu_start)
  return dict(median=statistics.median(wall), fastest=min(wall), slowest=max(wall), cpu=statistics.median(cpu))


def random_arrays(shapes, dtype=jnp.float32):
  """Uniform arrays for a tree of shapes, scaled so that activations stay near one."""
  generator = np.random.default_rng(0)

  def draw(leaf):
    # Kernels (..., in, out) are divided by √inputs; everything else is small.
    scale = np.sqrt(3 / np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
    array = generator.random(leaf.shape, np.float32)
    array -= 0.5
    array *= np.float32(2 * scale)
    return jnp.asarray(array, dtype)

  return jax.tree.map(draw, shapes)


def random_params(module, **inputs):
  """Random parameters of a module, in its compute dtype."""
  shapes = jax.eval_shape(lambda inputs: module.init(jax.random.key(0), **inputs), inputs)["params"]
  return random_arrays(shapes, module.dtype)


def flops(unet: UNet, batch, frames, height, width):
  """Floating-point operations of one forward pass, counted by XLA before optimisation."""
  plain = unet.clone(dtype=jnp.float32)
  inputs = unet_inputs(plain, batch, frames, height, width)
  params = jax.eval_shape(lambda inputs: plain.init(jax.random.key(0), **inputs), inputs)

  def forward(params, inputs):  # a new function: JAX has not traced it with another attention
    return plain.apply(params, **inputs)

  # XLA counts a loop body once and a fused kernel as zero, so use plain attention.
  with mock.patch.object(attention, "choose_implementation", lambda *_: "plain"):
    return jax.jit(forward).lower(params, inputs).cost_analysis()["flops"]


def unet_inputs(unet: UNet, batch, frames, height, width):
  """Abstract inputs, without pose features and face mask."""
  inputs = unet.example_inputs(batch, frames)
  shape = (batch, frames, height, width, unet.in_channels)
  return inputs | {"sample": jax.ShapeDtypeStruct(shape, jnp.float32)}


def torch_unet(unet: UNet, dtype, device):
  """diffusers' U-Net of the same size with random weights; it has no adapters."""
  try:
    import torch
    from diffusers import UNetSpatioTemporalConditionModel
  except ImportError as error:
    sys.exit(f"the PyTorch measurement needs diffusers ({error}): pip install torch diffusers requests")
  with torch.device("meta"):
    network = UNetSpatioTemporalConditionModel(
      block_out_channels=unet.block_out_channels,
      num_attention_heads=unet.num_attention_heads,
      cross_attention_dim=unet.cross_attention_dim,
      addition_time_embed_dim=unet.addition_time_embed_dim,
      projection_class_embeddings_input_dim=3 * unet.addition_time_embed_dim,
    )
  network = network.to(dtype).to_empty(device=device).eval().requires_grad_(False)
  for weights in network.parameters():
    scale = (3 / weights[0].numel()) ** 0.5 if weights.dim() > 1 else 0.1
    weights.uniform_(-scale, scale)
  return network


def torch_forward(network, batch, frames, height, width):
  """A function that runs `torch_unet` on random inputs and waits for the device."""
  import torch

  like = next(network.parameters())
  sample = torch.randn(batch, frames, 8, height, width, dtype=like.dtype, device=like.device)
  token = torch.randn(batch, 1, network.config.cross_attention_dim, dtype=like.dtype, device=like.device)
  time_ids = torch.tensor([FPS_BUCKET_NOISE] * batch, dtype=like.dtype, device=like.device)

  def run():
    with torch.inference_mode():
      out = network(sample, 1.0, token, time_ids).sample
    if like.device.type == "cuda":
      torch.cuda.synchronize()
    return out

  return run


def peak_memory_gb():
  """Peak resident memory of this process."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if platform.system() == "Linux" else 1e9)


def print_table(title, header, rows):
  """Prints a Markdown table."""
  print(f"\n{title}\n")
  print("| " + " | ".join(header) + " |")
  print("|" + "---|" * len(header))
  for row in rows:
    print("| " + " | ".join(row) + " |")


def machine():
  load = f"load average {os.getloadavg()[0]:.1f} at the end"
  return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}, {load}"


TINY = dict(block_out_channels=(32, 64, 128, 128), num_attention_heads=(2, 4, 8, 8), cross_attention_dim=64)
