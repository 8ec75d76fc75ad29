"""Drawn faces: every parameter does what its meaning says, where it says, and the same at every size."""

import numpy as np
import pytest

from dicetalk_jax.media.face import HaarDetector
from dicetalk_jax.world.body import Body
from dicetalk_jax.world.head import FACE, Head
from dicetalk_jax.world.identity import Identity, draw_identity
from dicetalk_jax.world.parameters import INDEX, PARAMETERS
from dicetalk_jax.world.renderer import face_box, mouth_geometry, render
from dicetalk_jax.world.skin import light_colour, skin_colour

PLAIN = Identity(light_x=0.0)
OF_BROWS = ("brow_inner", "brow_outer", "brow_tilt")
OF_EYES = ("lid", "blink", "squint", "gaze_x", "gaze_y")
OF_MOUTH = ("lip_press", "lip_width", "lip_round", "lip_tuck", "tongue")


def pose(n=1, **values):
  parameters = np.zeros((n, len(PARAMETERS)), np.float32)
  for name, value in values.items():
    parameters[:, INDEX[name]] = value
  return parameters


def picture(identity=PLAIN, size=128, **values):
  return render(identity, pose(**values), size)[0].astype(np.float32)


def part(size, top, bottom, left=-0.5 / FACE, right=0.5 / FACE):
  """The rows and columns of a picture between places in face heights from its middle."""
  top, bottom, left, right = (round(size * (0.5 + FACE * place)) for place in (top, bottom, left, right))
  return slice(top, bottom), slice(left, right)


def changed(before, after, threshold=6):
  """Where pixels changed, in face heights from the picture's middle: top, bottom, left, right; and how many."""
  rows, columns = np.nonzero(np.abs(after - before).max(-1) > threshold)
  assert len(rows), "nothing changed"
  edges = np.array([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1])
  return *(edges / len(before) - 0.5) / FACE, len(rows)


def test_the_same_call_gives_the_same_bytes_and_frames_do_not_depend_on_each_other():
  rng = np.random.default_rng(0)
  # Curls, a bun, a beard and glasses among them.
  for seed in (0, 2, 4, 22):
    parameters = rng.uniform(-0.6, 1, (7, len(PARAMETERS)))
    person = draw_identity(seed)
    frames = render(person, parameters)
    assert frames.shape == (7, 128, 128, 3) and frames.dtype == np.uint8
    assert render(person, parameters).tobytes() == frames.tobytes()
    alone = np.concatenate([render(person, row[None]) for row in parameters])
    np.testing.assert_array_equal(alone, frames)


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda p: p.name)
@pytest.mark.parametrize("seed", [1, 12, 30])
def test_every_parameter_shows_at_both_ends(parameter, seed):
  person = draw_identity(seed)
  rest = picture(person)
  for end in {parameter.low, parameter.high} - {0}:
    *_, count = changed(rest, picture(person, **{parameter.name: end}))
    assert count >= 12, (parameter.name, end, count)


@pytest.mark.parametrize("name", OF_BROWS + OF_EYES + OF_MOUTH)
def test_a_parameter_changes_its_own_part_of_the_face_only(name):
  parameter = PARAMETERS[INDEX[name]]
  # Down the face at rest: hairline -0.5, eyes -0.02, base of the nose 0.14, mouth 0.28, chin 0.5.
  top, bottom = {**dict.fromkeys(OF_BROWS, (-0.44, 0)), **dict.fromkeys(OF_EYES, (-0.2, 0.1))}.get(name, (0.12, 0.5))
  for end in {parameter.low, parameter.high} - {0}:
    first, last, left, right, _ = changed(picture(), picture(**{name: end}))
    assert top <= first and last <= bottom, (name, end, first, last)
    assert left > -0.46 and right < 0.46


def moved(before, after):
  """From where the picture grew lighter to where it grew darker: (down, right) in pixels, of dark things that move."""
  change = (before - after).mean(-1)
  y, x = np.indices(change.shape)

  def centre(weight):
    return np.array([(weight * y).sum(), (weight * x).sum()]) / weight.sum()

  return centre(np.maximum(change, 0)) - centre(np.maximum(-change, 0))


def pupils(**values):
  """The middle of what is darkest about the eyes, lashes and pupils: (row, column) at 512 pixels."""
  rows, columns = part(512, -0.414, 0.328)
  dark = picture(size=512, **values)[rows, columns].max(-1) < 60
  row, column = np.argwhere(dark).mean(0)
  return row + rows.start, column


def test_left_and_right_are_the_pictures():
  for name, place in (("corner_left", -0.14), ("corner_right", 0.14)):
    change = np.abs(picture(**{name: 1}) - picture()).sum((0, 2))
    assert (change * np.linspace(-0.5, 0.5, 128)).sum() / change.sum() == pytest.approx(FACE * place, abs=0.07)
  left, right = picture(brow_tilt=-1), picture(brow_tilt=1)
  half = part(128, -0.44, -0.03, -0.53, 0)
  assert moved(right[half], left[half])[0] < -1.5, "the left brow is not the higher"
  assert moved(left[:, ::-1][half], right[:, ::-1][half])[0] < -1.5, "the right brow is not the higher"


def test_brows_rise_and_fall_as_their_sign_says():
  inner, outer = part(256, -0.48, -0.08, -0.25, -0.08), part(256, -0.48, -0.08, -0.45, -0.28)
  for name, brow in (("brow_inner", inner), ("brow_outer", outer)):
    rest = picture(size=256)[brow]
    assert moved(rest, picture(size=256, **{name: 1})[brow])[0] < -3, name
    assert moved(rest, picture(size=256, **{name: -1})[brow])[0] > 3, name


def test_gaze_moves_the_eyes_and_not_the_head():
  rest, eye = picture(size=256), part(256, -0.22, 0.17, -0.53, 0)
  for name, axis, sign in (("gaze_x", 1, 1), ("gaze_y", 0, -1)):
    for end in (-1, 1):
      there = picture(size=256, **{name: end})
      assert sign * end * moved(rest[eye], there[eye])[axis] > 1.5, (name, end)


def test_the_head_goes_where_its_parameters_say():
  def centre(**values):
    x, y, w, h = face_box(PLAIN, pose(**values), 512)
    return x + w / 2, y + h / 2

  x, y = centre()
  far = 0.2 * FACE * 512
  assert centre(shift_x=0.2)[0] == pytest.approx(x + far, abs=2)
  assert centre(shift_y=0.1)[1] == pytest.approx(y - far / 2, abs=2)
  small, rest, large = (face_box(PLAIN, pose(zoom=zoom), 512)[3] for zoom in (-0.3, 0, 0.1))
  assert small == pytest.approx(rest * np.exp(-0.3), abs=3) and large == pytest.approx(rest * np.exp(0.1), abs=3)
  row, column = pupils()
  assert column == pytest.approx(255.5, abs=1.5)
  assert pupils(yaw=0.3)[1] > column + 20 and pupils(yaw=-0.3)[1] < column - 20
  assert pupils(pitch=0.15)[0] < row - 8 and pupils(pitch=-0.15)[0] > row + 8
  # Leaning to the right shoulder takes the eyes, which are above the neck, to the right.
  assert pupils(roll=0.2)[1] > column + 8 and pupils(roll=-0.2)[1] < column - 8


def nostrils(**values):
  """The column of the middle of what is darkest about the nose's base, at 512 pixels."""
  rows, columns = part(512, 0.1, 0.18, -0.26, 0.37)
  nose = picture(size=512, **values)[rows, columns].mean(-1)
  return np.argwhere(nose <= np.quantile(nose, 0.03)).mean(0)[1] + columns.start


def test_the_nose_travels_farther_than_the_eyes_when_the_head_turns():
  for yaw in (-0.25, 0.25):
    eyes, nose = pupils(yaw=yaw)[1] - pupils()[1], nostrils(yaw=yaw) - nostrils()
    assert np.sign(yaw) * nose > 1.08 * abs(eyes) > 15


def test_shoulders_stay_while_the_head_moves():
  person = draw_identity(5)
  skin, light = skin_colour(person), light_colour(person)
  rest, moving = (Body(Head(person, pose(**values), 128), skin, light) for values in ({}, dict(yaw=0.4, shift_x=0.2)))
  assert rest.clothes[0].alpha.any() and np.abs(moving.neck - rest.neck).max() > 2
  # What is worn does not move with the neck.
  for still, then in (
    (rest.clothes[0], moving.clothes[0]),
    (rest.opening, moving.opening),
    (rest.collar, moving.collar),
  ):
    assert (then.left, then.top) == (still.left, still.top)
    np.testing.assert_array_equal(then.alpha, still.alpha)
  np.testing.assert_array_equal(moving.clothes[1], rest.clothes[1])


def test_the_mouth_shows_its_opening_as_it_is_measured():
  for jaw in (0.3, 0.6, 1.0):
    frame = picture(size=512, jaw=jaw)[part(512, 0.17, 0.56, -0.015, 0.015)].mean(1)
    # Cavity, tongue and teeth: darker or whiter than lips.
    inside = np.nonzero((frame[:, 0] < 135) | (frame.min(-1) > 165))[0]
    opening = mouth_geometry(PLAIN, pose(jaw=jaw))[0, 0] * 512 * FACE
    assert inside.max() - inside.min() + 1 == pytest.approx(opening, abs=5), jaw


def test_a_small_drop_of_the_jaw_already_shows():
  for seed in range(8):
    person = draw_identity(seed)
    mouth = part(128, 0.16, 0.44, -0.19, 0.19)
    difference = np.abs(picture(person, jaw=0.15) - picture(person))[mouth].max(-1)
    assert (difference > 40).sum() >= 6, seed


def test_mouth_opening_grows_with_the_jaw_and_is_none_when_pressed():
  for seed in range(10):
    person = draw_identity(seed)
    jaws = pose(21)
    jaws[:, INDEX["jaw"]] = np.linspace(0, 1, 21)
    opening, width = mouth_geometry(person, jaws).T
    assert opening[0] == pytest.approx(0, abs=1e-6) and 0.15 < opening[-1] < 0.35
    assert (np.diff(opening) > 0).all() and (width > 0.1).all()
    rng = np.random.default_rng(seed)
    pressed = rng.uniform(-1, 1, (20, len(PARAMETERS)))
    pressed[:, INDEX["lip_press"]] = 1
    np.testing.assert_allclose(mouth_geometry(person, pressed)[:, 0], 0, atol=1e-6)


def test_mouth_width_follows_spreading_and_rounding_and_no_head_movement():
  narrow, rest, wide = (mouth_geometry(PLAIN, pose(lip_width=w))[0, 1] for w in (-1, 0, 1))
  assert narrow < 0.85 * rest and wide > 1.15 * rest
  assert rest == pytest.approx(2 * PLAIN.lip_width, rel=0.02)
  assert mouth_geometry(PLAIN, pose(lip_round=1))[0, 1] < 0.7 * rest
  moved = pose(jaw=0.5, yaw=0.4, pitch=-0.3, roll=0.2, shift_x=0.2, shift_y=-0.1, zoom=0.3)
  np.testing.assert_array_equal(mouth_geometry(PLAIN, moved), mouth_geometry(PLAIN, pose(jaw=0.5)))
  assert mouth_geometry(PLAIN, moved).dtype == np.float32


@pytest.mark.parametrize("size", [32, 66, 128, 300])
def test_any_even_size_is_the_same_picture(size):
  person = draw_identity(5)
  values = dict(jaw=0.4, yaw=0.2, corner_left=0.5)
  large = picture(person, 4 * size, **values).reshape(size, 4, size, 4, 3).mean((1, 3))
  # Blending at an edge of two shapes differs a little from averaging the finer picture.
  assert np.abs(picture(person, size, **values) - large).mean() < 1.6
  assert np.quantile(np.abs(picture(person, size, **values) - large), 0.99) < 24


def test_face_box_holds_the_face_of_every_frame_and_scales():
  person = draw_identity(5)
  parameters = np.concatenate([pose(), pose(shift_x=0.2), pose(roll=0.3), pose(jaw=1)])
  x, y, w, h = face_box(person, parameters, 256)
  assert all(isinstance(v, int) for v in (x, y, w, h))
  for row in parameters:
    a, b, c, d = face_box(person, row[None], 256)
    assert x <= a and y <= b and a + c <= x + w and b + d <= y + h
    # What the face does happens inside the box.
    top, bottom, left, right, _ = changed(
      *render(person, np.stack([row, np.maximum(row, pose(jaw=0.6, brow_inner=1, lid=1)[0])]), 256).astype(np.float32)
    )
    low, high = ((edge / 256 - 0.5) / FACE for edge in (np.array([x, y]), np.array([x + w, y + h])))
    assert low[0] <= left and right <= high[0] and low[1] <= top
  bottom = [sum(face_box(person, pose(jaw=jaw), 512)[1::2]) for jaw in (0, 1)]
  assert 0.07 < (bottom[1] - bottom[0]) / (512 * FACE) < 0.14, "the chin does not drop with the jaw"
  a, b, c, d = face_box(person, pose(), 128)
  assert 0.9 < d / (128 * FACE) < 1.12 and 0.72 < c / (128 * FACE) < 1.24
  np.testing.assert_allclose(np.array(face_box(person, pose(), 512)) / 4, (a, b, c, d), atol=1.01)


def test_face_box_stays_inside_the_picture():
  for values in (dict(shift_x=0.3, zoom=0.3, roll=0.4), dict(shift_x=-0.3, shift_y=0.3, zoom=0.3), dict(shift_y=-0.3)):
    x, y, w, h = face_box(PLAIN, pose(**values), 64)
    assert 0 <= x < x + w <= 64 and 0 <= y < y + h <= 64
    assert render(PLAIN, pose(**values), 64).shape == (1, 64, 64, 3)


def test_the_detector_for_real_portraits_finds_drawn_faces():
  detector, found = HaarDetector(), 0
  for seed in range(40):
    person = draw_identity(seed)
    x, y, w, h = face_box(person, pose(), 256)
    for face in detector(render(person, pose(), 256)[0]):
      a, b, c, d = face.box
      shared = max(0, min(x + w, a + c) - max(x, a)) * max(0, min(y + h, b + d) - max(y, b))
      found += shared / (w * h + c * d - shared) > 0.4
  assert found >= 34


def test_people_can_be_told_apart_whatever_they_do():
  """Each of 40 is found again among all by the nearest face at rest, the background left out."""
  rng = np.random.default_rng(1)
  people = [draw_identity(seed) for seed in range(40)]

  def inner(frames):
    return frames[:, 20:100, 36:92].reshape(len(frames), 10, 8, 7, 8, 3).mean((2, 4)).reshape(len(frames), -1)

  known = inner(np.concatenate([render(person, pose()) for person in people]).astype(np.float32))
  low, high = (np.array([getattr(p, end) for p in PARAMETERS]) for end in ("low", "high"))
  share = np.array([0.1 if p.of_head else 0.5 for p in PARAMETERS])
  acts = rng.uniform(low * share, high * share, (40, len(PARAMETERS)))
  seen = inner(np.concatenate([render(p, a[None]) for p, a in zip(people, acts, strict=True)]).astype(np.float32))
  nearest = np.linalg.norm(seen[:, None] - known[None], axis=-1).argmin(1)
  assert (nearest == np.arange(40)).mean() >= 0.9


def test_what_is_beyond_a_range_is_taken_for_its_end():
  for name in ("jaw", "yaw", "blink", "gaze_x"):
    end = PARAMETERS[INDEX[name]].high
    np.testing.assert_array_equal(picture(**{name: 7.0}), picture(**{name: end}))
    np.testing.assert_array_equal(
      mouth_geometry(PLAIN, pose(**{name: 7.0})), mouth_geometry(PLAIN, pose(**{name: end}))
    )
    assert face_box(PLAIN, pose(**{name: 7.0})) == face_box(PLAIN, pose(**{name: end}))


def test_shapes_sizes_and_values_that_cannot_be_drawn_are_refused():
  for wrong in (np.zeros(len(PARAMETERS)), np.zeros((2, len(PARAMETERS) - 1)), np.zeros((1, 2, len(PARAMETERS)))):
    for call in (render, face_box, mouth_geometry):
      with pytest.raises(ValueError, match=rf"give \(n, {len(PARAMETERS)}\)"):
        call(PLAIN, wrong)
  for size in (0, 31, 127, 128.5):
    with pytest.raises(ValueError, match="even number of pixels"):
      render(PLAIN, pose(), size)
  with pytest.raises(ValueError, match="not finite"):
    render(PLAIN, pose(jaw=np.nan))
  with pytest.raises(ValueError, match="no frames"):
    face_box(PLAIN, pose(0))
  assert render(PLAIN, pose(0)).shape == (0, 128, 128, 3)
