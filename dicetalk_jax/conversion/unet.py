"""Names of the U-Net: Stable Video Diffusion's state dict and the adapters of `unet.pth`."""

from dicetalk_jax.conversion.engine import CONV, CONV_TIME, LINEAR, Rule, Table

_CONV = r"conv_in|conv_out|.*\.(?:down|up)samplers\.\d+\.conv|.*\.spatial_res_block\.conv(?:1|2|_shortcut)"
_NORM = r"(?:.*\.)?(?:conv_norm_out|norm\d?|norm_in)"
_LINEAR = r".*\.(?:proj_in|proj_out|time_emb_proj|to_[qkv]|to_out\.\d+|net\.\d+|net\.\d+\.proj)"

UNET = Table(
  "unet",
  (
    Rule(f"{{module:{_CONV}}}.weight", "{module}/kernel", CONV),
    Rule(r"{module:.*\.temporal_res_block\.conv\d}.weight", "{module}/kernel", CONV_TIME),
    Rule(f"{{module:{_NORM}}}.weight", "{module}/scale"),
    Rule(f"{{module:{_LINEAR}}}.weight", "{module}/kernel", LINEAR),
    Rule(r"{module:(?!.*\blinear).+}.bias", "{module}/bias"),
    # `linear_1` has its underscore in PyTorch too.
    Rule("{module}.linear_{i}.weight", "{module}/linear_{i}/kernel", LINEAR),
    Rule("{module}.linear_{i}.bias", "{module}/linear_{i}/bias"),
    Rule("{module}.processor.to_{kv:k|v}_ip.{i}.weight", "{module}/to_{kv}_ip_{i}/kernel", LINEAR),
    Rule("{module}.mix_factor", "{module}/mix_factor"),
  ),
)
