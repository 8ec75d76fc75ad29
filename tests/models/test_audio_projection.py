"""The audio projection against the golden tokens."""

import jax
import jax.numpy as jnp
from conftest import draw, golden, relative_error, stand_in
from state_dicts import to_flax

from dicetalk_jax.models.audio_projection import AudioProjection
from dicetalk_jax.weights.release.tables import AUDIO_PROJECTION


def test_golden():
  projection = AudioProjection()
  windows = draw("ae", (1, 2, 10, 5, 384))
  target = jax.eval_shape(projection.init, jax.random.key(0), windows)["params"]
  params = {"params": to_flax(AUDIO_PROJECTION, stand_in("audio_linear"), target)}
  tokens = jax.jit(projection.apply)(params, windows)
  assert relative_error(tokens, golden("audio_linear")["out"]) <= 2e-5
  # Each frame alone, without the leading axis.
  assert relative_error(projection.apply(params, windows[0]), tokens[0]) <= 1e-6


def test_sizes():
  projection = AudioProjection(hidden=7, num_tokens=3, features=5)
  tokens, variables = projection.init_with_output(jax.random.key(0), jnp.ones((2, 4, 3, 6)))
  assert tokens.shape == (2, 3, 5)
  assert variables["params"]["proj1"]["kernel"].shape == (4 * 3 * 6, 7)
