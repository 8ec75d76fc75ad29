"""Components beyond Gradio's: the editors of face box and timeline, and uploads that Gradio does not decode."""

import pathlib
from collections.abc import Mapping

import gradio as gr

from dicetalk_jax.app.uploads import Upload

_ASSETS = pathlib.Path(__file__).parent / "assets"


def asset(name: str) -> str:
  """The text of a file in assets/."""
  return (_ASSETS / name).read_text()


def upload(payload: Mapping | None) -> Upload | None:
  """The upload in an image, audio or file field, from the browser's payload.

  Events have `preprocess=False`, so that this package's readers decode files and report errors. Gradio still checks
  that the path is one of its uploads.
  """
  if not isinstance(payload, Mapping) or not payload.get("path"):
    return None
  name = pathlib.PurePath(payload.get("orig_name") or payload["path"]).name
  return Upload(pathlib.Path(payload["path"]).resolve(), name)


def face_editor(**options) -> gr.HTML:
  """The portrait with an editable face box; triggers `edited`."""
  return gr.HTML(
    value={}, html_template=asset("face_box.html"), js_on_load=asset("face_box.js"), elem_id="face", **options
  )


def emotion_plot(value, **options) -> gr.HTML:
  """The emotion over the waveform of the speech; a timeline is editable and triggers `edited`."""
  return gr.HTML(
    value=value, html_template=asset("timeline.html"), js_on_load=asset("timeline.js"), elem_id="plot", **options
  )
