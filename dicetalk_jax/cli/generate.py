"""The verb `generate`."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from dicetalk_jax.cli.terminal import interruptible_bars, say, say_error
from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.errors import InputError
from dicetalk_jax.files import protect_inputs


@dataclasses.dataclass(frozen=True)
class Generate:
  """Generate a video of a portrait that speaks with an emotion.

  Example: dicetalk generate --image me.jpg --audio speech.wav --emotion happy --out me.mp4 --weights weights/

  The emotion is a label (happy), a label with a strength (happy:0.7), a mix (happy:0.6+surprised:0.4), a timeline
  ('0s neutral, 2s happy, 5s angry') or a prior file (.npy, .npz, .safetensors). If the weights have an emotion
  embedder, it can also be a clip that shows the emotion: a video with sound (and a file of expression coefficients of
  the same name beside it), a sound, or expression coefficients (.mat, .npy, .npz, .txt, .csv). Mixes and timelines take
  files too: a.mp4:0.5+b.mp4:0.5 is half-way between two clips.

  Several videos: dicetalk generate --jobs jobs.jsonl --weights weights/. Each line of jobs.jsonl is an object like
  {"image": "me.jpg", "audio": "speech.wav", "emotion": "happy", "out": "me.mp4", "seed": 3}. After an interruption the
  same command resumes.
  """

  image: pathlib.Path | None = None
  """Portrait: an image that Pillow can read."""

  audio: pathlib.Path | None = None
  """Speech: a sound, or a video with sound, that FFmpeg can read."""

  emotion: str | None = None
  """Label, mix, timeline, prior file or clip, as described above."""

  out: pathlib.Path | None = None
  """Video to write: .mp4, .m4v, .mov or .mkv."""

  jobs: pathlib.Path | None = None
  """List of videos, instead of these four options: one JSON object per line, with image, audio, emotion, out and any of
  the options below."""

  weights: pathlib.Path | None = None
  """Weights folder, or user/repo on the Hugging Face hub. Default: the small weights inside the package."""

  config: pathlib.Path | None = None
  """Preset, a Python file with defaults for the generation options, such as configs/draft.py."""

  generation: tyro.conf.OmitArgPrefixes[GenerationConfig] = dataclasses.field(default_factory=GenerationConfig)

  mesh: str | None = None
  """Devices of all hosts that share the work: data=8, or data=2,fsdp=4 to split the weights as well. Default: one
  device."""

  keep_resolution: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
  """Resize the video to the size of the portrait."""

  def run(self) -> int:
    names = ("image", "audio", "emotion", "out")
    present = [f"--{name}" for name in names if getattr(self, name) is not None]
    missing = [f"--{name}" for name in names if getattr(self, name) is None]
    if present if self.jobs else missing:
      problem = f"--jobs with {' '.join(present)}" if self.jobs else f"{' '.join(missing)} missing"
      say_error(f"{problem}; give --image --audio --emotion --out, or --jobs alone")
      # The exit status of a wrong command line.
      raise SystemExit(2)
    from dicetalk_jax.parallel import hosts
    from dicetalk_jax.parallel.compilation import keep_compiled_programs

    hosts.connect()
    keep_compiled_programs()
    return self._run_jobs() if self.jobs else self._run_one()

  def _run_one(self) -> int:
    import av
    import jax

    from dicetalk_jax.inference.emotion import emotion_files
    from dicetalk_jax.inference.pipeline import DiceTalk
    from dicetalk_jax.media.containers import open_video
    from dicetalk_jax.media.video import check_target
    from dicetalk_jax.parallel import hosts
    from dicetalk_jax.weights.folder import Weights

    if jax.process_count() > 1 and not self.mesh:
      raise InputError(
        f"{jax.process_count()} processes would generate the same video; give --mesh to share its work, such as --mesh "
        f"data={jax.device_count()}, or --jobs to share a list of videos"
      )
    out = check_target(self.out)
    weights = self.weights or Weights.bundled()
    inputs = {"portrait": self.image, "audio": self.audio, "emotion's file": emotion_files(self.emotion)}
    protect_inputs(out, inputs | {"weights folder": weights, "preset": self.config})
    hosts.check_agreement({"generate": dataclasses.asdict(self)})
    talker = DiceTalk.load(self.weights, mesh=self.mesh)
    # The first host shows the progress of all.
    with interruptible_bars(shown=hosts.is_first()) as progress:
      video = talker.generate(self.image, self.audio, self.emotion, **vars(self.generation), progress=progress)
      if not hosts.is_first():
        return 0
      say(*video.notes)
      video.save(out, self.keep_resolution, lambda done, total: progress("encoding the video", done, total))
    with open_video(out) as container:
      stream = container.streams.video[0]
      seconds = float(stream.duration * stream.time_base if stream.duration else container.duration / av.time_base)
      shown = f"{seconds:.2f} s of {stream.width}x{stream.height}"
    print(f"{out}: {shown} at {float(stream.average_rate):g} frames per second")
    return 0

  def _run_jobs(self) -> int:
    import jax

    from dicetalk_jax.inference.jobs.runner import part_from_hosts, run_jobs
    from dicetalk_jax.inference.pipeline import DiceTalk
    from dicetalk_jax.parallel.mesh import MeshConfig, make_mesh

    # Each host generates videos of its own.
    mesh = make_mesh(MeshConfig.parse(self.mesh), jax.local_devices()) if self.mesh else None
    talker = DiceTalk.load(self.weights, mesh=mesh)

    def report(result):
      say(f"line {result.job}: {result.status} in {result.seconds:.1f} s", *result.notes)

    with interruptible_bars(one_bar=True) as progress:
      host = jax.process_index(), jax.process_count()
      outcome = run_jobs(talker, self.jobs, self.generation, self.keep_resolution, host, progress, report)
    print(outcome)
    say(*(f"line {line}: {error}" for line, error in outcome.failed))
    if outcome.stopped:
      say(f"stopped: {outcome.stopped}; fix this and run the same command again for the remaining {outcome.left}")
    part_from_hosts()
    return 1 if outcome.failed else 0
