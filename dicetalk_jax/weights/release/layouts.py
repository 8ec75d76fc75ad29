"""Released layouts as data: which folders, files and JSON documents a release consists of.

Which file holds which network stands in the network's row (`weights.networks`), as `Files` under the layout's name.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

from dicetalk_jax.errors import WeightsError
from dicetalk_jax.weights.description import read_json

SAFETENSORS = ".safetensors"
TORCH_SUFFIXES = (".pth", ".bin", ".pkl", ".pt")


@dataclasses.dataclass(frozen=True)
class Files:
  """The files of one network in one layout.

  written: the file that an export without a source writes, such as "RIFE/flownet.pkl".
  stems: other names that the file may have, without suffix.
  config: JSON document with the architecture, or with what tensor shapes do not show.
  config_required: the release always has that document.
  overlay: file whose tensors replace those of the first, such as "DICE-Talk/unet.pth".
  overlay_only: part of the names of tensors that only the overlay has.
  """

  written: str
  stems: tuple[str, ...] = ()
  config: str | None = None
  config_required: bool = False
  overlay: str | None = None
  overlay_only: str | None = None

  @property
  def folder(self) -> str:
    return str(pathlib.PurePosixPath(self.written).parent)

  def base_names(self) -> Iterator[tuple[str, bool]]:
    """See `candidates`."""
    return candidates(self.written, *self.stems)

  def in_base(self, key: str) -> bool:
    """Whether the file below the overlay has the tensor `key`."""
    return self.overlay_only is None or self.overlay_only not in key


@dataclasses.dataclass(frozen=True)
class Layout:
  """A released layout.

  own: folder of the model's own files; the other folders hold parts by other authors.
  repositories: folder -> `download` argument that names its repository; other folders come from the model's own.
  settings: key of a weights folder's config.json -> JSON document that it is read from.
  documents: other JSON documents that are kept for export.
  prior_folders: where emotion priors may be, the first is where they are written.
  """

  name: str
  own: str
  repositories: Mapping[str, str]
  settings: Mapping[str, str]
  documents: tuple[str, ...]
  prior_folders: tuple[str, ...]

  def is_own(self, path: str) -> bool:
    return path.startswith(f"{self.own}/")


SVD = "stable-video-diffusion-img2vid-xt"
WHISPER = "whisper-tiny"
DICETALK = Layout(
  name="dicetalk",
  own="DICE-Talk",
  repositories={SVD: "svd", WHISPER: "whisper"},
  settings={
    "sampler": f"{SVD}/scheduler/scheduler_config.json",
    "image_processor": f"{SVD}/feature_extractor/preprocessor_config.json",
    "audio_processor": f"{WHISPER}/preprocessor_config.json",
    # Not published: how the embedder was trained, and how the weights are meant to be used.
    "emotion_embedder": "DICE-Talk/emotion_embedder_settings.json",
    "generation": "DICE-Talk/generation.json",
  },
  documents=(f"{SVD}/model_index.json", f"{WHISPER}/generation_config.json"),
  prior_folders=("emotion_priors", "DICE-Talk/emotion_priors", "examples/emo"),
)
LAYOUTS = {layout.name: layout for layout in (DICETALK,)}


def layout_of(folder: pathlib.Path) -> Layout:
  """The layout whose own files `folder` has; the first layout if it has none."""
  return next((layout for layout in LAYOUTS.values() if (folder / layout.own).is_dir()), DICETALK)


def candidates(file: str, *stems: str) -> Iterator[tuple[str, bool]]:
  """(file name, whether it is an index of shards) that a network may be stored under, the preferred name first.

  The suffix of `file` is preferred to others, and .fp16 to full precision because the release runs in float16.
  """
  path = pathlib.PurePosixPath(file)
  for suffix in dict.fromkeys((path.suffix, SAFETENSORS, *TORCH_SUFFIXES)):
    for variant in (".fp16", ""):
      for stem in (path.stem, *stems):
        yield f"{stem}{variant}{suffix}", False
        yield f"{stem}{variant}{suffix}.index.json", True
        yield f"{stem}{suffix}.index{variant}.json", True


def shards(index: pathlib.Path) -> dict[str, str]:
  """Tensor name -> file name beside the index; WeightsError if the index does not hold them."""
  names = read_json(index).get("weight_map")
  if not isinstance(names, dict) or not names or any(pathlib.PurePath(str(n)).name != n for n in names.values()):
    raise WeightsError(f"{index} has no weight_map from tensor names to names of files beside it.")
  return names
