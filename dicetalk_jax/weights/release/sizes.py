"""The architecture of a released network, read from its JSON document or from tensor shapes, and written back."""

import dataclasses
from collections.abc import Callable, Mapping

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.weights.tensors import Shapes


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A network's files before its architecture is known.

  where: names of the files for error messages. specs: tensor name -> shape and dtype. document: the network's JSON
  document, empty if it has none. document_path: its path for error messages. others: architectures of the networks
  that come before this one in the registry.
  """

  network: str
  where: str
  specs: Shapes
  document: Mapping
  document_path: str
  others: Mapping[str, Mapping]

  def shape(self, key: str, rank: int) -> tuple[int, ...]:
    """The shape of tensor `key`; WeightsError if it is missing or does not have `rank` axes."""
    if key not in self.specs:
      raise WeightsError(
        f"{self.where}: tensor '{key}' of the {self.network} is missing; is this another model's file?"
      )
    if len(self.specs[key].shape) != rank:
      raise WeightsError(f"{self.where}: tensor '{key}' has shape {self.specs[key].shape}; {rank} axes are required.")
    return self.specs[key].shape


Reader = Callable[[Checkpoint], dict]


def from_document(kind: tuple[str, str] | None = None, keys: str | None = None) -> Reader:
  """Takes the JSON document as the architecture.

  kind: a key and the value that it must have where it is present. keys: all keys that the document may have; others
  ask for something that the network does not do.
  """

  def read(checkpoint):
    document, path = dict(checkpoint.document), checkpoint.document_path
    if kind and document.get(kind[0], kind[1]) != kind[1]:
      raise WeightsError(f"{path} is of a {document[kind[0]]}; {kind[1]} is required.")
    if keys is not None:
      known = keys.split()
      if other := [k for k, v in document.items() if not k.startswith("_") and k not in known and v is not None]:
        raise WeightsError(f"{path} asks for {', '.join(other)}, which this {checkpoint.network} does not do.")
    return document

  return read


_unet_document = from_document(
  ("_class_name", "UNetSpatioTemporalConditionModel"),
  "sample_size in_channels out_channels down_block_types up_block_types block_out_channels addition_time_embed_dim "
  "projection_class_embeddings_input_dim layers_per_block cross_attention_dim transformer_layers_per_block "
  "num_attention_heads num_frames norm_num_groups adapter_scales",
)


def unet(checkpoint: Checkpoint) -> dict:
  """The document and one scale of 1 for each adapter, unless the document has other scales."""
  config = _unet_document(checkpoint)
  # Without any adapter, two are assumed, so that the error names the missing tensors.
  adapters = {int(key.split("_ip.")[1].split(".")[0]) for key in checkpoint.specs if "_ip." in key} or {0, 1}
  return config | {"adapter_scales": config.get("adapter_scales") or [1.0] * (max(adapters) + 1)}


def unet_document(config: Mapping) -> dict:
  """As diffusers has it: adapter scales are left out if all are 1."""
  released = all(scale == 1 for scale in config["adapter_scales"])
  return {key: value for key, value in config.items() if key != "adapter_scales" or not released}


vae = from_document(
  ("_class_name", "AutoencoderKLTemporalDecoder"),
  "in_channels out_channels down_block_types block_out_channels layers_per_block latent_channels sample_size "
  "scaling_factor force_upcast norm_num_groups",
)
image_encoder = from_document(("model_type", "clip_vision_model"))
audio_encoder = from_document(("model_type", "whisper"))
emotion_embedder = from_document(
  keys="features expression_features speech_features num_layers num_fusion_layers num_heads mlp dropout_rate "
  "fusion_scale inputs"
)


def _tokens(checkpoint: Checkpoint, prefix: str = "") -> dict:
  """The sizes of a token projection."""
  features = checkpoint.shape(f"{prefix}norm.weight", 1)[0]
  hidden, outputs = checkpoint.shape(f"{prefix}proj1.weight", 2)[0], checkpoint.shape(f"{prefix}proj3.weight", 2)[0]
  if outputs % features:
    raise ValueError(f"{prefix}proj3 has {outputs} outputs, which is no multiple of the {features} features of a token")
  return {"hidden": hidden, "num_tokens": outputs // features, "features": features}


def audio_projection(checkpoint: Checkpoint) -> dict:
  whisper = checkpoint.others["audio_encoder"]
  inputs, states = checkpoint.shape("proj1.weight", 2)[1], whisper["encoder_layers"] + 1
  if inputs % (states * whisper["d_model"]):
    raise ValueError(
      f"proj1 has {inputs} inputs, which is no multiple of the audio encoder's {states} states of "
      f"{whisper['d_model']} values"
    )
  window = inputs // (states * whisper["d_model"])
  return _tokens(checkpoint) | {"window": window, "states": states, "d_model": whisper["d_model"]}


def pose_guider(checkpoint: Checkpoint) -> dict:
  convolutions = sum(key.startswith("blocks.") and key.endswith(".weight") for key in checkpoint.specs)
  widths = [checkpoint.shape(f"blocks.{i}.weight", 4)[0] for i in range(1, convolutions, 2)]
  return {
    "features": checkpoint.shape("conv_out.weight", 4)[0],
    "block_features": [checkpoint.shape("conv_in.weight", 4)[0], *widths],
  }


# Settings of the emotion model that shapes do not show, as released. A JSON document of ours has other values.
_EMOTION_MODEL = {"num_heads": 8, "conditioning": "bank"}


def emotion_model(checkpoint: Checkpoint) -> dict:
  if unknown := [name for name in checkpoint.document if name not in _EMOTION_MODEL]:
    raise WeightsError(f"{checkpoint.document_path} has {', '.join(unknown)}; it may have {', '.join(_EMOTION_MODEL)}.")
  return (
    {"num_heads": _EMOTION_MODEL["num_heads"]}
    | checkpoint.document
    | _tokens(checkpoint, "emo_linear.")
    | {
      "prior_dim": checkpoint.shape("emo_linear.proj1.weight", 2)[1],
      "num_codes": checkpoint.shape("codebook.codebook.weight", 2)[0],
      "mid_features": checkpoint.shape("classifier.fc1.weight", 2)[1],
      "num_classes": checkpoint.shape("classifier.fc3.weight", 2)[0],
    }
  )


def emotion_model_document(config: Mapping) -> dict:
  return {name: config[name] for name, value in _EMOTION_MODEL.items() if config.get(name, value) != value}


def frame_interpolator(checkpoint: Checkpoint) -> dict:
  prefix = "module." if any(key.startswith("module.") for key in checkpoint.specs) else ""
  return {"features": checkpoint.shape(f"{prefix}block0.convblock0.0.0.weight", 4)[0]}
