"""Portraits: every kind of picture, the golden stages, and what cannot be used."""

import struct

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


def icc_profile(name, gamma, primaries):
  """A profile of these primaries (x, y of red, green, blue) and of the white point D50, as ICC.1 wants it."""
  white = np.array([0.9642, 1.0, 0.8249])
  xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
  xyz = xyz * np.linalg.solve(xyz, white)

  def fixed(values):
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * v) for v in values))

  text = name.encode() + b"\0"
  curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma))
  tags = {
    b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78),
    b"cprt": b"text\0\0\0\0none\0",
    b"wtpt": fixed(white),
    **{letter + b"XYZ": fixed(xyz[:, i]) for i, letter in enumerate((b"r", b"g", b"b"))},
    **{letter + b"TRC": curve for letter in (b"r", b"g", b"b")},
  }
  place, table, data = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
  for tag, content in tags.items():
    content += bytes(-len(content) % 4)
    table += tag + struct.pack(">II", place + len(data), len(content))
    data += content
  head = struct.pack(">I4sI4s4s4s", place + len(data), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ") + bytes(12)
  head += b"acsp" + bytes(28) + struct.pack(">3i", *(round(65536 * v) for v in white))
  return head.ljust(128, b"\0") + table + data, xyz


# Primaries adapted to D50.
WIDE = {
  "Display P3": (2.2, [(0.6798, 0.3197), (0.2835, 0.6735), (0.1579, 0.0661)]),
  "Adobe RGB": (2.2, [(0.6484, 0.3309), (0.2302, 0.7016), (0.1559, 0.0662)]),
  "ProPhoto RGB": (1.8, [(0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)]),
}
SRGB = [(0.6484, 0.3309), (0.3212, 0.5979), (0.1559, 0.0660)]  # D50
SKIN = np.array([[225, 180, 150], [190, 140, 110], [120, 80, 60], [240, 205, 185]], np.float64) / 255


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_profiles_become_srgb(tmp_path, name, mode):
  """Skin is off by the two roundings to 8 bits alone (CIE 1976); ignoring the profile costs more than 2.5."""
  gamma, primaries = WIDE[name]
  profile, to_xyz = icc_profile(name, gamma, primaries)
  _, srgb_to_xyz = icc_profile("", 2.2, SRGB)
  linear = np.where(SKIN <= 0.04045, SKIN / 12.92, ((SKIN + 0.055) / 1.055) ** 2.4)
  stored = np.clip(linear @ srgb_to_xyz.T @ np.linalg.inv(to_xyz).T, 0, 1) ** (1 / gamma)
  # 16 pixels each; 8 bits round by up to half a level.
  pixels = np.rint(255 * stored).astype(np.uint8)[None].repeat(16, 0).repeat(16, 1)
  image = Image.fromarray(pixels)
  if mode == "RGBA":
    image.putalpha(255)
  image.save(tmp_path / "a.png", icc_profile=profile)
  read = media.read_image(tmp_path / "a.png")[0, ::16] / 255

  def lab(colours):
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    f = np.cbrt(linear @ srgb_to_xyz.T / [0.9642, 1.0, 0.8249])
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)

  # Half a level of rounding when it is stored and half when it is read are 0.3 each, in the dark colour.
  assert np.linalg.norm(lab(read) - lab(SKIN), axis=1).mean() < 0.6
  assert np.linalg.norm(lab(pixels[0, ::16] / 255) - lab(SKIN), axis=1).mean() > 2.5


def test_srgb_profiles_and_damaged_ones_change_nothing(tmp_path, picture):
  own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  for name, profile in (("srgb", own), ("damaged", b"no profile" * 20)):
    Image.fromarray(picture).save(tmp_path / f"{name}.png", icc_profile=profile)
    np.testing.assert_array_equal(media.read_image(tmp_path / f"{name}.png"), picture)


def test_heic_names_its_plug_in(tmp_path):
  (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
  with pytest.raises(InputError, match="pip install pillow-heif"):
    media.read_image(tmp_path / "a.heic")
