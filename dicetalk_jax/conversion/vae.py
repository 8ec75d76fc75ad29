"""Names of the temporal-decoder VAE."""

from dicetalk_jax.conversion.engine import CONV, CONV_TIME, LINEAR, Rule, Table

_CONV = (
  r"quant_conv|(?:en|de)coder\.conv_(?:in|out)|.*\.(?:down|up)samplers\.\d+\.conv"
  r"|.*(?:\.resnets\.\d+|\.spatial_res_block)\.conv(?:1|2|_shortcut)"
)
_CONV_TIME = r".*\.temporal_res_block\.conv\d|decoder\.time_conv_out"
_NORM = r".*\.(?:conv_norm_out|group_norm|norm\d)"

VAE = Table(
  "vae",
  (
    Rule(f"{{module:{_CONV}}}.weight", "{module}/kernel", CONV),
    Rule(f"{{module:{_CONV_TIME}}}.weight", "{module}/kernel", CONV_TIME),
    Rule(f"{{module:{_NORM}}}.weight", "{module}/scale"),
    Rule(r"{module:.*\.(?:to_[qkv]|to_out\.\d+)}.weight", "{module}/kernel", LINEAR),
    Rule("{module}.bias", "{module}/bias"),
    Rule("{module}.mix_factor", "{module}/mix_factor"),
  ),
)
