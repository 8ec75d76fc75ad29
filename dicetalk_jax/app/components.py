"""What this page has beyond Gradio's components: two editors of its own, and files that come unread."""

import pathlib
from collections.abc import Mapping

import gradio as gr

from dicetalk_jax.app.uploads import Upload

_ASSETS = pathlib.Path(__file__).parent / "assets"


def asset(name: str) -> str:
  """The text of a file in assets/."""
  return (_ASSETS / name).read_text()


def upload(payload: Mapping | None) -> Upload | None:
  """The file that an image, a sound or a file field holds, from what the browser sent of it.

  Handlers take events with `preprocess=False`, so that Gradio does not decode files: that is left to readers that say
  what is wrong. Gradio has still checked that the path is one of its uploads.
  """
  if not isinstance(payload, Mapping) or not payload.get("path"):
    return None
  name = pathlib.PurePath(payload.get("orig_name") or payload["path"]).name
  return Upload(pathlib.Path(payload["path"]).resolve(), name)


def face_editor(**options) -> gr.HTML:
  """The portrait with the face's box to move, resize, draw or pick; triggers `edited`."""
  return gr.HTML(
    value={}, html_template=asset("face_box.html"), js_on_load=asset("face_box.js"), elem_id="face", **options
  )


def emotion_plot(value, **options) -> gr.HTML:
  """The emotion over the speech's waveform, editable where it is a timeline; triggers `edited`."""
  return gr.HTML(
    value=value, html_template=asset("timeline.html"), js_on_load=asset("timeline.js"), elem_id="plot", **options
  )
