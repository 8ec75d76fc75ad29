"""The report of an evaluation: report.md with the scores, plots.png, and sheet.png with frames."""

import os
import pathlib

import numpy as np
from PIL import Image

from dicetalk_jax.errors import MissingDependencyError, OutputError
from dicetalk_jax.evaluation.evaluate import Evaluation, TrialScores
from dicetalk_jax.vocabulary import EMOTIONS


def check_plotting() -> None:
  """Raises MissingDependencyError without matplotlib or scikit-learn, before anything slow starts."""
  try:
    import matplotlib  # noqa: F401
    import sklearn  # noqa: F401
  except ImportError as error:
    raise MissingDependencyError(
      f"the plots of the report need {error.name}, which is not installed: pip install 'dicetalk-jax[analysis]'"
    ) from error


def write_report(evaluation: Evaluation, folder: str | os.PathLike, source: str = "") -> pathlib.Path:
  """Writes the three files and returns the path of report.md. source: a line about weights and machine."""
  folder = pathlib.Path(folder).expanduser()
  path = folder / "report.md"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    _sheet(evaluation).save(folder / "sheet.png")
    _plots(evaluation).savefig(folder / "plots.png", dpi=110, bbox_inches="tight")
    path.write_text(markdown(evaluation, source))
  except OSError as error:
    raise OutputError(f"{folder}: the report cannot be written ({error}); the measurements are kept") from error
  return path


def markdown(evaluation: Evaluation, source: str = "") -> str:
  """The text of the report, with 95 % intervals."""
  cases, generation, columns = evaluation.cases, evaluation.generation, _columns(evaluation)
  audio = f", audio {generation.audio_scale:g}" if generation.audio_scale is not None else ""
  lines = [
    "# Evaluation",
    "",
    f"{cases.description}; {generation.size:g} pixels, {generation.steps} steps, guidance: identity "
    f"{generation.identity_scale:g}, emotion {generation.emotion_scale:g}{audio}. {source}",
    "",
    *(f"- *{trial}*: {cases.descriptions[trial]}." for trial in evaluation.trials if trial in cases.descriptions),
    "",
    f"| | {' | '.join(columns)} |",
    f"|---|{len(columns) * '---|'}",
  ]

  def row(name, cell):
    lines.append(f"| {name} | {' | '.join(cell(scores) for scores in columns.values())} |")

  for group in next(iter(columns.values())).emotion:
    row(f"emotion as requested, {group}", lambda scores, group=group: str(scores.emotion[group]))
  row("the portrait's emotion instead", lambda scores: str(scores.as_shown) if scores.as_shown.count else "")
  row("mouth opening, correlation", _mouth)
  row("best offset, frames", lambda scores: f"{scores.offset:+d}" if scores.near.count else "")
  row("clips within one frame of offset 0", lambda scores: str(scores.near))
  row(f"identity, top 1 of {len(cases.gallery)}", lambda scores: str(scores.top1))
  row("identity similarity", lambda scores: f"{scores.similarity:.3f}")
  row("Fréchet distance of frames", lambda scores: f"{scores.frame_distance:.2f}")
  row("Fréchet distance of video", lambda scores: f"{scores.video_distance:.2f}")
  row("seconds per video", lambda scores: "" if scores is evaluation.true else f"{scores.seconds:.1f}")
  frame, video = evaluation.floor
  lines += ["", f"Fréchet distances between two halves of the true clips: {frame:.2f} (frames), {video:.2f} (video)."]
  if {"own clip", "others' clips"} <= evaluation.trials.keys():
    ratio = evaluation.trials["others' clips"].similarity / evaluation.trials["own clip"].similarity
    lines += ["", f"Identity similarity with others' clips relative to the person's own clips: {ratio:.3f}."]
  if len(evaluation.ways):
    each, mean = ", ".join(f"{value:.3f}" for value in evaluation.monotony[:-1]), evaluation.monotony[-1]
    lines += [
      "",
      f"{_way_title(evaluation)}, {evaluation.ways.shape[1]} steps: Spearman correlation of position and step "
      f"{each}; of the mean {mean:.3f}.",
    ]
  if priors := evaluation.priors:
    by_emotion = ", ".join(f"{name} {value:.2f}" for name, value in priors.by_emotion.items())
    lines += [
      "",
      f"Priors of clips: d_inter / d_intra {priors.strength:.2f} ({by_emotion}); nearest-centroid accuracy "
      f"{priors.accuracy:.3f}; distance between people within an emotion, relative to that between emotions within a "
      f"person: {priors.nearness:.3f}.",
    ]
  lines += ["", "![frames](sheet.png)", "", "![plots](plots.png)", ""]
  return "\n".join(lines)


def _columns(evaluation) -> dict[str, TrialScores]:
  return ({"true clips": evaluation.true} if evaluation.true else {}) | dict(evaluation.trials)


def _way_title(evaluation) -> str:
  way = evaluation.cases.ways[0]
  return f"From {way.start.wanted} to {way.end.wanted}"


def _mouth(scores: TrialScores) -> str:
  low, high = scores.mouth_interval
  return f"{scores.mouth:.3f} ({low:.3f} to {high:.3f})" if scores.near.count else ""


def _sheet(evaluation: Evaluation) -> Image.Image:
  """A column of strips per trial: the first video of each emotion."""
  columns = []
  for scores in _columns(evaluation).values():
    by_emotion = dict(reversed(scores.strips))
    columns.append(np.concatenate([by_emotion[name] for name in (*EMOTIONS, None) if name in by_emotion], axis=0))
  width = min(column.shape[1] for column in columns)
  height = max(column.shape[0] for column in columns)
  columns = [np.pad(column[:, :width], [(0, height - len(column)), (0, 0), (0, 0)]) for column in columns]
  return Image.fromarray(np.concatenate(columns, axis=1))


def _plots(evaluation: Evaluation):
  from matplotlib.figure import Figure

  columns = _columns(evaluation)
  figure = Figure(figsize=(4 * (len(columns) + 2), 4))
  *matrices, way, plane = figure.subplots(1, len(columns) + 2)
  for axis, (name, scores) in zip(matrices, columns.items(), strict=True):
    axis.imshow(scores.confusion / np.maximum(scores.confusion.sum(1, keepdims=True), 1), vmin=0, vmax=1, cmap="Blues")
    axis.set(title=name, xticks=range(len(EMOTIONS)), yticks=range(len(EMOTIONS)), xlabel="measured")
    axis.set_xticklabels(EMOTIONS, rotation=90)
    axis.set_yticklabels(EMOTIONS)
  matrices[0].set_ylabel("requested")
  if len(evaluation.ways):
    steps = np.linspace(0, 1, evaluation.ways.shape[1])
    way.plot(steps, evaluation.ways.T, color="0.7")
    way.plot(steps, evaluation.ways.mean(0), color="C3")
    way.set(title=_way_title(evaluation), xlabel="requested", ylabel="measured")
  if evaluation.priors is not None and len(evaluation.priors.plane):
    for label, name in enumerate(EMOTIONS):
      plane.scatter(*evaluation.priors.plane[evaluation.priors.emotion == label].T, s=8, label=name)
    plane.legend(fontsize="x-small")
  plane.set(title="priors of clips (t-SNE)", xticks=[], yticks=[])
  return figure
