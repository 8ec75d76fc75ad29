"""VoxCeleb2 (Chung et al. 2018): dev/mp4/id00012/<video>/00001.mp4, with its sound in the file or under dev/aac."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from dicetalk_jax.data.build.layout import (
  SOUNDS,
  Listing,
  VideoLayout,
  existing_root,
  hold_out,
  jobs_of,
  share,
  videos_in,
  with_suffix_of,
  wrong_root,
)
from dicetalk_jax.data.records import Rejected, Source

_LAYOUT = "dev/mp4/id00012/<video>/00001.mp4 (and test/mp4/… for its test part)"
# Its own test part has 118 of 6112 people.
_HELD_OUT, _PUBLISHED = 118, 6112


@dataclasses.dataclass(frozen=True)
class Voxceleb2Layout(VideoLayout):
  """VoxCeleb2, from the folder that holds dev/ and, if there, test/."""

  name: ClassVar[str] = "voxceleb2"
  description: ClassVar[str] = "VoxCeleb2: celebrities in interviews, without labels of emotion."

  held_out: int | None = None
  """Identities of dev for the test split, where the set's own test part is not there; default: 118 of 6112."""

  split_seed: int = 0
  """Of the choice of those identities."""

  def listing(self, root: Path) -> Listing:
    """Raises InputError where nothing lies as VoxCeleb2 does."""
    root = existing_root(root, "VoxCeleb2")
    rejected: list[Rejected] = []
    found = {part: self._sources(root, part, rejected) for part in ("dev", "test")}
    dev, test = found["dev"], found["test"]
    if not dev and not test:
      raise wrong_root(root, "VoxCeleb2", _LAYOUT)
    identities = sorted({source.identity for source in dev})
    if test:
      # By its own division no identity is in both; a copy that mixes them keeps such people out of training.
      tested = {source.identity for source in test}
    else:
      wanted = share(len(identities), _HELD_OUT, _PUBLISHED) if self.held_out is None else self.held_out
      tested = hold_out(dict.fromkeys(identities, 1), wanted, self.split_seed)
    return Listing(jobs_of(dev + test, tested), rejected)

  def _sources(self, root, part, rejected):
    sources = []
    for video in videos_in(root / part / "mp4", rejected):
      identity, recording = video.parts[-3:-1]
      if not identity.startswith("id") or len(video.relative_to(root / part / "mp4").parts) != 3:
        rejected.append(Rejected(video.relative_to(root).as_posix(), "it does not lie as VoxCeleb2's videos do"))
        continue
      sound = root / part / "aac" / identity / recording / video.name
      sources.append(
        Source(
          clip=f"{part}/{identity}/{recording}/{video.stem}",
          path=video,
          identity=f"voxceleb2/{identity}",
          video=f"{identity}/{recording}",
          audio=with_suffix_of(sound, SOUNDS),
          expression=self.expression_of(video, root),
        )
      )
    return sources
