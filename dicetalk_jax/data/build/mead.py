"""MEAD (Wang et al. 2020): 48 actors, eight emotions at three levels, seven views.

Published layout: M003/video/front/angry/level_1/001.mp4 beside M003/audio/angry/level_1/001.m4a. A flat folder of
M003_front_angry_level1_001.mp4 is read too.
"""

import dataclasses
import re

from dicetalk_jax.data.build.layout import VideoLayout, check_label, sound_of, videos_in
from dicetalk_jax.data.records import Rejected, Source
from dicetalk_jax.media.video import VIDEO_SUFFIXES

_FLAT = re.compile(r"(?P<identity>[MW]\d{3})_(?P<view>\w+?)_(?P<emotion>[a-z]+)_level_?(?P<level>\d)_(?P<number>\d+)")


@dataclasses.dataclass(frozen=True)
class MeadLayout(VideoLayout):
  """MEAD, from a folder that holds M003/, M005/, W009/ …"""

  name, title = "mead", "MEAD"
  description = "MEAD: actors speaking with eight emotions at three levels."
  published = (5, 46)  # identities

  views: tuple[str, ...] = ("front",)
  """Views to read: front, left_30, left_60, right_30, right_60, top, down."""

  @property
  def expected(self) -> str:
    views = ", ".join(self.views)
    return f"M003/video/front/angry/level_1/001.mp4 beside M003/audio/angry/level_1/001.m4a ({views} as view)"

  def sources(self, root, rejected):
    for video in videos_in(root, rejected):
      parts = video.relative_to(root).parts
      match = _FLAT.fullmatch(video.stem)
      if len(parts) >= 6 and parts[-5] == "video" and parts[-2].startswith("level_"):
        identity, _, view, emotion, level, _ = parts[-6:]
        sound = sound_of(video.parents[4] / "audio" / emotion / level / video.name)
        level, number = level.removeprefix("level_"), video.stem
      elif match:
        identity, view, emotion, level, number = match.groups()
        sound = sound_of(video)
      else:
        rejected.append(Rejected(video.relative_to(root).as_posix(), "it does not lie as MEAD's videos do"))
        continue
      if view not in self.views:
        continue
      clip = f"{identity}/{view}/{emotion}/level_{level}/{number}"
      wrong = check_label(emotion, int(level)) if level.isdecimal() else f"level '{level}' is not a number"
      if wrong:
        rejected.append(Rejected(clip, wrong))
        continue
      yield Source(
        clip=clip,
        path=video,
        identity=f"mead/{identity}",
        video=clip,
        audio=sound,
        expression=self.expression_of(video, root),
        emotion=emotion,
        level=int(level),
      )

  def ignores(self, path):
    # Other views, and videos that are listed under the name of their clip.
    view = path.parts[-4] if len(path.parts) >= 6 and path.parts[-5] == "video" else self.views[0]
    return view not in self.views or path.suffix.lower() in VIDEO_SUFFIXES
