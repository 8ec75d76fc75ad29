"""Downloading from a loopback server that speaks the hub's routes."""

import hashlib
import pathlib
import shutil

import pytest
from hub_server import Hub
from release import LABELS, SVD, small_release, variation, write_release

from dicetalk_jax.errors import OutputError, WeightsError
from dicetalk_jax.weights.download import download
from dicetalk_jax.weights.release.convert import convert

REPOSITORIES = {
  "EEEELY/DICE-Talk": ("DICE-Talk", "RIFE", "emotion_priors"),
  "stabilityai/stable-video-diffusion-img2vid-xt": (SVD,),
  "openai/whisper-tiny": ("whisper-tiny",),
}


def listing(release, folders):
  """path in the repository -> file: a repository that is one folder has its files at the top."""
  files = {}
  for folder in folders:
    for path in sorted((release / folder).rglob("*")):
      if path.is_file():
        files[path.relative_to(release / folder if len(folders) == 1 else release).as_posix()] = path
  return files


@pytest.fixture
def hub(tmp_path_factory, tmp_path, monkeypatch):
  for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no token"))
  release = small_release(tmp_path_factory)
  files = {name: listing(release, folders) for name, folders in REPOSITORIES.items()}
  # What is published beside it and no conversion reads.
  spare = tmp_path / "spare"
  spare.write_bytes(b"spare")
  files["stabilityai/stable-video-diffusion-img2vid-xt"] |= {"svd_xt.safetensors": spare, "README.md": spare}
  files["openai/whisper-tiny"] |= {"pytorch_model.bin": spare, "flax_model.msgpack": spare, "tokenizer.json": spare}
  files["EEEELY/DICE-Talk"] |= {"yoloface_v5m.pt": spare, "README.md": spare}
  return Hub(files)


def contents(folder):
  return {
    path.relative_to(folder).as_posix(): path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()
  }


def test_fetches_the_released_layout_and_nothing_else(hub, tmp_path_factory, tmp_path):
  calls = []
  with hub.serving() as endpoint:
    download(tmp_path / "source", endpoint=endpoint, token="hf_secret", progress=lambda *call: calls.append(call))
    assert contents(tmp_path / "source") == contents(small_release(tmp_path_factory))
    assert hub.tokens == {"Bearer hf_secret"}
    assert any(name == "DICE-Talk/unet.pth" and done == whole > 10**8 for name, done, whole in calls)
    hub.downloads.clear()
    download(tmp_path / "source", endpoint=endpoint)
  assert hub.downloads == []


def test_what_was_fetched_converts(hub, tmp_path):
  # The repository with its files at the top and the U-Net in float16, sharded, beside full precision.
  release = write_release(
    tmp_path / "release", small=True, svd_format="sharded safetensors", svd_dtype="float16", variant=".fp16"
  )
  video = listing(release, (SVD,))
  for name in ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
    video[name] = hub.files["stabilityai/stable-video-diffusion-img2vid-xt"][name]
  hub.files["stabilityai/stable-video-diffusion-img2vid-xt"] = video
  own = hub.files["EEEELY/DICE-Talk"]
  hub.files["EEEELY/DICE-Talk"] = {name.removeprefix("DICE-Talk/"): path for name, path in own.items()}
  with hub.serving() as endpoint:
    source = download(tmp_path / "source", endpoint=endpoint)
  assert not (source / SVD / "unet" / "diffusion_pytorch_model.safetensors").exists()
  weights = convert(source, tmp_path / "weights", slim=True)
  assert weights.info().networks["vae"].dtypes.keys() == {"float16"}
  assert weights.config["emotions"] == sorted(LABELS)


def test_an_interrupted_download_goes_on_where_it_stopped(hub, tmp_path, monkeypatch):
  monkeypatch.setattr("time.sleep", lambda _: None)

  class Interrupted(Exception):
    pass

  def interrupt(name, done, whole):
    if name == "DICE-Talk/unet.pth" and done > whole // 2:
      raise Interrupted

  with hub.serving() as endpoint:
    with pytest.raises(Interrupted):
      download(tmp_path / "source", endpoint=endpoint, progress=interrupt)
    assert not (tmp_path / "source" / "DICE-Talk" / "unet.pth").exists()
    hub.downloads.clear()
    download(tmp_path / "source", endpoint=endpoint)
  firsts = dict(hub.downloads)
  whole = hub.files["EEEELY/DICE-Talk"]["DICE-Talk/unet.pth"].read_bytes()
  assert firsts["DICE-Talk/unet.pth"] > len(whole) // 3
  assert "unet/diffusion_pytorch_model.safetensors" not in firsts
  assert (tmp_path / "source" / "DICE-Talk" / "unet.pth").read_bytes() == whole
  assert not (tmp_path / "source" / ".download").exists()


def test_a_connection_that_breaks_is_taken_up_again(hub, tmp_path, monkeypatch):
  monkeypatch.setattr("time.sleep", lambda _: None)
  hub.cut_after = 30 << 20
  with hub.serving() as endpoint:
    download(tmp_path / "source", endpoint=endpoint)
  assert [first for name, first in hub.downloads if name == "DICE-Talk/unet.pth"][-1] > 0
  whole = hub.files["EEEELY/DICE-Talk"]["DICE-Talk/unet.pth"].read_bytes()
  assert (tmp_path / "source" / "DICE-Talk" / "unet.pth").read_bytes() == whole


@pytest.mark.parametrize(
  ("refusal", "words"),
  [
    ((401, "GatedRepo"), "behind a licence: accept it at"),
    ((403, "GatedRepo"), "behind a licence: accept it at"),
    ((401, None), "was not found|token is wrong"),
    ((403, None), r"refused .* \(403\): the token"),
    ((503, None), "answered 503"),
  ],
)
def test_refusals_are_explained(hub, tmp_path, monkeypatch, refusal, words):
  monkeypatch.setattr("time.sleep", lambda _: None)
  repository = "stabilityai/stable-video-diffusion-img2vid-xt"
  hub.refusals[repository] = refusal
  with hub.serving() as endpoint, pytest.raises(WeightsError, match=words) as caught:
    download(tmp_path / "source", endpoint=endpoint, token="hf_wrong")
  assert repository in str(caught.value) and "\n" not in str(caught.value)


def test_a_repository_that_is_not_there_is_named(hub, tmp_path):
  with hub.serving() as endpoint, pytest.raises(WeightsError, match=r"nobody/nothing was not found"):
    download(tmp_path / "source", dicetalk="nobody/nothing", endpoint=endpoint)
  with pytest.raises(WeightsError, match=r"'a/b/c' is not the name of a repository"):
    download(tmp_path / "source", dicetalk="a/b/c", endpoint=endpoint)
  assert not (tmp_path / "source").exists()


def test_a_repository_without_the_files_is_named(hub, tmp_path):
  with hub.serving() as endpoint, pytest.raises(WeightsError, match=r"openai/whisper-tiny has no unet\.pth"):
    download(tmp_path / "source", dicetalk="openai/whisper-tiny", endpoint=endpoint)


def test_no_network_is_said(tmp_path, monkeypatch):
  monkeypatch.setattr("time.sleep", lambda _: None)
  with pytest.raises(WeightsError, match=r"No connection to http://127\.0\.0\.1:9/"):
    download(tmp_path / "source", endpoint="http://127.0.0.1:9")


def test_a_file_that_arrives_damaged_is_not_kept(hub, tmp_path, tmp_path_factory):
  release = variation(small_release(tmp_path_factory), tmp_path / "release")
  path = release / "DICE-Talk" / "unet.pth"
  partial = tmp_path / "source" / ".download"
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  partial.mkdir(parents=True)
  (partial / f"EEEELY_DICE_Talk_DICE_Talk_unet_pth_{digest}").write_bytes(b"not the first bytes of it")
  with hub.serving() as endpoint:
    with pytest.raises(WeightsError, match=r"DICE-Talk/unet\.pth arrived damaged"):
      download(tmp_path / "source", endpoint=endpoint)
    download(tmp_path / "source", endpoint=endpoint)
  assert (tmp_path / "source" / "DICE-Talk" / "unet.pth").read_bytes() == path.read_bytes()


def test_no_room_and_no_permission_are_said(hub, tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  with hub.serving() as endpoint:
    with pytest.raises(OutputError, match="could not be written"):
      download(tmp_path / "file" / "source", endpoint=endpoint)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    with pytest.raises(OutputError, match=r"1\.0 MB are free"):
      download(tmp_path / "source", endpoint=endpoint)


@pytest.mark.parametrize("body", ["web page", "other JSON"])
def test_a_login_page_in_place_of_the_hub_is_named(hub, tmp_path, monkeypatch, body):
  hub.portal = True
  if body == "other JSON":
    monkeypatch.setattr("hub_server.PAGE", b"{}")
  with hub.serving() as endpoint, pytest.raises(WeightsError, match=r"is not the hub .*a login first") as caught:
    download(tmp_path / "source", endpoint=endpoint)
  assert "EEEELY/DICE-Talk" in str(caught.value) and "\n" not in str(caught.value)
  assert not (tmp_path / "source").exists()
