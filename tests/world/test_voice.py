"""Speech of the drawn world, measured: what is heard, what is seen, and what voices and emotions change."""

import dataclasses
import hashlib
import time

import numpy as np
import pytest
import scipy.linalg

from dicetalk_jax.errors import InputError
from dicetalk_jax.vocabulary import EMOTIONS, SAMPLE_RATE, SAMPLES_PER_FRAME
from dicetalk_jax.world.phonemes import INDEX, PHONEMES
from dicetalk_jax.world.sentences import sentences
from dicetalk_jax.world.voice import (
  LIP_COLUMNS,
  NEUTRAL,
  draw_voice,
  frame_phonemes,
  lips,
  prosody,
  speak,
)

# An even voice, of which measures are sharp.
PLAIN = dataclasses.replace(
  draw_voice(0),
  **dict(pitch=110.0, pitch_range=6.0, tract=1.0, open_quotient=0.55, breathiness=0.05, tilt=-1.0, rate=1.0),
  **dict(jitter=0.005, shimmer=0.02, creak=0.0, vibrato=0.0, loudness=0.0),
)
SENTENCE = "My brother keeps his books in a box."
# Voiced throughout.
SONOROUS = "We were away alone in a warm room."


def changed(**changes):
  return dataclasses.replace(NEUTRAL, **changes)


def spoken(speech):
  """The sound without the silence around it."""
  start, end = speech.segments[0].end, speech.segments[-1].start
  return speech.audio[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]


def decibels(sound):
  return 10 * np.log10(np.mean(np.square(sound, dtype=np.float64)))


def measured_pitch(speech):
  """Hz of every voiced 64 ms window, by autocorrelation."""
  windows = np.lib.stride_tricks.sliding_window_view(spoken(speech), 1024)[::160]
  taper = np.hanning(1024)
  spectrum = np.abs(np.fft.rfft(windows * taper, 2048)) ** 2
  shape = np.fft.irfft(np.abs(np.fft.rfft(taper, 2048)) ** 2)[:320]
  r = np.fft.irfft(spectrum)[:, :320] / shape
  # Two periods are as alike as one; the shorter one is meant.
  lag = (r - 0.001 * np.arange(320) * r[:, :1])[:, 27:].argmax(1) + 27
  voiced = (r.max(1) > 0.05 * r.max()) & (r[np.arange(len(r)), lag] > 0.6 * r[:, 0])
  return SAMPLE_RATE / lag[voiced]


def brightness(speech):
  """dB of 2 to 5 kHz against below 1 kHz."""
  spectrum = np.abs(np.fft.rfft(spoken(speech))) ** 2
  hz = np.fft.rfftfreq(len(spoken(speech)), 1 / SAMPLE_RATE)
  return 10 * np.log10(spectrum[(hz > 2000) & (hz < 5000)].sum() / spectrum[hz < 1000].sum())


def formants(sound, order=18):
  """Resonances in Hz by linear prediction."""
  x = np.append(sound[0], sound[1:] - 0.95 * sound[:-1]) * np.hanning(len(sound))
  r = np.correlate(x, x, "full")[len(x) - 1 : len(x) + order]
  roots = np.roots(np.r_[1, -scipy.linalg.solve_toeplitz(r[:-1], r[1:])])
  roots = roots[(roots.imag > 0) & (np.abs(roots) > np.exp(-np.pi * 600 / SAMPLE_RATE))]
  hz = np.sort(np.angle(roots)) * SAMPLE_RATE / (2 * np.pi)
  return hz[hz > 150]


def opening(speech, **options):
  n = len(speech.audio) // SAMPLES_PER_FRAME
  mouth = lips(speech.segments, n, **options)
  return mouth[:, LIP_COLUMNS.index("jaw")] * (1 - mouth[:, LIP_COLUMNS.index("lip_press")])


def envelope(speech):
  return np.sqrt((speech.audio.reshape(-1, SAMPLES_PER_FRAME) ** 2).mean(1))


def test_the_same_arguments_give_the_same_bytes_and_another_take_does_not():
  def digest(seed):
    speech = speak(SENTENCE, draw_voice(3), prosody("fear", 2, 3), seed)
    return hashlib.sha256(speech.audio.tobytes() + speech.pitch.tobytes() + repr(speech.segments).encode()).digest()

  assert digest(1) == digest(1)
  assert digest(1) != digest(2)


def test_segments_tile_the_sound_in_whole_frames():
  for seed, text in enumerate((SENTENCE, "Wait, what? The bus, please. Now!", "a")):
    speech = speak(text, draw_voice(seed), lead=0.13, tail=0.21, seed=seed)
    assert speech.audio.dtype == np.float32 and len(speech.audio) % SAMPLES_PER_FRAME == 0
    assert speech.duration == len(speech.audio) / SAMPLE_RATE == speech.segments[-1].end
    assert speech.segments[0].start == 0 and speech.segments[0].end == 0.13
    for before, after in zip(speech.segments, speech.segments[1:], strict=False):
      assert before.end == after.start and before.start < before.end
    assert 0.21 <= speech.segments[-1].end - speech.segments[-1].start < 0.26
    assert len(speech.pitch) * speech.step == pytest.approx(speech.duration)


def test_silence_is_silent_and_speech_is_heard_where_it_should_be():
  speech = speak("The bus stops, and we wait.", PLAIN, lead=0.3, tail=0.4)
  level = envelope(speech)
  assert not level[:7].any() and level[-7:].max() < 1e-4
  ids = frame_phonemes(speech.segments, len(level))
  vowels = np.array([phoneme.is_vowel for phoneme in PHONEMES])[ids]
  assert level[vowels].min() > 0.02
  pause = [s for s in speech.segments[1:-1] if s.phoneme == "SIL"]
  assert len(pause) == 1
  middle = speech.audio[round((pause[0].start + 0.05) * SAMPLE_RATE) : round((pause[0].end - 0.02) * SAMPLE_RATE)]
  assert np.abs(middle).max() < 1e-3


def test_neutral_speech_is_23_decibels_below_full_scale_and_nothing_clips():
  levels = [decibels(spoken(speak(sentences("train")[i], draw_voice(i), seed=i))) for i in range(12)]
  assert np.mean(levels) == pytest.approx(-23, abs=1.5) and np.std(levels) < 3
  shout = speak(SENTENCE, PLAIN, changed(energy=25.0))
  assert 0.6 < np.abs(shout.audio).max() < 0.9


@pytest.mark.parametrize("tract", [1.0, 1.2])
@pytest.mark.parametrize("name", ["AA", "IY", "UW", "AE", "ER"])
def test_vowels_have_the_formants_of_their_vocal_tract(name, tract):
  voice = dataclasses.replace(PLAIN, tract=tract, pitch=95.0, jitter=0.0, shimmer=0.0, breathiness=0.02, rate=0.5)
  speech = speak([(name, 1)], voice, lead=0.1)
  middle = (speech.segments[1].start + speech.segments[1].end) / 2
  found = formants(speech.audio[round((middle - 0.04) * SAMPLE_RATE) : round((middle + 0.04) * SAMPLE_RATE)])
  # A harmonic can be half the pitch away from a resonance.
  wanted = np.array(PHONEMES[INDEX[name]].formants[:3]) * tract
  np.testing.assert_allclose(found[:3], wanted, rtol=0.03, atol=40)


def test_hisses_are_high_and_hushes_lower():
  def centre(name):
    speech = speak([("AA", 1), (name, 0), ("AA", 0)], PLAIN)
    segment = next(s for s in speech.segments if s.phoneme == name)
    sound = speech.audio[round((segment.start + 0.02) * SAMPLE_RATE) : round((segment.end - 0.02) * SAMPLE_RATE)]
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
    return np.sum(spectrum * np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)) / spectrum.sum()

  assert centre("S") > 4500 > centre("SH") > 2000 > centre("M")


def test_a_manner_moves_what_is_measured():
  plain = speak(SENTENCE, PLAIN)

  def said(**changes):
    return speak(SENTENCE, PLAIN, changed(**changes))

  semitones = 12 * np.log2(np.median(measured_pitch(said(pitch=5.0))) / np.median(measured_pitch(plain)))
  assert semitones == pytest.approx(5, abs=0.7)
  assert decibels(spoken(said(energy=6.0))) - decibels(spoken(plain)) == pytest.approx(6, abs=0.5)
  assert len(spoken(said(rate=1.25))) / len(spoken(plain)) == pytest.approx(1 / 1.25, rel=0.05)
  bright = [brightness(speak(SONOROUS, PLAIN, changed(tilt=tilt))) for tilt in (-2.0, 0.0, 2.0)]
  assert bright[0] + 3 < bright[1] < bright[2] - 3
  ranges = [measured_pitch(speak(SONOROUS, PLAIN, changed(pitch_range=r))) for r in (0.4, 1.0, 1.8)]
  spread = [np.log2(np.percentile(hertz, 90) / np.percentile(hertz, 10)) for hertz in ranges]
  assert spread[0] < 0.7 * spread[1] and spread[1] < 0.7 * spread[2]
  rises = []
  for slope in (-6.0, 6.0):
    hertz = measured_pitch(speak(SONOROUS, PLAIN, changed(slope=slope)))
    rises.append(np.polyfit(np.linspace(0, 1, len(hertz)), np.log2(hertz), 1)[0])
  assert rises[1] - rises[0] > 0.6
  paused = [speak("Now, we wait.", PLAIN, changed(pausing=p)).duration for p in (0.5, 2.0)]
  assert paused[1] > paused[0] + 0.2


def test_the_pitch_that_is_reported_is_the_pitch_that_sounds():
  speech = speak(SENTENCE, PLAIN)
  voiced = speech.pitch[speech.pitch > 0]
  assert np.median(measured_pitch(speech)) == pytest.approx(np.median(voiced), rel=0.06)
  assert 100 < np.median(voiced) < 125
  fricative = next(s for s in speech.segments if s.phoneme == "S")
  assert speech.pitch[round((fricative.start + fricative.end) / 2 / speech.step)] == 0


def test_a_question_rises_at_its_end():
  def last_octaves(text):
    pitch = speak(text, PLAIN).pitch
    return np.log2(pitch[pitch > 0][-1] / PLAIN.pitch)

  assert last_octaves("Are they home?") > last_octaves("Are they home.") + 0.2


def test_voices_differ_and_are_men_women_and_children():
  voices = [draw_voice(seed) for seed in range(200)]
  pitch = np.array([voice.pitch for voice in voices])
  assert pitch.min() < 95 and pitch.max() > 270
  assert np.corrcoef(pitch, [voice.tract for voice in voices])[0, 1] > 0.7
  assert draw_voice(5) == draw_voice(5) and len(set(voices)) == 200


def test_emotions_sound_as_they_are_known_to():
  def mean(emotion, level=3):
    rows = [dataclasses.astuple(prosody(emotion, level, seed)) for seed in range(40)]
    names = [field.name for field in dataclasses.fields(NEUTRAL)]
    return dict(zip(names, np.mean(rows, axis=0), strict=True))

  by = {emotion: mean(emotion) for emotion in EMOTIONS}
  assert by["angry"]["energy"] == max(m["energy"] for m in by.values()) > 5 and by["angry"]["tilt"] > 2
  assert by["sad"]["energy"] == min(m["energy"] for m in by.values()) < -4 and by["sad"]["rate"] < 0.95
  assert by["sad"]["breathiness"] > 0.1 and by["sad"]["pitch_range"] < 0.9
  assert by["fear"]["tremor"] == max(m["tremor"] for m in by.values()) > 0.4 and by["fear"]["pitch"] > 3
  assert by["surprised"]["slope"] == max(m["slope"] for m in by.values()) > 3
  assert by["happy"]["pitch"] > 2 and by["happy"]["pitch_range"] > 1.3 and by["happy"]["smile"] > 1.02
  assert by["disgusted"]["creak"] > 0.4 and by["disgusted"]["rate"] < 0.9 and by["disgusted"]["attack"] > 0.015
  assert by["contempt"]["slope"] < -1 and by["contempt"]["drawl"] > 1.1 and by["contempt"]["pitch"] < 0
  assert abs(by["neutral"]["pitch"]) < 0.3 and abs(by["neutral"]["energy"]) < 0.5
  assert 0.4 < mean("angry", 1)["energy"] / by["angry"]["energy"] < 0.6


def test_people_show_an_emotion_differently_and_each_always_the_same():
  assert prosody("happy", 2, 1) == prosody("happy", 2, 1)
  assert len({prosody("happy", 2, seed) for seed in range(20)}) == 20


def test_the_mouth_opens_with_the_voice_whatever_the_emotion():
  for emotion in EMOTIONS:
    found = []
    for i in range(6):
      manner = prosody(emotion, 1 + i % 3, 100 + i)
      speech = speak(sentences("train")[(7 * i + 3) % 120], draw_voice(100 + i), manner, seed=i)
      found.append(np.corrcoef(opening(speech), envelope(speech))[0, 1])
    assert np.mean(found) > 0.6, emotion


@pytest.mark.parametrize("rate", [0.7, 1.0, 1.7])
def test_lips_are_shut_in_the_middle_of_every_b_p_and_m(rate):
  for seed in range(4):
    speech = speak("Bob, my mother may pay up by Monday; we hope Emma jumps.", PLAIN, changed(rate=rate), seed)
    n = len(speech.audio) // SAMPLES_PER_FRAME
    press = lips(speech.segments, n, strength=0.6)[:, LIP_COLUMNS.index("lip_press")]
    labials = [s for s in speech.segments if s.phoneme in "BPM"]
    assert len(labials) == 13
    for segment in labials:
      nearest = round((segment.start + segment.end) / 2 * 25 - 0.5)
      assert press[nearest] >= 0.9
    ids = frame_phonemes(speech.segments, n)
    assert press[ids == INDEX["EY"]].min() < 0.3


def test_shapes_of_the_mouth_are_those_of_their_sounds():
  def shape(name, column):
    speech = speak([("AH", 0), (name, 1), ("AH", 0)], PLAIN)
    middle = next((s.start + s.end) / 2 for s in speech.segments if s.phoneme == name)
    mouth = lips(speech.segments, 200, fps=100)
    assert mouth.shape == (200, 6) and mouth.dtype == np.float32
    return mouth[round(middle * 100 - 0.5), LIP_COLUMNS.index(column)]

  assert shape("UW", "lip_round") > 0.6 > 0.1 > shape("IY", "lip_round")
  assert shape("IY", "lip_width") > 0.4 > -0.3 > shape("W", "lip_width")
  assert shape("F", "lip_tuck") > 0.6 and shape("TH", "tongue") > 0.6 > 0.1 > shape("IY", "tongue")
  assert shape("AA", "jaw") > 2 * shape("S", "jaw")


def test_the_mouth_rests_in_silence_and_moves_more_with_strength():
  speech = speak(SENTENCE, PLAIN, lead=0.6, tail=0.6)
  still = lips(speech.segments, len(speech.audio) // SAMPLES_PER_FRAME)
  assert np.abs(still[:10]).max() < 0.05 and np.abs(still[-8:]).max() < 0.05
  assert opening(speech, strength=1.3).mean() > 1.15 * opening(speech, strength=1.0).mean()


def test_frame_phonemes_are_what_sounds_at_each_frame():
  speech = speak("A box", PLAIN, lead=0.2)
  ids = frame_phonemes(speech.segments, len(speech.audio) // SAMPLES_PER_FRAME + 5)
  assert ids[:5].tolist() == [0] * 5 and ids[-5:].tolist() == [0] * 5
  names = [PHONEMES[i].name for i in ids]
  assert [n for n, before in zip(names, ["", *names], strict=False) if n != before] == [
    *("SIL", "AH", "B", "AA", "K", "S", "SIL")
  ]


def test_speech_is_made_many_times_faster_than_it_lasts():
  speak(SENTENCE, PLAIN)
  start = time.process_time()
  seconds = sum(speak(sentences("train")[i], draw_voice(i)).duration for i in range(5))
  assert seconds > 10 * (time.process_time() - start)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: speak("...", PLAIN), "nothing to say; give at least one word"),
    (lambda: speak([("SIL", 0)], PLAIN), "nothing to say; give at least one phoneme"),
    (lambda: speak([("XX", 0)], PLAIN), "phoneme 'XX' is not known; give one of SIL, AA"),
    (lambda: speak("a", PLAIN, tail=-1.0), "0 s or more; lead is 0.2 and tail -1.0"),
    (lambda: prosody("bored", 3, 0), "emotion 'bored' is not known; give one of angry"),
    (lambda: prosody("happy", 4, 0), "level 4 is not known; give one of 1, 2, 3"),
  ],
)
def test_errors_say_what_to_give(call, message):
  with pytest.raises(InputError, match=message):
    call()
