"""The frozen networks over a stream of clips: batches of one shape across clips, frames decoded ahead of the device."""

import collections
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dicetalk_jax.data.encode.record import EncodedClip, Records, encoding_config
from dicetalk_jax.data.records import Clip, clip_of, decode_frames
from dicetalk_jax.errors import InputError
from dicetalk_jax.files import expanded
from dicetalk_jax.media.audio import CHUNK_SAMPLES, log_mel
from dicetalk_jax.media.image import clip_pixels
from dicetalk_jax.models.vae import ENCODING_PARTS
from dicetalk_jax.vocabulary import DTYPES
from dicetalk_jax.weights.folder import Weights

_NETWORKS = {"all": ("vae", "image_encoder", "audio_encoder"), "audio": ("audio_encoder",)}
# Parts of a network that encode: a set stays valid when the VAE's decoder changes.
_PARTS = {"vae": ENCODING_PARTS}
# Whisper's positions in a chunk of 30 s, at 50 Hz.
_POSITIONS = CHUNK_SAMPLES // 320
# Batches in flight on the device while the next is filled.
_RUNNING = 2


class Encoders:
  """VAE, CLIP and Whisper of a weights folder, replicated over this host's devices with `batch` frames on each.

  what: "all", or "audio" for Whisper only. Raises WeightsError for weights without them, InputError for an unknown
  dtype.
  """

  def __init__(self, weights: Weights, what: str, batch: int, dtype: str | None = None):
    # Several CPU devices would share the same cores.
    on_cpu = jax.default_backend() == "cpu"
    devices = jax.local_devices()[:1] if on_cpu else jax.local_devices()
    self.dtype_name = dtype or ("float32" if on_cpu else "bfloat16")
    if self.dtype_name not in DTYPES:
      raise InputError(f"dtype {dtype} is not supported; choose one of {', '.join(DTYPES)}")
    mesh = Mesh(np.array(devices), ("data",))
    self._rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    self._batch, self._chunks = batch * len(devices), (1 if on_cpu else 4) * len(devices)
    self.fingerprints, self._params, self._modules = {}, {}, {}
    for name in _NETWORKS[what]:
      params = _encoding_part(name, weights.load(name))
      self.fingerprints[name] = fingerprint(params)
      # Sound is encoded in the precision of `inference.pipeline`.
      compute = jnp.dtype("float32" if name == "audio_encoder" else self.dtype_name)
      cast = jax.tree.map(lambda leaf, compute=compute: leaf.astype(compute), params)
      self._params[name], self._modules[name] = jax.device_put(cast, everywhere), weights.module(name, compute)

  @property
  def sizes(self) -> dict[str, int]:
    """Sizes of the encoded arrays, for encoding.json."""
    whisper = self._modules["audio_encoder"]
    sizes = {"audio_layers": whisper.encoder_layers + 1, "audio_width": whisper.d_model}
    if "vae" in self._modules:
      vae, clip = self._modules["vae"], self._modules["image_encoder"]
      sizes |= {"latent_channels": vae.latent_channels, "downscale": vae.downscale}
      sizes["image_embedding"] = clip.projection_dim
    return sizes

  def stream(self, places: Iterable[tuple[Records, int]], reference_every: int, threads: int) -> Iterator[EncodedClip]:
    """Encodes records, each given as (records, number), in order.

    Raises InputError with the file's name for a record that cannot be read, and for frames that cannot be decoded or
    have a size that the VAE cannot encode; all clips before it are yielded first.
    """
    import grain

    batchers = {
      name: Batcher(self._function(name), self._chunks if name == "audio_encoder" else self._batch)
      for name in self._modules
    }
    prepare = functools.partial(self._prepare, reference_every=reference_every, sizes=self.sizes)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    running: collections.deque[_Encoding] = collections.deque()
    failure = None
    try:
      for encoding, inputs in grain.MapDataset.source(list(places)).map(prepare).to_iter_dataset(options):
        running.append(encoding)
        for network, names, rows, array in inputs:
          batchers[network].put(array, functools.partial(encoding.take, names, rows))
        while running and not running[0].missing:
          yield running.popleft().result()
    except InputError as error:
      failure = error
    # The clips before a damaged one are finished first.
    for batcher in batchers.values():
      batcher.finish()
    for encoding in running:
      yield encoding.result()
    if failure:
      raise failure

  def _prepare(self, place: tuple[Records, int], reference_every: int, sizes: dict) -> tuple["_Encoding", list[tuple]]:
    """A clip with room for its results, and the inputs of the networks: (network, names of results, rows, array)."""
    records, number = place
    clip = clip_of(records[number])
    where, n = f"{records.file_of(number)}, clip {clip.clip}", clip.num_frames
    mel = log_mel(clip.audio, {"num_mel_bins": self._modules["audio_encoder"].num_mel_bins})
    arrays = {"states": np.empty((2 * n, sizes["audio_layers"], sizes["audio_width"]), np.float16)}
    inputs = [
      ("audio_encoder", ["states"], slice(_POSITIONS * i, _POSITIONS * (i + 1)), chunk) for i, chunk in enumerate(mel)
    ]
    if "vae" not in self._modules:
      return _Encoding(clip, arrays, len(inputs)), inputs
    downscale = sizes["downscale"]
    if clip.height % downscale or clip.width % downscale:
      raise InputError(
        f"{where}: its frames are {clip.width}x{clip.height} pixels, and the VAE needs multiples of {downscale}; build "
        "the set at another size"
      )
    try:
      frames = decode_frames(clip.frames)
    except InputError as error:
      raise InputError(f"{where}: {error}") from error
    if frames.shape != (n, clip.height, clip.width, 3):
      raise InputError(f"{where}: its frames are {frames.shape}, unlike its labels; build the set again")
    reference = np.arange(0, n, reference_every, dtype=np.int32)
    moments = ["latents_mean", "latents_logvar"]
    latents = (n, clip.height // downscale, clip.width // downscale, sizes["latent_channels"])
    arrays |= {name: np.empty(latents, np.float16) for name in moments} | {"reference_index": reference}
    arrays["image_embedding"] = np.empty((len(reference), sizes["image_embedding"]), np.float16)
    inputs += [("vae", moments, i, frame) for i, frame in enumerate(frames)]
    inputs += [("image_encoder", ["image_embedding"], i, clip_pixels(frames[k])) for i, k in enumerate(reference)]
    return _Encoding(clip, arrays, len(inputs)), inputs

  def _function(self, name: str) -> Callable[[np.ndarray], tuple]:
    module, params = self._modules[name], self._params[name]
    precision = "highest" if module.dtype == jnp.float32 else "default"

    def apply(batch):
      with jax.default_matmul_precision(precision):
        return _results(module, params, jax.device_put(batch, self._rows))

    return apply


@functools.partial(jax.jit, static_argnums=0)
def _results(module, params, batch) -> tuple:
  """What a network makes of its inputs, float16: of frames (b, h, w, 3) uint8 the mean and log-variance of the VAE."""
  if batch.dtype == jnp.uint8:
    results = module.apply({"params": params}, batch.astype(jnp.float32) / 255 * 2 - 1, method="encode")
  else:
    results = (module.apply({"params": params}, batch),)
  return tuple(result.astype(jnp.float16) for result in results)


@dataclasses.dataclass
class _Encoding:
  """A clip whose results arrive one by one; `missing` counts the outstanding ones."""

  clip: Clip
  arrays: dict[str, np.ndarray]
  missing: int

  def take(self, names, rows: int | slice, *results):
    for name, result in zip(names, results, strict=True):
      target = self.arrays[name][rows]
      # The last chunk of sound is longer than the clip.
      target[:] = result[: len(target)]
    self.missing -= 1

  def result(self) -> EncodedClip:
    clip, example = self.clip, self.clip.example()
    names = ("clip", "source", "split", "identity", "video", "sentence", "expression", "truth", "emotion")
    return EncodedClip(
      **{name: example[name] for name in names},
      level=clip.level,
      num_frames=clip.num_frames,
      height=clip.height,
      width=clip.width,
      face_box=clip.face_box,
      **self.arrays,
    )


class Batcher:
  """Applies a function to rows in batches of one shape, and calls each row's `taker` with its results."""

  def __init__(self, function: Callable[[np.ndarray], tuple], batch: int):
    self._function, self._batch = function, batch
    self._rows, self._takers = [], []
    self._running = collections.deque()

  def put(self, row: np.ndarray, taker: Callable) -> None:
    if self._rows and self._rows[0].shape != row.shape:
      # Run the rows of the other shape now: more of them may come late or never.
      self._run()
    self._rows.append(row)
    self._takers.append(taker)
    if len(self._rows) == self._batch:
      self._run()

  def finish(self) -> None:
    if self._rows:
      self._run()
    while self._running:
      self._collect()

  def _run(self):
    rows = np.stack(self._rows + [self._rows[-1]] * (self._batch - len(self._rows)))
    self._running.append((self._function(rows), self._takers))
    self._rows, self._takers = [], []
    while len(self._running) > _RUNNING:
      self._collect()

  def _collect(self):
    results, takers = self._running.popleft()
    for taker, *row in zip(takers, *map(np.asarray, results), strict=False):
      taker(*row)


def check_encoded_with(
  weights: Weights, folders: Iterable[str | os.PathLike], networks: Sequence[str] = _NETWORKS["all"]
) -> None:
  """Raises InputError for an encoded folder that was made with other `networks` than those of `weights`.

  A folder without encoding.json is accepted. Reads each network that weights and folders share.
  """
  ours = {}
  for folder in folders:
    folder = expanded(folder, "data set")
    made_with = (encoding_config(folder) or {}).get("networks", {})
    for name in networks:
      if name in made_with and name in weights.config["networks"]:
        if name not in ours:
          ours[name] = fingerprint(_encoding_part(name, weights.arrays(name)))
        if made_with[name] != ours[name]:
          raise InputError(
            f"{folder} was encoded with another {name.replace('_', ' ')} than that of {weights.folder}; give the "
            "weights that it was encoded with, or encode it again"
          )


def _encoding_part(name: str, params: Mapping) -> Mapping:
  return {part: params[part] for part in _PARTS[name]} if name in _PARTS else params


def fingerprint(params: Mapping) -> str:
  """A hash of nested parameters, independent of their layout on disk."""
  digest = hashlib.sha256()
  for path, leaf in sorted(flatten_dict(params, sep="/").items()):
    array = np.ascontiguousarray(leaf)
    digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
    digest.update(array.view(np.uint8).data)
  return digest.hexdigest()[:16]
