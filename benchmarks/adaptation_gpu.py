"""A training step of the full-size adaptation on one accelerator: time, share of the specified peak, memory.

    python benchmarks/adaptation_gpu.py --batches 1 2 4

Uses the step and batches of `dicetalk train adaptation` and the settings of `configs/adaptation_512.py` (512×512
pixels, 25 frames, bfloat16, rematerialisation), without accumulation and regular clips. Parameters and encoded clips
are random. Each batch size is compiled, run once, and then timed. `--tiny` checks on any machine that everything runs.
"""

import argparse
import dataclasses
import functools
import math
import pathlib
import statistics
import tempfile
import time

import common
import data_loading
import jax

from dicetalk_jax.config import load_preset
from dicetalk_jax.data.batches.diffusion import diffusion_batches
from dicetalk_jax.parallel.flops import peak_flops
from dicetalk_jax.parallel.mesh import MeshConfig, replicated
from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.training.adaptation import adaptation_loss, training_flops
from dicetalk_jax.training.config import AdaptationConfig
from dicetalk_jax.training.networks import set_up, split_trained
from dicetalk_jax.training.optimizer import make_optimizer, make_schedule
from dicetalk_jax.training.overrides import override
from dicetalk_jax.training.state import TrainState
from dicetalk_jax.training.step import make_step
from dicetalk_jax.weights.architectures import RELEASED, small_conditioning, small_unet

# Sizes of tokens, Whisper-tiny states and CLIP embeddings are given by the data.
SMALL = small_conditioning(32, 64, width=1024, states=5, d_model=384, pose_features=(8, 16, 32, 32))
TINY = RELEASED | {"unet": small_unet((32, 64), width=1024), **SMALL}


def configuration(options, folder, batch):
  config = load_preset("configs/adaptation_512.py", AdaptationConfig)
  changes = [f"emotional={folder}", f"weights={folder}/untrained", "optimizer.accumulate=1", f"batches.batch={batch}"]
  config = override(config, changes + ["batches.frames=3"] * options.tiny + options.set)
  # Clips of a second set would take the same time.
  config = dataclasses.replace(config, regular=(), mesh=MeshConfig(1, 1, 1))
  return dataclasses.replace(config, networks=TINY) if options.tiny else config


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw(key, shape, dtype):
  """Normal values, scaled so that activations stay near one."""
  scale = math.prod(shape[:-1]) ** -0.5 if len(shape) > 1 else 0.1
  return scale * jax.random.normal(key, shape, dtype)


def random_state(setup, config, optimizer):
  """A state of random parameters, drawn one by one, which compiles in seconds."""
  leaves, tree = jax.tree.flatten(setup.shapes)
  keys = jax.random.split(jax.random.key(0, impl="rbg"), len(leaves))
  params = tree.unflatten(draw(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True))
  trained, frozen = split_trained(setup, config, params)
  state = TrainState.create(trained, optimizer, jax.random.key(1), ema=config.optimizer.ema_decay > 0)
  return state.replace(frozen=jax.tree.map(lambda leaf: leaf.astype(setup.dtype), frozen))


def measured(options, folder, batch):
  """Times of steps with `batch` clips, floating-point operations and memory of a step."""
  config = configuration(options, folder, batch)
  setup = set_up(config, needs_weights=False)
  optimizer = make_optimizer(config.optimizer, config.loop.steps)
  placement = Placement.alone()
  with diffusion_batches(config.emotional, config=config.batches) as batches:
    # Placed as the step leaves it, so that the second step does not compile again.
    state = jax.device_put(random_state(setup, config, optimizer), replicated(placement.mesh))
    step = make_step(
      adaptation_loss(setup, config.objective),
      optimizer,
      make_schedule(config.optimizer, config.loop.steps),
      config.optimizer.ema_decay,
    )
    flops = training_flops(setup, config.objective, state.params, state.frozen, batches.source[0]).total
    start = time.perf_counter()
    state, metrics = step(state, placement.place(next(batches)))
    loss = float(metrics["loss"])
    compiling, seconds = time.perf_counter() - start, []
    for _ in range(options.repeats):
      given = jax.block_until_ready(placement.place(next(batches)))
      start = time.perf_counter()
      state, metrics = step(state, given)
      loss = float(metrics["loss"])
      seconds.append(time.perf_counter() - start)
  trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state.params, state.frozen))
  memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", float("nan"))
  return dict(seconds=seconds, flops=flops, memory=memory, compiling=compiling, loss=loss, sizes=(trained, frozen))


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4], help="clips per step")
  parser.add_argument("--repeats", type=int, default=5, help="number of timed steps")
  parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change a setting of the preset")
  parser.add_argument("--tiny", action="store_true", help="small networks and 3 frames, to check that it runs")
  options = parser.parse_args()
  peak, kind = peak_flops(), jax.local_devices()[0].device_kind
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    data_loading.write_clips(pathlib.Path(folder))
    for batch in sorted(options.batches):
      try:
        result = measured(options, folder, batch)
      except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
          raise
        print(f"{batch} clips: more memory than the device has", flush=True)
        break
      print(f"{batch} clips: {result}", flush=True)
      median = statistics.median(result["seconds"])
      frames = batch * configuration(options, folder, batch).batches.frames
      figures = (
        f"{median:.3f}",
        f"{min(result['seconds']):.3f} to {max(result['seconds']):.3f}",
        f"{frames / median:.1f}",
      )
      tera, share = f"{result['flops'] / 1e12:.1f}", f"{result['flops'] / median / peak:.1%}"
      rows.append((str(batch), *figures, tera, share, f"{result['memory'] / 1e9:.1f}"))
  common.print_table(
    f"{kind}, jax {jax.__version__}; peak {peak / 1e12:.0f} TFLOP/s; medians of {options.repeats} steps",
    ("clips", "s per step", "range", "frames/s", "TFLOP", "utilisation", "peak memory, GB"),
    rows,
  )


if __name__ == "__main__":
  main()
