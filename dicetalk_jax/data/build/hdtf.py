"""HDTF (Zhang et al. 2021): cut clips of high-resolution talks, with sound, such as WDA_BarackObama_000.mp4."""

import dataclasses
import re
from collections import Counter

from dicetalk_jax.data.build.layout import VideoLayout, sound_of, videos_in
from dicetalk_jax.data.records import Rejected, Source

# Its lists name a recording RD_Radio1_000; clips cut from it have a further number.
_NAME = re.compile(r"(?P<part>RD|WDA|WRA)_(?P<person>.+?)_(?P<number>\d{3})(?P<cut>_.+)?")


@dataclasses.dataclass(frozen=True)
class HdtfLayout(VideoLayout):
  """HDTF, from a folder of its cut clips."""

  name, title = "hdtf", "HDTF"
  description = "HDTF: talks of many people in high resolution, without labels of emotion."
  expected = "cut clips with sound such as WDA_BarackObama_000.mp4 or RD_Radio1_000_2.mp4, in it or in subfolders"
  published = (20, 362)  # videos

  def sources(self, root, rejected):
    for video in videos_in(root, rejected):
      match = _NAME.fullmatch(video.stem)
      if not match:
        rejected.append(Rejected(video.relative_to(root).as_posix(), "it is not named as HDTF's clips are"))
        continue
      # RD numbers its people; a politician's number counts that person's recordings.
      person = match["person"] if match["part"] == "RD" else match["person"].rstrip("0123456789")
      yield Source(
        clip=video.relative_to(root).with_suffix("").as_posix(),
        path=video,
        identity=f"hdtf/{match['part']}_{person}",
        video=f"{match['part']}_{match['person']}_{match['number']}",
        audio=sound_of(video),
        expression=self.expression_of(video, root),
      )

  def members(self, sources):
    return Counter({source.video: source.identity for source in sources}.values())
