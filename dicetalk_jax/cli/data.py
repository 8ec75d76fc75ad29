"""The verbs `data build`, `data encode` and `data inspect`."""

import contextlib
import dataclasses
import pathlib
from typing import Annotated, Literal

import tyro

from dicetalk_jax.cli.terminal import console, interruptible, progress_bars
from dicetalk_jax.data.build.folder import ClipsLayout
from dicetalk_jax.data.build.hdtf import HdtfLayout
from dicetalk_jax.data.build.mead import MeadLayout
from dicetalk_jax.data.build.synthetic import SyntheticLayout
from dicetalk_jax.data.build.voxceleb2 import Voxceleb2Layout
from dicetalk_jax.errors import InputError, OutputError
from dicetalk_jax.files import check_file, new_file, protect_inputs


@contextlib.contextmanager
def _progress():
  """Progress bars that also stop after a Ctrl-C which Python lost in a destructor."""
  with progress_bars() as show, interruptible() as stop_if_interrupted:

    def progress(stage, done, total):
      stop_if_interrupted()
      show(stage, done, total)

    yield progress


@dataclasses.dataclass(frozen=True)
class _Building:
  """Options of all sets."""

  out: pathlib.Path
  """Folder of the data set. A build that was stopped continues when the command is the same."""

  workers: int | None = dataclasses.field(default=None, kw_only=True)
  """Number of processes. Default: one for each core."""

  def run(self):
    from dicetalk_jax.data.build.tfds import build_set

    with _progress() as progress:
      report = build_set(self.layout, self.out, getattr(self, "root", None), self.workers, progress)
    print(report)
    print(f"next: dicetalk data inspect {self.out}")


@dataclasses.dataclass(frozen=True)
class BuildSynthetic(_Building):
  """Draw a set of people who speak with eight emotions at three levels. Every factor is known.

  Example: dicetalk data build synthetic --out data/synthetic --people 40
  """

  layout: tyro.conf.OmitArgPrefixes[SyntheticLayout] = dataclasses.field(default_factory=SyntheticLayout)


@dataclasses.dataclass(frozen=True)
class _BuildingOfFiles(_Building):
  """Options of the sets that are read from files."""

  root: pathlib.Path
  """Folder of the published set, or of your videos."""


@dataclasses.dataclass(frozen=True)
class BuildMead(_BuildingOfFiles):
  """Build MEAD from a folder that holds M003/video/front/angry/level_1/001.mp4 beside M003/audio/angry/level_1/001.m4a.

  Example: dicetalk data build mead --root /sets/MEAD --out data/mead
  """

  layout: tyro.conf.OmitArgPrefixes[MeadLayout] = dataclasses.field(default_factory=MeadLayout)


@dataclasses.dataclass(frozen=True)
class BuildHdtf(_BuildingOfFiles):
  """Build HDTF from a folder of its cut clips with sound, such as WDA_BarackObama_000.mp4.

  Example: dicetalk data build hdtf --root /sets/HDTF --out data/hdtf
  """

  layout: tyro.conf.OmitArgPrefixes[HdtfLayout] = dataclasses.field(default_factory=HdtfLayout)


@dataclasses.dataclass(frozen=True)
class BuildVoxceleb2(_BuildingOfFiles):
  """Build VoxCeleb2 from a folder that holds dev/mp4/id00012/<video>/00001.mp4.

  Example: dicetalk data build voxceleb2 --root /sets/VoxCeleb2 --out data/voxceleb2
  """

  layout: tyro.conf.OmitArgPrefixes[Voxceleb2Layout] = dataclasses.field(default_factory=Voxceleb2Layout)


@dataclasses.dataclass(frozen=True)
class BuildClips(_BuildingOfFiles):
  """Build a folder of your own videos. Labels, if any, are in labels.csv (columns file, identity, emotion, level, …).

  Example: dicetalk data build clips --root my_videos --out data/mine
  """

  layout: tyro.conf.OmitArgPrefixes[ClipsLayout] = dataclasses.field(default_factory=ClipsLayout)


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

    with _progress() as progress:
      done = encode(
        self.data,
        self.out,
        self.weights,
        what=self.what,
        batch=self.batch,
        part=self.part,
        reference_every=self.reference_every,
        dtype=self.dtype,
        progress=progress,
      )
    print(done)


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
      with _progress() as progress:
        sheet = contact_sheet(self.data, self.split, progress=progress)
      try:
        with new_file(self.sheet) as temporary:
          sheet.save(temporary, Image.registered_extensions()[self.sheet.suffix.lower()])
      except OSError as error:
        raise OutputError(f"contact sheet {self.sheet} cannot be written: {error}") from error
      console.print(f"contact sheet: {self.sheet}", soft_wrap=True, markup=False)


def _subcommand(name, verb):
  return Annotated[verb, tyro.conf.subcommand(name=name)]


@dataclasses.dataclass(frozen=True)
class Build:
  """Build a data set from a published set on your disk, from your own videos, or from the drawn world."""

  set: Annotated[
    tyro.conf.OmitSubcommandPrefixes[
      _subcommand("synthetic", BuildSynthetic)
      | _subcommand("mead", BuildMead)
      | _subcommand("hdtf", BuildHdtf)
      | _subcommand("voxceleb2", BuildVoxceleb2)
      | _subcommand("clips", BuildClips)
    ],
    tyro.conf.arg(name=""),
  ]

  def run(self):
    self.set.run()


@dataclasses.dataclass(frozen=True)
class Data:
  """Build, encode and inspect data sets.

  Example: dicetalk data build synthetic --out data/synthetic
  """

  verb: Annotated[
    tyro.conf.OmitSubcommandPrefixes[
      _subcommand("build", Build) | _subcommand("encode", Encode) | _subcommand("inspect", Inspect)
    ],
    tyro.conf.arg(name=""),
  ]

  def run(self):
    self.verb.run()
