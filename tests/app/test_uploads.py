"""Visitors' files: kept while somebody holds them, then gone."""

import os
import time

import pytest

from dicetalk_jax.app.server import check_address, remove_abandoned
from dicetalk_jax.app.uploads import Upload, Uploads
from dicetalk_jax.errors import InputError


@pytest.fixture
def uploads(tmp_path):
  return Uploads(tmp_path / "uploads")


def put(uploads, name):
  path = uploads.new_folder() / name
  path.write_text(name)
  return uploads.check(Upload(path, name))


def test_a_file_goes_when_nobody_holds_it(uploads):
  me, you = put(uploads, "me.png"), put(uploads, "you.png")
  uploads.hold(("page 1", "portrait"), me)
  uploads.hold(("page 2", "portrait"), me)
  uploads.hold(("generation", "x"), me)
  uploads.hold(("page 1", "portrait"), you)
  assert me.path.exists()
  uploads.release("page 2")
  assert me.path.exists()
  uploads.release("generation", "x")
  assert not me.path.exists()
  assert not me.path.parent.exists()
  assert you.path.exists()
  uploads.hold(("page 1", "portrait"))
  assert not you.path.exists()


def test_a_call_holds_its_files_while_it_lasts(uploads):
  me = put(uploads, "me.png")
  with pytest.raises(InputError, match="bad"), uploads.held(me):
    assert me.path.exists()
    raise InputError("bad")
  assert not me.path.exists()


def test_what_nobody_took_is_swept(uploads):
  taken, left = put(uploads, "taken.png"), put(uploads, "left.png")
  uploads.hold(("page", "portrait"), taken)
  uploads.sweep()
  assert left.path.exists()
  uploads.sweep(now=time.time() + 3600)
  assert not left.path.exists()
  assert taken.path.exists()


def test_only_uploads_are_uploads(uploads, tmp_path):
  outside = tmp_path / "secret.png"
  outside.write_text("x")
  (uploads.folder / "link.png").symlink_to(outside)
  for path in (outside, uploads.folder / "../secret.png", uploads.folder / "link.png", uploads.folder / "none.png"):
    with pytest.raises(InputError, match="no longer on the server"):
      uploads.check(Upload(path, "me.png"))
  assert Upload.of({"path": "/x/a.png", "orig_name": "../../b.png"}).name == "b.png"


def test_what_a_killed_server_left_is_removed(tmp_path):
  living = tmp_path / f"dicetalk-app-{os.getpid()}-abc"
  dead = tmp_path / f"dicetalk-app-{2**22 + 1}-abc"
  for folder in (living, dead):
    (folder / "uploads").mkdir(parents=True)
  remove_abandoned(tmp_path)
  assert living.exists()
  assert not dead.exists()


def test_others_are_let_in_with_a_password_only():
  for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
    assert check_address(host, 7860, None) is None
  for host in ("0.0.0.0", "192.168.1.2", "::", "example.org"):
    with pytest.raises(InputError, match="--auth USER:PASSWORD"):
      check_address(host, 7860, None)
    assert check_address(host, 7860, "me:se:cret") == ("me", "se:cret")
  for auth in ("me", "me:", ":secret"):
    with pytest.raises(InputError, match="USER:PASSWORD"):
      check_address("0.0.0.0", 7860, auth)
  with pytest.raises(InputError, match="port 0"):
    check_address("127.0.0.1", 0, None)
