import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from conftest import GOLDEN, draw

from dicetalk_jax.errors import InputError
from dicetalk_jax.weights.priors import read_prior, read_priors

LABELS = ["angry", "contempt", "disgusted", "fear", "happy", "neutral", "sad", "surprised"]


def unsafe(path):
  return np.load(path, allow_pickle=True).item()["mu"].reshape(-1)


def npy_of_pickle(path, content):
  """A .npy file of a 0-d object array with `content` as its pickle."""
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
  path.write_bytes(file.getvalue() + content)
  return path


def pickled(value, protocol=4):
  return pickle.dumps(np.array(value, dtype=object), protocol=protocol)


def test_released_pickle_equals_numpy():
  prior = read_prior(GOLDEN / "emotion.npy")
  assert prior.mu.dtype == np.float32 and prior.mu.shape == (256,) and prior.sigma is None
  np.testing.assert_array_equal(prior.mu, unsafe(GOLDEN / "emotion.npy"))


def test_released_priors_equal_numpy(examples):
  priors = read_priors(examples / "emotion_priors")
  assert sorted(priors) == LABELS
  for label in LABELS:
    assert set(priors[label]) == {"mu"}
    np.testing.assert_array_equal(priors[label]["mu"], unsafe(examples / "emotion_priors" / f"{label}.npy"))


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", "<f2"])
def test_pickles_of_numpy(tmp_path, protocol, dtype):
  mu, sigma = draw("mu", (1, 256)).astype(dtype), np.abs(draw("sigma", (256, 1))).astype(dtype)
  path = npy_of_pickle(tmp_path / "prior.npy", pickled({"mu": mu, "sigma": sigma}, protocol))
  prior = read_prior(path)
  np.testing.assert_array_equal(prior.mu, mu[0].astype(np.float32))
  np.testing.assert_array_equal(prior.sigma, sigma[:, 0].astype(np.float32))


def test_pickles_of_other_memory_orders(tmp_path):
  mu = np.repeat(draw("mu", (256,)), 2)[::2]
  for protocol in (3, 5):
    path = npy_of_pickle(
      tmp_path / "prior.npy", pickled({"mu": mu, "sigma": np.asfortranarray(mu[None] ** 2)}, protocol)
    )
    np.testing.assert_array_equal(read_prior(path).mu, mu)


def test_names_of_numpy_1_and_2(tmp_path):
  value = {"mu": draw("mu", (1, 256))}
  for protocol in (3, 5):
    content = pickled(value, protocol)
    if protocol == 3:
      content = content.replace(b"numpy._core", b"numpy.core")
    prior = read_prior(npy_of_pickle(tmp_path / "prior.npy", content))
    np.testing.assert_array_equal(prior.mu, value["mu"][0])


@pytest.mark.parametrize("shape", [(256,), (1, 256), (1, 1, 1, 1, 256)])
def test_plain_files(tmp_path, shape):
  mu, sigma = draw("mu", shape), np.abs(draw("sigma", shape))
  np.save(tmp_path / "a.npy", mu)
  np.savez(tmp_path / "b.npz", mu=mu, sigma=sigma)
  np.savez_compressed(tmp_path / "c.npz", mu=mu, sigma=sigma)
  safetensors.numpy.save_file({"mu": mu, "sigma": sigma}, tmp_path / "d.safetensors")
  for name in ("a.npy", "b.npz", "c.npz", "d.safetensors"):
    prior = read_prior(tmp_path / name)
    np.testing.assert_array_equal(prior.mu, mu.reshape(256))
    if name != "a.npy":
      np.testing.assert_array_equal(prior.sigma, sigma.reshape(256))


class Calls:
  """Pickles as a call of any function."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


def test_pickle_that_imports_is_not_run(tmp_path):
  marker = tmp_path / "ran"
  hostile = {
    "system": Calls(os.system, f"touch {marker}"),
    "eval": Calls(eval, f"open({str(marker)!r}, 'w')"),
    "numpy.load": Calls(np.load, str(marker), None, True),
    "numpy.array": Calls(np.array, [1]),
    "os.mkdir": Calls(os.mkdir, str(marker)),
  }
  for name, call in hostile.items():
    for protocol in (3, 4, 5):
      for content in (
        pickle.dumps(call, protocol),
        pickled({"mu": draw("mu", (1, 256)), "sigma": call}, protocol),
        pickled({"mu": draw("mu", (1, 256)), call: 1}, protocol),
      ):
        path = npy_of_pickle(tmp_path / "prior.npy", content)
        with pytest.raises(InputError, match=r"wants to import .*\(nothing was run\)"):
          read_prior(path)
        assert not marker.exists(), name


@pytest.mark.parametrize(
  "content",
  [
    b"cos\nsystem\n(S'touch ran'\ntR.",
    b"(S'touch ran'\nios\nsystem\n.",
    b"\x80\x02cnumpy\nndarray\n)\x81.",
    b"\x80\x02\x82\x01.",
    b"\x80\x04P1\n.",
    b"\x80\x04K\x01Q.",
  ],
  ids=["protocol 0", "INST", "NEWOBJ", "EXT1", "PERSID", "BINPERSID"],
)
def test_other_ways_into_a_pickle(tmp_path, monkeypatch, content):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match="nothing was run"):
    read_prior(npy_of_pickle(tmp_path / "prior.npy", content))
  assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
  "content",
  [
    b"\x80\x04Nr\xff\xff\xff\x7f.",
    b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
    b"\x80\x04}0.",
    b"\x80\x04}.",
    b"\x80\x04)Rb.",
    pickled({"mu": [1.0] * 256}),
    pickled({"mu": np.array(["a"] * 256)}),
    pickled({"mu": np.array([None] * 256, dtype=object)}),
    pickled({"mu": np.arange(256)}),
    pickled({"mean": np.zeros(256)}),
    pickled({"mu": np.zeros(256), "label": np.zeros(1)}),
    pickled([{"mu": np.zeros(256)}] * 2),
    pickle.dumps(np.zeros(256, np.float32), 4),
  ],
)
def test_pickles_that_are_no_prior(tmp_path, content):
  with pytest.raises(InputError, match=r"no emotion prior|cannot be read"):
    read_prior(npy_of_pickle(tmp_path / "prior.npy", content))


@pytest.mark.parametrize(
  "content",
  [b"})" + b"\x85" * 1_000_000 + b"Ns.", b"](" + b"N" * 1_000_000 + b"e.", b")" + b"\x94" * 1_000_000 + b"."],
  ids=["deep key", "long list", "large memo"],
)
def test_endless_pickles(tmp_path, content):
  with pytest.raises(InputError, match="far longer"):
    read_prior(npy_of_pickle(tmp_path / "prior.npy", b"\x80\x04" + content))


def test_declared_shapes_ask_for_no_memory(tmp_path):
  content = pickled({"mu": np.zeros((1, 256), np.float32)}, 3)
  assert content.count(b"M\x00\x01") == 1
  huge = content.replace(b"M\x00\x01", b"\x8a\x08" + (1 << 60).to_bytes(8, "little"))
  wrong = content.replace(b"K\x01M\x00\x01", b"J\xff\xff\xff\xffJ\x00\xff\xff\xff")  # (-1, -256)
  large = content.replace(b"M\x00\x01", b"J\xff\xff\xff\x7f")
  for hostile in (huge, wrong, large):
    with pytest.raises(InputError):
      read_prior(npy_of_pickle(tmp_path / "prior.npy", hostile))
  for shape in ((1 << 50,), (-1, -256), (257,)):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    (tmp_path / "plain.npy").write_bytes(file.getvalue() + bytes(1024))
    with pytest.raises(InputError, match="announces"):
      read_prior(tmp_path / "plain.npy")


def test_zip_that_unpacks_to_much(tmp_path):
  with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
    file = io.BytesIO()
    np.save(file, np.zeros(1 << 24, np.float32))
    archive.writestr("mu.npy", file.getvalue())
  with pytest.raises(InputError, match="announces"):
    read_prior(tmp_path / "bomb.npz")
  with zipfile.ZipFile(tmp_path / "lzma.npz", "w", zipfile.ZIP_LZMA) as archive:
    archive.writestr("mu.npy", bytes(1024))
  with pytest.raises(InputError, match="packed"):
    read_prior(tmp_path / "lzma.npz")


def test_npz_with_pickle_is_refused(tmp_path):
  np.savez(tmp_path / "a.npz", mu=np.array({"mu": np.zeros(256)}, dtype=object))
  with pytest.raises(InputError, match="not floating-point"):
    read_prior(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_damaged_files(tmp_path, suffix):
  mu = draw("mu", (1, 256))
  whole = tmp_path / f"whole{suffix}"
  {
    ".npy": lambda: whole.write_bytes((GOLDEN / "emotion.npy").read_bytes()),
    ".npz": lambda: np.savez(whole, mu=mu),
    ".safetensors": lambda: safetensors.numpy.save_file({"mu": mu}, whole),
  }[suffix]()
  data = whole.read_bytes()
  read_prior(whole)
  cut = tmp_path / f"cut{suffix}"
  for length in [1, 5, 9, 60, 127, 128, 129, 200, 400, len(data) // 2, len(data) - 1]:
    cut.write_bytes(data[:length])
    with pytest.raises(InputError, match="cut"):
      read_prior(cut)
  cut.write_bytes(b"")
  with pytest.raises(InputError, match="empty"):
    read_prior(cut)
  cut.write_bytes(data + bytes(1 << 20))
  with pytest.raises(InputError, match="1 MiB"):
    read_prior(cut)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools, on a byte turned into a STRING instruction
def test_flipped_bytes_give_a_prior_or_an_input_error(tmp_path):
  data = (GOLDEN / "emotion.npy").read_bytes()
  random = np.random.default_rng(0)
  path = tmp_path / "prior.npy"
  refused = 0
  for _ in range(400):
    hurt = bytearray(data)
    hurt[random.integers(0, 400)] = random.integers(0, 256)
    path.write_bytes(hurt)
    try:
      assert read_prior(path).mu.shape == (256,)
    except InputError:
      refused += 1
  assert refused > 50


def test_values_that_are_no_prior(tmp_path):
  bad = {
    "has shape": {"mu": np.zeros(255, np.float32)},
    r"has shape \(2, 256\)": {"mu": np.zeros((2, 256), np.float32)},
    r"has shape \(16, 16\)": {"mu": np.zeros((16, 16), np.float32)},
    "mu of .* NaN": {"mu": np.full(256, np.nan, np.float32)},
    "sigma of .* infinite": {"mu": np.zeros(256, np.float32), "sigma": np.full(256, np.inf, np.float32)},
    "negative": {"mu": np.zeros(256, np.float32), "sigma": np.full(256, -1, np.float32)},
    "holds mean": {"mean": np.zeros(256, np.float32)},
  }
  for message, fields in bad.items():
    np.savez(tmp_path / "prior.npz", **fields)
    safetensors.numpy.save_file(fields, tmp_path / "prior.safetensors")
    for name in ("prior.npz", "prior.safetensors"):
      with pytest.raises(InputError, match=message):
        read_prior(tmp_path / name)
  np.save(tmp_path / "small.npy", np.zeros(128, np.float32))
  assert read_prior(tmp_path / "small.npy", size=128).mu.shape == (128,)


def test_paths_that_are_no_prior_file(tmp_path):
  with pytest.raises(InputError, match="not found"):
    read_prior(tmp_path / "absent.npy")
  with pytest.raises(InputError, match="not a file"):
    read_prior(tmp_path)
  (tmp_path / "prior.txt").write_text("happy")
  with pytest.raises(InputError, match=r"\.npy, \.npz, \.safetensors"):
    read_prior(tmp_path / "prior.txt")


def test_read_priors_of_a_folder(tmp_path):
  with pytest.raises(InputError, match="not a folder"):
    read_priors(tmp_path / "absent")
  (tmp_path / "README.md").write_text("priors")
  (tmp_path / "._happy.npy").write_bytes(b"not a prior")
  with pytest.raises(InputError, match="no emotion priors"):
    read_priors(tmp_path)
  np.save(tmp_path / "happy.npy", draw("happy", (1, 256)))
  np.savez(tmp_path / "sad.npz", mu=draw("sad", (256,)), sigma=np.ones(256))
  priors = read_priors(tmp_path)
  assert {label: set(prior) for label, prior in priors.items()} == {"happy": {"mu"}, "sad": {"mu", "sigma"}}
  np.testing.assert_array_equal(priors["happy"]["mu"], draw("happy", (256,)))
  np.savez(tmp_path / "happy.npz", mu=draw("happy", (256,)))
  with pytest.raises(InputError, match="two prior files for the label 'happy'"):
    read_priors(tmp_path)
