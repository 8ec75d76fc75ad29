"""A release -> a weights folder: what arrives, what is refused, and what an interruption leaves."""

import json
import os
import pathlib
import resource
import shutil
import signal
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from release import (
  SVD,
  is_adapter,
  load_tensors,
  save_safetensors,
  save_torch,
  small_release,
  small_weights,
  variation,
  write_json,
  write_release,
)

from dicetalk_jax.errors import OutputError, WeightsError
from dicetalk_jax.files import new_folder
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import NETWORKS, network_shapes
from dicetalk_jax.weights.release.convert import convert
from dicetalk_jax.weights.tensors import shapes_of, write_network

UNET = f"{SVD}/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def release(tmp_path_factory, tmp_path):
  return variation(small_release(tmp_path_factory), tmp_path / "release")


def refused(release, *words, error=WeightsError):
  """Converts, wants one clear sentence with `words` and nothing left behind; returns the sentence."""
  target = release.parent / "weights"
  with pytest.raises(error) as caught:
    convert(release, target)
  text = str(caught.value)
  assert all(word in text for word in words), text
  assert "\n" not in text and len(text) < 1000
  assert sorted(path.name for path in release.parent.iterdir()) == [release.name]
  return text


def rewrite(path, state):
  path.unlink(missing_ok=True)
  (save_safetensors if path.suffix == ".safetensors" else save_torch)(state, path)


def edit_json(path, **changes):
  config = json.loads(path.read_text()) | changes
  path.unlink()
  write_json(config, path)


def numpy_state(path):
  return {key: value.numpy() for key, value in load_tensors(path).items()}


def test_the_architecture_is_read(tmp_path_factory):
  weights = Weights.open(small_weights(tmp_path_factory))
  assert weights.config["networks"]["pose_guider"] == {"features": 32, "block_features": [16, 32, 96, 256]}
  assert weights.config["networks"]["audio_projection"] == {
    **{"hidden": 16, "num_tokens": 32, "features": 1024},
    **{"window": 10, "states": 5, "d_model": 384},
  }
  assert weights.config["networks"]["unet"]["adapter_scales"] == [1.0, 1.0]
  assert weights.config["networks"]["unet"]["block_out_channels"] == [32, 64, 128, 128]
  assert weights.config["sampler"]["sigma_max"] == 700
  assert weights.config["audio_processor"]["sampling_rate"] == 16000
  assert weights.config["image_processor"]["crop_size"] == {"height": 224, "width": 224}
  for network in weights.config["networks"]:
    module = weights.module(network)
    assert module.dtype == np.float32


def test_progress_counts_every_byte(release, tmp_path):
  calls = []
  (tmp_path / "weights").mkdir()  # an empty folder may be filled
  convert(release, tmp_path / "weights", progress=lambda *call: calls.append(call))
  assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
  Weights.open(tmp_path / "weights")
  assert calls[-1][1] == calls[-1][2] and {"unet", "vae", "frame_interpolator"} <= {what for what, *_ in calls}


@pytest.mark.parametrize(
  "name",
  [
    UNET,
    f"{SVD}/vae/config.json",
    "DICE-Talk/unet.pth",
    "DICE-Talk/emo_model.pth",
    "RIFE/flownet.pkl",
    "whisper-tiny/config.json",
  ],
)
def test_a_missing_part_is_named(release, name):
  (release / name).unlink()
  refused(release, name)


def test_a_missing_source_is_named(tmp_path):
  with pytest.raises(WeightsError, match=r"nowhere is not a folder"):
    convert(tmp_path / "nowhere", tmp_path / "weights")


@pytest.mark.parametrize("name", [UNET, "DICE-Talk/unet.pth", "DICE-Talk/emo_model.pth", "RIFE/flownet.pkl"])
def test_a_truncated_file_is_named(release, name):
  data = (release / name).read_bytes()
  (release / name).unlink()
  (release / name).write_bytes(data[: len(data) // 2])
  refused(release, name, "truncated or damaged")


def test_unknown_missing_and_misshapen_tensors_are_named_with_both_shapes(release):
  path = release / "DICE-Talk" / "pose_guider.pth"
  state = numpy_state(path)
  rewrite(path, state | {"blocks.9.extra": np.zeros(3, np.float32)})
  refused(release, str(path), "blocks.9.extra", "no rule")
  rewrite(path, {key: value for key, value in state.items() if key != "blocks.2.bias"})
  refused(release, str(path), "blocks.2.bias", "missing", "(32,)")
  rewrite(path, state | {"blocks.2.weight": np.zeros((32, 32, 5, 5), np.float32)})
  refused(release, str(path), "blocks.2.weight", "(32, 32, 5, 5)", "(3, 3, 32, 32)")
  rewrite(path, state | {"blocks.2.bias": np.zeros(32, np.int64)})
  refused(release, str(path), "blocks.2.bias", "int64")
  rewrite(path, state | {"blocks.2.bias": np.zeros(32, np.float64)})
  refused(release, str(path), "blocks.2.bias", "float64; one of float16, bfloat16, float32 is required")
  rewrite(path, {f"module.{key}": value for key, value in state.items()})
  refused(release, str(path), "begin with 'module.'", "torch.nn.DataParallel")
  rewrite(path, state | {"blocks.2.bias": np.full(32, np.nan, np.float32)})
  refused(release, str(path), "blocks.2.bias", "NaN")


def test_a_release_without_adapters_is_refused(release):
  path = release / "DICE-Talk" / "unet.pth"
  rewrite(path, {key: value for key, value in numpy_state(path).items() if not is_adapter(key)})
  refused(release, "unet.pth", "_ip.0.weight", "missing")


def test_files_of_other_networks_are_refused(release):
  own = release / "DICE-Talk"
  shutil.copy(own / "pose_guider.pth", release.parent / "held")
  (own / "audio_linear.pth").unlink()
  shutil.move(release.parent / "held", own / "audio_linear.pth")
  refused(release, "audio_linear.pth", "conv_in.weight", "no rule")


@pytest.mark.parametrize(
  ("part", "change", "words"),
  [
    ("unet", {"use_linear_projection": True}, ["use_linear_projection"]),
    ("unet", {"down_block_types": ["DownBlock3D"] * 4}, ["down_block_types", "DownBlock3D"]),
    ("unet", {"block_out_channels": [32, 64, 128, 256]}, ["(256,"]),
    ("unet", {"_class_name": "UNet2DConditionModel"}, ["UNet2DConditionModel"]),
    ("vae", {"act_fn": "relu"}, ["act_fn"]),
    ("image_encoder", {"hidden_act": "relu"}, ["hidden_act", "relu"]),
    ("unet", {"in_channels": "x"}, ["unet/config.json", "in_channels", "'x'"]),
    ("unet", {"num_attention_heads": -1}, ["unet/config.json", "num_attention_heads"]),
    ("vae", {"layers_per_block": -1}, ["vae/config.json", "layers_per_block", "-1"]),
    ("vae", {"scaling_factor": 0}, ["vae/config.json", "scaling_factor"]),
    ("vae", {"layers_per_block": [1]}, ["vae/config.json"]),
    ("image_encoder", {"hidden_size": 0}, ["image_encoder/config.json", "hidden_size"]),
    ("image_encoder", {"num_attention_heads": 3}, ["image_encoder/config.json"]),
    ("image_encoder", {"layer_norm_eps": "x"}, ["image_encoder/config.json", "layer_norm_eps"]),
    ("../whisper-tiny", {"d_model": "x"}, ["whisper-tiny/config.json", "d_model"]),
  ],
)
def test_a_config_that_asks_for_something_else_is_refused(release, part, change, words):
  edit_json(release / SVD / part / "config.json", **change)
  refused(release, *words)


def test_noise_levels_that_are_none_are_refused(release):
  path = release / SVD / "scheduler" / "scheduler_config.json"
  for sigma in (-1, "x", True):
    edit_json(path, sigma_max=sigma)
    refused(release, str(path), "sigma_max")


def test_a_config_that_is_no_json_is_named(release):
  path = release / SVD / "vae" / "config.json"
  path.unlink()
  path.write_text("{")
  refused(release, str(path), "JSON")


def test_an_index_that_names_what_is_not_there_is_refused(tmp_path):
  release = write_release(tmp_path / "release", small=True, svd_format="sharded safetensors")
  shard = release / SVD / "vae" / "diffusion_pytorch_model-00002-of-00003.safetensors"
  shard.rename(release.parent / "held")
  (release.parent / "held").unlink()
  refused(release, shard.name, "not there")
  index = release / SVD / "vae" / "diffusion_pytorch_model.safetensors.index.json"
  edit_json(index, weight_map={"a": "../../secret.safetensors"})
  refused(release, str(index), "weight_map")


def test_a_folder_that_holds_something_is_not_written_over(release, tmp_path):
  (tmp_path / "weights").mkdir()
  (tmp_path / "weights" / "mine.txt").write_text("mine")
  with pytest.raises(OutputError, match="not an empty folder"):
    convert(release, tmp_path / "weights")
  assert (tmp_path / "weights" / "mine.txt").read_text() == "mine"


def test_no_room_is_said_before_anything_is_written(release, monkeypatch):
  usage = shutil.disk_usage("/")
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**8))
  refused(release, "100.0 MB are free", error=OutputError)


def test_no_room_on_the_way_leaves_nothing(release):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (50_000_000, hard))
  try:
    refused(release, "File too large", error=OutputError)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_permission_leaves_nothing(release, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OutputError, match=r"weights could not be written"):
    convert(release, tmp_path / "file" / "weights")


def test_ctrl_c_takes_effect_between_two_tensors(tmp_path):
  tensors = {name: np.ones(2, np.float32) for name in "abc"}
  written = []

  def arrays():
    for name, array in tensors.items():
      if name == "b":
        signal.raise_signal(signal.SIGINT)
      written.append(name)
      yield array

  with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "weights") as folder:
    write_network(folder, "network", shapes_of(tensors), arrays())
  assert written == ["a", "b"] and not list(tmp_path.iterdir())
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupted_conversion_says_so_and_leaves_nothing(release, tmp_path):
  """Ctrl-C at any moment after the first piece, in the middle of writing too."""
  run = in_another_process(f"""
    import os, signal, sys, threading
    from dicetalk_jax import cli
    from dicetalk_jax.weights.release import convert as module
    real, timers = module.convert, []
    def convert(source, target, priors, slim, progress):
      def interrupting(*call):
        progress(*call)
        if not timers:
          timers.append(threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)))
          timers[0].start()
      return real(source, target, priors, slim, interrupting)
    module.convert = convert
    sys.exit(cli.main(["convert", {str(release)!r}, {str(tmp_path / "weights")!r}]))
  """)
  said = run.stderr.decode()
  assert run.returncode == 130, said
  assert (
    "stopped; files that were complete are untouched" in said and "Traceback" not in said and "Error" not in said
  ), said
  assert [path.name for path in tmp_path.iterdir()] == ["release"]


def in_another_process(code):
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(pathlib.Path(__file__).parents[3])}
  return subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, timeout=300
  )


def killed(release, target, after):
  """Converts in another process, which is killed when `after` pieces are written."""
  run = in_another_process(f"""
    import os, signal
    from dicetalk_jax.weights.release.convert import convert
    calls = []
    def progress(*call):
      calls.append(call)
      if len(calls) == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    convert({str(release)!r}, {str(target)!r}, progress=progress)
  """)
  assert run.returncode == -signal.SIGKILL, run.stderr.decode()


def test_a_killed_conversion_leaves_no_weights_and_the_next_cleans_up(release, tmp_path):
  target = tmp_path / "weights"
  killed(release, target, after=5)
  left = [path for path in tmp_path.iterdir() if path != release]
  assert left and target not in left
  for folder in left:
    with pytest.raises(WeightsError):
      Weights.open(folder)
  weights = convert(release, target)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["release", "weights"]
  assert flatten_dict(weights.load("pose_guider"), sep="/").keys() == weights.tensors("pose_guider").shapes.keys()


@pytest.mark.slow
def test_memory_stays_below_one_and_a_half_times_the_largest_file(release, tmp_path):
  """A U-Net of half the full width: 1.6 GB of float32, unet.pth laid over it."""
  path = release / UNET
  widths = {"block_out_channels": [160, 320, 640, 640], "num_attention_heads": [5, 10, 20, 20]}
  edit_json(release / SVD / "unet" / "config.json", **widths)
  config = json.loads((release / SVD / "unet" / "config.json").read_text()) | {"adapter_scales": [1.0, 1.0]}
  table, shapes = NETWORKS["unet"].table, {}
  for parameter, leaf in flatten_dict(network_shapes("unet", config), sep="/").items():
    shapes[table.key(parameter)] = table.rule(table.key(parameter)).transform.torch_shape(leaf.shape)
  own = {key: np.ones(shape, np.float16) for key, shape in shapes.items() if is_adapter(key)}
  rewrite(release / "DICE-Talk" / "unet.pth", own)
  path.unlink()
  write_large_safetensors({key: shape for key, shape in shapes.items() if not is_adapter(key)}, path)
  code = """
    import sys
    from dicetalk_jax.weights.release.convert import convert
    convert(sys.argv[1], sys.argv[2])
    # Not ru_maxrss, which counts the memory of the process that started this one.
    print(1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))))
  """
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(pathlib.Path(__file__).parents[3])}
  command = [sys.executable, "-c", textwrap.dedent(code), str(release), str(tmp_path / "weights")]
  run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
  peak, size = int(run.stdout.split()[-1]), path.stat().st_size
  assert size > 1.4e9
  # Less than the file itself: 0.4 GB are the libraries, the rest the pieces under way.
  assert peak < size, f"{peak / 1e9:.2f} GB for a file of {size / 1e9:.2f} GB"


def write_large_safetensors(shapes, path):
  """Float32 tensors, one at a time in memory."""
  header, end, generator = {}, 0, np.random.default_rng(0)
  for key, shape in shapes.items():
    start, end = end, end + 4 * int(np.prod(shape))
    header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
  text = json.dumps(header).encode()
  with path.open("wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    for shape in shapes.values():
      file.write(generator.standard_normal(shape, np.float32).tobytes())
