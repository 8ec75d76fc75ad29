"""Plots for the log, if matplotlib is installed (`pip install dicetalk-jax[analysis]`)."""

from collections.abc import Mapping

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.summary_pb2 import Summary

from dicetalk_jax.vocabulary import EMOTIONS


def prior_plot(name: str, embedded: Mapping[str, np.ndarray]) -> Summary | None:
  """The priors of `embed` in the plane of their first two principal components: colour is emotion, size is level.

  None without matplotlib, or with fewer than two priors of known emotion.
  """
  try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
  except ImportError:
    return None
  known = embedded["emotion"] >= 0
  mu, emotion, level = (embedded[key][known] for key in ("mu", "emotion", "level"))
  if len(mu) < 2:
    return None
  centred = mu - mu.mean(0)
  plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
  figure = Figure(figsize=(6, 5), dpi=100)
  axes = figure.add_subplot()
  for label in np.unique(emotion):
    of_label = emotion == label
    axes.scatter(*plane[of_label].T, s=8 + 12 * level[of_label], color=f"C{label}", alpha=0.7, label=EMOTIONS[label])
  axes.legend(fontsize="small")
  axes.set(xlabel="first principal component", ylabel="second")
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return summary.image(name, np.asarray(canvas.buffer_rgba())[..., :3], dataformats="HWC")
