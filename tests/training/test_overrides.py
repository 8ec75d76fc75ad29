"""`--set a.b=value`: what it reads, and what it says of what it does not."""

import dataclasses
from typing import Annotated, Literal

import pytest

from dicetalk_jax.errors import InputError
from dicetalk_jax.training.config import AdaptationConfig, EmbedderConfig
from dicetalk_jax.training.overrides import override


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float = 0.1
  size: int | None = 3


@dataclasses.dataclass(frozen=True)
class Outer:
  inner: Inner = Inner()
  mode: Literal["one", "two"] = "one"
  scale: Literal[1, 2] = 1
  on: bool = False
  names: tuple[str, ...] = ()
  box: tuple[int, int] = (0, 0)
  note: Annotated[str, "kept"] = ""


@pytest.mark.parametrize(
  "setting, value",
  [
    ("inner.rate=1e-4", 1e-4),
    ("inner.rate=2", 2.0),
    ("inner.size=1_000", 1000),
    ("inner.size=none", None),
    ("mode=two", "two"),
    ("scale=2", 2),
    ("on=true", True),
    ("on=False", False),
    ("names=a, b", ("a", "b")),
    ("names=", ()),
    ("box=3,-4", (3, -4)),
    ("note=x=1, y", "x=1, y"),
    (" note = spaced ", "spaced"),
  ],
)
def test_values_are_read_as_their_fields_say(setting, value):
  before = Outer()
  config = override(before, [setting])
  for name in setting.partition("=")[0].strip().split("."):
    config = getattr(config, name)
  assert config == value and type(config) is type(value)
  assert before == Outer()


@pytest.mark.parametrize(
  "setting, words",
  [
    ("inner.rat=1", "did you mean rate"),
    ("wholly.other=1", "'wholly'; there are inner, mode"),
    ("inner.rate=fast", "'fast' cannot be used, wanted a number"),
    ("inner.rate=nan", "wanted a number"),
    ("inner.rate=none", "wanted a number"),
    ("inner.size=2.5", "wanted a whole number or none"),
    ("mode=three", "wanted one of one, two"),
    ("scale=3", "wanted one of 1, 2"),
    ("on=1", "wanted true or false"),
    ("box=1", "wanted 2 values separated by commas"),
    ("box=1,x", "a whole number"),
    ("inner=3", r"group of settings.*inner\.\{rate, size\}"),
    ("on.off=1", "on is a single setting and has no 'off'; set on$"),
    ("inner.rate.log.base=1", "rate is a single setting and has no 'log'; set inner.rate$"),
    ("on", "write a.b=value"),
    ("=3", "write a.b=value"),
  ],
)
def test_what_cannot_be_set_is_said_in_a_sentence(setting, words):
  with pytest.raises(InputError, match=words) as failure:
    override(Outer(), [setting])
  assert "\n" not in str(failure.value)


def test_what_is_no_single_value_is_left_to_presets():
  with pytest.raises(InputError, match="networks is a group of settings"):
    override(AdaptationConfig(), ["networks=unet"])
  sizes = override(AdaptationConfig(networks={"unet": {"layers": 1, "widths": [8, 8]}}), ["networks.unet.widths=4,8"])
  assert sizes.networks == {"unet": {"layers": 1, "widths": [4, 8]}}
  assert override(AdaptationConfig(), ["emotional=a, b", "regular="]).emotional == ("a", "b")


def test_a_path_is_given_once():
  with pytest.raises(InputError, match=r"inner\.rate is given twice"):
    override(Outer(), ["inner.rate=1", "on=true", "inner.rate=2"])


def test_every_setting_of_a_stage_can_be_given():
  def settings(config, prefix=""):
    for field in dataclasses.fields(config):
      value = getattr(config, field.name)
      if dataclasses.is_dataclass(value):
        yield from settings(value, f"{prefix}{field.name}.")
      else:
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        yield f"{prefix}{field.name}={text}"

  given = list(settings(EmbedderConfig()))
  assert len(given) > 30
  assert override(EmbedderConfig(), given) == EmbedderConfig()
