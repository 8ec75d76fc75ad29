"""The web page as a visitor meets it: a real server and a real browser."""

import json
import pathlib
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse

import numpy as np
import pytest
import soundfile
from conftest import GOLDEN
from PIL import Image
from video_files import probe, read_video

from dicetalk_jax.app.drawn import draw_portrait
from dicetalk_jax.media.audio import read_sound

SECOND = 1000
# Compiling, on a machine that does other things as well.
SLOW = 300 * SECOND
PORTRAIT = GOLDEN / "portrait.png"


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
  """Half a second of speech: six frames."""
  sound, rate = read_sound(GOLDEN / "speech.wav")
  path = tmp_path_factory.mktemp("speech") / "short.wav"
  soundfile.write(path, sound[: round(0.5 * rate)], rate)
  return path


@pytest.fixture
def visit(server, chromium):
  """Opens pages as new visitors, each with a profile of its own."""
  visitors = []

  def open_page(**options):
    context = chromium.new_context(permissions=["microphone", "camera"], accept_downloads=True, **options)
    visitors.append(Page(context.new_page(), server))
    return visitors[-1]

  yield open_page
  for visitor in visitors:
    # A generation outlives its page, and would keep the next test waiting.
    if not visitor.page.is_closed() and visitor.page.locator("#cancel").is_visible():
      visitor.page.click("#cancel")
      visitor.page.wait_for_selector("#cancel", state="hidden", timeout=SLOW)
    visitor.page.context.close()


class Page:
  """What a visitor does on the page."""

  def __init__(self, page, server):
    self.page, self.server = page, server
    page.set_default_timeout(90 * SECOND)
    self.failures = []
    page.on("pageerror", lambda error: self.failures.append(str(error)))
    page.goto(server.url)
    page.wait_for_selector("#generate")

  def give(self, field, path):
    self.page.set_input_files(f"#{field} input[type=file]", str(path))

  def give_inputs(self, portrait, speech):
    self.give("portrait", portrait)
    self.page.wait_for_selector("#face .dt-face-box:visible")
    self.give("speech", speech)
    self.page.wait_for_selector("#speech-message p")

  def message(self, field):
    return self.page.locator(f"#{field}-message p").inner_text()

  def set(self, name, number):
    field = self.page.locator(f"#{name} input").first
    if not field.is_visible():
      self.page.click("#settings button")
    field.fill(str(number))
    field.press("Tab")

  def generate(self):
    self.page.click("#generate")

  def video(self):
    """The newest video's element, once it has loaded."""
    self.page.wait_for_selector("#newest video", timeout=SLOW)
    self.page.wait_for_function("document.querySelector('#newest video').readyState >= 2")
    return self.page.locator("#newest video")

  def command(self):
    return self.page.locator("#newest .dt-command code").inner_text()


def test_from_upload_to_video(visit, speech, tmp_path, server):
  """Upload, adjust the box, mix, generate: the video plays, a reload keeps it, its line makes the same latents."""
  visitor = visit()
  page = visitor.page
  visitor.give_inputs(PORTRAIT, speech)
  before = page.locator("#face input[name=left]").input_value()
  box = page.locator("#face .dt-face-box").bounding_box()
  page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
  page.mouse.down()
  page.mouse.move(box["x"] + box["width"] / 2 + 12, box["y"] + box["height"] / 2 + 8, steps=3)
  page.mouse.up()
  sides = [page.locator(f"#face input[name={side}]").input_value() for side in ("left", "top", "width", "height")]
  assert int(sides[0]) > int(before)
  page.get_by_label("Mix", exact=True).check()
  page.wait_for_function("document.querySelector('#emotion-text').innerText.includes('happy:0.6+surprised:0.4')")
  visitor.set("seed", 5)
  visitor.generate()
  video = visitor.video()
  length = soundfile.info(speech).duration
  assert abs(video.evaluate("video => video.duration") - length) <= 0.04
  page.wait_for_function("document.querySelector('#newest video').currentTime > 0.2")
  assert video.evaluate("video => video.error") is None
  command = visitor.command()
  assert f"--face-box {' '.join(sides)}" in command
  assert "--emotion happy:0.6+surprised:0.4" in command
  assert "--seed 5" in command
  with page.expect_download() as download:
    page.click("#newest a.dt-primary")
  saved = tmp_path / "downloaded.mp4"
  download.value.save_as(saved)
  assert abs(probe(saved).duration - length) <= 0.04

  page.reload()
  kept = pathlib.Path(urllib.parse.unquote(visitor.video().evaluate("video => video.src")).partition("file=")[2])
  assert visitor.command() == command
  assert not visitor.failures
  for path in (PORTRAIT, speech):
    (tmp_path / path.name).write_bytes(path.read_bytes())
  latents, video = run_line(command, tmp_path, server.environment)
  assert latents == json.loads((kept.parent / "result.json").read_text())["latents"]
  assert np.array_equal(read_video(video), read_video(saved))


# Runs the command line and tells its latents as a result's record does.
_TELL_LATENTS = """
import hashlib, sys
from dicetalk_jax.cli import main
from dicetalk_jax.inference.pipeline import DiceTalk

generate = DiceTalk.generate

def told(*inputs, **options):
  video = generate(*inputs, **options)
  print("latents", hashlib.sha256(video.latents.tobytes()).hexdigest())
  return video

DiceTalk.generate = told
sys.exit(main(sys.argv[1:]))
"""


def run_line(line, folder, environment):
  """Runs a `dicetalk generate` line in a folder -> the digest of its latents, and its video."""
  program, *words = shlex.split(line)
  assert program == "dicetalk"
  command = [sys.executable, "-c", _TELL_LATENTS, *words]
  done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return re.search(r"latents (\w+)", done.stdout)[1], folder / words[words.index("--out") + 1]


def test_speech_from_the_microphone(visit, server):
  visitor = visit()
  page = visitor.page
  page.click("#draw")
  page.wait_for_selector("#face .dt-face-box:visible")
  page.get_by_role("button", name="Record audio").click()
  page.get_by_role("button", name="Record", exact=True).click()
  page.wait_for_timeout(600)
  page.locator("#speech .stop-button:visible").click()
  page.wait_for_selector("#speech-message p")
  seconds = float(re.search(r"([\d.]+) s of speech", visitor.message("speech"))[1])
  assert 0.3 < seconds < 10
  visitor.set("steps", 1)
  visitor.generate()
  assert abs(visitor.video().evaluate("video => video.duration") - seconds) <= 0.04 + 0.005
  # Who recorded has no files: those of the line are offered beside the video.
  offered = {link.get_attribute("download") for link in page.locator("#newest .dt-links a").all()}
  assert {"person_7.png", "audio.wav"} <= offered


def test_cancel_and_two_tabs(visit, speech):
  """One at a time: the second waits for the first, cancelling the first begins the second, both pages go on."""
  first, second = visit(), visit()
  for visitor in (first, second):
    visitor.give_inputs(PORTRAIT, speech)
  first.set("steps", 100)
  second.set("steps", 1)
  first.generate()
  first.page.wait_for_function("document.querySelector('#progress').innerText.includes('Denoising')", timeout=SLOW)
  second.generate()
  second.page.wait_for_selector("#progress [data-state=waiting]")
  assert "Next in the queue" in second.page.inner_text("#progress")
  first.page.wait_for_function(
    "/[1-9][0-9]* of [0-9]+ ·/.test(document.querySelector('#progress').innerText)", timeout=SLOW
  )
  first.page.click("#cancel")
  first.page.wait_for_function("document.querySelector('#progress').innerText.includes('Cancelled')", timeout=SLOW)
  assert first.page.locator("#newest video").count() == 0
  assert second.video()
  first.set("steps", 1)
  first.generate()
  assert first.video()


def test_a_server_that_is_restarted_in_the_middle(visit, speech, server):
  visitor = visit()
  page = visitor.page
  visitor.give_inputs(PORTRAIT, speech)
  visitor.set("steps", 100)
  visitor.set("seed", 11)
  visitor.generate()
  page.wait_for_function("document.querySelector('#progress').innerText.includes('Denoising')", timeout=SLOW)
  server.kill()
  page.wait_for_selector("#dt-banner:visible")
  assert "does not answer" in page.inner_text("#dt-banner")
  server.start()
  page.wait_for_selector("#queue-message p")
  assert "restarted" in visitor.message("queue")
  assert page.locator("#generate").is_enabled()
  # The one that was killed could not remove what it had.
  assert not server.uploads
  visitor.give_inputs(PORTRAIT, speech)
  visitor.set("steps", 1)
  visitor.generate()
  visitor.video()
  assert "--seed 11" in visitor.command()


def bad_portraits(folder):
  Image.new("RGB", (200, 200), "gray").save(folder / "wall.png")
  (folder / "text.png").write_text("this is not an image")
  Image.new("1", (10000, 10000)).save(folder / "huge.png")
  return {"wall.png": "No face was found", "text.png": "text.png is not an image", "huge.png": "up to 40 million"}


def bad_sounds(folder):
  (folder / "empty.wav").write_bytes(b"")
  soundfile.write(folder / "long.wav", np.zeros(600 * 4000), 4000)
  (folder / "text.wav").write_text("this is not a sound")
  return {"empty.wav": "empty.wav is empty (0 bytes)", "long.wav": "up to 120 s", "text.wav": "text.wav is not a sound"}


def test_each_bad_input_is_a_message_beside_its_field(visit, speech, tmp_path):
  visitor = visit()
  page = visitor.page
  for field, cases in (("portrait", bad_portraits(tmp_path)), ("speech", bad_sounds(tmp_path))):
    for name, said in cases.items():
      visitor.give(field, tmp_path / name)
      page.wait_for_function(
        "([field, said]) => document.querySelector(`#${field}-message`).innerText.includes(said)", arg=[field, said]
      )
      text = visitor.message(field)
      assert len(text) < 250
      assert str(visitor.server.temporary) not in text
      visitor.generate()
      page.wait_for_selector("#portrait-message p, #speech-message p")
      page.locator("#another:visible, [aria-label='Remove Image']:visible, #speech [aria-label='Clear']").first.click()
  (tmp_path / "large.bmp").write_bytes(bytes(51_000_000))
  visitor.give("portrait", tmp_path / "large.bmp")
  page.wait_for_selector("text=51.0 MB; this server takes up to 50 MB (--max-upload-mb)")
  visitor.generate()
  page.wait_for_function("document.querySelector('#portrait-message').innerText.includes('Give a portrait')")
  assert page.locator("#progress .dt-progress").count() == 0
  # Nothing hangs: good inputs after them make a video.
  visitor.give_inputs(PORTRAIT, speech)
  visitor.generate()
  visitor.video()


def test_the_page_needs_no_mouse(visit, speech):
  """Keys move and resize the face's box and edit a timeline."""
  visitor = visit()
  page = visitor.page
  visitor.give_inputs(PORTRAIT, speech)
  left, width = (page.locator(f"#face input[name={side}]") for side in ("left", "width"))
  before = int(left.input_value()), int(width.input_value())
  page.locator("#face .dt-face-box").focus()
  page.keyboard.press("ArrowRight")
  page.keyboard.press("Shift+ArrowRight")
  assert int(left.input_value()) > before[0]
  assert int(width.input_value()) > before[1]
  page.locator("#mode input[value=Timeline]").focus()
  page.keyboard.press("Space")
  page.wait_for_selector("#plot [name=add]")
  page.locator("#plot [name=add]").focus()
  page.keyboard.press("Enter")
  row = page.locator("#plot [data-row]").nth(2)
  row.locator("select").select_option("sad")
  row.locator("[name=strength]").fill("0.5")
  page.keyboard.press("Tab")
  page.wait_for_function("document.querySelector('#emotion-text').innerText.includes('sad:0.5')")
  assert page.locator("#plot svg .dt-time-marker").count() == 3


def test_of_several_faces_one_is_picked(visit, tmp_path):
  """The largest at first; a click takes another; so does a box that is drawn."""
  people = [Image.open(draw_portrait(seed, tmp_path)) for seed in (1, 2)]
  both = Image.new("RGB", (900, 512))
  both.paste(people[0], (0, 0))
  both.paste(people[1].resize((380, 380)), (515, 60))
  both.save(tmp_path / "two.png")
  visitor = visit()
  page = visitor.page
  visitor.give("portrait", tmp_path / "two.png")
  page.wait_for_selector("#face .dt-face-other")
  left = page.locator("#face input[name=left]")
  assert int(left.input_value()) < 400
  page.locator("#face .dt-face-other").click()
  assert int(left.input_value()) > 500
  stage = page.locator("#face .dt-face-stage").bounding_box()
  page.mouse.move(stage["x"] + 10, stage["y"] + 10)
  page.mouse.down()
  page.mouse.move(stage["x"] + 60, stage["y"] + 80, steps=3)
  page.mouse.up()
  assert 0 < int(left.input_value()) < 100


def test_the_endpoint_from_ten_lines_of_a_client(server, speech, tmp_path):
  """The client example of docs/page.md."""
  page = (pathlib.Path(__file__).parents[2] / "docs" / "page.md").read_text()
  example = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "gradio_client" in block)
  assert len(example.strip().splitlines()) <= 10
  (tmp_path / "me.png").write_bytes(PORTRAIT.read_bytes())
  (tmp_path / "speech.wav").write_bytes(speech.read_bytes())
  example = example.replace("http://127.0.0.1:7860", server.url).replace("me.jpg", "me.png")
  example = example.replace("size=512", "size=64, steps=2")
  done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  video, line = done.stdout.strip().splitlines()[-2:]
  assert abs(probe(video).duration - soundfile.info(speech).duration) <= 0.08
  assert line.startswith("dicetalk generate --image me.png --audio speech.wav")
  # The call is over, and so are its files.
  assert not [path for path in server.uploads if path.name in ("me.png", "speech.wav")]


def test_the_endpoint_says_what_is_wrong(server, speech, tmp_path):
  from gradio_client import Client, handle_file

  client = Client(server.url, verbose=False)
  Image.new("RGB", (64, 64)).save(tmp_path / "wall.png")
  good = {"image": handle_file(PORTRAIT), "audio": handle_file(speech), "size": 64}
  for change, said in (
    ({"image": handle_file(tmp_path / "wall.png")}, "no face was found in wall.png"),
    ({"emotion": "hapy"}, "Did you mean 'happy'"),
    ({"emotion": "/etc/passwd.npy"}, "names a file"),
    ({"size": 4096}, "--max-size"),
    ({"image": {"path": "/etc/passwd"}}, "no longer on the server"),
  ):
    with pytest.raises(Exception, match=said):
      client.predict(**(good | change), api_name="/generate")
  assert client.predict(good["image"], api_name="/faces") == [[104, 28, 92, 119]]
  assert "happy" in client.predict(api_name="/emotions")


def test_only_this_machine_is_let_in(server):
  assert b"dicetalk" in server.get("")
  with pytest.raises(ConnectionRefusedError):
    socket.create_connection(("127.0.0.2", server.port), timeout=5)
  for path in ("gradio_api/file=/etc/passwd", f"gradio_api/file={server.weights}/config.json"):
    with pytest.raises(urllib.error.HTTPError, match="403"):
      server.get(path)


def test_files_go_when_their_page_is_closed(visit, speech, server):
  visitor = visit()
  visitor.give_inputs(PORTRAIT, speech)

  def given():
    return {path.name for path in server.uploads} & {PORTRAIT.name, speech.name}

  assert given() == {PORTRAIT.name, speech.name}
  visitor.page.close()
  deadline = time.monotonic() + 60
  while given() and time.monotonic() < deadline:
    time.sleep(0.2)
  assert not given()
