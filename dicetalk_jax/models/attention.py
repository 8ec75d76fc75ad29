"""Attention for all networks: the fastest exact implementation on the hardware, without a large score matrix.

Softmax is float32 whatever the inputs are.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

# Block sizes of the blocked form. On a CPU the scores of a block fit a core's cache.
_QUERY_BLOCK, _KEY_BLOCK = 512, 512
_CUDNN_SCORES = 64 * 64


def attention(query, key, value, implementation=None):
  """softmax(query keyᵀ / √d) value.

  query (b, n, heads, d), key and value (b, m, heads, d) -> (b, n, heads, d) in the query's dtype.
  implementation: "cudnn" (NVIDIA flash), "splash" (TPU), "blocked" or "plain" (any XLA device); None chooses.
  """
  if key.shape[1] == 1:
    # One key: the softmax is 1.
    return jnp.broadcast_to(value, query.shape).astype(query.dtype)
  implementation = implementation or choose_implementation(query, key, _backend())
  return _IMPLEMENTATIONS[implementation](query, key, value)


def _backend() -> str:
  """The platform of the default device; "gpu" only where cuDNN's flash attention exists: NVIDIA, Ampere or newer."""
  device = jax.config.jax_default_device
  device = device if isinstance(device, jax.Device) else jax.devices(device)[0]
  if device.platform != "gpu":
    return device.platform
  nvidia = "cuda" in device.client.platform_version
  return "gpu" if nvidia and float(device.compute_capability) >= 8 else "other"


def choose_implementation(query, key, backend: str) -> str:
  """The implementation for a backend ("gpu", "tpu" or another) and arrays, or shapes, like these."""
  n, d, m = query.shape[1], query.shape[3], key.shape[1]
  half = query.dtype in (jnp.bfloat16, jnp.float16)
  # cuDNN has no gradient for odd lengths. For short ones, as over time, the scores are smaller than query and key.
  if backend == "gpu" and half and d % 8 == 0 and d <= 128 and n % 2 == m % 2 == 0 and n * m >= _CUDNN_SCORES:
    return "cudnn"
  if backend == "tpu" and n % 128 == 0 and m % 128 == 0 and n * m >= 1024 * 1024 and d in (64, 128):
    return "splash"
  return "plain" if n * m <= _QUERY_BLOCK * _KEY_BLOCK else "blocked"


def _plain(query, key, value):
  scores = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(scores / math.sqrt(query.shape[-1]), axis=-1)
  return jnp.einsum("bhnm,bmhd->bnhd", weights.astype(value.dtype), value).astype(query.dtype)


@jax.custom_vjp
def _blocked(query, key, value):
  """Online softmax over key blocks, one query block after another (Dao et al. 2022): memory is linear in n and m."""
  return _blocked_forward(query, key, value)[0]


def _blocked_forward(query, key, value):
  n, d = query.shape[1], query.shape[3]
  queries = _split(query * jnp.asarray(1 / math.sqrt(d), query.dtype), _QUERY_BLOCK)
  blocks = _key_blocks(key, value)

  def one_query_block(q):
    def one_key_block(carry, block):
      highest, total, out = carry
      scores = _scores(q, block)
      new_highest = jnp.maximum(highest, scores.max(-1))
      weights = jnp.exp(scores - new_highest[..., None])
      shrink = jnp.exp(highest - new_highest)
      update = _product("bhnm,bhmd->bhnd", weights, block.value)
      return (new_highest, total * shrink + weights.sum(-1), out * shrink[..., None] + update), None

    start = (
      jnp.full(q.shape[:3], -jnp.inf, jnp.float32),
      jnp.zeros(q.shape[:3], jnp.float32),
      jnp.zeros(q.shape, jnp.float32),
    )
    (highest, total, out), _ = lax.scan(one_key_block, start, blocks)
    return out / total[..., None], highest + jnp.log(total)

  out, log_total = lax.map(one_query_block, queries)
  out = _joined(out, n).astype(query.dtype)
  return out, (query, key, value, out, log_total)


def _blocked_backward(residuals, gradient):
  query, key, value, out, log_total = residuals
  scale = 1 / math.sqrt(query.shape[3])
  queries = _split(query * jnp.asarray(scale, query.dtype), _QUERY_BLOCK)
  gradients, outs = (_split(x, _QUERY_BLOCK) for x in (gradient, out))
  # Σ over keys of weight times gradient of weight.
  of_weights = (gradients.astype(jnp.float32) * outs.astype(jnp.float32)).sum(-1)
  blocks = _key_blocks(key, value)

  def one_query_block(sums, block):
    q, g, log_total, of_weights = block

    def one_key_block(d_query, block):
      weights = jnp.exp(_scores(q, block) - log_total[..., None])
      d_scores = weights * (_product("bhnd,bhmd->bhnm", g, block.value) - of_weights[..., None])
      d_key, d_value = _product("bhnm,bhnd->bhmd", d_scores, q), _product("bhnm,bhnd->bhmd", weights, g)
      return d_query + _product("bhnm,bhmd->bhnd", d_scores, block.key), (d_key, d_value)

    d_query, gradients = lax.scan(one_key_block, jnp.zeros(q.shape, jnp.float32), blocks)
    return jax.tree.map(jnp.add, sums, gradients), d_query

  nothing = jnp.zeros(blocks.key.shape, jnp.float32)
  (d_key, d_value), d_query = lax.scan(one_query_block, (nothing, nothing), (queries, gradients, log_total, of_weights))
  d_query = scale * _joined(d_query, query.shape[1])
  d_key, d_value = (_joined(x, key.shape[1]) for x in (d_key, d_value))
  return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype)


_blocked.defvjp(_blocked_forward, _blocked_backward)


class _KeyBlocks(NamedTuple):
  """key and value (blocks, b, heads, block, d), and which rows are not padding (blocks, block)."""

  key: jax.Array
  value: jax.Array
  valid: jax.Array


def _key_blocks(key, value):
  keys, values = (_split(x, _KEY_BLOCK) for x in (key, value))
  blocks, block = len(keys), keys.shape[3]
  return _KeyBlocks(keys, values, (jnp.arange(blocks * block) < key.shape[1]).reshape(blocks, block))


def _split(x, block):
  """(b, n, heads, d) -> (blocks, b, heads, block, d), with zeros at the end."""
  b, n, heads, d = x.shape
  block = min(block, n)
  blocks = -(-n // block)
  x = jnp.pad(x, ((0, 0), (0, blocks * block - n), (0, 0), (0, 0)))
  return x.reshape(b, blocks, block, heads, d).transpose(1, 0, 3, 2, 4)


def _joined(x, n):
  """(blocks, b, heads, block, d) -> (b, n, heads, d)."""
  blocks, b, heads, block, d = x.shape
  return x.transpose(1, 0, 3, 2, 4).reshape(b, blocks * block, heads, d)[:, :n]


def _scores(q, block):
  return jnp.where(block.valid, _product("bhnd,bhmd->bhnm", q, block.key), -jnp.inf)


def _product(form, x, y):
  """In the dtype of y, which is that of query, key or value; summed in float32."""
  return jnp.einsum(form, x.astype(y.dtype), y, preferred_element_type=jnp.float32)


def _cudnn(query, key, value):
  return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


# Mesh axes of the batch and of heads.
_ROWS, _HEADS = ("data", "fsdp"), "tensor"


def _apart(function):
  """Runs a kernel that the compiler cannot partition on each device's rows and heads."""

  @functools.wraps(function)
  def run(query, key, value, **options):
    mesh = jax.sharding.get_abstract_mesh()
    rows = tuple(axis for axis in _ROWS if axis in mesh.shape)
    if mesh.empty or mesh.size == 1 or len(query) % math.prod(mesh.shape[axis] for axis in rows):
      return function(query, key, value, **options)
    heads = _HEADS if _HEADS in mesh.shape and query.shape[2] % mesh.shape[_HEADS] == 0 else None
    spec = PartitionSpec(rows, None, heads, None)
    whole = functools.partial(function, **options)
    return jax.shard_map(whole, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(query, key, value)

  return run


@_apart
def _splash(query, key, value, interpret=False):
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

  n, m, heads = query.shape[1], key.shape[1], query.shape[2]
  mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((n, m))] * heads)
  kernel = splash_attention_kernel.make_splash_mha(mask, head_shards=1, q_seq_shards=1, interpret=interpret)
  scaled = query * jnp.asarray(1 / math.sqrt(query.shape[-1]), query.dtype)
  out = jax.vmap(kernel)(*(x.transpose(0, 2, 1, 3) for x in (scaled, key, value)))  # (b, heads, n, d)
  return out.transpose(0, 2, 1, 3).astype(query.dtype)


_IMPLEMENTATIONS = {
  "plain": _plain,
  "blocked": _blocked,
  "cudnn": _cudnn,
  "splash": _splash,
  "splash-interpreted": functools.partial(_splash, interpret=True),
}
