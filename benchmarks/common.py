"""What both benchmarks need: a side in a process of its own, random weights, times, and a table."""

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
  """Runs this script again with other arguments, alone, and reads the JSON that it prints last.

  One process a side: neither shares memory, threads or a warm cache with the other. None where the side failed.
  """
  done = subprocess.run([sys.executable, sys.argv[0], *map(str, arguments)], stdout=subprocess.PIPE, text=True)
  if done.returncode:
    print(f"{' '.join(map(str, arguments))}: failed with exit code {done.returncode}", file=sys.stderr)
    return None
  return json.loads(done.stdout.splitlines()[-1])


def timed(run, repeats):
  """Times of `repeats` calls of `run`, which must wait for the device, after one call that is not counted.

  cpu: processor seconds of a call over all threads, which other programs change little where there is one thread.
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
  """Uniform arrays for a tree of shapes, of a variance that keeps a network's states near one."""
  generator = np.random.default_rng(0)

  def draw(leaf):
    # A kernel (..., in, out) is divided by √(its inputs); anything else is small.
    scale = np.sqrt(3 / np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
    array = generator.random(leaf.shape, np.float32)
    array -= 0.5
    array *= np.float32(2 * scale)
    return jnp.asarray(array, dtype)

  return jax.tree.map(draw, shapes)


def random_params(module, **inputs):
  """Parameters of a module in its compute dtype."""
  shapes = jax.eval_shape(lambda inputs: module.init(jax.random.key(0), **inputs), inputs)["params"]
  return random_arrays(shapes, module.dtype)


def flops(unet: UNet, batch, frames, height, width):
  """Floating-point operations of one forward, as XLA counts them in the program before it is optimised."""
  plain = unet.clone(dtype=jnp.float32)
  inputs = unet_inputs(plain, batch, frames, height, width)
  params = jax.eval_shape(lambda inputs: plain.init(jax.random.key(0), **inputs), inputs)

  def forward(params, inputs):  # a new function, which JAX has not traced with another attention
    return plain.apply(params, **inputs)

  # XLA counts the body of a loop once and a fused kernel as nothing, so that every attention is spelt out.
  with mock.patch.object(attention, "choose_implementation", lambda *_: "plain"):
    return jax.jit(forward).lower(params, inputs).cost_analysis()["flops"]


def unet_inputs(unet: UNet, batch, frames, height, width):
  """Abstract inputs, pose features and face mask not among them."""
  inputs = unet.example_inputs(batch, frames)
  shape = (batch, frames, height, width, unet.in_channels)
  return inputs | {"sample": jax.ShapeDtypeStruct(shape, jnp.float32)}


def torch_unet(unet: UNet, dtype, device):
  """diffusers' U-Net of the same sizes, which has no adapters, with random weights."""
  try:
    import torch
    from diffusers import UNetSpatioTemporalConditionModel
  except ImportError as error:
    sys.exit(f"The PyTorch side needs diffusers and what it imports ({error}): pip install torch diffusers requests")
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
  """A function that runs a forward of `torch_unet`'s network on random inputs; it waits for the device."""
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
  """The largest resident size that this process has had."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if platform.system() == "Linux" else 1e9)


def print_table(title, header, rows):
  """A Markdown table, the last thing that a benchmark prints."""
  print(f"\n{title}\n")
  print("| " + " | ".join(header) + " |")
  print("|" + "---|" * len(header))
  for row in rows:
    print("| " + " | ".join(row) + " |")


def machine():
  load = f"load average {os.getloadavg()[0]:.1f} at the end"
  return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}, {load}"


TINY = dict(block_out_channels=(32, 64, 128, 128), num_attention_heads=(2, 4, 8, 8), cross_attention_dim=64)
