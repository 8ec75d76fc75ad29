"""The weights folder that a finished run leaves: whole, or the one before, and a word where it cannot be written."""

import pathlib

import numpy as np
import pytest

from dicetalk_jax.errors import OutputError
from dicetalk_jax.files import replaced_folder
from dicetalk_jax.training.result import write_result
from dicetalk_jax.weights.architectures import small_conditioning
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.networks import network_shapes

ARCHITECTURE = small_conditioning(8, 8, pose_features=(8, 8))["pose_guider"]


def write(folder, value):
  shapes = network_shapes("pose_guider", ARCHITECTURE)
  params = {name: {k: np.full(leaf.shape, value, np.float32) for k, leaf in of.items()} for name, of in shapes.items()}
  return write_result(folder, None, {"pose_guider": params}, {"pose_guider": ARCHITECTURE})


def value(folder):
  return float(Weights.open(folder).load("pose_guider")["conv_in"]["bias"][0])


def test_a_new_one_takes_the_place_of_the_old(tmp_path):
  for number in (1, 2):
    write(tmp_path / "weights", number)
    assert value(tmp_path / "weights") == number
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_what_was_killed_between_the_two_names_is_not_lost(tmp_path, monkeypatch):
  write(tmp_path / "weights", 1)
  rename = pathlib.Path.rename

  def killed(path, target):
    if path.name.endswith(".new"):
      raise KeyboardInterrupt
    return rename(path, target)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(pathlib.Path, "rename", killed)
    write(tmp_path / "weights", 2)
  assert not (tmp_path / "weights").exists()
  with pytest.raises(ZeroDivisionError), replaced_folder(tmp_path / "weights"):
    raise ZeroDivisionError
  assert value(tmp_path / "weights") == 1


def test_where_it_cannot_be_written_the_same_command_is_named(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(OutputError, match=r"could not be written: .*the same command writes the weights"):
    write(tmp_path / "file" / "weights", 1)
