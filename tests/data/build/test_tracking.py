"""Tracking: who is in a clip, and one steady square that holds the head of them."""

import numpy as np
import pytest
from conftest import GOLDEN

from dicetalk_jax.data.build import tracking
from dicetalk_jax.errors import InputError
from dicetalk_jax.media.face import Face, HaarDetector
from dicetalk_jax.media.image import read_image, resize

FACE = (300, 120, 160, 200)


def steady(box=FACE, n=20, seed=0, shake=4):
  """One face's detections, trembling as a cascade's do."""
  generator = np.random.default_rng(seed)
  return [[Face(tuple(int(v) for v in box + generator.integers(-shake, shake + 1, 4)), 50.0)] for _ in range(n)]


def extent(boxes):
  boxes = np.array(boxes)
  low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
  return [*low, *high]


def test_the_extent_holds_a_trembling_box_in_every_frame():
  found = tracking.track(steady())
  assert found.seen == 20 and found.boxes.shape == (20, 4)
  np.testing.assert_allclose(found.boxes, np.tile(FACE, (20, 1)), atol=4)
  np.testing.assert_allclose(found.extent, extent([faces[0].box for faces in steady()]))


def test_a_moving_face_is_followed_through_frames_where_it_is_not_found():
  boxes = [(100 + 10 * i, 80 + 3 * i, 160, 200) for i in range(24)]
  detections = [[] if i in (0, 7, 8, 9, 23) else [Face(box, 40.0)] for i, box in enumerate(boxes)]
  found = tracking.track(detections)
  assert found.seen == 19
  np.testing.assert_allclose(found.boxes[2:-2], boxes[2:-2], atol=1e-9)
  np.testing.assert_allclose(found.boxes[-1], boxes[22], atol=4)  # held


def test_false_detections_do_not_disturb():
  clean = steady()
  generator = np.random.default_rng(1)
  noisy = [list(faces) for faces in clean]
  for i in range(0, 20, 3):  # clutter somewhere else each time
    noisy[i].append(Face((int(generator.integers(0, 150)), int(generator.integers(350, 500)), 90, 110), 9.0))
  for faces in noisy:  # a mouth taken for a face all the time, and a tiny poster behind
    faces += [Face((340, 250, 90, 80), 12.0), Face((30, 30, 40, 50), 12.0)]
  noisy[11] = [Face((250, 60, 300, 330), 20.0)]  # once, far too large
  found = tracking.track(noisy)
  np.testing.assert_allclose(found.boxes, tracking.track(clean).boxes, atol=5)


@pytest.mark.parametrize(
  ("detections", "said"),
  [
    ([], "no face was found in any of 0 frames"),
    ([[] for _ in range(20)], "no face was found in any of 20 frames"),
    ([*steady(n=6), *([] for _ in range(14))], "in only 6 of 20 frames"),
    ([a + b for a, b in zip(steady(), steady((20, 120, 150, 190), seed=1), strict=True)], "second is in 20 of 20"),
    # The second is turned away half of the time.
    (
      [a + b * (i % 2) for i, (a, b) in enumerate(zip(steady(), steady((20, 120, 90, 110), seed=1), strict=True))],
      "second is in 10 of 20",
    ),
    ([*steady(n=12), *steady((20, 150, 150, 190), n=8)], "jumps"),
    ([*steady(n=12), *steady((20, 150, 150, 190), n=8, seed=2), *steady(n=10)], "jumps"),
    ([*steady(n=14), *steady((20, 150, 150, 190), n=6)], "jumps"),
  ],
)
def test_what_makes_no_track(detections, said):
  with pytest.raises(InputError, match=said):
    tracking.track(detections)


def test_who_passes_by_is_let_pass():
  detections = steady(n=30)
  for i in range(10, 18):
    detections[i] = [*detections[i], Face((20 + 2 * i, 100, 100, 120), 30.0)]
  assert tracking.track(detections).seen == 30


def made(*boxes):
  return tracking.Track(np.array(boxes, np.float64), len(boxes))


def test_the_face_is_half_of_the_crop():
  x, y, side = tracking.steady_crop(made(*[FACE] * 5), 1280, 720)
  assert side == 400
  assert (x, y) == (380 - 200, 220 - 200)
  assert tracking.face_box(made(*[FACE] * 5), (x, y, side), 512) == (153, 128, 206, 256)


@pytest.mark.parametrize(
  "box", [(2, 3, 160, 200), (1118, 515, 160, 200), (560, 2, 160, 200), (0, 250, 160, 200), (1100, 10, 180, 220)]
)
def test_near_an_edge_the_crop_is_shifted_into_the_picture(box):
  found = made(*[box] * 5)
  x, y, side = tracking.steady_crop(found, 1280, 720)
  assert side == 2 * box[3]
  assert x >= 0 and y >= 0 and x + side <= 1280 and y + side <= 720
  assert x <= box[0] and y <= box[1] and x + side >= box[0] + box[2] and y + side >= box[1] + box[3]


def test_the_crop_holds_all_of_a_movement():
  boxes = [(200 + 25 * i, 100 + 8 * i, 160, 200) for i in range(10)]
  found = made(*boxes)
  x, y, side = tracking.steady_crop(found, 1280, 720)
  left, top, right, bottom = extent(boxes)
  assert x <= left - 50 and x + side >= right + 50 and y <= top - 50 and y + side >= bottom + 50
  fx, fy, fw, fh = tracking.face_box(found, (x, y, side), 256)
  for bx, by, bw, bh in boxes:
    scale = 256 / side
    assert fx <= (bx - x) * scale and fx + fw >= (bx + bw - x) * scale
    assert fy <= (by - y) * scale and fy + fh >= (by + bh - y) * scale


def test_a_picture_that_is_a_face_already_is_kept():
  assert tracking.steady_crop(made((51, 20, 156, 201)), 256, 256) == (0, 0, 256)
  assert tracking.steady_crop(made((51, 20, 156, 201)), 320, 256) == (1, 0, 256)
  # Wider than high, the face at the right: the largest square holds it.
  assert tracking.steady_crop(made((170, 20, 140, 201)), 320, 256) == (64, 0, 256)


def test_only_a_face_that_no_square_of_the_picture_holds_reaches_over_an_edge():
  # The picture is 240 pixels wide; the face moves over 500 of its height, and 33 more above and below are the head's.
  tall = made((30, 80, 180, 220), (30, 360, 180, 220))
  x, y, side = tracking.steady_crop(tall, 240, 660)
  assert side == 566 and x == -163 and y == 47
  picture = np.random.default_rng(0).integers(0, 256, (660, 240, 3), np.uint8)
  square = tracking.cut(picture, (x, y, side), side)
  np.testing.assert_array_equal(square[:, 163:403], picture[47:613])
  assert (square[:, :163] == picture[47:613, :1]).all() and (square[:, 403:] == picture[47:613, -1:]).all()


def test_a_face_that_wanders_off_makes_no_crop():
  wandering = made(*[(20 + 40 * i, 300, 90, 110) for i in range(28)])
  with pytest.raises(InputError, match="110 pixels high, moves over 1170x110"):
    tracking.steady_crop(wandering, 1280, 720)


def test_crops_are_resized_and_do_not_alias():
  y, x = np.mgrid[:600, :800]
  picture = np.stack([x * 255 // 800, y * 255 // 600, (x + y) % 2 * 255], axis=-1).astype(np.uint8)
  small = tracking.cut(picture, (100, 50, 400), 100)
  assert small.shape == (100, 100, 3)
  assert abs(int(small[50, 50, 0]) - 300 * 255 // 800) <= 2 and abs(int(small[50, 50, 1]) - 250 * 255 // 600) <= 2
  assert np.abs(small[..., 2].astype(int) - 127).max() <= 10
  assert tracking.cut(picture, (100, 50, 64), 128).shape == (128, 128, 3)


class Still:
  """A picture as a reader gives it."""

  def __init__(self, pixels):
    self.height, self.width = pixels.shape[:2]
    self.pixels = pixels
    self.asked = []

  def reduced(self, side):
    self.asked.append(side)
    scale = min(1.0, side / min(self.width, self.height))
    return resize(self.pixels, (round(self.width * scale), round(self.height * scale)))


def test_faces_are_found_in_the_pixels_of_the_picture():
  portrait = read_image(GOLDEN / "portrait.png")  # its face is 100, 30, 100, 135 of 300×200
  large = Still(resize(portrait, (1500, 1000)))
  (face,) = tracking.detect(large, HaarDetector())
  np.testing.assert_allclose(face.box, np.array([100, 30, 100, 135]) * 5, atol=90)
  assert large.asked == [192]


def test_what_is_not_found_in_a_small_picture_is_looked_for_in_a_larger():
  sizes = []

  def shortsighted(image):
    sizes.append(image.shape[:2])
    return [Face((10, 20, 30, 40), 1.0)] if image.shape[0] >= 300 else []

  (face,) = tracking.detect(Still(np.zeros((640, 960, 3), np.uint8)), shortsighted)
  assert sizes == [(192, 288), (320, 480)] and face.box == (20, 40, 60, 80)
  sizes.clear()
  assert tracking.detect(Still(np.zeros((128, 160, 3), np.uint8)), shortsighted) == []
  assert sizes == [(128, 160)]
