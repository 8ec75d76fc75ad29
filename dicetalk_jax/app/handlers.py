"""The page's event handlers: they check inputs and return what the page shows, errors beside their fields."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

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
# Settings that are numbers, and their names on the page.
_NUMBERS = {
  "size": "size",
  "steps": "steps",
  "identity_scale": "identity strength",
  "audio_scale": "speech strength",
  "emotion_scale": "emotion strength",
  "seed": "seed",
}


class FieldError(InputError):
  """An InputError of one field: portrait, speech, emotion, settings or queue."""

  def __init__(self, field: str, error: Exception | str):
    super().__init__(str(error))
    self.field = field


@contextlib.contextmanager
def _field(name: str):
  try:
    yield
  except FieldError:
    raise
  except InputError as error:
    raise FieldError(name, error) from error


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
    defaults: GenerationConfig,
  ):
    self.defaults, self.limits, self.uploads, self.results = defaults, limits, uploads, results
    self.generations, self._estimator = generations, estimator
    self._priors = talker.weights.priors()
    self._prior_size = talker.weights.module("emotion_model").prior_dim
    self._embeds = has_embedder(talker.weights)
    self.labels = sorted(self._priors)
    # Uploads lie under the hashes of their contents.
    self._portraits = functools.lru_cache(32)(self._read_portrait)
    self._speeches = functools.lru_cache(32)(lambda upload: inputs.read_speech(upload, self.limits))

  def portrait(self, upload: Upload) -> inputs.PortraitView:
    """A portrait with its faces; FieldError where it cannot be used."""
    with _field("portrait"):
      return self._portraits(self.uploads.check(upload))

  def speech(self, upload: Upload) -> inputs.SpeechView:
    """A speech; FieldError where it cannot be used."""
    with _field("speech"):
      return self._speeches(self.uploads.check(upload))

  def face(self, upload: Upload | None) -> dict:
    """What the face editor shows of a portrait."""
    if upload is None:
      return {}
    view = dataclasses.asdict(self.portrait(upload))
    return view | {"box": next(iter(view["faces"]), None)}

  def choice(self, form: Form) -> Choice:
    """The emotion of a form; FieldError where it is invalid."""
    with _field("emotion"):
      if form.mode == emotions.CLIP:
        choice = emotions.of_clip(form.clip)
      elif form.mode == emotions.MIX:
        choice = emotions.of_mix(dict(zip(self.labels, form.mix, strict=False)))
      elif form.mode == emotions.TIMELINE:
        choice = emotions.of_timeline(_keyframes(form.timeline))
      else:
        choice = emotions.of_label(form.label, form.strength)
      self._check_choice(choice)
      return choice

  def plot(self, form: Form, choice: Choice | None) -> dict:
    """The data of the plot of the emotion over the speech."""
    speech = None
    if form.speech is not None:
      with contextlib.suppress(FieldError):
        speech = self.speech(form.speech)
    editable = form.mode == emotions.TIMELINE
    keyframes = choice.keyframes if choice else ()
    if editable:
      keyframes = _keyframes(form.timeline) or self._first_keyframes(speech)
    return {
      "seconds": speech.seconds if speech else 0,
      "peaks": speech.peaks if speech else [],
      "labels": self.labels,
      "colours": emotions.colours(self.labels),
      "editable": editable,
      "clip": choice.clip.name if choice and choice.clip else None,
      "keyframes": list(keyframes),
    }

  def request(self, form: Form) -> Request:
    """The request of a form; FieldError for the first invalid field."""
    if form.portrait is None:
      raise FieldError("portrait", "give a portrait: a photograph, a picture from the camera or a drawn person")
    if form.speech is None:
      raise FieldError("speech", "give speech: a sound file, a recording or a drawn sentence")
    # The first invalid field in the order of the page.
    self.portrait(form.portrait), self.speech(form.speech)
    return self.request_of(form.portrait, form.speech, self.choice(form), self._config(form))

  def request_of(self, portrait: Upload, speech: Upload, choice: Choice, config: GenerationConfig) -> Request:
    """A request whose face box is the largest face unless `config` has one; FieldError for the first invalid field."""
    view, sound = self.portrait(portrait), self.speech(speech)
    with _field("portrait"):
      box = config.face_box or next(iter(view.faces), None)
      if box is None:
        raise InputError(f"no face was found in {portrait.name}: give a box around the face, or a frontal photograph")
      config = dataclasses.replace(config, face_box=check_box(box, view.width, view.height))
    with _field("emotion"):
      self._check_choice(choice)
    with _field("settings"):
      check_config(config, self.limits)
      request = Request(portrait, speech, choice, config, (view.width, view.height), sound.seconds)
      request.video_size  # noqa: B018 (raises for a size that no video can have)
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
    with _field("queue"):
      return self.generations.submit(visitor, self.request(form))

  def watch(self, generation: Generation) -> Iterator[str]:
    """Yields a generation's progress as HTML, regularly until it ends."""
    while not generation.over:
      yield views.progress(generation, self.generations.place(generation))
      generation.ended.wait(_LOOK)
    yield views.progress(generation)

  def draw_person(self, seed: float | None) -> str:
    """The path of a drawn portrait; FieldError for a number that is no person's."""
    with _field("portrait"):
      return str(drawn.draw_portrait(seed, self.uploads.new_folder()))

  def say(self, text: str | None, seed: float | None) -> str:
    """The path of a drawn sentence; FieldError where there is nothing to say."""
    with _field("speech"):
      return str(drawn.draw_speech(text, seed, self.uploads.new_folder()))

  def _check_choice(self, choice):
    """Raises InputError for an emotion unknown to these weights and for a clip that cannot be used."""
    if choice.clip is not None:
      inputs.check_clip(self.uploads.check(choice.clip), self.limits, self._prior_size, self._embeds)
    else:
      emotions.check_words(choice.text)
      resolve_emotion(choice.text, self._priors, self._prior_size)

  def _config(self, form) -> GenerationConfig:
    """The settings of a form."""
    box = form.face.get("box") if isinstance(form.face, Mapping) else None
    values = {name: getattr(form, name) for name in _NUMBERS if name != "audio_scale" or form.apart}
    with _field("settings"):
      for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
          raise InputError(f"{_NUMBERS[name]} has no number")
    # Whole numbers come as floats.
    values = {name: int(value) if float(value).is_integer() else value for name, value in values.items()}
    switches = {"crop": bool(form.crop), "interpolate": bool(form.interpolate)}
    return dataclasses.replace(self.defaults, **{"audio_scale": None, "face_box": box} | values | switches)

  def _read_portrait(self, upload):
    portrait = inputs.read_portrait(upload, self.limits)
    known = drawn.known_face(upload)
    return dataclasses.replace(portrait, faces=[known]) if known else portrait

  def _first_keyframes(self, speech):
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


def _keyframes(timeline) -> Sequence:
  """The keyframes of the plot's value while it is a timeline."""
  return timeline.get("keyframes") or () if isinstance(timeline, Mapping) and timeline.get("editable") else ()
