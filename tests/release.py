"""A folder in the released layout, made from stand-in weights at the tiny configuration of tests/golden."""

import json
import os
import pathlib
import shutil

import ml_dtypes
import numpy as np
from conftest import GOLDEN, config_json, draw, manifest

LABELS = ("angry", "contempt", "disgusted", "fear", "happy", "neutral", "sad", "surprised")
SVD = "stable-video-diffusion-img2vid-xt"
# Hidden sizes that the golden numbers do not need: small=True shrinks them so that a whole release is 250 MB lighter
# on each dtype and takes a second to write.
SMALL_HIDDEN = 16


def small_manifest(network):
  """The manifest of a full-size network with its hidden layers cut to SMALL_HIDDEN (and Whisper's vocabulary to 10)."""
  shapes = {}
  for key, shape in manifest(network).items():
    shape = list(shape)
    if network in ("audio_linear", "emo_model"):
      if ".".join(key.split(".")[-2:]) in ("proj1.weight", "proj1.bias", "proj2.weight", "proj2.bias"):
        shape[0] = SMALL_HIDDEN
      if key.endswith(("proj2.weight", "proj3.weight")):
        shape[1] = SMALL_HIDDEN
    if key == "decoder.embed_tokens.weight":
      shape[0] = 10
    shapes[key] = shape
  return shapes


def tensors(network, seed=0, small=False):
  """Stand-in state dict: name -> float32 array, named and shaped as in the released file."""
  import weights

  shapes = small_manifest(network) if small else manifest(network)
  return {key: weights.tensor(key, tuple(shape), seed) for key, shape in shapes.items()}


def is_adapter(key):
  return "_ip." in key


def write_prior(path, mu):
  """The released prior format: a pickled 0-d object array {'mu': float32 (1, 256)}."""
  np.save(path, np.array({"mu": np.asarray(mu, np.float32).reshape(1, 256)}, dtype=object), allow_pickle=True)


def cast(state, dtype):
  """dtype: 'float32', 'float16' or 'bfloat16'."""
  return {key: value.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype) for key, value in state.items()}


def save_torch(state, path):
  import torch

  def tensor(value):
    if value.dtype == ml_dtypes.bfloat16:
      return torch.from_numpy(value.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape)

  path.parent.mkdir(parents=True, exist_ok=True)
  torch.save({key: tensor(value) for key, value in state.items()}, path)


def save_safetensors(state, path):
  from safetensors.numpy import save_file

  path.parent.mkdir(parents=True, exist_ok=True)
  save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, path, metadata={"format": "pt"})


def save_sharded(state, folder, stem, suffix, variant="", shards=3):
  """`stem-00001-of-0000N[.variant].safetensors|bin` and the index that names them, as diffusers and transformers do."""
  keys, names = list(state), {}
  for n in range(shards):
    # Where the variant stands: diffusers puts it last in a shard's stem, and in the index before `.json`'s `.index`.
    name = f"{stem}-{n + 1:05d}-of-{shards:05d}{variant}.{suffix}"
    part = {key: state[key] for key in keys[n::shards]}
    (save_safetensors if suffix == "safetensors" else save_torch)(part, folder / name)
    names |= dict.fromkeys(part, name)
  size = sum(value.nbytes for value in state.values())
  index = {"metadata": {"total_size": size}, "weight_map": {key: names[key] for key in sorted(names)}}
  (folder / f"{stem}.{suffix}.index{variant}.json").write_text(json.dumps(index, indent=2))


def write_json(value, path):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value, indent=2) + "\n")


def write_release(
  folder,
  seed=0,
  unet_dtype="float32",
  svd_dtype="float32",
  variant=None,
  partial=False,
  small=False,
  svd_format="safetensors",
  whisper_prefix="",
  priors="emotion_priors",
):
  """Writes a release and returns its folder.

  Whatever the options, the networks that a conversion makes hold `stand_in(...)` of `seed` rounded to the dtypes:
  SVD tensors that `unet.pth` replaces are drawn from `seed + 1`, so a lost overlay shows. The `happy` prior is the
  golden `emotion.npy`. RIFE's PReLU weights are as drawn (only the golden rife.npz multiplies them by 0.25).

  unet_dtype: of the four DICE-Talk files. svd_dtype: of the SVD parts. variant: '.fp16' or '' in SVD file names; None
  takes '.fp16' for float16 alone. partial: unet.pth holds the adapters and the attention to the image token only.
  small: see small_manifest; golden numbers need small=False. svd_format: 'safetensors', 'bin', 'sharded safetensors'
  or 'sharded bin'. whisper_prefix: 'model.' as in files saved from WhisperForConditionalGeneration.
  priors: name of the folder inside the release for the emotion priors, or None.
  """
  folder = pathlib.Path(folder)
  variant = (".fp16" if svd_dtype == "float16" else "") if variant is None else variant

  unet = tensors("unet_tiny", seed)
  own = {key: value for key, value in unet.items() if not partial or ".attn2." in key}
  save_torch(cast(own, unet_dtype), folder / "DICE-Talk" / "unet.pth")
  for name, network in (
    ("pose_guider", "pose_guider_tiny"),
    ("audio_linear", "audio_linear"),
    ("emo_model", "emo_model"),
  ):
    save_torch(cast(tensors(network, seed, small), unet_dtype), folder / "DICE-Talk" / f"{name}.pth")

  replaced = tensors("unet_tiny", seed + 1)
  svd_unet = {key: replaced[key] if key in own else value for key, value in unet.items() if not is_adapter(key)}
  for part, state, stem in (
    ("unet", svd_unet, "diffusion_pytorch_model"),
    ("vae", tensors("vae_tiny", seed), "diffusion_pytorch_model"),
    ("image_encoder", tensors("image_encoder_tiny", seed), "model"),
  ):
    state, suffix = cast(state, svd_dtype), svd_format.split()[-1]
    write_json(config_json(part), folder / SVD / part / "config.json")
    if suffix == "bin" and part == "image_encoder":
      stem = "pytorch_model"
    if svd_format.startswith("sharded"):
      save_sharded(state, folder / SVD / part, stem, suffix, variant)
    elif suffix == "bin":
      save_torch(state, folder / SVD / part / f"{stem}{variant}.bin")
    else:
      save_safetensors(state, folder / SVD / part / f"{stem}{variant}.safetensors")
  write_json(config_json("scheduler"), folder / SVD / "scheduler" / "scheduler_config.json")
  write_json(config_json("feature_extractor"), folder / SVD / "feature_extractor" / "preprocessor_config.json")

  whisper = {whisper_prefix + key: value for key, value in tensors("whisper", seed, small).items()}
  config = config_json("whisper") | ({"vocab_size": 10} if small else {})
  write_json(config, folder / "whisper-tiny" / "config.json")
  write_json(config_json("whisper_preprocessor"), folder / "whisper-tiny" / "preprocessor_config.json")
  save_safetensors(whisper, folder / "whisper-tiny" / "model.safetensors")
  save_torch(tensors("rife_flownet", seed), folder / "RIFE" / "flownet.pkl")

  if priors:
    (folder / priors).mkdir(parents=True, exist_ok=True)
    for label in LABELS:
      write_prior(folder / priors / f"{label}.npy", 2 * draw(f"prior:{label}", (1, 256)))
    shutil.copyfile(GOLDEN / "emotion.npy", folder / priors / "happy.npy")
  return folder


def small_release(tmp_path_factory):
  """One small release a test run, not to be changed; see `variation`."""
  folder = tmp_path_factory.getbasetemp() / "small_release"
  return folder if folder.exists() else write_release(folder, small=True)


def small_weights(tmp_path_factory):
  """The weights folder of `small_release`, not to be changed."""
  from dicetalk_jax.weights.release.convert import convert

  folder = tmp_path_factory.getbasetemp() / "small_weights"
  if not folder.exists():
    convert(small_release(tmp_path_factory), folder)
  return folder


def variation(source, folder):
  """A copy by hard links, whose files must be removed before they are written anew."""
  return pathlib.Path(shutil.copytree(source, folder, copy_function=os.link))


def load_tensors(path):
  """name -> torch tensor in the order of the file, of a .pth, .bin, .pkl or .safetensors file."""
  import safetensors
  import torch

  if path.suffix == ".safetensors":
    with safetensors.safe_open(path, framework="pt") as file:
      return {key: file.get_tensor(key) for key in file.offset_keys()}
  return torch.load(path, weights_only=True)
