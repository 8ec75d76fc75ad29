"""Priors of labels: means and variances over clips, what counts, what is written, what is refused."""

import numpy as np
import pytest
from release import small_weights
from talkers import EMBEDDER, embedding_weights, stand_in_params
from training.encoded_clips import write_clips

from dicetalk_jax.cli import main
from dicetalk_jax.data.batches.windows import Sequences
from dicetalk_jax.data.encode.record import encoded_clip, features, open_encoded
from dicetalk_jax.data.sets import serialize, shard_name, write_info, write_shard
from dicetalk_jax.errors import InputError, OutputError, WeightsError
from dicetalk_jax.inference.clips import ClipEmbedder
from dicetalk_jax.inference.label_priors import label_priors, write_label_priors
from dicetalk_jax.vocabulary import EMOTIONS
from dicetalk_jax.weights.folder import Weights
from dicetalk_jax.weights.priors import read_prior

ALL = tuple(range(8))
# Of the narrow Whisper of `write_clips`.
NARROW = EMBEDDER | {"speech_features": 8}


def embedder_alone(folder, **changes):
  config = {"networks": {"emotion_embedder": NARROW | changes}, "emotion_embedder": {"frames": 16}}
  return Weights.save(folder, {"emotion_embedder": stand_in_params("emotion_embedder", NARROW | changes)}, config)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  return embedder_alone(tmp_path_factory.mktemp("embedder") / "weights")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write_clips(tmp_path_factory.mktemp("clips") / "all", people=("a", "b"), emotions=ALL, clips=2)


def relabelled(folder, source, **changes):
  """A copy of an encoded set's training split, of which `changes` are functions of each clip."""
  records, _ = open_encoded(source, "train", pictures=False)
  examples = []
  for i in range(len(records)):
    clip = encoded_clip(records[i])
    examples.append(clip.example() | {name: change(clip) for name, change in changes.items()})
  folder.mkdir(parents=True)
  record = features("audio")
  shard = write_shard(folder / shard_name("drawn", "train", 0, 1), [serialize(record, e) for e in examples])
  write_info(folder, "drawn", record, {"train": [shard]})
  return folder


def clip_priors(weights, data):
  """label -> [(mu, sigma)] of its clips, one by one."""
  embedder, found = ClipEmbedder(weights), {}
  records, _ = open_encoded(data, "train", pictures=False)
  for i in range(len(records)):
    clip = encoded_clip(records[i])
    found.setdefault(EMOTIONS[clip.emotion], []).append(next(embedder.priors([Sequences.of(clip)])))
  return found


def test_a_labels_prior_is_the_mixture_of_its_clips(weights, data):
  found = label_priors(weights, [data])
  assert list(found.labels) == list(EMOTIONS)
  for label, clips in clip_priors(weights, data).items():
    mu, sigma = (np.stack(part).astype(np.float64) for part in zip(*clips, strict=True))
    ours = found.labels[label]
    assert (ours.clips, ours.people) == (len(mu), 2) == (4, 2)
    np.testing.assert_allclose(ours.mu, mu.mean(0), atol=2e-6)
    variance = (sigma**2).mean(0) + ((mu - mu.mean(0)) ** 2).mean(0)
    np.testing.assert_allclose(ours.sigma, np.sqrt(variance), rtol=1e-5, atol=1e-6)
  happy = next(row for row in str(found).splitlines() if row.startswith("happy"))
  assert happy.split()[1:3] == ["4", "2"] and happy.split()[3] == f"{np.linalg.norm(found.labels['happy'].mu):.3f}"


def test_several_sets_are_one(weights, data, tmp_path):
  half = [relabelled(tmp_path / "a", data, emotion=lambda clip: clip.emotion if clip.emotion < 4 else -1)]
  half.append(relabelled(tmp_path / "b", data, emotion=lambda clip: clip.emotion if clip.emotion >= 4 else -1))
  ours, theirs = label_priors(weights, half).labels, label_priors(weights, [data]).labels
  for label in EMOTIONS:
    np.testing.assert_allclose(ours[label].mu, theirs[label].mu, atol=2e-6)
    assert ours[label].clips == theirs[label].clips


def test_levels(weights, data, tmp_path):
  def level(clip):
    return np.int32(1 if EMOTIONS[clip.emotion] == "neutral" else 2 + int(clip.clip[-1]))

  leveled = relabelled(tmp_path / "levels", data, level=level)
  found, strong = label_priors(weights, [leveled], min_level=2), label_priors(weights, [leveled], min_level=3)
  assert {prior.clips for prior in found.labels.values()} == {4}
  assert {label: prior.clips for label, prior in strong.labels.items()} == dict.fromkeys(EMOTIONS, 2) | {"neutral": 4}
  with pytest.raises(InputError, match=r"is angry or contempt .* of level 2 or more"):
    label_priors(weights, [data], min_level=2)
  with pytest.raises(InputError, match="min_level 4 is no level"):
    label_priors(weights, [data], min_level=4)


def test_the_command_writes_weights_that_know_the_labels(tmp_path_factory, tmp_path, capsys):
  base = embedding_weights(tmp_path_factory)
  data = write_clips(tmp_path / "wide", people=("a",), emotions=ALL, clips=2, states=(2, 384))
  out, files = tmp_path / "out", tmp_path / "files"
  assert main(["priors", str(data), "--weights", str(base.folder), "--out", str(out), "--save", str(files)]) == 0
  printed = capsys.readouterr().out
  assert all(label in printed for label in EMOTIONS) and f"{out}: weights with these priors; {files}" in printed
  made, wanted = Weights.open(out), label_priors(base, [data])
  assert made.config["emotions"] == sorted(EMOTIONS) and made.config["networks"] == base.config["networks"]
  for label, prior in wanted.priors.items():
    stored, saved = made.priors()[label], read_prior(files / f"{label}.npz")
    for name in ("mu", "sigma"):
      np.testing.assert_allclose(stored[name], prior[name], atol=2e-6)
      np.testing.assert_array_equal(getattr(saved, name), stored[name])


def test_what_cannot_be_done_is_told(weights, data, tmp_path, tmp_path_factory):
  two = write_clips(tmp_path / "two")
  with pytest.raises(InputError, match=r"No clip in 'train' of .*two is contempt or disgusted .*; give sets that"):
    label_priors(weights, [two])
  assert list(label_priors(weights, [two], partial=True).labels) == ["angry", "happy"]
  unlabelled = relabelled(tmp_path / "none", data, emotion=lambda clip: -1)
  with pytest.raises(InputError, match=r"none has no clip of known emotion in 'train'"):
    label_priors(weights, [data, unlabelled])
  with pytest.raises(InputError, match=r"all was encoded with a Whisper of width 8, and the embedder of .* takes 384"):
    label_priors(embedding_weights(tmp_path_factory), [data])
  with pytest.raises(InputError, match="No encoded set was given"):
    label_priors(weights, [])
  with pytest.raises(WeightsError, match="has no emotion_embedder"):
    label_priors(Weights.open(small_weights(tmp_path_factory)), [data])
  with pytest.raises(OutputError, match="not an empty folder"):
    write_label_priors(weights, [tmp_path / "absent"], weights.folder)
  blind = write_clips(tmp_path / "blind", people=("a",), emotions=ALL, clips=1, expression=False)
  video = embedder_alone(tmp_path / "video", inputs="video")
  with pytest.raises(InputError, match=r"No clip of angry or contempt .* has expression coefficients, which this"):
    label_priors(video, [blind])
  # Coefficients alone need no Whisper of any width.
  wide = write_clips(tmp_path / "wide", people=("a",), emotions=ALL, clips=1, states=(2, 24))
  assert len(label_priors(video, [wide]).labels) == 8


def test_the_unwritable_is_told(weights, data, tmp_path):
  found = label_priors(weights, [data])
  (tmp_path / "file").touch()
  with pytest.raises(OutputError, match="cannot be written"):
    found.save(tmp_path / "file" / "folder")
