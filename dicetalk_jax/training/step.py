"""One training step as a pure, compiled function of state and batch."""

import contextlib
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dicetalk_jax.errors import InputError
from dicetalk_jax.parallel.flops import Flops, count_flops
from dicetalk_jax.parallel.mesh import replicated
from dicetalk_jax.training.state import TrainState, merge

LossFn = Callable[[dict, dict, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
Step = Callable[[TrainState, dict], tuple[TrainState, dict[str, jax.Array]]]


def gradient_flops(loss_fn: LossFn, params, frozen, batch) -> Flops:
  """FLOP of a batch, forward and backward to `params`; nothing runs. params, frozen, batch: arrays or their shapes."""

  def gradient(params, frozen, batch, key):
    return jax.grad(lambda params: loss_fn(merge(params, frozen), batch, key)[0])(params)

  return count_flops(gradient, params, frozen, batch, jax.eval_shape(lambda: jax.random.key(0)))


def make_step(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule | None = None,
  ema_decay: float = 0.0,
  accumulate: int = 1,
  state_sharding: TrainState | None = None,
) -> Step:
  """Makes step(state, batch) -> (state, metrics), which donates the state's buffers except the frozen leaves.

  step.lower(state, batch), of arrays or shapes, returns a `jax.stages.Lowered`.

  Args:
    loss_fn: loss_fn(params, batch, key) -> loss (), {name: ()}. params are nested and include the frozen ones.
    optimizer: of `optimizer.make_optimizer`. Where the loss or a gradient is not finite, parameters, optimizer and
      average stay as they are and the step counts as skipped.
    schedule: learning rate by update, for the metrics.
    ema_decay: decay of the average. After n updates it is min(ema_decay, (1 + n) / (10 + n)).
    accumulate: parts of a batch. If more than 1, each array has shape (accumulate, b, ...) and gradients are averaged.
    state_sharding: TrainState of NamedShardings that the new state keeps, `frozen` None; metrics are replicated on
      its mesh. None: the compiler decides.

  The metrics are () float32: loss, grad_norm (before clipping), those of loss_fn, learning_rate, finite, skipped,
  skipped_in_row.
  """
  if accumulate < 1 or not 0 <= ema_decay < 1:
    raise InputError(
      f"optimizer has accumulate {accumulate} and ema_decay {ema_decay}; give at least 1, and a number from 0 up to 1"
    )

  def gradients(params, frozen, batch, key):
    # Differentiate by the trained parameters only: the frozen ones need no gradients and no optimizer state.
    def loss_of(params):
      loss, metrics = loss_fn(merge(params, frozen), batch, key)
      return loss.astype(jnp.float32), metrics

    (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
    return gradient, jax.tree.map(lambda value: value.astype(jnp.float32), {"loss": loss, **metrics})

  def mean_gradients(params, frozen, batches, key):
    def add(total, part):
      i, batch = part
      return jax.tree.map(jnp.add, total, gradients(params, frozen, batch, jax.random.fold_in(key, i))), None

    shapes = jax.eval_shape(gradients, params, frozen, jax.tree.map(lambda leaf: leaf[0], batches), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), batches))
    return jax.tree.map(lambda leaf: leaf / accumulate, total)

  shardings = None if state_sharding is None else (state_sharding, replicated(state_sharding.step.mesh))

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=shardings)
  def advance(state, frozen, batch):
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    gradient, metrics = (gradients if accumulate == 1 else mean_gradients)(state.params, frozen, batch, key)
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    # The optimizer skips gradients that are not finite; a loss that is not finite makes them so.
    gradient = jax.tree.map(lambda leaf: jnp.where(finite, leaf, jnp.nan), gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params, ema = optax.apply_updates(state.params, updates), state.ema
    count = (state.step - state.skipped).astype(jnp.float32)
    if ema is not None:
      decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
      ema = optax.incremental_update(params, ema, jnp.where(finite, 1 - decay, 0))
    new = state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)
    metrics |= {"grad_norm": norm} | ({"learning_rate": schedule(count)} if schedule else {})
    metrics |= {"finite": finite, "skipped": new.skipped, "skipped_in_row": new.skipped_in_row}
    return new, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

  # Attention kernels that the compiler cannot partition by itself ask for the mesh.
  mesh = contextlib.nullcontext if shardings is None else functools.partial(jax.set_mesh, state_sharding.step.mesh)

  def step(state, batch):
    with mesh():
      moved, metrics = advance(state.replace(frozen=None), state.frozen, batch)
    return moved.replace(frozen=state.frozen), metrics

  def lower(state, batch):
    with mesh():
      return advance.lower(state.replace(frozen=None), state.frozen, batch)

  step.lower = lower
  return step
