"""Endpoints for programs, called by `gradio_client` or over HTTP."""

import contextlib
import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any, Literal

import gradio as gr

from dicetalk_jax.app.emotions import Choice
from dicetalk_jax.app.generations import DONE
from dicetalk_jax.app.handlers import Handlers
from dicetalk_jax.app.uploads import Upload
from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import DiceTalkError, InputError

_SETTINGS = {field.name for field in dataclasses.fields(GenerationConfig)}


def add_endpoints(handlers: Handlers):
  """Adds /generate, /faces and /emotions to the current Blocks."""

  def generate(
    image: Any,
    audio: Any,
    emotion: Any = "neutral",
    face_box: list[float] | None = None,
    crop: bool = False,
    size: float = GenerationConfig.size,
    steps: int = GenerationConfig.steps,
    identity_scale: float = GenerationConfig.identity_scale,
    audio_scale: float | None = None,
    emotion_scale: float = GenerationConfig.emotion_scale,
    bank: Literal["all", "nearest"] = "all",
    interpolate: bool = True,
    seed: int = 0,
  ) -> tuple[Any, str]:
    """Makes a video; returns it and the `dicetalk generate` command line for the same video.

    image, audio: files. emotion: text as for `dicetalk generate --emotion`, or a clip file. face_box: [x, y, width,
    height] in pixels of the portrait; by default the largest face. Other parameters: as for `dicetalk generate`.
    """
    # Before other local names: the parameters that are settings.
    settings = {name: value for name, value in locals().items() if name in _SETTINGS}
    with _errors_shown():
      config = dataclasses.replace(handlers.defaults, **settings | {"face_box": face_box and tuple(face_box)})
      image, audio = _upload(image, "image"), _upload(audio, "audio")
      clip = _upload(emotion, "emotion") if isinstance(emotion, Mapping) else None
      choice = Choice(clip.name, (), clip) if clip else Choice(str(emotion))
      with handlers.uploads.held(image, audio, *([clip] if clip else [])):
        request = handlers.request_of(image, audio, choice, config)
        generation = handlers.generations.submit(secrets.token_hex(16), request)
      generation.ended.wait()
      if generation.state != DONE:
        raise InputError(generation.error or "cancelled")
    return gr.FileData(path=str(generation.result.video)).model_dump(), generation.result.command

  def faces(image: Any) -> list[list[int]]:
    """The boxes [x, y, width, height] of a portrait's faces, largest first."""
    with _errors_shown():
      upload = _upload(image, "image")
      with handlers.uploads.held(upload):
        return [list(box) for box in handlers.portrait(upload).faces]

  def labels() -> list[str]:
    """The labels of emotions."""
    return handlers.labels

  gr.api(generate, api_name="generate", concurrency_limit=None)
  gr.api(faces, api_name="faces", concurrency_limit=4)
  gr.api(labels, api_name="emotions")


@contextlib.contextmanager
def _errors_shown():
  try:
    yield
  except DiceTalkError as error:
    raise gr.Error(str(error), print_exception=False) from error
  except (TypeError, ValueError) as error:
    raise gr.Error(f"a setting has a value of the wrong kind: {error}", print_exception=False) from error


def _upload(payload, name) -> Upload:
  if upload := Upload.of(payload):
    return upload
  raise InputError(f"{name} is not a file; with gradio_client give handle_file(path)")
