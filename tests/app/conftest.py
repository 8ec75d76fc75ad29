"""A server of the web page, and the system's Chromium to look at it."""

import shutil

import pytest
from app_server import Server
from random_weights import random_weights


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
  return random_weights(tmp_path_factory.mktemp("app") / "weights").folder


@pytest.fixture(scope="module")
def server(weights, tmp_path_factory):
  server = Server(weights, tmp_path_factory.mktemp("server")).start()
  yield server
  server.stop()
  assert not any("Traceback" in line for line in server.said), "".join(server.said)


@pytest.fixture(scope="session")
def chromium():
  """The system's Chromium, with a camera and a microphone that play a test signal."""
  sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright's client is not installed")
  path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
  if not path:
    pytest.skip("there is no Chromium on this machine")
  fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=path,
      headless=True,
      args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required", *fake],
    )
    yield browser
    browser.close()
