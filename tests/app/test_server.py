"""Who is let in, and what a wrong command line says."""

import json
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request

import pytest
from app_server import Server

from dicetalk_jax.cli import main


@pytest.fixture(scope="module")
def guarded(weights, tmp_path_factory):
  server = Server(weights, tmp_path_factory.mktemp("guarded"), "--host", "0.0.0.0", "--auth", "me:sec:ret").start()
  yield server
  server.stop()


def _status(server, path, data=None, headers=None):
  try:
    with urllib.request.urlopen(urllib.request.Request(server.url + path, data, headers or {}), timeout=20) as answer:
      return answer.status, answer.headers
  except urllib.error.HTTPError as error:
    return error.code, error.headers


def test_without_the_password_nothing_is_answered(guarded):
  call = json.dumps({"data": []}).encode(), {"Content-Type": "application/json"}
  asked = {
    "config": None,
    "gradio_api/info": None,
    "gradio_api/upload": (b"", {}),
    "gradio_api/call/emotions": call,
    "gradio_api/queue/join": call,
    f"gradio_api/file={guarded.folder}/results/x": None,
  }
  for path, sent in asked.items():
    assert _status(guarded, path, *(sent or ()))[0] == 401, path


def test_the_password_opens(guarded):
  def login(password):
    return _status(guarded, "login", urllib.parse.urlencode({"username": "me", "password": password}).encode())

  assert login("wrong")[0] == 400
  status, headers = login("sec:ret")
  assert status == 200
  cookies = "; ".join(cookie.partition(";")[0] for cookie in headers.get_all("set-cookie"))
  assert _status(guarded, "config", None, {"Cookie": cookies})[0] == 200


def test_a_wrong_command_line_is_one_sentence(capsys, tmp_path):
  for options, said in (
    (["--host", "0.0.0.0"], "set a user name and password"),
    (["--auth", "me"], "USER:PASSWORD"),
    (["--port", "0"], "port 0"),
    (["--weights", str(tmp_path / "none")], "none"),
    (["--config", str(tmp_path / "none.py")], "none.py does not exist"),
  ):
    assert main(["app", *options]) == 1
    captured = capsys.readouterr()
    output = " ".join((captured.out + captured.err).split())
    assert said in output
    assert "Traceback" not in output


def test_an_address_that_cannot_be_used_is_said(capsys, weights):
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = str(taken.getsockname()[1])
    assert main(["app", "--weights", str(weights), "--port", port]) == 1
    assert f"127.0.0.1:{port} cannot be used: it is in use" in " ".join(capsys.readouterr().err.split())
  assert main(["app", "--weights", str(weights), "--host", "192.0.2.1", "--auth", "me:secret"]) == 1
  assert "not an address of this machine" in " ".join(capsys.readouterr().err.split())


def test_without_gradio_the_extra_is_named(capsys, monkeypatch, weights):
  for name in [name for name in sys.modules if name.partition(".")[0] == "gradio"]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, "gradio", None)
  for name in ("page", "api"):
    monkeypatch.delitem(sys.modules, f"dicetalk_jax.app.{name}", raising=False)
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = str(free.getsockname()[1])
  assert main(["app", "--weights", str(weights), "--port", port]) == 1
  assert "dicetalk-jax[app]" in " ".join(capsys.readouterr().err.split())


def test_help_has_an_example(capsys):
  with pytest.raises(SystemExit, match="0"):
    main(["app", "--help"])
  assert "Example: dicetalk app " in capsys.readouterr().out
