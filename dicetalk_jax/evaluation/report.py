"""The report of an evaluation: report.md with its figures, plots.png, and sheet.png with pictures."""

import os
import pathlib

import numpy as np
from PIL import Image

from dicetalk_jax.errors import MissingDependencyError, OutputError
from dicetalk_jax.evaluation.cases import TRIALS
from dicetalk_jax.evaluation.evaluate import Evaluation, TrialScores
from dicetalk_jax.vocabulary import EMOTIONS


def check_plotting() -> None:
  """MissingDependencyError where there is no matplotlib, before anything slow has begun."""
  try:
    import matplotlib  # noqa: F401
    import sklearn  # noqa: F401
  except ImportError as error:
    raise MissingDependencyError(
      f"the report's plots need {error.name}, which is not installed: pip install 'dicetalk-jax[analysis]'"
    ) from error


def write_report(found: Evaluation, folder: str | os.PathLike, made_with: str = "") -> pathlib.Path:
  """Writes the three files, and gives report.md's path. made_with: a line about weights and machine."""
  folder = pathlib.Path(folder).expanduser()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    _sheet(found).save(folder / "sheet.png")
    _plots(found).savefig(folder / "plots.png", dpi=110, bbox_inches="tight")
    path = folder / "report.md"
    path.write_text(markdown(found, made_with))
  except OSError as error:
    raise OutputError(f"{folder}: the report cannot be written ({error}); what was measured is kept") from error
  return path


def markdown(found: Evaluation, made_with: str = "") -> str:
  """The whole report as text. Intervals are of 95 %."""
  config, generation = found.config, found.generation
  columns = {"true clips": found.true, **found.trials}
  lines = [
    "# Evaluation",
    "",
    f"{config.clips} videos of each trial, {config.people} people of the test split of seed {generation.seed}, "
    f"{config.seconds:g} s at most, {generation.size:g} pixels, {generation.steps} steps, identity "
    f"{generation.identity_scale:g}, emotion {generation.emotion_scale:g}"
    + (f", audio {generation.audio_scale:g}" if generation.audio_scale is not None else "")
    + f". {made_with}",
    "",
    *(f"- *{trial}*: {TRIALS[trial]}." for trial in found.trials),
    "",
    f"| | {' | '.join(columns)} |",
    f"|---|{len(columns) * '---|'}",
  ]

  def row(name, of):
    lines.append(f"| {name} | {' | '.join(of(scores) for scores in columns.values())} |")

  for group in found.true.emotion:
    row(f"emotion as asked for, {group}", lambda scores, group=group: str(scores.emotion[group]))
  row("emotion of the portrait instead", lambda scores: str(scores.as_shown) if scores.as_shown.count else "")
  row("mouth opening, correlation", _mouth)
  row("offset of the best, frames", lambda scores: f"{scores.offset:+d}")
  row("clips within a frame of 0", lambda scores: str(scores.near))
  row(f"taken for themselves among {max(config.gallery, config.people)}", lambda scores: str(scores.top1))
  row("likeness to the portrait", lambda scores: f"{scores.similarity:.3f}")
  row("Fréchet distance of frames", lambda scores: f"{scores.frame_distance:.2f}")
  row("Fréchet distance of video", lambda scores: f"{scores.video_distance:.2f}")
  row("seconds a video", lambda scores: f"{scores.seconds:.1f}" if scores.seconds else "")
  frame, video = found.floor
  lines += ["", f"Between two halves of the true clips the distances are {frame:.2f} and {video:.2f}."]
  if {"own clip", "others' clips"} <= found.trials.keys():
    ratio = found.trials["others' clips"].similarity / found.trials["own clip"].similarity
    lines += ["", f"Likeness with others' clips, by that with the person's own: {ratio:.3f}."]
  if len(found.ways):
    lines += [
      "",
      f"From angry to happy in {found.ways.shape[1]} steps, Spearman of where the measured face is: "
      f"{', '.join(f'{value:.3f}' for value in found.monotony[:-1])}; of the mean {found.monotony[-1]:.3f}.",
    ]
  if found.priors:
    priors = found.priors
    by_emotion = ", ".join(f"{name} {value:.2f}" for name, value in priors.by_emotion.items())
    lines += [
      "",
      f"Priors of clips: d_inter / d_intra {priors.strength:.2f} ({by_emotion}); nearest centroid right for "
      f"{priors.accuracy:.3f}; the distance within an emotion across people is {priors.nearness:.3f} of that within a "
      "person across emotions.",
    ]
  lines += ["", "![pictures](sheet.png)", "", "![plots](plots.png)", ""]
  return "\n".join(lines)


def _mouth(scores: TrialScores) -> str:
  low, high = scores.mouth_interval
  return f"{scores.mouth:.3f} ({low:.3f} to {high:.3f})"


def _sheet(found: Evaluation) -> Image.Image:
  """The first video of each emotion, frames side by side, and so trials, the true clips first."""
  rows = []
  for scores in (found.true, *found.trials.values()):
    by_emotion = dict(reversed(scores.strips))
    rows.append(np.concatenate([by_emotion[name] for name in EMOTIONS if name in by_emotion], axis=0))
  width = min(row.shape[1] for row in rows)
  return Image.fromarray(np.concatenate([row[:, :width] for row in rows], axis=1))


def _plots(found: Evaluation):
  from matplotlib.figure import Figure

  panels = {"true clips": found.true, **found.trials}
  figure = Figure(figsize=(4 * (len(panels) + 2), 4))
  axes = figure.subplots(1, len(panels) + 2)
  for axis, (name, scores) in zip(axes, panels.items(), strict=False):
    shown = scores.confusion / np.maximum(scores.confusion.sum(1, keepdims=True), 1)
    axis.imshow(shown, vmin=0, vmax=1, cmap="Blues")
    axis.set(title=name, xticks=range(len(EMOTIONS)), yticks=range(len(EMOTIONS)), xlabel="measured")
    axis.set_xticklabels(EMOTIONS, rotation=90)
    axis.set_yticklabels(EMOTIONS)
  axes[0].set_ylabel("asked for")
  way, plane = axes[-2:]
  for positions in found.ways:
    way.plot(np.linspace(0, 1, len(positions)), positions, color="0.7")
  if len(found.ways):
    way.plot(np.linspace(0, 1, found.ways.shape[1]), found.ways.mean(0), color="C3")
  way.set(title="angry to happy", xlabel="asked for", ylabel="measured")
  if found.priors is not None and len(found.priors.plane):
    for label, name in enumerate(EMOTIONS):
      chosen = found.priors.emotion == label
      plane.scatter(*found.priors.plane[chosen].T, s=8, label=name)
    plane.legend(fontsize="x-small")
  plane.set(title="priors of clips (t-SNE)", xticks=[], yticks=[])
  return figure
