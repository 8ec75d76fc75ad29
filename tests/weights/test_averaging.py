"""The mean of several runs' weights."""

import jax
import numpy as np
import pytest
from talkers import stand_in_params

from dicetalk_jax.cli import main
from dicetalk_jax.errors import WeightsError
from dicetalk_jax.weights.architectures import small_conditioning
from dicetalk_jax.weights.averaging import average
from dicetalk_jax.weights.folder import Weights

NETWORKS = {
  name: config
  for name, config in small_conditioning(8, 16, width=8, pose_features=(4, 4, 4, 4)).items()
  if name in ("pose_guider", "audio_projection")
}
FIRST, *OTHERS = (1.0, 0.5), (2.0, 0.5), (6.0, 0.5)


def save(folder, of_pose, of_audio, networks=NETWORKS, dtype=np.float32):
  params = {name: stand_in_params(name, config) for name, config in networks.items()}
  scale = {"pose_guider": of_pose, "audio_projection": of_audio}
  params = {
    name: jax.tree.map(lambda x, by=scale[name]: (by * np.asarray(x)).astype(dtype), of) for name, of in params.items()
  }
  priors = {"happy": {"mu": np.full(256, of_pose, np.float32)}}
  return Weights.save(folder, params, {"networks": networks}, priors)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  folder = tmp_path_factory.mktemp("averaging")
  return [save(folder / str(i), *scales) for i, scales in enumerate((FIRST, *OTHERS))]


def test_the_mean_of_three(folders, tmp_path, capsys):
  command = ["average", *(str(weights.folder) for weights in folders), "--out", str(tmp_path / "mean")]
  assert main(command) == 0 and "pose_guider" in capsys.readouterr().out
  mean = Weights.open(tmp_path / "mean")
  jax.tree.map(
    # (1 + 2 + 6) / 3
    lambda ours, first: np.testing.assert_allclose(ours, 3 * first, rtol=1e-6),
    mean.load("pose_guider"),
    folders[0].load("pose_guider"),
  )
  # What all have alike is there to the bit, and what is no network is the first one's.
  jax.tree.map(np.testing.assert_array_equal, mean.load("audio_projection"), folders[0].load("audio_projection"))
  assert mean.priors()["happy"]["mu"][0] == 1.0


def test_tensors_keep_their_precision(tmp_path):
  two = [save(tmp_path / str(scale), scale, 1.0, dtype=jax.numpy.bfloat16) for scale in (1.0, 3.0)]
  mean = average(two, tmp_path / "mean").load("pose_guider")
  jax.tree.map(
    lambda ours, one: np.testing.assert_allclose(np.float32(ours), 2 * np.float32(one), rtol=0.01),
    mean,
    two[0].load("pose_guider"),
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(mean)} == {np.dtype(jax.numpy.bfloat16)}


def test_what_makes_no_mean_is_refused(folders, tmp_path, capsys):
  with pytest.raises(WeightsError, match="1 weights folder was given to average; give two or more"):
    average(folders[:1], tmp_path / "out")
  larger = {**NETWORKS, "pose_guider": small_conditioning(16, 32, width=8, pose_features=(4, 4, 4, 4))["pose_guider"]}
  save(tmp_path / "larger", 1.0, 1.0, larger)
  command = ["average", str(folders[0].folder), str(tmp_path / "larger"), "--out", str(tmp_path / "out")]
  assert main(command) != 0
  assert "differ in the sizes of pose_guider; give weights of the same networks" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()
