"""Checkpoint files: every kind and dtype that is read, and every kind that is refused."""

import builtins
import os
import pickle
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from release import save_safetensors

from dicetalk_jax.errors import MissingDependencyError, WeightsError
from dicetalk_jax.weights.release.readers import open_checkpoint

VALUES = np.array([[1.5, -2, 3], [0, 1e-3, 4]], np.float32)


class Touch:
  """Runs a command when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.system, (f"touch {self.path}",)


def contents(path):
  file = open_checkpoint(path)
  return dict(zip(file.specs, file.read(file.specs), strict=True))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.bin", "a.pkl", "legacy.pth"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_reads_every_format_and_dtype(tmp_path, name, dtype):
  path, value = tmp_path / name, VALUES.astype(dtype)
  if path.suffix == ".safetensors":
    save_safetensors({"b": value, "a": value[0]}, path)
  else:
    tensor = torch.from_numpy(value.astype(np.float32)).to(getattr(torch, np.dtype(dtype).name))
    torch.save({"b": tensor, "a": tensor[0]}, path, _use_new_zipfile_serialization=name != "legacy.pth")
  read = contents(path)
  assert read["b"].dtype == dtype and read["b"].tobytes() == value.tobytes()
  assert read["a"].shape == (3,) and read["a"].tobytes() == value[0].tobytes()


def test_reads_views_scalars_and_empty_tensors(tmp_path):
  whole = torch.arange(12.0).reshape(3, 4)
  torch.save(
    {"t": whole.T, "scalar": torch.tensor(7), "empty": torch.zeros(0, 3), "flag": torch.tensor([True])},
    tmp_path / "a.pth",
  )
  read = contents(tmp_path / "a.pth")
  np.testing.assert_array_equal(read["t"], whole.T.numpy())
  assert read["scalar"].shape == () and read["scalar"] == 7 and read["scalar"].dtype == np.int64
  assert read["empty"].shape == (0, 3) and read["flag"].dtype == bool


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "params"])
def test_unwraps_a_state_dict(tmp_path, wrapper):
  torch.save({wrapper: {"a": torch.ones(2)}, "epoch": 3}, tmp_path / "a.pth")
  file = open_checkpoint(tmp_path / "a.pth")
  assert file.wrapper == wrapper and list(file.specs) == ["a"]


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "plain.pkl"])
def test_a_pickle_that_imports_is_refused_and_does_nothing(tmp_path, name):
  made = tmp_path / "made"
  state = {"a": torch.ones(3), "b": Touch(made)}
  if name == "plain.pkl":
    (tmp_path / name).write_bytes(pickle.dumps({"b": Touch(made)}))
  else:
    torch.save(state, tmp_path / name, _use_new_zipfile_serialization=name == "zip.pth")
  with pytest.raises(
    WeightsError, match=rf"{name} is a pickle that imports (posix\.system|something), which weights never do"
  ) as caught:
    open_checkpoint(tmp_path / name)
  assert not made.exists() and "\n" not in str(caught.value)


def test_a_whole_module_is_refused(tmp_path):
  torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
  with pytest.raises(WeightsError, match=r"imports torch\.nn\.modules\.linear\.Linear"):
    open_checkpoint(tmp_path / "a.pth")


def damaged(kind, path):
  if path.suffix == ".safetensors":
    save_safetensors({"a": np.ones((100, 100), np.float32)}, path)
  else:
    torch.save({"a": torch.ones(100, 100)}, path, _use_new_zipfile_serialization="legacy" not in kind)
  data = bytearray(path.read_bytes())
  if kind == "flipped":
    data[len(data) // 2] ^= 1
  content = {
    "empty": b"",
    "zeros": bytes(4000),
    "web page": b"<html>Not found</html>" * 50,
    "flipped": data,
  }.get(kind, data[: len(data) // 2])
  path.write_bytes(content)


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    *(
      (kind, name)
      for kind in ("truncated", "empty", "zeros", "web page")
      for name in ("a.pth", "a.safetensors", "a.pkl")
    ),
    ("truncated legacy", "a.pth"),
    ("flipped", "a.pth"),
  ],
)
def test_a_damaged_file_is_named(tmp_path, kind, name):
  damaged(kind, tmp_path / name)
  with pytest.raises(WeightsError) as caught:
    contents(tmp_path / name)
  assert str(tmp_path / name) in str(caught.value) and "again" in str(caught.value)
  assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (torch.ones(3), "holds no state dict"),
    ({}, "holds no state dict"),
    ({"a": torch.ones(2), "epoch": 3}, "'epoch' is a int"),
    ({"a": torch.ones(2, dtype=torch.complex64)}, "complex64"),
  ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, words):
  torch.save(content, tmp_path / "a.pth")
  with pytest.raises(WeightsError, match=words):
    open_checkpoint(tmp_path / "a.pth")


def test_a_git_lfs_pointer_is_recognised(tmp_path):
  (tmp_path / "a.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
  with pytest.raises(WeightsError, match="git lfs pull"):
    open_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.pkl"])
@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b"\n<!DOCTYPE html><html>Not found</html>" * 50, "is a web page and no checkpoint"),
    ("Zugriff verweigert – bitte anmelden\n".encode() * 50, "is a text file and no checkpoint"),
    (b"cannot read\nthe file\n", "is a text file and no checkpoint"),
    (b"PK\x03\x04" + bytes(range(256)) * 20, r"is truncated or damaged.*; download"),
  ],
  ids=["web page", "text", "text like a pickle", "cut zip"],
)
def test_what_stands_in_place_of_a_checkpoint_is_named(tmp_path, name, content, words):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(WeightsError, match=rf"{name} {words}"):
    open_checkpoint(tmp_path / name)


def test_without_pytorch_the_extra_is_named(tmp_path, monkeypatch):
  torch.save({"a": torch.ones(3)}, tmp_path / "a.pth")
  save_safetensors({"a": VALUES}, tmp_path / "a.safetensors")
  real = builtins.__import__

  def without_torch(name, *args, **kwargs):
    if name.partition(".")[0] == "torch":
      raise ModuleNotFoundError(name)
    return real(name, *args, **kwargs)

  monkeypatch.delitem(sys.modules, "torch")
  monkeypatch.setattr(builtins, "__import__", without_torch)
  with pytest.raises(MissingDependencyError, match=r"dicetalk-jax\[convert\]"):
    open_checkpoint(tmp_path / "a.pth")
  assert contents(tmp_path / "a.safetensors")["a"].shape == (2, 3)
