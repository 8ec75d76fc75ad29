"""Gradio's components as this page uses them: files come as `Upload`s, unread, and two editors of our own."""

import pathlib

import gradio as gr

from dicetalk_jax.app.uploads import Upload

_ASSETS = pathlib.Path(__file__).parent / "assets"


def asset(name: str) -> str:
  """The text of a file in assets/."""
  return (_ASSETS / name).read_text()


def _upload(payload) -> Upload | None:
  # Gradio has checked that the path is one of its uploads.
  if payload is None or not payload.path:
    return None
  name = pathlib.PurePath(payload.orig_name or payload.path).name
  return Upload(pathlib.Path(payload.path).resolve(), name)


def portrait(**options) -> gr.Image:
  """An image of any format, whose handlers get an `Upload`."""
  return _unread(gr.Image(**options))


def sound(**options) -> gr.Audio:
  """A sound of any format, whose handlers get an `Upload`."""
  return _unread(gr.Audio(**options))


def clip(**options) -> gr.File:
  """A file of any kind, whose handlers get an `Upload`."""
  return _unread(gr.File(**options))


def _unread(component):
  # On the instance: for a subclass Gradio writes a stub file beside its source.
  component.preprocess = _upload
  return component


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
