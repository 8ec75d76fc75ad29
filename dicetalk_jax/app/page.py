"""The page: its layout, and the handler of each event."""

import contextlib
import dataclasses
import pathlib
import types

import gradio as gr

from dicetalk_jax.app import emotions, views
from dicetalk_jax.app.api import add_endpoints
from dicetalk_jax.app.handlers import FieldError, Form, Handlers, visitor_of
from dicetalk_jax.app.uploads import Upload
from dicetalk_jax.errors import InputError
from dicetalk_jax.world.sentences import sentences

_FIELDS = ("portrait", "speech", "emotion", "settings", "queue")
_FILES = ("portrait", "speech", "clip")
# Settings that a tab keeps over a reload.
_KEPT = (
  *("mode", "label", "strength", "identity_scale", "apart", "audio_scale", "emotion_scale"),
  *("size", "steps", "seed", "interpolate", "crop"),
)
# JavaScript of an event whose first input is the browser's storage.
_WITH_MEMORY = "(_, ...inputs) => [window.dicetalk.memory(), ...inputs]"
_AGAIN = "Your settings are kept; give portrait and speech again."
_LOST = f"The server was restarted and the video in progress is lost. {_AGAIN}"
_RESTARTED = f"The server was restarted. {_AGAIN}"


def build(handlers: Handlers) -> gr.Blocks:
  """The page of these handlers."""
  with gr.Blocks(title="dicetalk") as page:
    # First, so that no other event takes their names.
    add_endpoints(handlers)
    fields = _layout(handlers)
    _connect(page, handlers, fields)
  # Handlers check, draw and wait; the device has a queue of its own.
  page.queue(default_concurrency_limit=32)
  return page


def asset(name: str) -> str:
  """The text of a file in assets/."""
  return (pathlib.Path(__file__).parent / "assets" / name).read_text()


# The sliders of the mix come last, because their number varies.
_FORM = [field.name for field in dataclasses.fields(Form) if field.name != "mix"]


def _form(values) -> Form:
  fields = dict(zip(_FORM, values, strict=False))
  return Form(**fields | {name: Upload.of(fields[name]) for name in _FILES}, mix=tuple(values[len(_FORM) :]))


def _layout(handlers) -> types.SimpleNamespace:
  """The page's components by name."""
  f = types.SimpleNamespace(messages={}, mix=[])
  gr.HTML('<header class="dt-head"><h1>dicetalk</h1><p>A portrait, a voice and an emotion make a video.</p></header>')
  f.memory = gr.JSON(visible="hidden")
  f.generation = gr.Textbox(visible="hidden", elem_id="generation")
  with gr.Row(elem_classes="dt-columns"):
    with gr.Column(min_width=320, elem_classes="dt-column"):
      _portrait(f, handlers)
      _speech(f, handlers)
    with gr.Column(min_width=320, elem_classes="dt-column"):
      _emotion(f, handlers)
      _settings(f, handlers)
    with gr.Column(min_width=320, elem_classes="dt-column"):
      _video(f)
  f.beside = gr.HTML(elem_id="beside")
  f.forget = gr.Button("Remove all my videos", size="sm", variant="secondary", visible=False, elem_classes="dt-forget")
  return f


def _portrait(f, handlers):
  _title("Portrait")
  f.portrait = gr.Image(
    sources=["upload", "webcam", "clipboard"],
    label="Portrait",
    show_label=False,
    height=250,
    buttons=[],
    elem_id="portrait",
    placeholder="Drop a portrait, or click to choose",
  )
  f.face = gr.HTML(value={}, html_template=asset("face_box.html"), js_on_load=asset("face_box.js"), elem_id="face")
  _message(f, "portrait")
  f.another = gr.Button("Another portrait", size="sm", visible=False, elem_id="another", elem_classes="dt-another")
  with gr.Row(elem_classes="dt-line"):
    f.person = gr.Number(7, label="Drawn person", precision=0, minimum=0, min_width=90, elem_id="person")
    f.draw = gr.Button("Draw", size="sm", min_width=90, elem_id="draw")


def _speech(f, handlers):
  _title("Speech")
  f.speech = gr.Audio(
    sources=["upload", "microphone"],
    type="filepath",
    label="Speech",
    show_label=False,
    buttons=["download"],
    elem_id="speech",
  )
  _message(f, "speech")
  with gr.Row(elem_classes="dt-line"):
    f.sentence = gr.Textbox(
      sentences("test")[0], label="Drawn sentence", lines=2, min_width=180, scale=3, elem_id="sentence"
    )
    f.say = gr.Button("Say it", size="sm", min_width=90, elem_id="say")


def _emotion(f, handlers):
  _title("Emotion")
  first = "happy" if "happy" in handlers.labels else (handlers.labels or [None])[0]
  f.mode = gr.Radio(list(emotions.MODES), value=emotions.LABEL, show_label=False, label="Emotion by", elem_id="mode")
  with gr.Group(elem_id="by-label") as f.by_label:
    f.label = gr.Radio(handlers.labels, value=first, label="Label", elem_id="label")
    f.strength = gr.Slider(0, 2, 1, step=0.05, label="Strength", buttons=[], elem_id="strength")
  with gr.Group(visible=False, elem_id="by-mix") as f.by_mix, gr.Row(elem_classes="dt-sliders"):
    f.mix = [
      gr.Slider(0, 1, {first: 0.6, "surprised": 0.4}.get(label, 0), step=0.05, label=label, min_width=140, buttons=[])
      for label in handlers.labels
    ]
  with gr.Group(visible=False, elem_id="by-clip") as f.by_clip:
    f.clip = gr.File(
      label="Clip with the emotion: video, sound, coefficients or prior file", height=120, elem_id="clip"
    )
  plot = handlers.plot(Form(label=first), handlers.choice(Form(label=first)) if first else None)
  f.timeline = gr.HTML(
    value=plot, html_template=asset("timeline.html"), js_on_load=asset("timeline.js"), elem_id="plot"
  )
  f.text = gr.HTML(elem_id="emotion-text")
  _message(f, "emotion")


def _settings(f, handlers):
  limits, defaults = handlers.limits, handlers.defaults
  with gr.Accordion("Settings", open=False, elem_id="settings"):
    f.identity_scale = gr.Slider(
      0, 10, defaults.identity_scale, step=0.1, label="Identity strength", buttons=[], elem_id="identity-scale"
    )
    f.emotion_scale = gr.Slider(0, 12, defaults.emotion_scale, step=0.1, label="Emotion strength", buttons=[])
    f.apart = gr.Checkbox(defaults.audio_scale is not None, label="Separate strength for speech (takes a third longer)")
    f.audio_scale = gr.Slider(
      0,
      12,
      defaults.audio_scale or defaults.emotion_scale,
      step=0.1,
      label="Speech strength",
      buttons=[],
      visible=defaults.audio_scale is not None,
    )
    with gr.Row(elem_classes="dt-line"):
      sizes = sorted({64, 128, 256, 384, 512, 768, 1024, int(defaults.size)} & {*range(limits.max_size + 1)})
      f.size = gr.Dropdown(sizes, value=int(defaults.size), label="Size", min_width=90, elem_id="size")
      f.steps = gr.Number(
        defaults.steps, label="Steps", precision=0, minimum=1, maximum=limits.max_steps, min_width=90, elem_id="steps"
      )
      f.seed = gr.Number(defaults.seed, label="Seed", precision=0, minimum=0, min_width=90, elem_id="seed")
    f.interpolate = gr.Checkbox(defaults.interpolate, label="25 frames a second instead of 12.5", elem_id="interpolate")
    f.crop = gr.Checkbox(defaults.crop, label="Crop the portrait around the face", elem_id="crop")
  _message(f, "settings")


def _video(f):
  _title("Video")
  f.expected = gr.HTML(views.expected(None, False, ""), elem_id="expected")
  with gr.Row(elem_classes="dt-line"):
    f.generate = gr.Button("Generate", variant="primary", elem_id="generate", min_width=120)
    f.cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="cancel", min_width=120)
  _message(f, "queue")
  f.progress = gr.HTML(elem_id="progress")
  f.newest = gr.HTML(elem_id="newest")


def _message(f, name):
  f.messages[name] = gr.HTML(elem_classes="dt-field-message", elem_id=f"{name}-message")


def _title(text):
  gr.HTML(f'<h2 class="dt-title">{text}</h2>')


def _connect(page, handlers: Handlers, f):
  form = [*(getattr(f, name) for name in _FORM), *f.mix]
  messages = [f.messages[name] for name in _FIELDS]
  quiet = dict(show_progress="hidden", api_visibility="private", preprocess=False)

  def on(trigger, function, inputs=None, outputs=None, **options):
    return trigger(function, inputs, outputs, **{**quiet, **options})

  def take(request, field, payload):
    """The upload in a field, kept while the page shows it."""
    file = Upload.of(payload)
    handlers.uploads.hold((request.session_hash, field), *([file] if file else []))
    return file

  def look_at_portrait(payload, request: gr.Request):
    try:
      face = handlers.face(take(request, "portrait", payload))
    except FieldError as error:
      return gr.update(visible=True), {}, views.message(str(error)), gr.update(visible=False)
    without = bool(face) and not face["box"]
    text = "No face was found: draw a box around the face, or give another portrait" if without else ""
    return gr.update(visible=not face), face, views.message(text), gr.update(visible=bool(face))

  on(f.portrait.change, look_at_portrait, f.portrait, [f.portrait, f.face, f.messages["portrait"], f.another])
  on(
    f.another.click,
    lambda: (gr.update(value=None, visible=True), {}, "", gr.update(visible=False)),
    None,
    [f.portrait, f.face, f.messages["portrait"], f.another],
  )

  def drawing(draw):
    """A handler that shows the file which `draw` makes, or its error."""

    def handler(*values):
      try:
        return draw(*values), ""
      except FieldError as error:
        return gr.skip(), views.message(str(error))

    return handler

  on(f.draw.click, drawing(handlers.draw_person), f.person, [f.portrait, f.messages["portrait"]])

  def listen(payload, request: gr.Request):
    file, text, kind = take(request, "speech", payload), "", "error"
    try:
      speech = handlers.speech(file) if file else None
      if speech and speech.silent:
        text, kind = "This sound is silent: the mouth has nothing to follow", "note"
      elif speech:
        text, kind = f"{speech.seconds:.2f} s of speech", "note"
    except FieldError as error:
      text = str(error)
    return views.message(text, kind)

  heard = on(f.speech.change, listen, f.speech, f.messages["speech"])

  for trigger in (f.say.click, f.sentence.submit):
    on(trigger, drawing(handlers.say), [f.sentence, f.person], [f.speech, f.messages["speech"]])

  def feel(*values):
    """Plot, text and message of the emotion."""
    given, choice, text = _form(values), None, ""
    if given.mode == emotions.TIMELINE:
      given = dataclasses.replace(given, timeline=handlers.plot(given, None))
    try:
      choice = handlers.choice(given)
    except FieldError as error:
      # A missing clip is not an error yet.
      text = "" if given.mode == emotions.CLIP and given.clip is None else str(error)
    words = choice.text if choice else ""
    return handlers.plot(given, choice), views.emotion_text(words), views.message(text)

  felt = [f.timeline, f.text, f.messages["emotion"]]
  on(heard.then, feel, form, felt)
  on(
    f.mode.change,
    lambda mode: [gr.update(visible=mode == name) for name in (emotions.LABEL, emotions.MIX, emotions.CLIP)],
    f.mode,
    [f.by_label, f.by_mix, f.by_clip],
  )
  for trigger in (f.mode.change, f.label.change, f.strength.change, *(slider.change for slider in f.mix)):
    on(trigger, feel, form, felt, trigger_mode="always_last")
  on(f.timeline.edited, lambda *values: feel(*values)[1:], form, felt[1:], trigger_mode="always_last")

  def take_clip(payload, request: gr.Request):
    take(request, "clip", payload)

  on(on(f.clip.change, take_clip, f.clip).then, feel, form, felt)
  on(f.apart.change, lambda apart: gr.update(visible=apart), f.apart, f.audio_scale)

  def expect(*values):
    return handlers.expected(_form(values))

  changes = [f.apart, f.size, f.steps, f.interpolate, f.crop, f.portrait, f.speech]
  for trigger in (f.face.edited, *(field.change for field in changes)):
    on(trigger, expect, form, f.expected, trigger_mode="always_last")

  shown = [f.progress, f.generation, f.generate, f.cancel, f.newest, f.beside, f.forget]

  def results(visitor):
    made = handlers.results.of(visitor)
    return views.newest(made), views.beside(made), gr.update(visible=bool(made))

  def watched(visitor, generation):
    """Outputs `shown` while a generation goes on, and after it."""
    busy = gr.update(interactive=False), gr.update(visible=True)
    for progress in handlers.watch(generation):
      if not generation.over:
        yield (progress, generation.id, *busy, gr.skip(), gr.skip(), gr.skip())
    after = results(visitor) if generation.result else (gr.skip(),) * 3
    yield (progress, "", gr.update(interactive=True), gr.update(visible=False), *after)

  def generate(memory, *values):
    # Messages about the inputs stay.
    clear = [gr.skip() if name in ("portrait", "speech") else "" for name in _FIELDS]
    try:
      visitor = visitor_of(memory)
      generation = handlers.submit(visitor, _form(values))
    except InputError as error:
      field = getattr(error, "field", "queue")
      errors = [views.message(str(error)) if name == field else "" for name in _FIELDS]
      yield (*errors, *(gr.skip() for _ in shown))
      return
    for outputs in watched(visitor, generation):
      yield (*clear, *outputs)

  inputs = [f.memory, *form]
  made = on(f.generate.click, generate, inputs, [*messages, *shown], concurrency_limit=None, js=_WITH_MEMORY)
  # Each video measures the device's speed.
  on(made.then, expect, form, f.expected)

  def cancel(memory, generation):
    with contextlib.suppress(InputError):
      if running := handlers.generations.get(visitor_of(memory), generation):
        handlers.generations.cancel(running)

  on(f.cancel.click, cancel, [f.memory, f.generation], concurrency_limit=None, js=_WITH_MEMORY)
  on(f.generation.change, None, f.generation, js="(id) => window.dicetalk.remember(id)")

  kept = [getattr(f, name) for name in _KEPT]
  for field in kept:
    on(field.change, None, kept, js="(...settings) => window.dicetalk.rememberSettings(settings)")

  def resume(memory):
    """After a reload: the visitor's results and the generation that still runs."""
    try:
      visitor = visitor_of(memory)
    except InputError as error:
      yield (views.message(str(error)), *(gr.skip() for _ in shown))
      return
    generation = memory.get("generation")
    running = handlers.generations.get(visitor, generation) if generation else None
    if running is None:
      text = views.message(_LOST if generation else _RESTARTED if memory.get("restarted") else "")
      yield (text, "", "", gr.skip(), gr.skip(), *results(visitor))
      return
    made = results(visitor)
    for i, outputs in enumerate(watched(visitor, running)):
      yield ("", *outputs) if i or running.over else ("", *outputs[:4], *made)

  on(page.load, resume, f.memory, [f.messages["queue"], *shown], concurrency_limit=None, js=_WITH_MEMORY)

  def restore(memory):
    settings = memory.get("settings") if isinstance(memory, dict) else None
    if not isinstance(settings, list) or len(settings) != len(kept):
      return [gr.skip() for _ in kept]
    return [gr.update(value=value) for value in settings]

  on(page.load, restore, f.memory, kept, js=_WITH_MEMORY)

  def forget(memory):
    with contextlib.suppress(InputError):
      handlers.results.remove(visitor_of(memory))
    return "", "", gr.update(visible=False)

  on(f.forget.click, forget, f.memory, [f.newest, f.beside, f.forget], js=_WITH_MEMORY)

  def release(request: gr.Request):
    handlers.uploads.release(request.session_hash)

  page.unload(release)
