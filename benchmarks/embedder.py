"""Clustering of emotion priors from sound, from expression, and from both (the paper's Table 5).

    python benchmarks/embedder.py encoded/small                    # drawn people; tested on the test split
    python benchmarks/embedder.py --mead FOLDER                    # real coefficients: MEAD clips with .mat files
    python benchmarks/embedder.py encoded/small --set loop.seed=1 --config configs/synthetic_small.py

Prints d_inter / d_intra of the priors' means, with the emotions of a person as clusters, and the accuracy of the
nearest centroid among the same person's emotions. Each embedder is trained with the inputs it is tested with, without
modality dropout; the last row uses the dropout of the preset. For MEAD, the last third of each clip (at least 32
frames) is held out.
"""

import argparse
import collections
import dataclasses
import pathlib
import re
import sys
import tempfile

import common
import numpy as np

from dicetalk_jax.config import load_preset
from dicetalk_jax.data.batches.embedder import embedder_batches
from dicetalk_jax.data.encode.record import EncodedClip, encoded_clip, features, open_encoded
from dicetalk_jax.data.sets import serialize, shard_name, write_info, write_shard
from dicetalk_jax.media.expression import read_expression
from dicetalk_jax.parallel.compilation import use_fast_convolutions
from dicetalk_jax.training.clustering import strength_by_emotion
from dicetalk_jax.training.config import EmbedderConfig
from dicetalk_jax.training.embedder import embed, separation, train_embedder
from dicetalk_jax.training.overrides import override
from dicetalk_jax.vocabulary import EMOTIONS, TRUTH

SHOWN = ("angry", "contempt", "disgusted", "happy")
NOTHING_DROPPED = ("drop_video=0", "drop_audio=0")
ROWS = {
  "audio": ("audio", ()),
  "video": ("video", ()),
  "both": ("both", NOTHING_DROPPED),
  "both, modalities dropped": ("both", ()),
}
MEAD_NAME = re.compile(rf"([MW]\d+)_\w+?_({'|'.join(EMOTIONS)})_level(\d)_\d+")
MEAD_FRAMES = 32


def configuration(options, data, inputs, settings=()):
  config = override(load_preset(options.config, EmbedderConfig), [*options.set, *settings])
  loop = dataclasses.replace(config.loop, validate_every=10**9, checkpoint_every=10**9)
  return dataclasses.replace(
    config, data=(str(data),), weights="", loop=loop, model=dataclasses.replace(config.model, inputs=inputs)
  )


def measured(options, data, row, out):
  """Trains an embedder and embeds the test split: (embedded rows, metrics)."""
  inputs, settings = ROWS[row]
  config = configuration(options, data, inputs, settings)

  def report(step, metrics):
    if step % 50 == 0:
      print(f"{row}: step {step}, loss {metrics['loss']:.3f}", file=sys.stderr, flush=True)

  model, outcome = train_embedder(config, pathlib.Path(out) / row, report=report, warn=lambda message: None)
  with embedder_batches(list(config.data), config.batches, split="test", training=False) as held_out:
    embedded = embed(model, outcome.state.averaged(), held_out)
  return embedded, separation(embedded)


def drawn(options, out):
  rows = []
  for row in options.rows or ROWS:
    embedded, metrics = measured(options, options.data, row, out)
    strengths = strength_by_emotion(*(embedded[name] for name in ("mu", "identity", "emotion")))
    loop = configuration(options, options.data, "both").loop
    rows.append(
      (
        row,
        *(f"{strengths[EMOTIONS.index(name)]:.2f}" for name in SHOWN),
        f"{metrics['clustering_strength']:.2f}",
        f"{metrics['emotion_accuracy']:.3f}",
      )
    )
    common.print_table(
      f"clustering strength, people not seen in training; {loop.steps} steps, seed {loop.seed}",
      ("input", *SHOWN, "all eight", "nearest centroid"),
      rows,
    )


def mead_set(folder, out):
  """Encoded set without sound: the last third of each clip is the test split."""
  record, examples = features("audio"), collections.defaultdict(list)
  for path in sorted(folder.glob("*.mat")):
    found = MEAD_NAME.match(path.stem)
    if not found:
      continue
    person, emotion, level = found.groups()
    expression = read_expression(path)
    cut = len(expression) - max(MEAD_FRAMES, len(expression) // 3)
    for split, part in (("train", expression[:cut]), ("test", expression[cut:])):
      clip = EncodedClip(
        **dict(clip=path.stem, source="mead", split=split, identity=person, video=path.stem, sentence=""),
        **dict(emotion=EMOTIONS.index(emotion), level=int(level), num_frames=len(part), height=256, width=256),
        face_box=(0, 0, 256, 256),
        expression=part,
        truth=np.zeros((0, len(TRUTH)), np.float32),
        states=np.zeros((2 * len(part), 1, 1), np.float16),
      )
      examples[split].append(serialize(record, clip.example()))
  if not examples:
    sys.exit(f"{folder} has no coefficient files such as M030_front_angry_level3_001.mat")
  out.mkdir()
  written = {split: [write_shard(out / shard_name("mead", split, 0, 1), of)] for split, of in examples.items()}
  write_info(out, "mead", record, written)
  return out


def mead(options, out):
  """Nearest centroid of each held-out window: among all, among the person's emotions, among people of the emotion."""
  data = mead_set(options.mead, pathlib.Path(out) / "mead")
  config = configuration(options, data, "video")
  # A positive pair is two disjoint windows of a clip; the shortest clip has 59 frames.
  batches = dataclasses.replace(config.batches, groups=16, clips=2, frames=28, speed=0.0)
  config = dataclasses.replace(config, batches=batches)
  loop = config.loop
  model, outcome = train_embedder(config, pathlib.Path(out) / "video", warn=lambda message: None)
  params = outcome.state.averaged()
  seen = windows_of(data, "train", model, params)
  asked = windows_of(data, "test", model, params)
  centroids = {key: np.mean(values, axis=0) for key, values in seen.items()}
  right = collections.defaultdict(list)
  for (person, emotion), values in asked.items():
    for mu in values:
      distance = {key: np.linalg.norm(mu - centroid) for key, centroid in centroids.items()}
      nearest = min(distance, key=distance.get)
      of_person = min((key for key in distance if key[0] == person), key=distance.get)
      of_emotion = min((key for key in distance if key[1] == emotion), key=distance.get)
      for name, hit in {
        "person": nearest[0] == person,
        "emotion": nearest[1] == emotion,
        "emotion of the person": of_person[1] == emotion,
        "person of the emotion": of_emotion[0] == person,
      }.items():
        right[name].append(hit)
        right[name, person].append(hit)
        right[name, emotion].append(hit)
  people = sorted({person for person, _ in asked})
  names = ("emotion", "person", "emotion of the person", "person of the emotion")
  rows = [("all", *(f"{np.mean(right[name]):.3f}" for name in names), str(len(right["emotion"])))]
  for key in (*people, *EMOTIONS):
    if (names[0], key) in right:
      rows.append((key, *(f"{np.mean(right[name, key]):.3f}" for name in names), str(len(right[names[0], key]))))
  common.print_table(
    f"MEAD, windows of {MEAD_FRAMES} frames, the last third of each clip; {loop.steps} steps, seed {loop.seed}",
    ("", *(f"{name} of nearest centroid" if name in ("emotion", "person") else name for name in names), "windows"),
    rows,
  )


def windows_of(data, split, model, params):
  """(person, emotion) -> priors of windows that overlap by half."""
  found = collections.defaultdict(list)
  for example in open_encoded(data, split, pictures=False)[0]:
    clip = encoded_clip(example)
    for start in range(0, len(clip.expression) - MEAD_FRAMES + 1, MEAD_FRAMES // 2):
      window = clip.expression[None, start : start + MEAD_FRAMES]
      mask = np.ones(window.shape[:2], bool)
      nothing = np.zeros((*window.shape[:2], 1), np.float32)
      prior = model.apply({"params": params}, window, mask, nothing, ~mask)
      found[clip.identity, EMOTIONS[clip.emotion]].append(np.asarray(prior.mu[0]))
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("data", nargs="?", help="encoded set of drawn clips")
  parser.add_argument("--mead", type=pathlib.Path, help="folder of coefficients of MEAD clips")
  parser.add_argument("--config", default="configs/synthetic_small.py", help="preset for training the embedder")
  parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change a setting of the preset")
  parser.add_argument("--rows", nargs="+", choices=ROWS, help="measure only these rows")
  options = parser.parse_args()
  if bool(options.data) == bool(options.mead):
    parser.error("give an encoded set, or --mead FOLDER")
  use_fast_convolutions()
  with tempfile.TemporaryDirectory() as out:
    (mead if options.mead else drawn)(options, out)
  print(f"\n{common.machine()}")


if __name__ == "__main__":
  main()
