"""Expression files: every layout that reconstruction tools leave gives the same rows; what is none says so."""

import numpy as np
import pytest
import scipy.io

from dicetalk_jax.errors import InputError
from dicetalk_jax.media import expression as media


def rows(n=12, columns=257):
  return np.random.default_rng(n).standard_normal((n, columns)).astype(np.float32)


def save(path, array, name="coeff"):
  suffix = path.suffix.lower()
  if suffix == ".mat":
    scipy.io.savemat(path, {name: array, "transform_params": np.zeros((len(array), 5))})
  elif suffix == ".npz":
    np.savez(path, **{name: array})
  elif suffix == ".npy":
    np.save(path, array)
  else:
    np.savetxt(path, array, delimiter={".csv": ",", ".tsv": "\t"}.get(suffix, " "), fmt="%.9g")
  return path


@pytest.mark.parametrize("suffix", [".mat", ".MAT", ".npy", ".npz", ".txt", ".csv", ".tsv"])
@pytest.mark.parametrize("columns", [257, 64])
def test_every_layout_gives_the_expression(tmp_path, suffix, columns):
  array = rows(columns=columns)
  found = media.read_expression(save(tmp_path / f"a{suffix}", array))
  assert found.dtype == np.float32 and found.flags.c_contiguous
  np.testing.assert_allclose(found, array[:, 80:144] if columns == 257 else array, rtol=1e-6)


def test_other_names_types_and_headers(tmp_path):
  array = rows(columns=64)
  for name in ("expression", "exp_coeffs"):
    for suffix in (".mat", ".npz"):
      np.testing.assert_array_equal(media.read_expression(save(tmp_path / f"{name}{suffix}", array, name)), array)
  np.testing.assert_array_equal(media.read_expression(save(tmp_path / "double.npy", array.astype(np.float64))), array)
  one = save(tmp_path / "one.csv", array[:1])
  np.testing.assert_allclose(media.read_expression(one), array[:1], rtol=1e-6)
  one.write_text("\ufeff" + ",".join(f"exp_{i}" for i in range(64)) + "\n" + one.read_text() + "\n\n")
  np.testing.assert_allclose(media.read_expression(one), array[:1], rtol=1e-6)
  both = {"coeff": rows(), "expression": rows(5, 64)}
  np.savez(tmp_path / "both.npz", **both)
  np.testing.assert_array_equal(media.read_expression(tmp_path / "both.npz"), both["coeff"][:, 80:144])


def test_what_is_no_expression(tmp_path):
  def bad(name, content):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else save(path, content)
    return path

  nan = rows(20)
  nan[7, 100] = np.nan
  unused = rows()
  unused[3, 200] = np.nan  # light, not expression
  assert media.read_expression(bad("unused.npy", unused)).shape == (12, 64)
  whole = save(tmp_path / "whole.mat", rows(200)).read_bytes()
  two = tmp_path / "two.npz"
  np.savez(two, a=rows(), b=rows())
  cases = {
    tmp_path / "none.mat": "does not exist",
    tmp_path: "is a folder",
    bad("empty.mat", b""): "empty",
    bad("a.bin", b"123"): r"ends in '\.bin'.*\.mat, \.npy",
    bad("text.mat", b"this is no matrix, nor anything like it" * 20): "damaged or not a .mat",
    bad("cut.mat", whole[: len(whole) // 2]): "damaged or not a .mat",
    bad("noise.npz", bytes(range(256))): "damaged or not a .npz",
    bad("noise.npy", bytes(range(256))): "damaged or not a .npy",
    bad("words.csv", b"a,b\nc,d\n"): "damaged or not a .csv",
    bad("ragged.txt", b"1 2 3\n1 2\n"): "damaged or not a .txt",
    bad("binary.txt", bytes(range(128, 256))): "damaged or not a .txt",
    bad("v73.mat", b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(400)): "-v7",
    bad("wide.npy", rows(5, 100)): r"\(5, 100\).*\(frames, 257\).*\(frames, 64\)",
    bad("flat.npy", np.zeros(64)): r"\(64,\)",
    bad("turned.npy", rows(64, 12)): r"\(64, 12\)",
    bad("none.npy", np.zeros((0, 64))): r"\(0, 64\)",
    bad("complex.npy", np.zeros((4, 64), np.complex64)): "complex64",
    bad("words.npy", np.full((4, 64), "a")): "<U1",
    bad("wide.mat", rows(5, 100)): r"\(5, 100\)",
    bad("nan.mat", nan): "NaN or infinite, the first in row 7",
    two: r"a \(12, 257\), b \(12, 257\)",
  }
  for path, said in cases.items():
    with pytest.raises(InputError, match=said) as raised:
      media.read_expression(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_nothing_of_a_pickle_is_run(tmp_path):
  class Trap:
    def __reduce__(self):
      return (tmp_path.joinpath("run").touch, ())

  np.save(tmp_path / "a.npy", np.array([Trap()], object), allow_pickle=True)
  np.savez(tmp_path / "b.npz", coeff=np.array([Trap()], object))
  for name in ("a.npy", "b.npz"):
    with pytest.raises(InputError, match="damaged"):
      media.read_expression(tmp_path / name)
  assert not (tmp_path / "run").exists()


def ramp(n, slope=1.0):
  return np.repeat(slope * np.arange(n, dtype=np.float32)[:, None], 64, axis=1)


def test_rows_stand_at_any_times():
  times = np.array([0.0, 0.1, 0.4, 0.5])
  found = media.expression_at(ramp(4), times, [-1, 0, 0.05, 0.25, 0.5, 0.6])
  np.testing.assert_allclose(found[:, 0], [0, 0, 0.5, 1.5, 3, 3], atol=1e-6)
  assert found.shape == (6, 64) and found.dtype == np.float32
  np.testing.assert_array_equal(media.expression_at(ramp(1) + 3, [0.0], [-1, 0, 1]), np.full((3, 64), 3))


@pytest.mark.parametrize(("n", "frames"), [(50, 50), (52, 50), (51, 50), (49, 50), (48, 50), (1, 3)])
def test_one_or_two_rows_more_or_fewer(n, frames):
  found = media.matched(ramp(n), frames)
  np.testing.assert_array_equal(found[:, 0], np.minimum(np.arange(frames), n - 1))


@pytest.mark.parametrize(("n", "frames"), [(53, 50), (47, 50), (0, 2)])
def test_another_length_names_both(n, frames):
  with pytest.raises(InputError, match=f"{n} rows .* {frames} frames"):
    media.matched(ramp(n), frames)


def test_real_files(examples):
  paths = sorted(examples.glob("mead/*.mat")) + sorted(examples.glob("expression/*.mat"))
  for path in paths:
    found = media.read_expression(path)
    coefficients = scipy.io.loadmat(path)["coeff"]
    np.testing.assert_array_equal(found, coefficients[:, 80:144].astype(np.float32))
  assert len(paths) == 19
