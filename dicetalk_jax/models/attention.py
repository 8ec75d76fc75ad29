"""Attention, once for every network: the fastest exact form that the hardware has, never a large score matrix.

Softmax is float32 whatever the inputs are.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

# Block sizes of the blocked form: a block's scores stay in a core's cache on a CPU.
_QUERY_BLOCK, _KEY_BLOCK = 512, 512


def attention(query, key, value, implementation=None):
  """softmax(query keyᵀ / √d) value.

  query (b, n, heads, d), key and value (b, m, heads, d) -> (b, n, heads, d) in the query's dtype.
  implementation: "cudnn" (NVIDIA flash), "splash" (TPU), "blocked" or "plain" (any XLA device); None chooses.
  """
  if key.shape[1] == 1:
    # One key: the softmax is 1 wherever one looks.
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
  """The form that `attention` takes on a backend ("gpu", "tpu" or any other) for arrays, or shapes, like these."""
  n, d, m = query.shape[1], query.shape[3], key.shape[1]
  half = query.dtype in (jnp.bfloat16, jnp.float16)
  if backend == "gpu" and half and d % 8 == 0 and d <= 128:
    return "cudnn"
  if backend == "tpu" and n % 128 == 0 and m % 128 == 0 and n * m >= 1024 * 1024 and d in (64, 128):
    return "splash"
  return "plain" if n * m <= _QUERY_BLOCK * _KEY_BLOCK else "blocked"


def _plain(query, key, value):
  scores = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(scores / math.sqrt(query.shape[-1]), axis=-1)
  return jnp.einsum("bhnm,bmhd->bnhd", weights.astype(value.dtype), value).astype(query.dtype)


def _blocked(query, key, value):
  """Online softmax over key blocks, for one query block after another: memory is linear in n and m."""
  b, n, heads, d = query.shape
  m = key.shape[1]
  query_block, key_block = min(_QUERY_BLOCK, n), min(_KEY_BLOCK, m)
  blocks_n, blocks_m = -(-n // query_block), -(-m // key_block)

  def split(x, blocks, block):
    x = jnp.pad(x, ((0, 0), (0, blocks * block - x.shape[1]), (0, 0), (0, 0)))
    return x.reshape(b, blocks, block, heads, d).transpose(1, 0, 3, 2, 4)  # (blocks, b, heads, block, d)

  queries = split(query * jnp.asarray(1 / math.sqrt(d), query.dtype), blocks_n, query_block)
  keys, values = split(key, blocks_m, key_block), split(value, blocks_m, key_block)
  valid = (jnp.arange(blocks_m * key_block) < m).reshape(blocks_m, key_block)
  padded = blocks_m * key_block != m

  # Both are rematerialised: of one block of queries at a time, what it has made of each block of keys is kept.
  @jax.checkpoint
  def one_query_block(q):
    @jax.checkpoint
    def one_key_block(carry, block):
      highest, total, out = carry
      k, v, is_valid = block
      scores = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32)
      if padded:
        scores = jnp.where(is_valid, scores, -jnp.inf)
      new_highest = jnp.maximum(highest, scores.max(-1))
      weights = jnp.exp(scores - new_highest[..., None])
      shrink = jnp.exp(highest - new_highest)
      total = total * shrink + weights.sum(-1)
      update = jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
      return (new_highest, total, out * shrink[..., None] + update), None

    start = (
      jnp.full(q.shape[:3], -jnp.inf, jnp.float32),
      jnp.zeros(q.shape[:3], jnp.float32),
      jnp.zeros(q.shape, jnp.float32),
    )
    (_, total, out), _ = lax.scan(one_key_block, start, (keys, values, valid))
    return out / total[..., None]

  out = lax.map(one_query_block, queries)  # (blocks, b, heads, block, d)
  out = out.transpose(1, 0, 3, 2, 4).reshape(b, blocks_n * query_block, heads, d)
  return out[:, :n].astype(query.dtype)


def _cudnn(query, key, value):
  return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


# Axes of a mesh that rows and heads lie over, where there is one.
_ROWS, _HEADS = ("data", "fsdp"), "tensor"


def _apart(function):
  """A kernel that the compiler cannot split, run by each device of the mesh on its own rows and heads."""

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
