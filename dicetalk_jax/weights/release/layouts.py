"""The released layout: which file holds which network, under what names, and what architecture it is."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.weights.networks import TABLES, network_shapes
from dicetalk_jax.weights.release.engine import Entry, plan
from dicetalk_jax.weights.release.readers import TORCH_SUFFIXES, CheckpointFile, Spec, open_checkpoint
from dicetalk_jax.weights.store import check_sampler, read_json

SVD = "stable-video-diffusion-img2vid-xt"
OWN = "DICE-Talk"
WHISPER = "whisper-tiny"
PRIOR_FOLDERS = ("emotion_priors", f"{OWN}/emotion_priors", "examples/emo")
# What a weights folder's config.json says besides architectures, and where it is from.
SETTINGS = {
  "sampler": f"{SVD}/scheduler/scheduler_config.json",
  "image_processor": f"{SVD}/feature_extractor/preprocessor_config.json",
  "audio_processor": f"{WHISPER}/preprocessor_config.json",
  # How the embedder was trained; not published.
  "emotion_embedder": f"{OWN}/emotion_embedder_settings.json",
}
DOCUMENTS = (*SETTINGS.values(), f"{SVD}/model_index.json", f"{WHISPER}/generation_config.json")
OVERLAY_SUFFIX = ".pth"
# What of the emotion model leaves no trace in shapes, as released; other values are said in a file of ours beside it.
EMOTION_MODEL_FILE = f"{OWN}/emo_model.json"
EMOTION_MODEL_AS_RELEASED = {"num_heads": 8, "conditioning": "bank"}
_SAFETENSORS = ".safetensors"
_FLOATS = ("float16", "bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Part:
  """Where a network is: `folder`/`stems`, `config` beside it, if it has such; `overlay`: laid over it.

  written: the file that weights without a source go to. published: otherwise a release may lack it.
  """

  network: str
  folder: str
  stems: tuple[str, ...]
  written: str
  config: str | None = None
  overlay: str | None = None
  published: bool = True

  @property
  def config_path(self) -> str:
    return f"{self.folder}/{self.config}"

  @property
  def suffix(self) -> str:
    return pathlib.PurePath(self.written).suffix


_DIFFUSERS, _TRANSFORMERS = ("diffusion_pytorch_model",), ("model", "pytorch_model")
PARTS = (
  Part("unet", f"{SVD}/unet", _DIFFUSERS, "diffusion_pytorch_model.safetensors", config="config.json", overlay="unet"),
  Part("vae", f"{SVD}/vae", _DIFFUSERS, "diffusion_pytorch_model.safetensors", config="config.json"),
  Part("image_encoder", f"{SVD}/image_encoder", _TRANSFORMERS, "model.safetensors", config="config.json"),
  Part("audio_encoder", WHISPER, _TRANSFORMERS, "model.safetensors", config="config.json"),
  Part("audio_projection", OWN, ("audio_linear",), "audio_linear.pth"),
  Part("pose_guider", OWN, ("pose_guider",), "pose_guider.pth"),
  Part("emotion_model", OWN, ("emo_model",), "emo_model.pth"),
  Part("frame_interpolator", "RIFE", ("flownet",), "flownet.pkl"),
  Part(
    "emotion_embedder",
    OWN,
    ("emotion_embedder",),
    "emotion_embedder.pth",
    config="emotion_embedder.json",
    published=False,
  ),
)
# What each config.json may say; a key beyond these asks for something that our networks do not do.
_KNOWN_KEYS = {
  "unet": {
    *("sample_size", "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels"),
    *("addition_time_embed_dim", "projection_class_embeddings_input_dim", "layers_per_block", "cross_attention_dim"),
    *("transformer_layers_per_block", "num_attention_heads", "num_frames"),
  },
  "vae": {
    *("in_channels", "out_channels", "down_block_types", "block_out_channels", "layers_per_block", "latent_channels"),
    *("sample_size", "scaling_factor", "force_upcast"),
  },
  "emotion_embedder": {
    *("features", "expression_features", "speech_features", "num_layers", "num_fusion_layers", "num_heads", "mlp"),
    *("dropout_rate", "fusion_scale", "inputs"),
  },
}
_KIND = {
  "unet": ("_class_name", "UNetSpatioTemporalConditionModel"),
  "vae": ("_class_name", "AutoencoderKLTemporalDecoder"),
  "image_encoder": ("model_type", "clip_vision_model"),
  "audio_encoder": ("model_type", "whisper"),
}


def is_adapter(key: str) -> bool:
  """Whether a U-Net tensor is one that Stable Video Diffusion does not have."""
  return "_ip." in key


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of the release: the file it is in, its name there, and `entry` where it goes (None: not used)."""

  file: int
  key: str
  spec: Spec
  entry: Entry | None


@dataclasses.dataclass(frozen=True)
class Network:
  """A network of a release: its architecture and its tensors in the order of the files."""

  name: str
  config: dict
  tensors: list[Tensor]


@dataclasses.dataclass(frozen=True)
class Release:
  """A folder in the released layout, opened and checked: every tensor has its place."""

  folder: pathlib.Path
  files: list[CheckpointFile]
  networks: list[Network]
  documents: dict[str, str]

  def relative(self, file: int) -> str:
    return self.files[file].path.relative_to(self.folder).as_posix()

  def document(self, path: str) -> dict:
    """A JSON document of the release, empty where it has none."""
    return json.loads(self.documents[path]) if path in self.documents else {}


def open_release(folder: pathlib.Path) -> Release:
  """Finds every network in `folder`, reads its architecture and plans where each tensor goes.

  Raises WeightsError for anything missing, damaged, unknown or of a wrong shape.
  """
  if not folder.is_dir():
    raise WeightsError(f"{folder} is not a folder; wanted one in the released layout, with {OWN}/, {SVD}/ and others.")
  release = Release(folder, [], [], {})
  for path in DOCUMENTS:
    _add_document(release, folder / path)
  check_sampler(release.document(SETTINGS["sampler"]), folder / SETTINGS["sampler"])
  for part in PARTS:
    if part.published or _located(release, part.folder, part.stems, part.suffix):
      release.networks.append(_open_network(release, part))
  return release


def _open_network(release: Release, part: Part) -> Network:
  table = TABLES[part.network]
  groups = [_find(release, part.folder, part.stems, part.suffix)]
  if part.overlay:
    groups.append(_find(release, OWN, (part.overlay,), OVERLAY_SUFFIX))

  specs: dict[str, Spec] = {}
  last: dict[str, int] = {}
  for number in itertools.chain(*groups):
    file = release.files[number]
    for key, spec in file.specs.items():
      if table.rule(key, str(file.path)).flax is not None and spec.dtype not in _FLOATS:
        raise WeightsError(f"{file.path}: tensor '{key}' is {spec.dtype}; wanted one of {', '.join(_FLOATS)}.")
      # The last file that has a name fills the parameter.
      specs[key], last[key] = spec, number

  paths = " over ".join(str(release.files[files[0]].path) for files in reversed(groups))
  config = _architecture(release, part, specs, paths)
  shapes = {key: spec.shape for key, spec in specs.items()}
  try:
    target = network_shapes(part.network, config)
  except WeightsError as error:
    described = release.folder / part.config_path if part.config else paths
    raise WeightsError(f"{described}: {error}") from None
  entries = {entry.key: entry for entry in plan(table, shapes, target, paths)}
  tensors = [
    Tensor(number, key, spec, entries[key] if last[key] == number and entries[key].path else None)
    for number in itertools.chain(*groups)
    for key, spec in release.files[number].specs.items()
  ]
  return Network(part.network, config, tensors)


def candidates(stems: Sequence[str], suffix: str) -> Iterator[tuple[str, bool]]:
  """(file name, whether it is the index of shards) that a network may be under, the preferred first.

  suffix: of the published file, which is taken before others. And .fp16 is taken before full precision, for it is what
  the release runs.
  """
  for ending in dict.fromkeys((suffix, _SAFETENSORS, *TORCH_SUFFIXES)):
    for variant in (".fp16", ""):
      for stem in stems:
        yield f"{stem}{variant}{ending}", False
        yield f"{stem}{variant}{ending}.index.json", True
        yield f"{stem}{ending}.index{variant}.json", True


def shards(index: pathlib.Path) -> dict[str, str]:
  """Tensor name -> file name beside the index; WeightsError where it does not say so."""
  where = read_json(index).get("weight_map")
  if not isinstance(where, dict) or not where or any(pathlib.PurePath(str(n)).name != n for n in where.values()):
    raise WeightsError(f"{index} has no weight_map of tensor names to the names of files beside it.")
  return where


def _find(release: Release, folder: str, stems: Sequence[str], suffix: str) -> list[int]:
  """Opens the file, or the shards of an index, that hold a network; their numbers in `release.files`."""
  if found := _located(release, folder, stems, suffix):
    path, is_index = found
    return _open_shards(release, path) if is_index else [_open(release, path)]
  raise WeightsError(
    f"{release.folder} has no {folder}/{stems[0]}{suffix} (nor with .fp16, in shards or with another of the suffixes "
    f"{_SAFETENSORS}, {', '.join(TORCH_SUFFIXES)}); `dicetalk download` fetches the released files."
  )


def _located(release: Release, folder: str, stems: Sequence[str], suffix: str) -> tuple[pathlib.Path, bool] | None:
  """The file of a network and whether it is an index of shards."""
  for name, is_index in candidates(stems, suffix):
    if (path := release.folder / folder / name).is_file():
      return path, is_index
  return None


def _open(release: Release, path: pathlib.Path) -> int:
  try:
    release.files.append(open_checkpoint(path))
  except OSError as error:
    raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from None
  return len(release.files) - 1


def _open_shards(release: Release, index: pathlib.Path) -> list[int]:
  where = shards(index)
  numbers = {}
  for name in dict.fromkeys(where.values()):
    if not (index.parent / name).is_file():
      raise WeightsError(f"{index} names {name}, which is not there; download or copy it again.")
    numbers[name] = _open(release, index.parent / name)
  for key, name in where.items():
    if key not in release.files[numbers[name]].specs:
      raise WeightsError(f"{index} says that {name} holds tensor '{key}', but it does not.")
  _add_document(release, index)
  return list(numbers.values())


def _add_document(release: Release, path: pathlib.Path) -> None:
  if path.is_file():
    read_json(path)
    release.documents[path.relative_to(release.folder).as_posix()] = path.read_text(encoding="utf-8")


def _architecture(release: Release, part: Part, specs: Mapping[str, Spec], source: str) -> dict:
  """The configuration that `networks.build` takes, from config.json or from shapes."""

  def shape(key, rank):
    if key not in specs:
      raise WeightsError(f"{source}: tensor '{key}' of the {part.network} is missing; is this another model's file?")
    if len(specs[key].shape) != rank:
      raise WeightsError(f"{source}: tensor '{key}' has shape {specs[key].shape}, wanted {rank} axes.")
    return specs[key].shape

  if part.config:
    path = release.folder / part.config_path
    config = read_json(path)
    _check_config(part.network, config, path)
    _add_document(release, path)
    if part.network == "unet":
      # A release without adapters is told which ones it lacks.
      adapters = {int(key.split("_ip.")[1].split(".")[0]) for key in specs if is_adapter(key)} or {0, 1}
      config |= {"adapter_scales": [1.0] * (max(adapters) + 1)}
    return config
  module = "module." if any(key.startswith("module.") for key in specs) else ""
  readers: dict[str, Callable] = {
    "audio_projection": _audio_projection,
    "pose_guider": _pose_guider,
    "emotion_model": _emotion_model,
    "frame_interpolator": lambda shape: {"features": shape(f"{module}block0.convblock0.0.0.weight", 4)[0]},
  }
  whisper = next((network.config for network in release.networks if network.name == "audio_encoder"), None)
  arguments = {"audio_projection": (whisper,), "pose_guider": (specs,), "emotion_model": (release,)}
  try:
    return readers[part.network](shape, *arguments.get(part.network, ()))
  except ValueError as error:
    raise WeightsError(f"{source}: {error}.") from None


def _check_config(network: str, config: Mapping, path: pathlib.Path) -> None:
  key, kind = _KIND.get(network, ("", None))
  if config.get(key, kind) != kind:
    raise WeightsError(f"{path} is of a {config[key]}, wanted {kind}.")
  if network in _KNOWN_KEYS:
    asked = [k for k, v in config.items() if not k.startswith("_") and k not in _KNOWN_KEYS[network] and v is not None]
    if asked:
      raise WeightsError(f"{path} asks for {', '.join(asked)}, which this {network} does not do.")


def _tokens(shape: Callable, prefix: str = "") -> dict:
  """The sizes of a token projection."""
  features = shape(f"{prefix}norm.weight", 1)[0]
  hidden, outputs = shape(f"{prefix}proj1.weight", 2)[0], shape(f"{prefix}proj3.weight", 2)[0]
  if outputs % features:
    raise ValueError(f"{prefix}proj3 has {outputs} outputs, which is no number of tokens of {features}")
  return {"hidden": hidden, "num_tokens": outputs // features, "features": features}


def _audio_projection(shape: Callable, whisper: Mapping) -> dict:
  inputs, states = shape("proj1.weight", 2)[1], whisper["encoder_layers"] + 1
  if inputs % (states * whisper["d_model"]):
    raise ValueError(
      f"proj1 has {inputs} inputs, which is no number of positions of the audio encoder's {states}×{whisper['d_model']}"
    )
  window = inputs // (states * whisper["d_model"])
  return _tokens(shape) | {"window": window, "states": states, "d_model": whisper["d_model"]}


def _pose_guider(shape: Callable, specs: Mapping) -> dict:
  convolutions = sum(key.startswith("blocks.") and key.endswith(".weight") for key in specs)
  widening = [shape(f"blocks.{i}.weight", 4)[0] for i in range(1, convolutions, 2)]
  return {"features": shape("conv_out.weight", 4)[0], "block_features": [shape("conv_in.weight", 4)[0], *widening]}


def _emotion_model(shape: Callable, release: Release) -> dict:
  said = {"num_heads": EMOTION_MODEL_AS_RELEASED["num_heads"]}
  if (path := release.folder / EMOTION_MODEL_FILE).is_file():
    said |= read_json(path)
    if unknown := [name for name in said if name not in EMOTION_MODEL_AS_RELEASED]:
      raise WeightsError(f"{path} says {', '.join(unknown)}, which is nothing that it decides.")
    _add_document(release, path)
  return (
    said
    | _tokens(shape, "emo_linear.")
    | {
      "prior_dim": shape("emo_linear.proj1.weight", 2)[1],
      "num_codes": shape("codebook.codebook.weight", 2)[0],
      "mid_features": shape("classifier.fc1.weight", 2)[1],
      "num_classes": shape("classifier.fc3.weight", 2)[0],
    }
  )
