"""The names of every network in PyTorch, as tables of rules (see `names`)."""

import dataclasses

from dicetalk_jax.weights.release.names import CONV, CONV_1D, CONV_TIME, LINEAR, Rule, Table


def _also_spelt(rules: tuple[Rule, ...], prefix: str, other: str) -> tuple[Rule, ...]:
  """The rules, and the same rules for names that begin with `other` instead of `prefix`."""
  aliases = (dataclasses.replace(rule, torch=other + rule.torch.removeprefix(prefix), alias=True) for rule in rules)
  return (*rules, *aliases)


# Stable Video Diffusion's state dict and the adapters of `unet.pth`.
_UNET_CONV = r"conv_in|conv_out|.*\.(?:down|up)samplers\.\d+\.conv|.*\.spatial_res_block\.conv(?:1|2|_shortcut)"
_UNET_NORM = r"(?:.*\.)?(?:conv_norm_out|norm\d?|norm_in)"
_UNET_LINEAR = r".*\.(?:proj_in|proj_out|time_emb_proj|to_[qkv]|to_out\.\d+|net\.\d+|net\.\d+\.proj)"

UNET = Table(
  "unet",
  (
    Rule(f"{{module:{_UNET_CONV}}}.weight", "{module}/kernel", CONV),
    Rule(r"{module:.*\.temporal_res_block\.conv\d}.weight", "{module}/kernel", CONV_TIME),
    Rule(f"{{module:{_UNET_NORM}}}.weight", "{module}/scale"),
    Rule(f"{{module:{_UNET_LINEAR}}}.weight", "{module}/kernel", LINEAR),
    Rule(r"{module:(?!.*\blinear).+}.bias", "{module}/bias"),
    # `linear_1` has its underscore in PyTorch too.
    Rule("{module}.linear_{i}.weight", "{module}/linear_{i}/kernel", LINEAR),
    Rule("{module}.linear_{i}.bias", "{module}/linear_{i}/bias"),
    Rule("{module}.processor.to_{kv:k|v}_ip.{i}.weight", "{module}/to_{kv}_ip_{i}/kernel", LINEAR),
    Rule("{module}.mix_factor", "{module}/mix_factor"),
  ),
)

# The temporal-decoder VAE.
_VAE_CONV = (
  r"quant_conv|(?:en|de)coder\.conv_(?:in|out)|.*\.(?:down|up)samplers\.\d+\.conv"
  r"|.*(?:\.resnets\.\d+|\.spatial_res_block)\.conv(?:1|2|_shortcut)"
)
_VAE_CONV_TIME = r".*\.temporal_res_block\.conv\d|decoder\.time_conv_out"
_VAE_NORM = r".*\.(?:conv_norm_out|group_norm|norm\d)"

VAE = Table(
  "vae",
  (
    Rule(f"{{module:{_VAE_CONV}}}.weight", "{module}/kernel", CONV),
    Rule(f"{{module:{_VAE_CONV_TIME}}}.weight", "{module}/kernel", CONV_TIME),
    Rule(f"{{module:{_VAE_NORM}}}.weight", "{module}/scale"),
    Rule(r"{module:.*\.(?:to_[qkv]|to_out\.\d+)}.weight", "{module}/kernel", LINEAR),
    Rule("{module}.bias", "{module}/bias"),
    Rule("{module}.mix_factor", "{module}/mix_factor"),
  ),
)

IMAGE_ENCODER = Table(
  "image_encoder",
  (
    Rule("vision_model.embeddings.class_embedding", "class_embedding"),
    Rule("vision_model.embeddings.patch_embedding.weight", "patch_embedding/kernel", CONV),
    Rule("vision_model.embeddings.position_embedding.weight", "position_embedding/embedding"),
    # A buffer of 0, 1, 2, … in files that older transformers wrote.
    Rule("vision_model.embeddings.position_ids", None),
    Rule(r"vision_model.{module:pre_layrnorm|post_layernorm}.weight", "{module}/scale"),
    Rule(r"vision_model.{module:pre_layrnorm|post_layernorm}.bias", "{module}/bias"),
    Rule(r"vision_model.encoder.{module:layers\.\d+\.layer_norm\d}.weight", "{module}/scale"),
    Rule(r"vision_model.encoder.{module:layers\.\d+\.(?:self_attn|mlp)\.\w+}.weight", "{module}/kernel", LINEAR),
    Rule(r"vision_model.encoder.{module:layers\..+}.bias", "{module}/bias"),
    Rule("visual_projection.weight", "visual_projection/kernel", LINEAR),
  ),
)

AUDIO_ENCODER = Table(
  "audio_encoder",
  (
    # `model.` as transformers' WhisperForConditionalGeneration writes it.
    *_also_spelt(
      (
        Rule("encoder.conv{i}.weight", "conv{i}/kernel", CONV_1D),
        Rule("encoder.embed_positions.weight", "embed_positions/embedding"),
        Rule(r"encoder.{module:(?:.*\.)?\w*layer_norm}.weight", "{module}/scale"),
        Rule(r"encoder.{module:layers\.\d+\.(?:self_attn\.\w+|fc\d)}.weight", "{module}/kernel", LINEAR),
        Rule("encoder.{module}.bias", "{module}/bias"),
        Rule("decoder.{rest}", None),
      ),
      prefix="",
      other="model.",
    ),
    Rule("proj_out.weight", None),
  ),
)

_TOKEN_PROJECTION = (
  Rule(r"{module:(?:\w+\.)?proj\d}.weight", "{module}/kernel", LINEAR),
  Rule(r"{module:(?:\w+\.)?norm}.weight", "{module}/scale"),
  Rule("{module}.bias", "{module}/bias"),
)
AUDIO_PROJECTION = Table("audio_projection", _TOKEN_PROJECTION)

EMOTION_MODEL = Table(
  "emotion_model",
  (
    *_TOKEN_PROJECTION,
    Rule(r"{module:\w+\.fc\w*}.weight", "{module}/kernel", LINEAR),
    Rule("codebook.codebook.weight", "codebook/codebook/embedding"),
    # The learnable conditioning of the paper's ablation; not published.
    Rule("query", "query"),
  ),
)

# Not published. The names are ours, in PyTorch's style.
EMOTION_EMBEDDER = Table(
  "emotion_embedder",
  (
    Rule(r"{module:(?:.+\.)?(?:\w+_proj|proj_in|linear\d)}.weight", "{module}/kernel", LINEAR),
    Rule(r"{module:.+\.norm\d}.weight", "{module}/scale"),
    Rule("{module}.bias", "{module}/bias"),
    Rule("{module:audio|visual}.absent", "{module}/absent"),
    Rule("w_s", "w_s"),
  ),
)

POSE_GUIDER = Table(
  "pose_guider",
  (
    Rule(r"{module:conv_in|conv_out|blocks\.\d+}.weight", "{module}/kernel", CONV),
    Rule(r"{module:conv_in|conv_out|blocks\.\d+}.bias", "{module}/bias"),
  ),
)

# PyTorch's transposed convolutions are (in, out, h, w): `CONV` makes the (h, w, out, in) of Flax's `transpose_kernel`.
_RIFE_CONV = r"block\d\.(?:(?:conv0|convblock\d)\.\d\.0|conv[12]\.[02])"
_RIFE_SLOPE = r"block\d\.(?:(?:conv0|convblock\d)\.\d|conv[12])\.1"
FRAME_INTERPOLATOR = Table(
  "frame_interpolator",
  _also_spelt(
    (
      Rule(f"module.{{module:{_RIFE_CONV}}}.weight", "{module}/kernel", CONV),
      Rule(f"module.{{module:{_RIFE_CONV}}}.bias", "{module}/bias"),
      Rule(f"module.{{module:{_RIFE_SLOPE}}}.weight", "{module}/negative_slope"),
      # The teacher network, used only in RIFE's training.
      Rule("module.block_tea.{rest}", None),
    ),
    prefix="module.",
    other="",
  ),
)
