"""Drawn people: reproducible, within their ranges, widely varied."""

import dataclasses

import numpy as np
import pytest

from dicetalk_jax.world.identity import FACTOR_NAMES, FACTORS, Identity, draw_identity


@pytest.fixture(scope="module")
def people():
  return [draw_identity(seed) for seed in range(200)]


def test_the_same_seed_is_the_same_person_and_another_seed_another(people):
  assert draw_identity(7) == people[7]
  assert len(set(people)) == len(people)


def test_every_factor_is_within_its_range_and_a_plain_float(people):
  for person in people:
    for name, (low, high) in FACTORS.items():
      value = getattr(person, name)
      assert type(value) is float and low <= value <= high, (name, value)


def test_every_factor_varies_over_people(people):
  vectors = np.stack([person.vector() for person in people])
  assert vectors.shape == (200, len(FACTOR_NAMES)) and vectors.dtype == np.float32
  spread = vectors.std(axis=0)
  assert len(FACTOR_NAMES) >= 24
  assert spread.min() > 0.15, FACTOR_NAMES[spread.argmin()]


def test_vector_goes_from_minus_one_to_one_over_each_range():
  assert list(FACTORS) == [field.name for field in dataclasses.fields(Identity)]
  low = Identity(**{name: bounds[0] for name, bounds in FACTORS.items()})
  high = Identity(**{name: bounds[1] for name, bounds in FACTORS.items()})
  np.testing.assert_allclose(low.vector(), -1, atol=1e-6)
  np.testing.assert_allclose(high.vector(), 1, atol=1e-6)
  one = dataclasses.replace(low, fringe=FACTORS["fringe"][1]).vector()
  assert [name for name, value in zip(FACTOR_NAMES, one, strict=True) if value > 0] == ["fringe"]


def test_what_comes_together_in_people_comes_together(people):
  def of(name):
    return np.array([getattr(person, name) for person in people])

  bearded = of("beard") > 0
  assert 10 < bearded.sum() < 100
  assert of("jaw_square")[bearded].mean() > of("jaw_square")[~bearded].mean() + 0.1
  bald = of("hair_cover") < 0.5
  assert 5 < bald.sum() < 60 and (of("hair_length")[bald] == 0).all()
  deep = of("skin_tone") > 0.6
  assert of("iris_blue")[deep].mean() < of("iris_blue")[~deep].mean()
  assert 20 < (of("glasses") > 0).sum() < 100


def test_no_two_people_are_nearly_the_same(people):
  vectors = np.stack([person.vector() for person in people])
  apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1) + 1e9 * np.eye(len(people))
  # Two points drawn in the whole box are 7 apart on average; a third of that would be a near copy.
  assert apart.min() > 2.3
