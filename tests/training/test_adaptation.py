"""Stage 2 on small random clips: what trains and what does not, how it goes on, and the weights that it leaves."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from ablations import held_out_rows, run_ablations
from conftest import quick_compilation
from flax.traverse_util import flatten_dict
from random_weights import random_weights
from talkers import stand_in_params
from training.encoded_clips import write_clips

from dicetalk_jax.config import GenerationConfig
from dicetalk_jax.data.batches.diffusion import DiffusionBatchConfig, diffusion_batches
from dicetalk_jax.data.encode.networks import check_encoded_with, fingerprint
from dicetalk_jax.data.encode.record import FORMAT, VERSION
from dicetalk_jax.errors import InputError, WeightsError
from dicetalk_jax.evaluation.networks.measuring import MEASURED, Measuring, MeasuringNetwork
from dicetalk_jax.models.emotion_bank import EmotionModel
from dicetalk_jax.parallel.mesh import MeshConfig
from dicetalk_jax.parallel.placement import Placement
from dicetalk_jax.training import adaptation
from dicetalk_jax.training.adaptation import initial_params, save_weights, train_adaptation, with_codes_of
from dicetalk_jax.training.config import AdaptationConfig, LoopConfig, ObjectiveConfig, OptimizerConfig, SamplesConfig
from dicetalk_jax.training.loop import Status
from dicetalk_jax.training.networks import check_batch, load_params, set_up
from dicetalk_jax.training.samples import prior_means
from dicetalk_jax.training.stage import Stage, initial_state
from dicetalk_jax.vocabulary import EMOTIONS
from dicetalk_jax.weights.architectures import RELEASED, small_conditioning, small_unet
from dicetalk_jax.weights.folder import Weights

UNET = small_unet((64,), head=32)
EMBEDDER = dict(features=256, expression_features=64, speech_features=64, num_layers=1, num_fusion_layers=1, mlp=32)
EMBEDDER |= dict(num_heads=2, dropout_rate=0.0, fusion_scale=1.0, inputs="both")
CONDITIONING = small_conditioning(64, 64, codes=4, pose_features=(8, 16, 16, 32))


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly(tmp_path_factory):
  """Half of this file's time would be spent on making code fast that runs a few times, and on making it again."""
  with quick_compilation(tmp_path_factory.mktemp("cache")):
    yield


def samples(steps=10, clips=2, **settings):
  return SamplesConfig(clips, GenerationConfig(steps=steps, **settings))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """Small random weights with an embedder, their U-Net and what goes with it of one level."""
  folder = tmp_path_factory.mktemp("weights")
  architectures = {"unet": UNET, "emotion_embedder": EMBEDDER, **CONDITIONING}
  networks = {name: stand_in_params(name, config) for name, config in architectures.items()}
  return random_weights(folder / "random").derive(folder / "weights", networks, architectures)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return str(write_clips(tmp_path_factory.mktemp("sets") / "drawn", pictures=True, states=(3, 64)))


@pytest.fixture
def config(weights, data):
  return AdaptationConfig(
    weights=str(weights.folder),
    emotional=(data,),
    size=64,
    batches=DiffusionBatchConfig(batch=2, frames=3, prior_frames=8),
    optimizer=OptimizerConfig(learning_rate=3e-3, ema_decay=0.5),
    mesh=MeshConfig(1, 1, 1),
    loop=LoopConfig(steps=4, checkpoint_every=2, validate_every=100),
    samples=SamplesConfig(clips=0),
    remat=False,
    validation_batches=1,
  )


def begin(setup, config):
  """The state before the first step."""
  placement = Placement.alone()
  return initial_state(*initial_params(setup, config, placement), config, placement)[0]


def validation(setup, config, folder):
  batches = functools.partial(diffusion_batches, config.emotional, config=config.batches, seed=0)
  return adaptation._validation(Stage(config, batches, config.batches.batch, folder=folder), setup)


def test_it_trains_goes_on_and_leaves_weights(config, tmp_path, weights):
  config = dataclasses.replace(config, samples=samples(2, clips=1))
  losses, validations, said = {}, [], []
  options = dict(
    report=lambda step, metrics: losses.update({step: metrics["loss"]}),
    validated=lambda *of: validations.append(of),
    warn=said.append,
  )
  _, outcome = train_adaptation(config, tmp_path / "whole", **options)
  assert outcome.status == Status.FINISHED and said == []
  whole = dict(losses)
  ((step, scalars),) = validations
  assert step == 4 and 0 < scalars["denoising"] < 30 and 0 <= scalars["accuracy"] <= 1
  assert [path.name for path in (tmp_path / "whole" / "samples").iterdir()] == ["0000004_0.mp4"]

  # Half a run, then the rest, is the run; so are one with other workers.
  losses.clear()
  half = dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=2), samples=SamplesConfig(clips=0))
  train_adaptation(half, tmp_path / "parts", **options)
  _, again = train_adaptation(dataclasses.replace(config, samples=half.samples), tmp_path / "parts", **options)
  assert losses == whole
  jax.tree.map(np.testing.assert_array_equal, again.state.params, outcome.state.params)

  made = Weights.open(tmp_path / "whole" / "weights")
  ours, before = flatten_dict(made.load("unet"), sep="/"), flatten_dict(weights.load("unet"), sep="/")
  trained = {path for path in ours if not np.array_equal(ours[path], before[path])}
  assert trained == {path for path in ours if "_ip_" in path}
  np.testing.assert_array_equal(ours["conv_in/kernel"], before["conv_in/kernel"])
  averaged = flatten_dict(outcome.state.averaged(), sep="/")
  for path in (
    "unet/mid_block/attentions_0/transformer_blocks_0/attn2/to_k_ip_1/kernel",
    "emotion_model/emo_linear/proj1/kernel",
  ):
    network, _, rest = path.partition("/")
    np.testing.assert_array_equal(flatten_dict(made.load(network), sep="/")[rest], averaged[path])
  assert made.priors().keys() == weights.priors().keys()


def test_frozen_leaves_are_the_ones_they_were_and_have_no_optimizer_state(config):
  setup = set_up(dataclasses.replace(config, dtype="bfloat16", trainable=("adapters",)))
  state = begin(setup, config)
  trained, frozen = flatten_dict(state.params, sep="/"), flatten_dict(state.frozen, sep="/")
  assert all("_ip_" in path for path in trained if path.startswith("unet/"))
  assert all(path.startswith("emotion_embedder/") or path.startswith("unet/") for path in frozen)
  dtypes = {path.partition("/")[0]: leaf.dtype for path, leaf in frozen.items()}
  assert dtypes == {"unet": "bfloat16", "emotion_embedder": "float32"}
  assert {leaf.dtype for leaf in trained.values()} == {np.dtype("float32")}
  moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
  assert len(moments) == 2 * len(trained)


@pytest.mark.parametrize(
  "trainable, holds, lacks",
  [
    (
      "attention",
      "unet/mid_block/attentions_0/proj_in/kernel",
      "unet/mid_block/resnets_0/temporal_res_block/conv1/kernel",
    ),
    ("all", "unet/conv_in/kernel", "emotion_embedder/w_s"),
    (r"^pose_guider/conv_in", "pose_guider/conv_in/kernel", "pose_guider/conv_out/kernel"),
  ],
)
def test_what_trains_is_named(config, trainable, holds, lacks):
  config = dataclasses.replace(config, trainable=(trainable,))
  trained = flatten_dict(begin(set_up(config), config).params, sep="/")
  assert holds in trained and lacks not in trained


def test_networks_that_the_weights_lack_begin_untrained(config, weights, tmp_path):
  kept = {name: weights.load(name) for name in ("vae", "audio_encoder", "image_encoder", "emotion_embedder")}
  bare = Weights.save(tmp_path / "bare", kept, weights.config)
  config = dataclasses.replace(
    config, weights=str(bare.folder), networks={"unet": UNET, **CONDITIONING}, trainable=("all",), conditioning="bank"
  )
  setup = set_up(config)
  assert set(setup.missing) == {"unet", "audio_projection", "emotion_model", "pose_guider"}
  params = load_params(setup, 0, Placement.alone())
  unet = flatten_dict(params["unet"], sep="/")
  adapters = [path for path in unet if "_ip_" in path]
  assert len(adapters) == 8
  for path in adapters:
    np.testing.assert_array_equal(unet[path], unet[path.partition("_ip_")[0] + "/kernel"])
  assert not unet["conv_out/kernel"].any()
  # The bank begins where priors of the data are.
  with diffusion_batches(config.emotional, config=config.batches) as batches:
    model = with_codes_of(setup, params, batches.source)
    priors = np.concatenate([prior_means(setup.modules, params, batches.source[i]) for i in range(2)])
  codes, fc = model["codebook"]["codebook"]["embedding"], model["codebook"]["fc"]
  np.testing.assert_allclose(codes, priors @ fc["kernel"] + fc["bias"], atol=1e-4)


class Shifted(EmotionModel):
  """An emotion model with a parameter of its own."""

  def setup(self):
    super().setup()
    self.shift = self.param("shift", nn.initializers.zeros, (self.features,))

  def for_training(self, prior):
    tokens, vq_loss = super().for_training(prior)
    return tokens + self.shift, vq_loss


def test_a_network_and_a_loss_of_ones_own_train(config, weights, tmp_path):
  config = dataclasses.replace(config, loop=LoopConfig(steps=2), validation_split="none")
  attributes = CONDITIONING["emotion_model"]
  base = adaptation.adaptation_loss(set_up(config, networks={"emotion_model": Shifted(**attributes)}), config.objective)
  seen = []

  def loss(params, batch, key):
    total, metrics = base(params, batch, key)
    shift = params["emotion_model"]["shift"]
    return total + ((shift - 1) ** 2).sum(), metrics | {"shift": shift.mean()}

  options = dict(networks={"emotion_model": Shifted(**attributes)}, loss=loss, warn=lambda message: None)
  train_adaptation(config, tmp_path, report=lambda step, metrics: seen.append(metrics["shift"]), **options)
  assert seen[0] == 0 and seen[1] > 1e-3
  params = safetensors.numpy.load_file(tmp_path / "emotion_model.safetensors")
  assert params["shift"].mean() > 1e-3
  # The weights keep their own emotion model, as the new one does not fit its architecture.
  kept, before = (each.load("emotion_model") for each in (Weights.open(tmp_path / "weights"), weights))
  jax.tree.map(np.testing.assert_array_equal, kept, before)
  with pytest.raises(InputError, match="networks has 'vae'; the names are unet"):
    train_adaptation(config, tmp_path / "other", networks={"vae": None})


@pytest.mark.parametrize("conditioning", ["learnable", "prior"])
def test_ablations_leave_weights_that_generate_as_they_were_trained(config, conditioning, tmp_path):
  config = dataclasses.replace(
    config,
    conditioning=conditioning,
    loop=LoopConfig(steps=1),
    validation_split="none",
    remat={"prior": True, "learnable": "apart"}.get(conditioning, False),
  )
  train_adaptation(config, tmp_path, warn=lambda message: None)
  made = Weights.open(tmp_path / "weights")
  assert made.config["networks"]["emotion_model"]["conditioning"] == conditioning
  assert ("query" in made.load("emotion_model")) == (conditioning == "learnable")
  # Whatever of the bank is asked for, there is none.
  model, params = made.module("emotion_model"), made.load("emotion_model")
  prior = np.ones((1, 256), np.float32)
  ours = [model.apply({"params": params}, prior, bank=bank) for bank in ("all", "nearest")]
  np.testing.assert_array_equal(*ours)


def test_what_is_judged_has_every_emotion_alike(config, monkeypatch):
  # Neutral clips, and those of the highest level: person by person, as sets hold them.
  rows = [
    dict(valid=np.ones(1, bool), emotion=np.array([emotion]), level=np.array([3]), clip=np.array([clip]))
    for clip, emotion in enumerate([0, 1, 4] * 6)
  ]
  monkeypatch.setattr("ablations.diffusion_batches", lambda *of, **options: _Open(rows))
  assert len(held_out_rows(config)) == 18
  chosen = held_out_rows(config, 9)
  assert sorted(int(row["emotion"]) for row in chosen) == [0] * 3 + [1] * 3 + [4] * 3
  assert len({int(row["clip"]) for row in chosen}) == 9
  assert [int(row["clip"]) for row in held_out_rows(config, 9)] == [int(row["clip"]) for row in chosen]
  assert len(held_out_rows(config, 100)) == 18


class _Open(list):
  def __enter__(self):
    return self

  def __exit__(self, *of):
    pass


@pytest.mark.slow
def test_an_ablation_is_judged_once(config, tmp_path, monkeypatch):
  folder = write_clips(
    tmp_path / "set", ("M003",), emotions=(0, EMOTIONS.index("neutral")), pictures=True, states=(3, 64)
  )
  config = dataclasses.replace(config, emotional=(str(folder),), loop=LoopConfig(steps=1), samples=samples(2))
  # Of the angry none is of the highest level.
  assert [EMOTIONS[row["emotion"]] for row in held_out_rows(config)] == ["neutral"] * 3
  params = jax.jit(MeasuringNetwork().init)(jax.random.key(0), *2 * [np.zeros((1, 64, 64, 3))])["params"]
  spread = np.ones(len(MEASURED), np.float32)
  measuring = Measuring(params, 0 * spread, spread, (64, 64))
  options = dict(variants={"whole": ()}, seeds=[0, 1], clips=2)
  found = list(run_ablations(config, measuring, tmp_path, **options))
  assert [(name, seed) for name, seed, *_ in found] == [("whole", 0), ("whole", 1)]
  for _, _, made, true in found:
    assert made.clips == true.clips == 2 and made.emotion == made.neutral and np.isnan(made.others)
    assert 0 <= made.emotion <= 1 and -1.001 < made.identity < 1.001

  def trained_again(*of, **options):
    raise AssertionError("it is known already")

  monkeypatch.setattr("ablations.train_adaptation", trained_again)
  again = list(run_ablations(config, measuring, tmp_path, **options))
  assert [row[:2] for row in again] == [row[:2] for row in found]
  np.testing.assert_equal(
    [dataclasses.astuple(row[2]) for row in again], [dataclasses.astuple(row[2]) for row in found]
  )
  # Other settings are trained anew, and another network judges anew.
  with pytest.raises(AssertionError, match="known already"):
    longer = dataclasses.replace(config, loop=LoopConfig(steps=2))
    list(run_ablations(longer, measuring, tmp_path, **options))
  with pytest.raises(AssertionError, match="known already"):
    list(run_ablations(config, Measuring(params, spread, spread, (64, 64)), tmp_path, **options))


def test_what_was_frozen_is_left_bit_for_bit_as_the_weights_have_it(config, weights, tmp_path):
  # In training it is held in half precision.
  config = dataclasses.replace(config, dtype="bfloat16", trainable=("unet/.*to_k_ip_0", "classifier"))
  setup = set_up(config)
  state = begin(setup, config)
  state = state.replace(ema=jax.tree.map(lambda leaf: leaf + 1, state.ema))
  save_weights(setup, state, tmp_path / "made")
  made = Weights.open(tmp_path / "made")
  changed = set()
  for name in weights.config["networks"]:
    ours, before = flatten_dict(made.load(name), sep="/"), flatten_dict(weights.load(name), sep="/")
    assert {path: leaf.dtype for path, leaf in ours.items()} == {path: leaf.dtype for path, leaf in before.items()}
    changed |= {f"{name}/{path}" for path in before if not np.array_equal(ours[path], before[path])}
  assert changed == set(flatten_dict(state.params, sep="/")) and len(changed) == 8
  np.testing.assert_array_equal(
    made.load("emotion_model")["classifier"]["fc1"]["bias"], state.ema["emotion_model"]["classifier"]["fc1"]["bias"]
  )


def test_each_validation_is_of_the_same_clips_of_all_people(config, tmp_path, monkeypatch):
  def loss_fn(params, batch, key):
    return None, {"denoising": params["pose_guider"]["conv_in"]["bias"].sum() + batch["clip"].sum()}

  monkeypatch.setattr(adaptation, "adaptation_loss", lambda *of, **options: loss_fn)
  setup = set_up(config)
  state = begin(setup, config)
  config = dataclasses.replace(config, validation_batches=3)
  validate = validation(setup, config, tmp_path)
  seen = [validate(state, None) for _ in range(2)]
  # 18 clips, 2 a batch: the first, the middle and the last batch.
  bias = float(state.averaged()["pose_guider"]["conv_in"]["bias"].sum())
  np.testing.assert_allclose([scalars["denoising"] - bias for scalars in seen], [17, 17], rtol=1e-5)


def test_a_validation_tells_how_much_worse_it_is_with_the_emotion_or_speech_of_others(config, tmp_path, monkeypatch):
  def told(batch):
    # No sum of what each has by itself: its mean would stay the same however batches exchange theirs.
    return 10_000 + batch["clip"].sum() * (batch["speech"].sum() + 2 * batch["audio"].astype(np.float32).sum())

  monkeypatch.setattr(
    adaptation, "adaptation_loss", lambda *of, **options: lambda params, batch, key: (None, {"denoising": told(batch)})
  )
  setup = set_up(config)
  state = begin(setup, config)
  config, options = (
    dataclasses.replace(config, validation_batches=3),
    dict(emotional=config.emotional, regular=(), config=config.batches, seed=0),
  )
  validate = validation(setup, config, tmp_path)
  scalars = validate(state, None)
  with diffusion_batches(split=config.validation_split, training=False, **options) as found:
    batches = [found.source[i] for i in (0, 4, 8)]
  before = [batches[2], batches[0], batches[1]]
  own = np.mean([told(batch) for batch in batches])
  felt = np.mean([told(a | {"speech": b["speech"]}) for a, b in zip(batches, before, strict=True)])
  said = np.mean([told(a | {"audio": b["audio"]}) for a, b in zip(batches, before, strict=True)])
  assert min(abs(felt / own - 1), abs(said / own - 1)) > 1e-4
  np.testing.assert_allclose(scalars["denoising"], own, rtol=1e-5)
  np.testing.assert_allclose(scalars["other_emotion"], felt / own - 1, rtol=1e-3, atol=1e-6)
  np.testing.assert_allclose(scalars["other_speech"], said / own - 1, rtol=1e-3, atol=1e-6)
  # With one batch there are no others.
  one = dataclasses.replace(config, validation_batches=1)
  assert set(validation(setup, one, tmp_path)(state, None)) == {"denoising"}


def test_data_that_other_networks_encoded_is_refused(config, weights, tmp_path):
  ours = {name: fingerprint(weights.load(name)) for name in ("image_encoder", "audio_encoder")}
  # Its decoder may be another.
  ours["vae"] = fingerprint({part: weights.load("vae")[part] for part in ("encoder", "quant_conv")})
  data = write_clips(tmp_path / "drawn", people=("M003",), clips=1, pictures=True, states=(3, 64))
  config = dataclasses.replace(config, emotional=(str(data),))
  setup = set_up(config)
  for networks, words in ((ours, None), (ours | {"vae": "0" * 16}, "drawn was encoded with another vae than that of")):
    encoding = {"format": FORMAT, "version": VERSION, "networks": networks}
    (data / "encoding.json").write_text(json.dumps(encoding))
    with diffusion_batches(config.emotional, config=config.batches) as batches:
      if words is None:
        check_batch(setup, batches.source[0], config)
        continue
      with pytest.raises(InputError, match=words):
        check_batch(setup, batches.source[0], config)
  # The embedder heeds Whisper alone.
  check_encoded_with(weights, [str(data)], ("audio_encoder",))


def test_small_networks_compute_as_in_inference(config):
  modules = set_up(dataclasses.replace(config, dtype="bfloat16")).modules
  assert {name: module.dtype for name, module in modules.items()} == {
    "unet": jnp.bfloat16,
    **dict.fromkeys(("audio_projection", "emotion_model", "pose_guider", "emotion_embedder"), jnp.float32),
  }


def test_the_embedder_is_not_trained_by_accident(config):
  config = dataclasses.replace(config, trainable=("kernel",))
  with pytest.raises(InputError, match="the emotion embedder does not train"):
    begin(set_up(config), config)


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(objective=ObjectiveConfig(drop_all=0.9)), "drop_all 0.9 cannot be used"),
    (dict(objective=ObjectiveConfig(drop_audio=-0.1)), "drop_audio -0.1"),
    (dict(objective=ObjectiveConfig(drop_emotion=0.85), dtype="int8"), "dtype 'int8'"),
    (dict(objective=ObjectiveConfig(emotion_weight=-1)), "objective.emotion_weight is -1"),
    (dict(samples=samples(0)), "samples.generation.steps is 0"),
    (dict(samples=samples(decode_chunk=0)), "samples.generation.decode_chunk is 0"),
    (dict(samples=samples(sigma_max=0.0)), r"samples.generation.sigma_max is 0\.0"),
    (dict(samples=samples(sigma_min=0.0)), r"samples.generation.sigma_min is 0\.0"),
    (dict(validation_batches=0), "validation_batches is 0"),
    (dict(dtype="float16"), "dtype 'float16' is unknown"),
  ],
)
def test_settings_that_make_no_sense_are_said_before_anything_is_read(options, words):
  with pytest.raises(InputError, match=words):
    set_up(AdaptationConfig(weights="nowhere", **options))


@pytest.mark.parametrize(
  "name, change, words",
  [
    ("emotion_model", dict(prior_dim=64), "emotion_model's prior_dim is 64, wanted 256, the emotion embedder's"),
    ("emotion_model", dict(mid_features=32), "mid_features is 32, wanted 64"),
    ("emotion_model", dict(num_classes=8), "num_classes is 8, wanted 22"),
    ("pose_guider", dict(features=32), "pose_guider's features is 32, wanted 64"),
    ("pose_guider", dict(block_features=[8, 16]), "halve the size 1 times"),
    ("unet", dict(in_channels=4), "unet's in_channels is 4, wanted 8"),
    ("unet", dict(adapter_scales=[1.0]), "has 1 adapters, wanted 2"),
  ],
)
def test_networks_that_do_not_fit_each_other_are_named(name, change, words):
  networks = {"vae": RELEASED["vae"], "emotion_embedder": EMBEDDER, "unet": UNET, **CONDITIONING}
  networks[name] = networks[name] | change
  with pytest.raises(WeightsError, match=words):
    set_up(AdaptationConfig(weights="nowhere", networks=networks), needs_weights=False)


def test_what_does_not_fit_is_said(config, weights, data, tmp_path):
  small = write_clips(tmp_path / "small", pictures=True, states=(2, 64))
  kept = {name: weights.load(name) for name in weights.config["networks"] if name != "emotion_embedder"}
  without = Weights.save(tmp_path / "without", kept, weights.config)
  cases = [
    (dict(size=128), InputError, "64x64 pixels, and the configuration has size 128"),
    (dict(emotional=(str(small),)), InputError, "2 Whisper states.*want 3"),
    (dict(weights=str(without.folder)), WeightsError, "no emotion embedder.*train embedder"),
    (dict(weights=str(tmp_path / "nothing")), WeightsError, "not a folder"),
    (dict(trainable=("adaptors",)), InputError, "'adaptors'"),
    (dict(emotional=()), InputError, "no data"),
  ]
  for options, error, words in cases:
    with pytest.raises(error, match=words):
      train_adaptation(dataclasses.replace(config, **options), tmp_path / "run")
