"""The page's event handlers: they check inputs and return what the page shows, errors beside their fields."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping

from dicetalk_jax.app import drawn, emotions, inputs, views
from dicetalk_jax.app.emotions import Choice
from dicetalk_jax.app.estimate import Estimator
from dicetalk_jax.app.generations import Generation, Generations
from dicetalk_jax.app.limits import Limits
from dicetalk_jax.app.requests import Request, check_config
from dicetalk_jax.app.results import Results, is_token
from dicetalk_jax.app.uploads import Upload, Uploads
from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import InputError
from dicetalk_jax.inference.clips import has_embedder
from dicetalk_jax.inference.emotion import resolve_emotion
from dicetalk_jax.inference.pipeline import DiceTalk
from dicetalk_jax.media.face import check_box

# Seconds between two updates of a generation's clock.
_LOOK = 0.5


class FieldError(InputError):
  """An InputError of one field: portrait, speech, emotion, settings or queue."""

  def __init__(self, field: str, error: Exception | str):
    super().__init__(str(error))
    self.field = field


@dataclasses.dataclass(frozen=True)
class Form:
  """The values of the page's fields, as Gradio passes them; see `Handlers.request`."""

  portrait: Upload | None = None
  face: Mapping | None = None
  speech: Upload | None = None
  mode: str = emotions.LABEL
  label: str | None = None
  strength: float | None = 1.0
  mix: tuple[float | None, ...] = ()
  timeline: Mapping | None = None
  clip: Upload | None = None
  identity_scale: float | None = GenerationConfig.identity_scale
  apart: bool = False
  audio_scale: float | None = GenerationConfig.emotion_scale
  emotion_scale: float | None = GenerationConfig.emotion_scale
  size: float | None = GenerationConfig.size
  steps: float | None = GenerationConfig.steps
  seed: float | None = 0
  interpolate: bool = True
  crop: bool = False


class Handlers:
  """The handlers of one server. defaults: initial settings of the page, and those that it does not show."""

  def __init__(
    self,
    talker: DiceTalk,
    limits: Limits,
    uploads: Uploads,
    results: Results,
    generations: Generations,
    estimator: Estimator,
    defaults: GenerationConfig | None = None,
  ):
    self.defaults = defaults or GenerationConfig()
    self.limits, self.uploads, self.results, self.generations = limits, uploads, results, generations
    self._estimator = estimator
    self._priors = talker.weights.priors()
    self._prior_size = talker.weights.module("emotion_model").prior_dim
    self._embeds = has_embedder(talker.weights)
    self.labels = sorted(self._priors)
    # Uploads lie under the hashes of their contents.
    self._portraits = functools.lru_cache(32)(self._read_portrait)
    self._speeches = functools.lru_cache(32)(lambda upload: inputs.read_speech(upload, self.limits))

  def portrait(self, upload: Upload) -> inputs.PortraitView:
    """A portrait with its faces; FieldError where it cannot be used."""
    return _of_field("portrait", lambda: self._portraits(self._here(upload)))

  def speech(self, upload: Upload) -> inputs.SpeechView:
    """A speech; FieldError where it cannot be used."""
    return _of_field("speech", lambda: self._speeches(self._here(upload)))

  def face(self, upload: Upload | None) -> dict:
    """What the face editor shows of a portrait."""
    if upload is None:
      return {}
    portrait = self.portrait(upload)
    faces = [list(face) for face in portrait.faces]
    size = {"width": portrait.width, "height": portrait.height}
    return {"preview": portrait.preview, **size, "faces": faces, "box": faces[0] if faces else None}

  def choice(self, form: Form) -> Choice:
    """The emotion of a form; FieldError where it is invalid."""
    return _of_field("emotion", lambda: self._choice(form))

  def check_choice(self, choice: Choice):
    """Raises InputError for an emotion unknown to these weights and for a clip that cannot be used."""
    if choice.clip is not None:
      self._here(choice.clip)
      inputs.check_clip(choice.clip, self.limits, self._prior_size, self._embeds)
    else:
      emotions.check_words(choice.text)
      resolve_emotion(choice.text, self._priors, self._prior_size)

  def plot(self, form: Form, choice: Choice | None) -> dict:
    """The data of the plot of the emotion over the speech."""
    speech = None
    if form.speech is not None:
      with contextlib.suppress(FieldError):
        speech = self.speech(form.speech)
    editable = form.mode == emotions.TIMELINE
    keyframes = [dataclasses.asdict(keyframe) for keyframe in (choice.keyframes if choice else ())]
    if editable:
      keyframes = _kept_keyframes(form.timeline) or self._first_keyframes(speech)
    return {
      "seconds": speech.seconds if speech else 0,
      "peaks": speech.peaks if speech else [],
      "labels": self.labels,
      "colours": emotions.colours(self.labels),
      "editable": editable,
      "clip": choice.clip.name if choice and choice.clip else None,
      "keyframes": keyframes,
    }

  def config(self, form: Form) -> GenerationConfig:
    """The settings of a form without the face box; FieldError where one is invalid."""

    def read():
      config = dataclasses.replace(
        self.defaults,
        crop=bool(form.crop),
        size=_tidy(_filled(form.size, "size")),
        steps=_whole(form.steps, "steps"),
        identity_scale=_filled(form.identity_scale, "identity strength"),
        audio_scale=_filled(form.audio_scale, "speech strength") if form.apart else None,
        emotion_scale=_filled(form.emotion_scale, "emotion strength"),
        interpolate=bool(form.interpolate),
        seed=_whole(form.seed, "seed"),
      )
      check_config(config, self.limits)
      return config

    return _of_field("settings", read)

  def request(self, form: Form) -> Request:
    """The request of a form; FieldError for the first invalid field."""
    if form.portrait is None:
      raise FieldError("portrait", "give a portrait: a photograph, a picture from the camera or a drawn person")
    portrait = self.portrait(form.portrait)
    box = _of_field("portrait", lambda: self._box(form, portrait))
    if form.speech is None:
      raise FieldError("speech", "give speech: a sound file, a recording or a drawn sentence")
    speech, emotion = self.speech(form.speech), self.choice(form)
    config = dataclasses.replace(self.config(form), face_box=box)
    size = portrait.width, portrait.height
    request = Request(form.portrait, form.speech, emotion, config, size, speech.seconds)
    _of_field("settings", request.check_size)
    return request

  def expected(self, form: Form) -> str:
    """The expected duration, as HTML."""
    try:
      request = self.request(form)
    except FieldError:
      return views.expected(None, False, "")
    config, (width, height) = request.config, request.video_size
    seconds = self._estimator.seconds(config, (width, height), request.seconds)
    rate = 25 if config.interpolate else 12.5
    video = f"{request.seconds:.2f} s of {width}×{height} at {rate:g} frames a second, {config.steps} steps"
    return views.expected(seconds, self._estimator.measured, video)

  def submit(self, visitor: str, form: Form) -> Generation:
    """Queues a form's video; FieldError where a field is invalid or the queue is full."""
    request = self.request(form)
    return _of_field("queue", lambda: self.generations.submit(visitor, request))

  def watch(self, generation: Generation) -> Iterator[str]:
    """Yields a generation's progress as HTML at each change, and regularly, until it ends."""
    version = -1
    while True:
      over, shown = generation.over, views.progress(generation, self.generations.place(generation))
      yield shown
      if over:
        return
      version = self.generations.wait(generation, version, _LOOK)

  def draw_person(self, seed: float | None) -> str:
    """The path of a drawn portrait; FieldError for a number that is no person's."""
    return _of_field("portrait", lambda: str(drawn.draw_portrait(seed, self.uploads.new_folder())))

  def say(self, text: str | None, seed: float | None) -> str:
    """The path of a drawn sentence; FieldError where there is nothing to say."""
    return _of_field("speech", lambda: str(drawn.draw_speech(text, seed, self.uploads.new_folder())))

  def _here(self, upload: Upload) -> Upload:
    return self.uploads.checked(upload.path, upload.name)

  def _read_portrait(self, upload):
    portrait = inputs.read_portrait(upload, self.limits)
    known = drawn.known_face(upload)
    return dataclasses.replace(portrait, faces=[known]) if known else portrait

  def _box(self, form, portrait):
    box = form.face.get("box") if isinstance(form.face, Mapping) else None
    if box is None:
      if portrait.faces:
        return portrait.faces[0]
      raise InputError("no face was found: draw a box around the face, or give a frontal photograph")
    return check_box(box, portrait.width, portrait.height)

  def _choice(self, form) -> Choice:
    if form.mode == emotions.CLIP:
      choice = emotions.of_clip(form.clip)
    elif form.mode == emotions.MIX:
      choice = emotions.of_mix(dict(zip(self.labels, form.mix, strict=False)))
    elif form.mode == emotions.TIMELINE:
      choice = emotions.of_timeline([_flat(keyframe) for keyframe in _kept_keyframes(form.timeline)])
    else:
      choice = emotions.of_label(form.label, form.strength)
    self.check_choice(choice)
    return choice

  def _first_keyframes(self, speech):
    if not self.labels:
      return []
    half = round(speech.seconds / 2, 1) if speech else 2.0
    calm = "neutral" if "neutral" in self.labels else self.labels[0]
    then = "happy" if "happy" in self.labels else self.labels[-1]
    return [{"time": 0.0, "weights": {calm: 1.0}}, {"time": half, "weights": {then: 1.0}}]


def visitor_of(memory) -> str:
  """The visitor's token from the browser's storage; InputError where there is none."""
  token = memory.get("visitor") if isinstance(memory, Mapping) else None
  if not is_token(token):
    raise InputError("this browser blocks local storage, which the page needs; allow it and reload the page")
  return token


def _of_field(field, read):
  try:
    return read()
  except FieldError:
    raise
  except InputError as error:
    raise FieldError(field, error) from error


def _kept_keyframes(timeline) -> list:
  keyframes = timeline.get("keyframes") if isinstance(timeline, Mapping) and timeline.get("editable") else None
  return keyframes if isinstance(keyframes, list) else []


def _flat(keyframe):
  weights = keyframe.get("weights") if isinstance(keyframe, Mapping) else None
  if not isinstance(weights, Mapping) or len(weights) != 1:
    raise InputError("the timeline cannot be read; set it again")
  ((label, strength),) = weights.items()
  return {"time": keyframe.get("time"), "label": label, "strength": strength}


def _filled(value, name) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise InputError(f"{name} has no number")
  return float(value)


def _whole(value, name) -> int:
  value = _filled(value, name)
  if value != int(value) or value < 0:
    raise InputError(f"{name} must be a whole number, 0 or more; it is {value:g}")
  return int(value)


def _tidy(value):
  return int(value) if value == int(value) else value
