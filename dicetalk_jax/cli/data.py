"""The verbs `data build`, `data encode` and `data inspect`."""

import dataclasses
import pathlib
from typing import Annotated, Literal

import tyro

from dicetalk_jax.cli.groups import verb_group
from dicetalk_jax.cli.terminal import interruptible_bars, say
from dicetalk_jax.data.build.folder import ClipsLayout
from dicetalk_jax.data.build.hdtf import HdtfLayout
from dicetalk_jax.data.build.mead import MeadLayout
from dicetalk_jax.data.build.synthetic import SyntheticLayout
from dicetalk_jax.data.build.voxceleb2 import Voxceleb2Layout
from dicetalk_jax.errors import InputError, OutputError
from dicetalk_jax.files import check_file, new_file, protect_inputs


@dataclasses.dataclass(frozen=True)
class _Building:
  """Options of all sets."""

  out: pathlib.Path
  """Folder of the data set. A build that was stopped continues when the command is the same."""

  workers: int | None = dataclasses.field(default=None, kw_only=True)
  """Number of processes. Default: one for each core."""

  def run(self):
    from dicetalk_jax.data.build.tfds import build_set

    with interruptible_bars() as progress:
      report = build_set(self.layout, self.out, getattr(self, "root", None), self.workers, progress)
    print(report)
    print(f"next: dicetalk data inspect {self.out}")


@dataclasses.dataclass(frozen=True)
class _BuildingOfFiles(_Building):
  """Options of the sets that are read from files."""

  root: pathlib.Path
  """Folder of the published set, or of your videos."""


def _building(base: type, layout: type, summary: str, example: str) -> type:
  name = f"Build{layout.__name__.removesuffix('Layout')}"
  field = ("layout", tyro.conf.OmitArgPrefixes[layout], dataclasses.field(default_factory=layout))
  doc = f"{summary}\n\nExample: dicetalk data build {example}"
  return dataclasses.make_dataclass(name, [field], bases=(base,), namespace={"__doc__": doc}, frozen=True)


@dataclasses.dataclass(frozen=True)
class Encode:
  """Encode a set with the VAE, CLIP and Whisper of a weights folder, so that training reads no pixels.

  A run that was stopped continues when the command is the same.

  Example: dicetalk data encode data/mead encoded/mead --weights weights
  """

  data: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="DATA")]
  """Data set of `dicetalk data build`."""

  out: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="OUT")]
  """Folder of the encoded set."""

  weights: pathlib.Path
  """Weights folder, as `dicetalk convert` writes it."""

  what: Literal["all", "audio"] = "all"
  """all: everything that the diffusion needs. audio: Whisper's states only, enough for the emotion embedder."""

  batch: int = 8
  """Frames in a batch on each device."""

  reference_every: int = 10
  """Interval between frames with a CLIP embedding. These frames can be the reference portrait of a clip."""

  part: tuple[int, int] = (0, 1)
  """I K: encode only files I, I + K, I + 2K, …, the share of host I of K hosts."""

  dtype: Literal["bfloat16", "float32"] | None = None
  """Precision of VAE and CLIP. Default: bfloat16 on an accelerator, float32 on a CPU."""

  def run(self):
    from dicetalk_jax.data.encode.runner import encode

    with interruptible_bars() as progress:
      options = (self.what, self.batch, self.part, self.reference_every, self.dtype)
      report = encode(self.data, self.out, self.weights, *options, progress=progress)
    print(report)


@dataclasses.dataclass(frozen=True)
class Inspect:
  """Print a summary of a set, and draw a contact sheet.

  Example: dicetalk data inspect data/mead --sheet mead.png
  """

  data: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="DATA")]
  """Data set, built or encoded."""

  sheet: pathlib.Path | None = None
  """Picture file (.png) for a contact sheet: up to 24 people down, emotions across, three frames of each clip."""

  split: str = "train"
  """Split of the contact sheet."""

  def run(self):
    from PIL import Image

    from dicetalk_jax.data.summary import contact_sheet, summarise

    if self.sheet:
      if self.sheet.suffix.lower() not in Image.registered_extensions():
        raise InputError(f"contact sheet {self.sheet}: Pillow writes no such file; give a name that ends in .png")
      protect_inputs(self.sheet, {"data set": self.data})
      check_file(self.sheet, "contact sheet")
    print(summarise(self.data))
    if self.sheet:
      with interruptible_bars() as progress:
        sheet = contact_sheet(self.data, self.split, progress=progress)
      try:
        with new_file(self.sheet) as temporary:
          sheet.save(temporary, Image.registered_extensions()[self.sheet.suffix.lower()])
      except OSError as error:
        raise OutputError(f"contact sheet {self.sheet} cannot be written: {error}") from error
      say(f"contact sheet: {self.sheet}")


Build = verb_group(
  "Build",
  "Build a data set from a published set on your disk, from your own videos, or from the drawn world.",
  {
    "synthetic": _building(
      _Building,
      SyntheticLayout,
      "Draw a set of people who speak with eight emotions at three levels. Every factor is known.",
      "synthetic --out data/synthetic --people 40",
    ),
    "mead": _building(
      _BuildingOfFiles,
      MeadLayout,
      "Build MEAD from a folder that holds M003/video/front/angry/level_1/001.mp4 beside "
      "M003/audio/angry/level_1/001.m4a.",
      "mead --root /sets/MEAD --out data/mead",
    ),
    "hdtf": _building(
      _BuildingOfFiles,
      HdtfLayout,
      "Build HDTF from a folder of its cut clips with sound, such as WDA_BarackObama_000.mp4.",
      "hdtf --root /sets/HDTF --out data/hdtf",
    ),
    "voxceleb2": _building(
      _BuildingOfFiles,
      Voxceleb2Layout,
      "Build VoxCeleb2 from a folder that holds dev/mp4/id00012/<video>/00001.mp4.",
      "voxceleb2 --root /sets/VoxCeleb2 --out data/voxceleb2",
    ),
    "clips": _building(
      _BuildingOfFiles,
      ClipsLayout,
      "Build a folder of your own videos. Labels, if any, are in labels.csv (columns file, identity, emotion, level, "
      "…).",
      "clips --root my_videos --out data/mine",
    ),
  },
)
Data = verb_group(
  "Data",
  """Build, encode and inspect data sets.

  Example: dicetalk data build synthetic --out data/synthetic
  """,
  {"build": Build, "encode": Encode, "inspect": Inspect},
)
