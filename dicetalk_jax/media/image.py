"""A portrait: any picture -> the arrays the networks take (released: RGB, shorter side 512, Lanczos)."""

import contextlib
import io
import math
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from dicetalk_jax.errors import InputError
from dicetalk_jax.files import existing_file

SMALLEST_SIDE = 16
BACKGROUND = "white"
CLIP_SIZE = (224, 224)
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def read_image(source) -> np.ndarray:
  """Any picture -> (h, w, 3) uint8 RGB.

  source: a path of anything Pillow reads (of an animation the first frame), a PIL image, or an array (h, w),
  (h, w, 1), (h, w, 3) or (h, w, 4), uint8 or float in [0, 1]. EXIF rotation is applied, a colour profile converted to
  sRGB, transparency laid over white, 16-bit grey scaled to 8 bits. Raises InputError for what is missing, unreadable,
  damaged, under 16 pixels on a side or so large that Pillow takes it for an attack.
  """
  if isinstance(source, str | Path):
    pixels = _read_file(existing_file(source, "portrait"))
    name = f"portrait {source}"
  elif isinstance(source, Image.Image):
    pixels, name = _to_rgb(source), "portrait"
  else:
    pixels, name = _array_to_rgb(source), "portrait"
  height, width = pixels.shape[:2]
  if min(height, width) < SMALLEST_SIDE:
    raise InputError(f"{name} is {width}x{height} pixels; both sides must be at least {SMALLEST_SIDE}")
  return pixels


def _read_file(path: Path) -> np.ndarray:
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error", Image.DecompressionBombWarning)
      # Pillow warns of odd metadata in files that it reads well.
      warnings.simplefilter("ignore", UserWarning)
      if _is_heic(path):
        with contextlib.suppress(ImportError):
          import pillow_heif

          pillow_heif.register_heif_opener()
      with Image.open(path) as image:
        image.load()
        return _to_rgb(image)
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    raise InputError(
      f"portrait {path} has more than {Image.MAX_IMAGE_PIXELS // 10**6} million pixels; make it smaller first"
    ) from error
  except UnidentifiedImageError as error:
    if _is_heic(path):
      raise InputError(
        f"portrait {path} is a HEIC image, which Pillow reads with the plug-in pillow-heif: run `pip install "
        "pillow-heif`, or save the picture as JPEG"
      ) from error
    raise InputError(f"portrait {path} is not an image that can be read; give a PNG, JPEG or WebP file") from error
  except Exception as error:  # a damaged file makes decoders raise nearly anything
    raise InputError(f"portrait {path} is damaged or cut short ({error}); save or download it again") from error


def _is_heic(path: Path) -> bool:
  with path.open("rb") as file:
    return file.read(12)[4:] in {b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1")}


def _to_rgb(image: Image.Image) -> np.ndarray:
  image = _to_srgb(ImageOps.exif_transpose(image))
  if image.mode.startswith("I") or image.mode == "F":
    return _deep_grey_to_rgb(np.asarray(image))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
  return np.array(image.convert("RGB"))


def _to_srgb(image: Image.Image) -> Image.Image:
  """Converts the colours of an embedded profile, such as Display P3; an sRGB image stays as it is, to the bit."""
  profile = image.info.get("icc_profile")
  if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
    return image
  try:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if "sRGB" in ImageCms.getProfileDescription(profile):
      return image
    colours = image.convert("RGB") if image.mode == "RGBA" else image
    colours = ImageCms.profileToProfile(colours, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
  except (ImageCms.PyCMSError, OSError):
    return image  # a damaged profile, or one of another kind of colours
  if image.mode == "RGBA":
    colours.putalpha(image.getchannel("A"))
  return colours


def _deep_grey_to_rgb(grey: np.ndarray) -> np.ndarray:
  """Grey of more than 8 bits: integers fill 16 bits; floats fill [0, 1], or [0, 255] where they exceed 1."""
  if grey.dtype.kind == "f":
    full = 1.0 if np.nanmax(grey) <= 1 else 255.0
  else:
    full = 65535.0
  scaled = np.nan_to_num(grey.astype(np.float64)) * (255 / full)
  return np.repeat(np.clip(np.rint(scaled), 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def _array_to_rgb(source) -> np.ndarray:
  array = np.asarray(source)
  if array.ndim == 2:
    array = array[..., None]
  if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or array.size == 0:
    raise InputError(
      f"a portrait array must be (h, w), (h, w, 1), (h, w, 3) or (h, w, 4); this one is {np.shape(source)}"
    )
  if array.dtype.kind == "f":
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):
      raise InputError(f"a float portrait must be in [0, 1]; this one goes from {low:g} to {high:g}")
    array = np.rint(array * 255).astype(np.uint8)
  if array.dtype != np.uint8:
    raise InputError(f"a portrait array must be uint8, or float in [0, 1]; this one is {array.dtype}")
  if array.shape[-1] == 1:
    array = np.repeat(array, 3, axis=-1)
  return _to_rgb(Image.fromarray(array))


def working_size(width: int, height: int, size: int) -> tuple[int, int]:
  """The (width, height) at which a portrait is animated: shorter side near `size`, both multiples of 64 (released).

  Raises InputError for a size that is not a number from 32 up (less rounds to nothing).
  """
  if not isinstance(size, int | float | np.number) or not math.isfinite(size) or size < 32:
    shown = f"{size:g}" if isinstance(size, int | float) else repr(size)
    raise InputError(f"size {shown} cannot be used: give the shorter side in pixels, at least 32; the release's is 512")
  scale = size / min(width, height)
  return max(64, round(width * scale / 64) * 64), max(64, round(height * scale / 64) * 64)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """uint8 (h, w, c) or (h, w) -> the same at (width, height), by Pillow's Lanczos (released)."""
  return np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def to_signed(image: np.ndarray) -> np.ndarray:
  """uint8 -> float32 in [-1, 1]."""
  return image.astype(np.float32) / 255 * 2 - 1


def clip_pixels(image: np.ndarray) -> np.ndarray:
  """The resized portrait, uint8 (h, w, 3) -> CLIP's input (224, 224, 3) float32 (released: aspect ignored)."""
  return (resize(image, CLIP_SIZE).astype(np.float32) / 255 - CLIP_MEAN) / CLIP_STD
