"""Architectures in the form of a weights folder's config.json: the published ones and small ones."""

from collections.abc import Sequence

# The published model. CLIP's and Whisper's are in transformers' format and come with their files.
RELEASED = {
  "unet": {
    "in_channels": 8,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 3 + ["DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal"] + ["CrossAttnUpBlockSpatioTemporal"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 768,
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "transformer_layers_per_block": 1,
    "num_attention_heads": [5, 10, 20, 20],
    "adapter_scales": [1.0, 1.0],
  },
  "vae": {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
  },
  "audio_projection": {"hidden": 1024, "num_tokens": 32, "features": 1024, "window": 10, "states": 5, "d_model": 384},
  "pose_guider": {"features": 320, "block_features": [16, 32, 96, 256]},
  "emotion_model": {
    "hidden": 1024,
    "num_tokens": 32,
    "features": 1024,
    "prior_dim": 256,
    "num_codes": 64,
    "num_heads": 8,
    "mid_features": 1280,
    "num_classes": 22,
  },
  # Not published; from the paper as far as it gives sizes.
  "emotion_embedder": {
    "features": 256,
    "expression_features": 64,
    "speech_features": 384,
    "num_layers": 3,
    "num_fusion_layers": 3,
    "num_heads": 8,
    "mlp": 1024,
    "dropout_rate": 0.1,
    "fusion_scale": 1.0,
    "inputs": "both",
  },
}


def small_unet(
  channels: Sequence[int] = (32, 64, 64),
  layers: int = 1,
  width: int = 64,
  head: int = 16,
  latents: int = 4,
  groups: int = 32,
) -> dict:
  """A smaller U-Net of the same blocks; attention at all levels but the last, with `head` features per head.

  width: features of a token. latents: channels of the VAE's latents. groups: of every group normalisation; groups of
  one channel lose the colours of the picture.
  """
  levels = len(channels)
  return RELEASED["unet"] | {
    "in_channels": 2 * latents,
    "out_channels": latents,
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * (levels - 1) + ["DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal"] + ["CrossAttnUpBlockSpatioTemporal"] * (levels - 1),
    "block_out_channels": list(channels),
    "addition_time_embed_dim": channels[0],
    "projection_class_embeddings_input_dim": 3 * channels[0],
    "layers_per_block": layers,
    "cross_attention_dim": width,
    "num_attention_heads": [features // head for features in channels],
    "norm_num_groups": groups,
  }


def small_conditioning(
  features: int,
  mid_features: int,
  width: int = 64,
  tokens: int = 8,
  codes: int = 32,
  states: int = 3,
  d_model: int = 64,
  pose_features: Sequence[int] = (8, 16, 32),
) -> dict:
  """Audio projection, emotion model and pose guider for a `small_unet`.

  features, mid_features: the U-Net's first and last channels. states, d_model: of the audio encoder. pose_features: one
  entry more than the VAE halves the image.
  """
  hidden = 2 * width
  return {
    "audio_projection": {
      **{"hidden": hidden, "num_tokens": tokens, "features": width},
      **{"window": 10, "states": states, "d_model": d_model},
    },
    "pose_guider": {"features": features, "block_features": list(pose_features)},
    "emotion_model": {
      **{"hidden": hidden, "num_tokens": tokens, "features": width, "prior_dim": 256, "num_codes": codes},
      **{"num_heads": 4, "mid_features": mid_features, "num_classes": 22},
    },
  }
