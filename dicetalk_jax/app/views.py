"""The page's HTML. All text of visitors and files is escaped here."""

import html
import pathlib
import time
import urllib.parse

from dicetalk_jax.app.generations import CANCELLED, DONE, FAILED, RUNNING, WAITING, Generation
from dicetalk_jax.app.results import Result

_STAGES = {
  "preparing": "Loading the networks",
  "encoding": "Reading portrait, speech and emotion",
  "denoising": "Denoising",
  "decoding": "Decoding frames",
  "interpolating": "Interpolating frames",
  "encoding the video": "Encoding the video",
}


def message(text: str, kind: str = "error") -> str:
  """A message beside a field, announced by screen readers; kind: error or note."""
  if not text:
    return ""
  text = text[:1].upper() + text[1:]
  if not text.endswith((".", "?", "!")):
    text += "."
  return f'<p class="dt-message dt-{kind}" role="{"alert" if kind == "error" else "status"}">{html.escape(text)}</p>'


def duration(seconds: float) -> str:
  """A rounded duration."""
  if seconds < 1:
    return "less than a second"
  if seconds < 90:
    return f"{seconds:.0f} s"
  if seconds < 5400:
    return f"{seconds / 60:.0f} min"
  return f"{seconds / 3600:.1f} h"


def expected(seconds: float | None, measured: bool, video: str) -> str:
  """The expected duration of `video`; None: an input is missing."""
  if seconds is None:
    return '<p class="dt-quiet dt-expected">Give a portrait and speech.</p>'
  words = "Less than a second" if seconds < 1 else f"About {duration(seconds)}"
  how = "measured on the last video" if measured else "estimate; the first video of each size also compiles"
  return (
    f'<p class="dt-expected"><b>{html.escape(words)}</b> on this device '
    f'<span class="dt-quiet">({how})<br>{html.escape(video)}</span></p>'
  )


def emotion_text(text: str) -> str:
  """The emotion as text for the command line."""
  return f'<p class="dt-quiet">As text: <code>{html.escape(text)}</code></p>' if text else ""


def progress(generation: Generation | None, before: int = 0, now: float | None = None) -> str:
  """Place in the queue, stage with the time left and newest frame of a generation, or how it ended."""
  if generation is None or generation.state == DONE:
    return ""
  if generation.state == FAILED:
    return message(generation.error or "It failed")
  if generation.state == CANCELLED:
    return message("Cancelled", "note")
  now = time.monotonic() if now is None else now
  if generation.state == WAITING:
    line = "Next in the queue" if before <= 1 else f"{before} videos are before this one"
    share, detail = None, "Waiting for the device"
  else:
    line = _STAGES.get(generation.stage, generation.stage.capitalize())
    share = generation.done / generation.total if generation.total else None
    left = generation.seconds_left(now)
    detail = f"{generation.done} of {generation.total}" if generation.total else ""
    if generation.stage == "denoising" and not generation.done:
      detail += " · the first step compiles"
    if left is not None:
      detail += f" · {duration(left)} left"
    detail += f" · {duration(now - generation.begun)} so far" if now - generation.begun >= 1 else ""
  if generation.cancelling and generation.state == RUNNING:
    line = "Cancelling after this step"
  value = "" if share is None else f' value="{share:.4f}"'
  frame = ""
  if generation.frame:
    frame = f'<img class="dt-frame" src="{generation.frame}" alt="The newest frame, number {generation.frames_done}">'
  return (
    f'<div class="dt-progress" data-state="{generation.state}"><div role="status"><b>{html.escape(line)}</b></div>'
    f'<progress max="1"{value} aria-label="{html.escape(line)}"></progress>'
    f'<span class="dt-quiet">{html.escape(detail.strip(" ·"))}</span>{frame}</div>'
  )


def newest(results: list[Result]) -> str:
  """The newest video with its download, contact strip and command line."""
  if not results:
    return ""
  result = results[0]
  video, strip = address(result.video), address(result.strip)
  inputs = "".join(_link(result.folder / name, name, html.escape(name)) for name in result.inputs)
  notes = "".join(message(note, "note") for note in result.notes)
  return (
    f'<article class="dt-newest"><video src="{video}" controls playsinline autoplay preload="auto"></video>{notes}'
    f'<p class="dt-facts"><b>{html.escape(result.emotion)}</b> '
    f'<span class="dt-quiet">{html.escape(facts(result))}</span></p>'
    f'<img class="dt-strip" src="{strip}" alt="Frames of the video, from its beginning to its end">'
    f'<div class="dt-links">{_link(result.video, result.file, "Download the video", "dt-primary")}{inputs}</div>'
    '<p class="dt-quiet">The same video from a terminal:</p>'
    f'<div class="dt-command"><code tabindex="0">{html.escape(result.command)}</code>'
    '<button type="button" class="dt-button" data-dt="copy">Copy</button></div></article>'
  )


def beside(results: list[Result]) -> str:
  """All results of a visitor side by side; empty for fewer than two."""
  if len(results) < 2:
    return ""
  cards = "".join(
    f'<figure><video src="{address(result.video)}#t=0.01" controls playsinline preload="auto"></video>'
    f"<figcaption><b>{html.escape(result.emotion)}</b>"
    f'<span class="dt-quiet">{html.escape(facts(result))}</span>'
    f'<a href="{address(result.video)}" download="{html.escape(result.file)}">Download</a></figcaption></figure>'
    for result in results
  )
  return (
    '<section class="dt-beside"><div class="dt-beside-head"><h2>Side by side</h2>'
    '<button type="button" class="dt-button" data-dt="play">Play all together</button></div>'
    f'<div class="dt-cards">{cards}</div></section>'
  )


def facts(result: Result) -> str:
  """Length, size, seed and duration in one line."""
  width, height = result.size
  return f"{result.seconds:.2f} s · {width}×{height} · seed {result.seed} · made in {duration(result.took)}"


def _link(path, name, words, kind=""):
  return f'<a class="dt-button {kind}" href="{address(path)}" download="{html.escape(name)}">{words}</a>'


def address(path: pathlib.Path) -> str:
  """URL of a file of the server."""
  return html.escape("gradio_api/file=" + urllib.parse.quote(str(path)))
