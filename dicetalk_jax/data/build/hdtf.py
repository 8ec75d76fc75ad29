"""HDTF (Zhang et al. 2021): cut clips of high-resolution talks, with sound, such as WDA_BarackObama_000.mp4."""

import dataclasses
import re
from collections import Counter
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

# Its lists name a recording RD_Radio1_000; what is cut from one gets a further number.
_NAME = re.compile(r"(?P<part>RD|WDA|WRA)_(?P<person>.+?)_(?P<number>\d{3})(?P<cut>_.+)?")
_LAYOUT = "cut clips with sound such as WDA_BarackObama_000.mp4 or RD_Radio1_000_2.mp4, in it or in folders of it"
# The paper holds out 20 videos; the set has 362.
_HELD_OUT, _PUBLISHED = 20, 362


@dataclasses.dataclass(frozen=True)
class HdtfLayout(VideoLayout):
  """HDTF, from a folder of its cut clips."""

  name: ClassVar[str] = "hdtf"
  description: ClassVar[str] = "HDTF: talks of many people in high resolution, without labels of emotion."

  held_out: int | None = None
  """Videos for the test split, all those of as many people as it takes; default: 20 of 362, of fewer that share."""

  split_seed: int = 0
  """Of the choice of those people."""

  def listing(self, root: Path) -> Listing:
    """Raises InputError where no clip is named as HDTF's are."""
    root = existing_root(root, "HDTF")
    sources, rejected = [], []
    for video in videos_in(root, rejected):
      match = _NAME.fullmatch(video.stem)
      if not match:
        rejected.append(Rejected(video.relative_to(root).as_posix(), "it is not named as HDTF's clips are"))
        continue
      # RD's people are numbered; a politician's number counts that person's recordings.
      person = match["person"] if match["part"] == "RD" else match["person"].rstrip("0123456789")
      sources.append(
        Source(
          clip=video.relative_to(root).with_suffix("").as_posix(),
          path=video,
          identity=f"hdtf/{match['part']}_{person}",
          video=f"{match['part']}_{match['person']}_{match['number']}",
          audio=with_suffix_of(video, SOUNDS),
          expression=self.expression_of(video, root),
        )
      )
    if not sources:
      raise wrong_root(root, "HDTF", _LAYOUT)
    recordings = {source.video: source.identity for source in sources}
    wanted = share(len(recordings), _HELD_OUT, _PUBLISHED) if self.held_out is None else self.held_out
    return Listing(jobs_of(sources, hold_out(Counter(recordings.values()), wanted, self.split_seed)), rejected)
