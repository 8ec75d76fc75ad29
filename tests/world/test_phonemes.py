"""The sounds of English, how words are pronounced, and what is said."""

import re

import pytest

from dicetalk_jax.errors import InputError
from dicetalk_jax.world import parameters
from dicetalk_jax.world.lexicon import DICTIONARY
from dicetalk_jax.world.phonemes import INDEX, LIP_COLUMNS, PHONEMES
from dicetalk_jax.world.sentences import pronounce, sentences


def said(text):
  """As a dictionary writes it: AA1 for a stressed AA."""
  return " ".join(name + "1" * stress for name, stress in pronounce(text))


def words(split):
  return {word for sentence in sentences(split) for word in re.findall("[a-z']+", sentence.lower())}


def test_inventory_is_english_with_silence_first():
  assert PHONEMES[0].name == "SIL" and len(PHONEMES) == 40 == len(INDEX)
  assert all(PHONEMES[INDEX[name]].is_voiced for name in ("AA", "M", "Z", "JH", "W"))
  assert not any(PHONEMES[INDEX[name]].is_voiced for name in ("P", "S", "HH", "CH", "SIL"))


def test_every_sound_can_be_said_and_shown():
  for phoneme in PHONEMES:
    for formants in (phoneme.formants, phoneme.end or phoneme.formants):
      assert list(formants) == sorted(formants) and formants[0] > 200 and formants[3] < 4000, phoneme.name
    assert 0 < phoneme.minimum < phoneme.duration
    for mouth in (phoneme.mouth, phoneme.mouth_end or phoneme.mouth):
      for name, value in zip(LIP_COLUMNS, mouth, strict=True):
        range_ = parameters.PARAMETERS[parameters.INDEX[name]]
        assert range_.low <= value <= range_.high, (phoneme.name, name)
  assert [p.name for p in PHONEMES if p.mouth.lip_press == 1] == ["M", "P", "B"]
  assert [p.name for p in PHONEMES if p.mouth.lip_tuck == 1] == ["F", "V"]


def test_dictionary_says_only_sounds_there_are():
  assert len(DICTIONARY) > 600
  for word, sounds in DICTIONARY.items():
    assert {name for name, _ in sounds} <= INDEX.keys(), word
    assert sum(stress for _, stress in sounds) <= 1, word
    assert all(PHONEMES[INDEX[name]].is_vowel for name, stress in sounds if stress), word


@pytest.mark.parametrize(
  ("text", "sounds"),
  [
    ("The cat's asleep", "DH AH K AE1 T S AH S L IY1 P"),
    ("boxes walked landed", "B AA1 K S AH Z W AO1 K T L AE1 N D AH D"),
    ("21", "T W EH1 N T IY W AH1 N"),
    ("1,004", "W AH1 N TH AW1 Z AH N D F AO1 R"),
    ("007", "Z IH1 R OW Z IH1 R OW S EH1 V AH N"),
    ("5%", "F AY1 V P ER S EH1 N T"),
    ("Stop. Go, now", "S T AA1 P SIL SIL G OW1 SIL N AW1"),
    ("don’t", "D OW1 N T"),
  ],
)
def test_text_is_pronounced(text, sounds):
  assert said(text) == sounds


@pytest.mark.parametrize(
  ("word", "sounds"),
  [
    ("nation", "N EY1 SH AH N"),
    ("knight", "N AY1 T"),
    ("telephone", "T EH1 L EH F OW N"),
    ("purple", "P ER1 P AH L"),
    ("zebra", "Z EH1 B R AH"),
    ("jumped", "JH AH1 M P T"),
    ("BBC", "B IY1 B IY1 S IY1"),
    ("naïve", "N EY1 V"),
  ],
)
def test_unknown_words_follow_their_letters(word, sounds):
  assert word.lower() not in DICTIONARY
  assert said(word) == sounds


def test_any_letters_at_all_can_be_said():
  for word in ("xyzzy", "strč", "brrr", "Llanfairpwll", "mhm", "aaaaa", "o'clock", "rock'n'roll", "e", "qq"):
    assert any(PHONEMES[INDEX[name]].is_vowel for name, _ in pronounce(word)), word


@pytest.mark.parametrize("text", ["", " \n", "...", "?!", "你好", "- ' -"])
def test_text_with_nothing_to_say_is_refused(text):
  with pytest.raises(InputError, match="nothing to say; give at least one word"):
    pronounce(text)


def test_sentences_of_training_and_test_are_different_ones_of_the_same_words():
  train, test = sentences("train"), sentences("test")
  assert len(set(train)) == len(train) >= 120 and len(set(test)) == len(test) >= 30
  assert not set(train) & set(test)
  assert len(words("test") & words("train")) > 0.9 * len(words("test"))
  with pytest.raises(InputError, match="'valid' is not known; give train or test"):
    sentences("valid")


def test_sentences_of_either_split_hold_every_sound():
  for split, missing in (("train", set()), ("test", {"ZH", "OY", "UH", "CH"})):
    found = {name for sentence in sentences(split) for name, _ in pronounce(sentence)}
    assert set(INDEX) - {"SIL"} - found <= missing
