"""TFDS builders of the sets: the interface of `tfds` to the layouts and the resumable build.

builder = Mead(data_dir="data")
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir="/sets/MEAD"))
builder.as_data_source("train")[0]
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from dicetalk_jax.data import records
from dicetalk_jax.data.build.folder import ClipsLayout
from dicetalk_jax.data.build.hdtf import HdtfLayout
from dicetalk_jax.data.build.mead import MeadLayout
from dicetalk_jax.data.build.runner import Report, build
from dicetalk_jax.data.build.synthetic import SyntheticLayout
from dicetalk_jax.data.build.voxceleb2 import Voxceleb2Layout
from dicetalk_jax.data.sets import VERSION
from dicetalk_jax.data.settings import as_json
from dicetalk_jax.files import expanded, protect_inputs

LAYOUTS = {layout.name: layout for layout in (MeadLayout, HdtfLayout, Voxceleb2Layout, ClipsLayout, SyntheticLayout)}


def build_set(
  layout,
  folder: str | os.PathLike,
  root: str | os.PathLike | None = None,
  workers: int | None = None,
  progress: Callable[[str, int, int], None] | None = None,
) -> Report:
  """Builds the set of a layout (one of LAYOUTS, with its settings) from `root` into `folder`, or continues a build.

  Raises InputError for a wrong root, a folder that is in use or was started with something else, and when no clip could
  be made; OutputError when `folder` cannot be written. Finished clips are kept.
  """
  folder = expanded(folder, "data set").absolute()
  protect_inputs(
    folder, {"folder of videos": root, "folder of coefficients": getattr(layout, "expressions", None)}, inside=True
  )
  listing = layout.listing(root)
  return build(
    folder,
    layout.name,
    listing.jobs,
    layout.make(),
    as_json(layout),
    rejected=listing.rejected,
    workers=workers,
    progress=progress,
    description=layout.description,
    defaults=as_json(type(layout)()),
  )


class ClipBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Base of the builders of the sets in `LAYOUTS`. `layout`: the layout with other settings than its defaults."""

  VERSION = tfds.core.Version(VERSION)
  LAYOUT: ClassVar[type]

  def __init__(self, *, layout=None, **kwargs):
    self.layout = layout or self.LAYOUT()
    super().__init__(file_format="array_record", **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(builder=self, features=records.features(), description=self.LAYOUT.description)

  def download_and_prepare(self, *, download_config=None, workers=None, progress=None, **_) -> None:
    """Builds from `download_config.manual_dir` (not needed by `synthetic`), or continues a build."""
    root = download_config.manual_dir if download_config else None
    if root is None and self.LAYOUT is not SyntheticLayout:
      root = Path(self._data_dir_root) / "downloads" / "manual" / self.name
    build_set(self.layout, self.data_path, root, workers, progress)
    self.info.read_from_directory(self.data_dir)

  def _split_generators(self, dl_manager):
    raise AssertionError("download_and_prepare does not call it")

  _generate_examples = _split_generators


class Mead(ClipBuilder):
  LAYOUT = MeadLayout


class Hdtf(ClipBuilder):
  LAYOUT = HdtfLayout


class Voxceleb2(ClipBuilder):
  LAYOUT = Voxceleb2Layout


class Clips(ClipBuilder):
  LAYOUT = ClipsLayout


class Synthetic(ClipBuilder):
  LAYOUT = SyntheticLayout
