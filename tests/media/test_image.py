"""Portraits: every kind of picture, the golden stages, and what cannot be used."""

import numpy as np
import pytest
from conftest import GOLDEN, golden
from PIL import Image, ImageCms

from dicetalk_jax.errors import InputError
from dicetalk_jax.media import image as media


@pytest.fixture
def picture():
  """(40, 60, 3) uint8 with a different colour in each corner."""
  y, x = np.mgrid[:40, :60]
  return np.stack([x * 4, y * 6, 255 - x * 2 - y * 3], axis=-1).astype(np.uint8)


def test_golden_stages_are_reproduced_bit_for_bit():
  stages = golden("pipeline_tiny")
  portrait = media.read_image(GOLDEN / "portrait.png")
  size = media.working_size(portrait.shape[1], portrait.shape[0], 64)
  resized = media.resize(portrait, size)
  assert size == (128, 64)
  np.testing.assert_array_equal(media.to_signed(resized).transpose(2, 0, 1), stages["ref_image"])
  np.testing.assert_array_equal(media.clip_pixels(resized).transpose(2, 0, 1)[:, ::8, ::8], stages["clip_pixel_values"])


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "gif"])
def test_lossless_files_come_back_as_they_were(tmp_path, suffix):
  flat = np.zeros((40, 60, 3), np.uint8) + np.array([200, 30, 90], np.uint8)  # one colour: a gif keeps it too
  Image.fromarray(flat).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
  np.testing.assert_array_equal(media.read_image(str(tmp_path / f"a.{suffix}")), flat)


def test_exif_rotation_is_applied(tmp_path, picture):
  exif = Image.Exif()
  exif[0x0112] = 6  # lying on its left side: turn a quarter clockwise
  Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
  np.testing.assert_array_equal(media.read_image(tmp_path / "a.png"), np.rot90(picture, -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(tmp_path, mode):
  grey = np.full((20, 20), 100, np.uint8)
  alpha = np.full((20, 20), 255, np.uint8)
  alpha[:10] = 0
  image = Image.merge("RGBA", [Image.fromarray(c) for c in (grey, grey, grey, alpha)])
  path = tmp_path / ("a.gif" if mode == "P" else "a.png")
  (image.convert("LA") if mode == "LA" else image).save(path)
  read = media.read_image(path)
  assert (read[:10] == 255).all() and (read[10:] == 100).all()
  if mode == "RGBA":
    np.testing.assert_array_equal(media.read_image(np.array(image)), read)
    np.testing.assert_array_equal(media.read_image(image), read)


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "big.tiff"])
def test_16_bit_grey_is_scaled(tmp_path, name):
  deep = np.linspace(0, 65535, 20 * 30).astype(np.uint16).reshape(20, 30)
  dtype = ">u2" if name == "big.tiff" else "<u2"
  Image.frombytes("I;16B" if name == "big.tiff" else "I;16", (30, 20), deep.astype(dtype).tobytes()).save(
    tmp_path / name
  )
  expected = np.rint(deep / 257).astype(np.uint8)
  np.testing.assert_array_equal(media.read_image(tmp_path / name), np.repeat(expected[..., None], 3, -1))


def test_float_grey_and_cmyk_and_1_bit(tmp_path):
  ramp = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
  Image.fromarray(ramp).save(tmp_path / "f.tiff")
  assert np.abs(media.read_image(tmp_path / "f.tiff")[..., 0] - ramp * 255).max() <= 0.5
  Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=100)
  red = media.read_image(tmp_path / "c.jpg")[10, 10]
  assert red[0] > 245 and red[1] < 10 and red[2] < 10
  Image.new("1", (20, 20), 1).save(tmp_path / "b.png")
  assert (media.read_image(tmp_path / "b.png") == 255).all()


def test_an_animation_gives_its_first_frame(tmp_path):
  frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
  frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
  assert media.read_image(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


def test_arrays(picture):
  np.testing.assert_array_equal(media.read_image(picture), picture)
  np.testing.assert_array_equal(media.read_image(picture.astype(np.float64) / 255), picture)
  np.testing.assert_array_equal(media.read_image(picture[..., 0]), media.read_image(picture[..., :1]))
  assert media.read_image(picture[..., 0]).shape == (40, 60, 3)


@pytest.mark.parametrize(
  ("array", "said"),
  [
    (np.zeros((8, 40, 3), np.uint8), "40x8 pixels"),
    (np.zeros((40, 40, 2), np.uint8), r"\(40, 40, 2\)"),
    (np.zeros((3, 40, 40, 3), np.uint8), r"\(3, 40, 40, 3\)"),
    (np.full((40, 40, 3), 2.0), "from 2 to 2"),
    (np.full((40, 40, 3), np.nan), "nan"),
    (np.zeros((40, 40, 3), np.int64), "int64"),
    (None, r"\(\)"),
  ],
)
def test_arrays_that_are_no_portrait(array, said):
  with pytest.raises(InputError, match=said):
    media.read_image(array)


def test_bad_files_are_one_clear_error(tmp_path, picture, monkeypatch):
  def fails(path, said):
    with pytest.raises(InputError, match=said) as raised:
      media.read_image(path)
    assert str(path) in str(raised.value)

  fails(tmp_path / "none.png", "does not exist")
  fails(tmp_path, "is a folder")
  (tmp_path / "empty.png").touch()
  fails(tmp_path / "empty.png", "empty")
  (tmp_path / "text.png").write_text("not a picture " * 50)
  fails(tmp_path / "text.png", "not an image")
  for name in ("a.png", "a.jpg", "a.webp", "a.tiff"):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / f"cut_{name}").write_bytes(whole[: len(whole) // 2])
    fails(tmp_path / f"cut_{name}", "damaged|not an image")
  Image.fromarray(picture).save(tmp_path / "ok.png")
  for limit in (1000, 2000):  # over twice Pillow's limit, which it refuses, and over once, of which it only warns
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    fails(tmp_path / "ok.png", "million pixels")


def test_an_embedded_profile_is_no_obstacle(tmp_path, picture):
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  Image.fromarray(picture).save(tmp_path / "a.png", icc_profile=profile)
  np.testing.assert_array_equal(media.read_image(tmp_path / "a.png"), picture)


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ((300, 200, 64), (128, 64)),  # 96 / 64 = 1.5 rounds to the even 2
    ((500, 613, 512), (512, 640)),
    ((512, 512, 512), (512, 512)),
    ((1080, 1920, 512), (512, 896)),
    ((1000, 100, 64), (640, 64)),
    ((100, 100, 32), (64, 64)),  # 32 / 64 rounds to 0; the smallest is 64
    ((100, 100, 97), (128, 128)),
  ],
)
def test_working_size(given, expected):
  assert media.working_size(*given) == expected


@pytest.mark.parametrize("size", [0, -64, 31, float("nan"), float("inf"), "512", None])
def test_a_size_that_cannot_be_used(size):
  with pytest.raises(InputError, match="size"):
    media.working_size(300, 200, size)


def test_resize_of_masks_and_signed_range():
  mask = np.zeros((20, 30), np.uint8)
  mask[:, 15:] = 255
  resized = media.resize(mask, (60, 40))
  assert resized.shape == (40, 60) and resized[:, 0].max() == 0 and resized[:, -1].min() == 255
  signed = media.to_signed(np.array([0, 255], np.uint8))
  assert signed.dtype == np.float32 and signed.tolist() == [-1, 1]


def test_real_portraits_are_read(examples):
  for path in sorted((examples / "portraits").iterdir()):
    portrait = media.read_image(path)
    assert portrait.dtype == np.uint8 and portrait.shape[-1] == 3 and portrait.std() > 20
