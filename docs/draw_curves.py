"""Draws training curves: python docs/draw_curves.py OUT.png NAME=LOG_FOLDER … --curves train/loss,train/denoising"""

import argparse
import collections
import os
import pathlib
import struct

import numpy as np
from matplotlib.figure import Figure
from tensorboardX.proto.event_pb2 import Event


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


def read_scalars(folder: str | os.PathLike) -> dict[str, list[tuple[int, float]]]:
  """The curves in a run's log folder, {name: [(step, value)]}. Steps of a later start replace those of an earlier one.

  A truncated file of a killed run is read as far as it goes.
  """
  curves = collections.defaultdict(dict)
  for path in sorted(pathlib.Path(folder).glob("events*"), key=lambda path: path.stat().st_mtime_ns):
    for event in _events(path):
      if event.HasField("session_log"):
        for points in curves.values():
          for step in [step for step in points if step >= event.step]:
            del points[step]
      for value in event.summary.value:
        if value.HasField("simple_value"):
          curves[value.tag][event.step] = value.simple_value
  return {name: sorted(points.items()) for name, points in curves.items()}


def _events(path: pathlib.Path):
  """The events of one file. Each has a length (8 bytes), a checksum (4), the event and a checksum (4)."""
  data, place = path.read_bytes(), 0
  while place + 12 <= len(data):
    (size,) = struct.unpack("<Q", data[place : place + 8])
    if place + 16 + size > len(data):
      return
    yield Event.FromString(data[place + 12 : place + 12 + size])
    place += 16 + size


if __name__ == "__main__":
  main()
