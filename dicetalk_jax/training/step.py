"""One step of training as a pure, compiled function of state and batch."""

import contextlib
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dicetalk_jax.errors import InputError
from dicetalk_jax.parallel.mesh import replicated
from dicetalk_jax.training.state import TrainState, merge

LossFn = Callable[[dict, dict, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
Step = Callable[[TrainState, dict], tuple[TrainState, dict[str, jax.Array]]]


def make_step(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule | None = None,
  ema_decay: float = 0.0,
  accumulate: int = 1,
  state_sharding: TrainState | None = None,
) -> Step:
  """step(state, batch) -> state, metrics; the state that is given is given away, but for its frozen leaves.

  step.lower(state, batch), of arrays or shapes, is `jax.stages.Lowered`, to look at and to compile ahead.

  loss_fn(params, batch, key) -> loss (), {name: ()}; params nested, what is frozen among them. accumulate > 1: each
  array of the batch has so many parts in front, (accumulate, b, ...), and their gradients are averaged. Where loss or
  gradients are not finite, parameters, optimizer and average stay as they were, and the step is counted as skipped.
  state_sharding: a TrainState of NamedShardings that the new state keeps to, frozen None, on whose mesh metrics are
  replicated; None leaves it to the compiler.

  metrics, all () float32: loss, grad_norm before clipping, what loss_fn adds, learning_rate where there is a schedule,
  finite, skipped, skipped_in_row. The average's decay after n updates is min(ema_decay, (1 + n) / (10 + n)).
  """
  if accumulate < 1 or not 0 <= ema_decay < 1:
    raise InputError(
      f"accumulate {accumulate} and ema_decay {ema_decay} cannot be used: the first is at least 1, the second from 0 "
      "up to 1"
    )

  def gradients(params, frozen, batch, key):
    # Differentiated by what trains alone: optimizer and memory know of nothing else.
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
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params, ema = optax.apply_updates(state.params, updates), state.ema
    taken = (state.step - state.skipped).astype(jnp.float32)
    if ema is not None:
      decay = jnp.minimum(ema_decay, (1 + taken) / (10 + taken))
      ema = jax.tree.map(lambda mean, leaf: decay * mean + (1 - decay) * leaf, ema, params)

    moved = (params, opt_state, ema)
    kept = (state.params, state.opt_state, state.ema)
    params, opt_state, ema = jax.tree.map(functools.partial(jnp.where, finite), moved, kept)
    metrics |= {"grad_norm": norm} | ({"learning_rate": schedule(taken)} if schedule else {})
    new = state.replace(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      ema=ema,
      skipped=state.skipped + ~finite,
      skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
    )
    metrics |= {"finite": finite, "skipped": new.skipped, "skipped_in_row": new.skipped_in_row}
    return new, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

  # Kernels that the compiler cannot split by itself ask for it.
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
