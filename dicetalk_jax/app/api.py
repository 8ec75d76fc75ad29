"""Endpoints for programs, called by `gradio_client` or over HTTP."""

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any, Literal

import gradio as gr

from dicetalk_jax.app.emotions import Choice
from dicetalk_jax.app.generations import DONE
from dicetalk_jax.app.handlers import Handlers
from dicetalk_jax.app.requests import Request, check_config
from dicetalk_jax.app.uploads import Upload
from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import DiceTalkError, InputError
from dicetalk_jax.media.face import check_box

_LOOK = 1.0


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
    try:
      config = dataclasses.replace(
        handlers.defaults,
        face_box=None if face_box is None else tuple(face_box),
        crop=crop,
        size=size,
        steps=steps,
        identity_scale=identity_scale,
        audio_scale=audio_scale,
        emotion_scale=emotion_scale,
        bank=bank,
        interpolate=interpolate,
        seed=seed,
      )
      return _made(handlers, image, audio, emotion, config)
    except DiceTalkError as error:
      raise gr.Error(str(error), print_exception=False) from error
    except (TypeError, ValueError) as error:
      raise gr.Error(f"a setting has a value of the wrong kind: {error}", print_exception=False) from error

  def faces(image: Any) -> list[list[int]]:
    """The boxes [x, y, width, height] of a portrait's faces, largest first."""
    try:
      with handlers.uploads.borrowed() as take:
        return [list(box) for box in handlers.portrait(_taken(take, image, "image")).faces]
    except DiceTalkError as error:
      raise gr.Error(str(error), print_exception=False) from error

  def labels() -> list[str]:
    """The labels of emotions."""
    return handlers.labels

  gr.api(generate, api_name="generate", concurrency_limit=None)
  gr.api(faces, api_name="faces", concurrency_limit=4)
  gr.api(labels, api_name="emotions")


def _made(handlers: Handlers, image, audio, emotion, config):
  with handlers.uploads.borrowed() as take:
    image, audio = _taken(take, image, "image"), _taken(take, audio, "audio")
    portrait, speech = handlers.portrait(image), handlers.speech(audio)
    if isinstance(emotion, Mapping):
      clip = _taken(take, emotion, "emotion")
      choice = Choice(clip.name, (), clip)
    else:
      choice = Choice(str(emotion))
    handlers.check_choice(choice)
    check_config(config, handlers.limits)
    box = config.face_box or next(iter(portrait.faces), None)
    if box is None:
      raise InputError(f"no face was found in {image.name}: give face_box, [x, y, width, height] in pixels")
    config = dataclasses.replace(config, face_box=check_box(box, portrait.width, portrait.height))
    request = Request(image, audio, choice, config, (portrait.width, portrait.height), speech.seconds)
    request.check_size()
    # From here on the generation holds the files.
    generation = handlers.generations.submit(secrets.token_hex(16), request)
  version = -1
  while not generation.over:
    version = handlers.generations.wait(generation, version, _LOOK)
  if generation.state != DONE:
    raise InputError(generation.error or "cancelled")
  return gr.FileData(path=str(generation.result.video)).model_dump(), generation.result.command


def _taken(take, payload, name) -> Upload:
  if not isinstance(payload, Mapping) or not isinstance(payload.get("path"), str):
    raise InputError(f"{name} is not a file; with gradio_client give handle_file(path)")
  return take(payload["path"], payload.get("orig_name"))
