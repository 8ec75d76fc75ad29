"""MEAD (Wang et al. 2020): 48 actors, eight emotions at three levels, seven views.

Published layout: M003/video/front/angry/level_1/001.mp4 beside M003/audio/angry/level_1/001.m4a. A flat folder of
M003_front_angry_level1_001.mp4 is read too.
"""

import dataclasses
import re
from pathlib import Path
from typing import ClassVar

from dicetalk_jax.data.build.layout import (
  SOUNDS,
  Listing,
  VideoLayout,
  check_label,
  existing_root,
  hold_out,
  jobs_of,
  share,
  videos_in,
  with_suffix_of,
  wrong_root,
)
from dicetalk_jax.data.records import Rejected, Source

_LAYOUT = "M003/video/front/angry/level_1/001.mp4 beside M003/audio/angry/level_1/001.m4a"
_FLAT = re.compile(r"(?P<identity>[MW]\d{3})_(?P<view>\w+?)_(?P<emotion>[a-z]+)_level_?(?P<level>\d)_(?P<number>\d+)")
# The paper holds out 5 of 46.
_HELD_OUT, _PUBLISHED = 5, 46


@dataclasses.dataclass(frozen=True)
class MeadLayout(VideoLayout):
  """MEAD, from a folder that holds M003/, M005/, W009/ …"""

  name: ClassVar[str] = "mead"
  description: ClassVar[str] = "MEAD: actors speaking with eight emotions at three levels."

  views: tuple[str, ...] = ("front",)
  """Which of front, left_30, left_60, right_30, right_60, top, down."""

  held_out: int | None = None
  """Identities for the test split; default: 5 of 46, of fewer the same share."""

  split_seed: int = 0
  """Of the choice of those identities."""

  def listing(self, root: Path) -> Listing:
    """Raises InputError where nothing lies as MEAD does."""
    root = existing_root(root, "MEAD")
    sources, rejected = [], []
    for source, level in self._found(root, rejected):
      wrong = check_label(source.emotion, source.level) if level.isdecimal() else f"level '{level}' is no number"
      if wrong:
        rejected.append(Rejected(source.clip, wrong))
      else:
        sources.append(source)
    if not sources:
      views = f" ({', '.join(self.views)} as view)"
      raise wrong_root(root, "MEAD", _LAYOUT + views)
    identities = sorted({source.identity for source in sources})
    wanted = share(len(identities), _HELD_OUT, _PUBLISHED) if self.held_out is None else self.held_out
    return Listing(jobs_of(sources, hold_out(dict.fromkeys(identities, 1), wanted, self.split_seed)), rejected)

  def _found(self, root, rejected):
    for video in videos_in(root, rejected):
      parts = video.relative_to(root).parts
      if len(parts) >= 6 and parts[-5] == "video" and parts[-2].startswith("level_"):
        if parts[-4] in self.views:
          yield self._nested(root, video)
      elif (match := _FLAT.fullmatch(video.stem)) and match["view"] in self.views:
        yield self._source(root, video, with_suffix_of(video, SOUNDS), **match.groupdict()), match["level"]
      elif not match:
        rejected.append(Rejected(video.relative_to(root).as_posix(), "it does not lie as MEAD's videos do"))

  def _nested(self, root, video):
    identity, _, view, emotion, level, _ = video.parts[-6:]
    sound = video.parents[4] / "audio" / emotion / level / video.name
    level = level.removeprefix("level_")
    source = self._source(root, video, with_suffix_of(sound, SOUNDS), identity, view, emotion, level, video.stem)
    return source, level

  def _source(self, root, video, sound, identity, view, emotion, level, number):
    clip = f"{identity}/{view}/{emotion}/level_{level}/{number}"
    return Source(
      clip=clip,
      path=video,
      identity=f"mead/{identity}",
      video=clip,
      audio=sound,
      expression=self.expression_of(video, root),
      emotion=emotion,
      level=int(level) if level.isdecimal() else 0,
    )
