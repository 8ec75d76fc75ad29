"""VoxCeleb2 (Chung et al. 2018): dev/mp4/id00012/<video>/00001.mp4, with sound in the file or under dev/aac."""

import dataclasses

from dicetalk_jax.data.build.layout import VideoLayout, sound_of, videos_in
from dicetalk_jax.data.records import Rejected, Source


@dataclasses.dataclass(frozen=True)
class Voxceleb2Layout(VideoLayout):
  """VoxCeleb2, from the folder that holds dev/ and perhaps test/."""

  name, title = "voxceleb2", "VoxCeleb2"
  description = "VoxCeleb2: celebrities in interviews, without labels of emotion."
  expected = "dev/mp4/id00012/<video>/00001.mp4 (and test/mp4/… for its test part)"
  published = (118, 6112)  # identities of its test part

  def sources(self, root, rejected):
    for part in ("dev", "test"):
      for video in videos_in(root / part / "mp4", rejected, root):
        identity, recording = video.parts[-3:-1]
        if not identity.startswith("id") or len(video.relative_to(root / part / "mp4").parts) != 3:
          rejected.append(Rejected(video.relative_to(root).as_posix(), "it does not lie as VoxCeleb2's videos do"))
          continue
        yield Source(
          clip=f"{part}/{identity}/{recording}/{video.stem}",
          path=video,
          identity=f"voxceleb2/{identity}",
          video=f"{identity}/{recording}",
          audio=sound_of(root / part / "aac" / identity / recording / video.name),
          expression=self.expression_of(video, root),
        )

  def test_identities(self, sources):
    # By the set's own division no identity is in both; a copy that mixes them keeps such people out of training.
    own = {source.identity for source in sources if source.clip.startswith("test/")}
    return own or super().test_identities(sources)
