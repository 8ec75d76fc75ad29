"""Faces: where they are found, the mask and crop that follow, and boxes given by hand."""

import av
import numpy as np
import pytest
from conftest import GOLDEN

from dicetalk_jax.errors import InputError
from dicetalk_jax.media import face as media
from dicetalk_jax.media.image import read_image, resize

# What a person sees: the face from ear to ear, forehead to chin, as shares of the width and height (x, y, w, h).
SEEN = {
  "f30.png": (0.20, 0.17, 0.56, 0.68),
  "hg.jpeg": (0.24, 0.18, 0.54, 0.67),
  "male_face.png": (0.20, 0.21, 0.58, 0.61),
  "uncut_src_img.jpg": (0.30, 0.19, 0.43, 0.47),
  "zp1.png": (0.20, 0.18, 0.62, 0.73),
}


def overlap(a, b):
  """Intersection over union of two boxes (x, y, w, h)."""
  width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
  height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
  both = max(width, 0) * max(height, 0)
  return both / (a[2] * a[3] + b[2] * b[3] - both)


def test_the_drawn_face_is_found():
  portrait = read_image(GOLDEN / "portrait.png")
  face, count = media.find_face(portrait)
  assert count == 1 and face.score > 0
  assert overlap(face.box, (100, 30, 100, 135)) > 0.6


@pytest.mark.parametrize("scale", [0.5, 4])
def test_the_box_grows_with_the_image(scale):
  portrait = read_image(GOLDEN / "portrait.png")
  large = resize(portrait, (round(300 * scale), round(200 * scale)))
  face, _ = media.find_face(large)
  assert overlap(face.box, (100 * scale, 30 * scale, 100 * scale, 135 * scale)) > 0.6


def test_of_several_faces_the_largest():
  portrait = read_image(GOLDEN / "portrait.png")
  pair = np.zeros((400, 900, 3), np.uint8)
  pair[100:300, :300] = portrait
  pair[:, 300:] = resize(portrait, (600, 400))
  face, count = media.find_face(pair)
  assert count == 2
  assert overlap(face.box, (500, 60, 200, 270)) > 0.6


def test_no_face_says_what_to_do():
  for image in (
    np.full((200, 300, 3), 128, np.uint8),
    np.random.default_rng(0).integers(0, 256, (128, 96, 3), np.uint8),
  ):
    with pytest.raises(InputError, match=f"no face .*{image.shape[1]}x{image.shape[0]}.*--face-box X Y W H"):
      media.find_face(image)


def test_another_detector_can_take_its_place():
  def detector(image):
    return [media.Face((0, 0, 5, 9), 0.9), media.Face((1, 2, 10, 10), 0.6)]

  assert media.find_face(np.zeros((20, 20, 3), np.uint8), detector) == (media.Face((1, 2, 10, 10), 0.6), 2)


def test_a_model_file_that_is_none(tmp_path):
  with pytest.raises(InputError, match="does not exist"):
    media.DnnDetector(tmp_path / "none.onnx")
  (tmp_path / "bad.onnx").write_text("not a model")
  with pytest.raises(InputError, match="YuNet"):
    media.DnnDetector(tmp_path / "bad.onnx")


def test_real_portraits_and_frames(examples):
  for name, shares in SEEN.items():
    portrait = read_image(examples / "portraits" / name)
    height, width = portrait.shape[:2]
    face, count = media.find_face(portrait)
    seen = tuple(share * side for share, side in zip(shares, (width, height) * 2, strict=True))
    assert count == 1 and overlap(face.box, seen) > 0.75, (name, face.box, seen)
  with av.open(str(examples / "talking_head_with_audio.mp4")) as container:
    for index, frame in enumerate(container.decode(video=0)):
      if index % 100 == 0:
        face, count = media.find_face(frame.to_ndarray(format="rgb24"))
        assert count == 1 and overlap(face.box, (55, 40, 140, 170)) > 0.6, (index, face.box)


def test_boxes_given_by_hand():
  assert media.check_box([100, 30, 100, 135], 300, 200) == (100, 30, 100, 135)
  assert media.check_box((-10.4, -5, 60.6, 50), 300, 200) == (-10, -5, 61, 50)  # a face may reach over the edge
  assert media.check_box(np.array([250, 100, 60, 60]), 300, 200) == (250, 100, 60, 60)


@pytest.mark.parametrize(
  ("box", "said"),
  [
    ((1, 2, 3), "not four numbers"),
    ((1, 2, 3, 4, 5), "not four numbers"),
    ("abcd", "not four numbers"),
    (None, "not four numbers"),
    ((1, 2, float("nan"), 4), "not four numbers"),
    ((1, 2, float("inf"), 4), "not four numbers"),
    ((10, 10, 0, 20), "width 0"),
    ((10, 10, 20, -5), "height -5"),
    ((400, 10, 50, 50), "outside the image of 300x200"),
    ((-100, 10, 50, 50), "outside the image of 300x200"),
    ((290, 190, 50, 50), "outside the image of 300x200"),
    ((0, 0, 1000, 1000), "outside the image of 300x200"),
  ],
)
def test_boxes_that_cannot_be_used(box, said):
  with pytest.raises(InputError, match=said):
    media.check_box(box, 300, 200)


@pytest.mark.parametrize(
  ("box", "corner", "side"),
  [
    ((100, 60, 40, 40), (80, 40), 80),  # grown to 80 on each side, whole
    ((100, 60, 40, 60), (80, 50), 80),  # 80 wide, 120 tall: the middle of its height
    ((0, 60, 40, 60), (0, 60), 60),  # cut to 60 wide on the left: the face's centre 90 is the square's
    ((150, 10, 40, 80), (130, 15), 70),  # cut to 70 wide on the right: rows about the face's centre 50
    ((60, 0, 60, 40), (60, 0), 60),  # cut to 60 tall at the top: the middle of its width
    ((0, 0, 200, 150), (25, 0), 150),  # the whole image: the middle of its width
  ],
)
def test_crop_by_hand(box, corner, side):
  image = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
  crop, moved = media.crop_around(image, box)
  x, y = corner
  assert crop.shape == (side, side, 3)
  np.testing.assert_array_equal(crop, image[y : y + side, x : x + side])
  assert moved == (box[0] - x, box[1] - y, box[2], box[3])
