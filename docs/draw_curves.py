"""Draws training curves: python docs/draw_curves.py OUT.png NAME=LOG_FOLDER … --curves train/loss,train/denoising"""

import argparse
import pathlib

import numpy as np
from matplotlib.figure import Figure

from dicetalk_jax.training.events import read_scalars


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("out", type=pathlib.Path)
  parser.add_argument("runs", nargs="+", metavar="NAME=LOG_FOLDER")
  parser.add_argument("--curves", default="train/loss", help="names, separated by commas; one panel each")
  parser.add_argument("--smooth", type=int, default=1, help="moving average over this many points")
  options = parser.parse_args()
  names = options.curves.split(",")
  figure = Figure(figsize=(4.5 * len(names), 3.5), dpi=110)
  for i, name in enumerate(names):
    axes = figure.add_subplot(1, len(names), i + 1)
    for run in options.runs:
      label, _, folder = run.partition("=")
      points = np.array(read_scalars(folder).get(name, []))
      if len(points) >= options.smooth:
        kernel = np.ones(options.smooth) / options.smooth
        axes.plot(points[options.smooth - 1 :, 0], np.convolve(points[:, 1], kernel, "valid"), label=label)
    axes.set(title=name, xlabel="step")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
  figure.tight_layout()
  figure.savefig(options.out)


if __name__ == "__main__":
  main()
