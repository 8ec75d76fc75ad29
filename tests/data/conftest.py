"""The two encoded sets that batches are made of."""

import pytest
from data.random_clips import HDTF, MEAD, write


@pytest.fixture(scope="session")
def mead(tmp_path_factory):
  return write(tmp_path_factory.mktemp("sets") / "mead", MEAD)


@pytest.fixture(scope="session")
def hdtf(tmp_path_factory):
  return write(tmp_path_factory.mktemp("sets") / "hdtf", HDTF)
