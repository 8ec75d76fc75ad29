"""What a run is told to cost: operations counted as by hand, memory as the arrays that there are."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dicetalk_jax.config import load_preset
from dicetalk_jax.data.batches.diffusion import DiffusionBatchConfig
from dicetalk_jax.errors import WeightsError
from dicetalk_jax.parallel.flops import Flops, count_flops, peak_flops
from dicetalk_jax.planning import outline
from dicetalk_jax.planning.dry_run import training_costs
from dicetalk_jax.training.config import AdaptationConfig, EmbedderConfig
from dicetalk_jax.weights.architectures import RELEASED, small_unet
from dicetalk_jax.weights.networks import build, network_shapes

PRESETS = [
  ("embedder.py", EmbedderConfig),
  ("adaptation_512.py", AdaptationConfig),
]


def test_products_convolutions_and_loops_are_counted_as_by_hand():
  def function(x, kernel, image):
    def turn(carry, _):
      return jnp.tanh(carry @ x), None

    product = jax.lax.scan(turn, x, length=7)[0]
    convolved = jax.lax.conv_general_dilated(image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return product.sum() + jax.jit(jnp.sum)(convolved)

  x, kernel, image = np.ones((5, 5)), np.ones((3, 3, 4, 6)), np.ones((2, 8, 10, 4))
  by_hand = 7 * 2 * 5**3 + 2 * (2 * 4 * 5 * 6) * (3 * 3 * 4)
  assert count_flops(function, x, kernel, image).total == by_hand
  # Two more products for each in the backward pass: to the input and to the other factor.
  assert count_flops(jax.grad(lambda x, y: (x @ y).sum(), argnums=(0, 1)), x, x).total == 2 * 2 * 5**3 + 2 * 5**3


def test_a_unet_is_counted_by_its_parts():
  architecture = small_unet((32,))
  module, shapes = build("unet", architecture), network_shapes("unet", architecture)
  inputs = module.example_inputs(batch=2, frames=3, size=8)
  inputs = {name: jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), value) for name, value in inputs.items()}

  def forward(params, inputs):
    return module.apply({"params": params}, **inputs)

  flops = count_flops(forward, shapes, inputs)
  assert {"U-Net: residual blocks", "U-Net: feed-forward", "U-Net: speech and emotion adapters"} <= set(flops.groups)
  # XLA's own count of the program: with additions and the like, without products with the padding of convolutions.
  xla = jax.jit(forward).lower(shapes, inputs).cost_analysis()["flops"]
  assert abs(flops.total / xla - 1) < 0.05
  # Twice the clips are twice the work.
  twice = jax.tree.map(lambda array: np.concatenate([array, array]), inputs)
  assert abs(count_flops(forward, shapes, twice).total / flops.total - 2) < 0.01
  # What is computed anew in the backward pass is no work of the model's.
  plain, again = (
    count_flops(jax.grad(lambda p, i, m=m: m.apply({"params": p}, **i).sum()), shapes, inputs).total
    for m in (module, module.clone(remat=True))
  )
  assert plain < again < 1.5 * plain
  assert 2.5 < plain / flops.total < 3.01


@pytest.fixture
def untraced(monkeypatch):
  """Training steps are not traced: at full size that takes most of a minute."""
  monkeypatch.setattr(outline, "gradient_flops", lambda *of: Flops({"U-Net: feed-forward": 1e12}))


def test_the_release_before_any_run(untraced):
  config = AdaptationConfig(
    weights="nowhere", networks=RELEASED, batches=DiffusionBatchConfig(batch=1, frames=2), size=64
  )
  costs = training_costs(config)
  trained, total = costs.parameters["unet"]
  # The adapters of every cross-attention of the published U-Net; with them it has 1.63 billion parameters.
  assert total == 1_626_859_242 and 0 < trained < total / 10
  assert costs.parameters["emotion_embedder"] == (0, 5_641_728)
  assert costs.memory["optimizer"] == 2 * costs.memory["parameters that train"]
  assert costs.memory["moving average"] == costs.memory["gradients"] == costs.memory["parameters that train"]
  text = str(costs)
  assert "1,626,859,242" in text and "U-Net: feed-forward" in text and "a step takes" in text
  with pytest.raises(WeightsError, match="nowhere"):
    training_costs(AdaptationConfig(weights="nowhere"))


@pytest.mark.parametrize("preset, kind", PRESETS)
def test_presets_are_foretold_before_there_is_data_or_weights(preset, kind, tmp_path, monkeypatch, untraced):
  config = load_preset(pathlib.Path(__file__).parents[2] / "configs" / preset, kind)
  monkeypatch.chdir(tmp_path)
  found = training_costs(config)
  assert found.steps == config.loop.steps and found.memory["batch"] > 0 and "a step takes" in str(found)
  # Where something is there it is to be whole.
  (tmp_path / config.weights).mkdir(parents=True)
  with pytest.raises(WeightsError, match=r"no config\.json"):
    training_costs(config)


@pytest.mark.slow
def test_the_step_of_the_release_is_traced_at_full_size():
  preset = pathlib.Path(__file__).parents[2] / "configs" / "adaptation_512.py"
  flops = training_costs(load_preset(preset, AdaptationConfig)).flops
  # 677 TFLOP a step; the U-Net does nearly all of it.
  assert 5e14 < flops.total < 9e14
  assert sum(count for name, count in flops.groups.items() if name.startswith("U-Net")) > 0.98 * flops.total


def test_the_peak_of_a_cpu_is_what_it_multiplies():
  assert 1e9 < peak_flops(jnp.float32) < 1e14
