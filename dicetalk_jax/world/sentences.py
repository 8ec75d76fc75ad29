"""Sentences of the drawn world, which fit any emotion, and the pronunciation of English text."""

import re

from dicetalk_jax.errors import InputError
from dicetalk_jax.world.lexicon import number_words, word_phonemes

# Number of SIL phonemes for a punctuation mark; `timing` sets their length.
_PAUSES = {",": 1, ";": 1, ":": 1, "(": 1, ")": 1, "—": 1, "–": 1, ".": 2, "!": 2, "?": 2, "…": 2, "\n": 2}
_TOKEN = re.compile(r"\d+(?:,\d{3})*|[^\W\d_]+(?:['’][^\W\d_]+)*|[,;:()—–.!?…\n]|\s-+\s|[%&$€£+=@]")
_SYMBOLS = {"%": "percent", "&": "and", "+": "plus", "=": "equals", "@": "at"}
_SYMBOLS |= {"$": "dollars", "€": "euros", "£": "pounds"}


def pronounce(text: str) -> list[tuple[str, int]]:
  """English text -> (phoneme, stress) pairs, with stress 1 on the stressed vowel of a word.

  Punctuation becomes SIL: one for a comma, two for the end of a sentence. Words outside the dictionary follow
  letter-to-sound rules; numbers are read out. Raises InputError for text without words.
  """
  phonemes, pause = [], 0
  for token in _TOKEN.findall(text):
    words = _words(token)
    if not words:
      pause = max(pause, _PAUSES.get(token, 1))
      continue
    if phonemes:
      phonemes += [("SIL", 0)] * pause
    pause = 0
    for word in words:
      phonemes += word_phonemes(word)
  if not phonemes:
    raise InputError(f"the text {text[:60]!r} has nothing to say; give at least one word in Latin letters or a number")
  return phonemes


def _words(token: str) -> list[str]:
  if token[0].isdigit():
    return number_words(token.replace(",", ""))
  if token in _SYMBOLS:
    return [_SYMBOLS[token]]
  word = token.replace("’", "'").lower()
  return [word] if word_phonemes(word) else []


def sentences(split: str) -> tuple[str, ...]:
  """The sentences of the split "train" or "test", which share none. Raises InputError for another split."""
  if split not in _SENTENCES:
    raise InputError(f"the split {split!r} is not known; give train or test")
  return _SENTENCES[split]


_SENTENCES = {
  "train": (
    "The train to the city leaves at seven.",
    "She put the blue cup on the kitchen table.",
    "We walked along the river before lunch.",
    "My brother keeps his books in a box.",
    "There are five apples in the bowl.",
    "He parked the car behind the house.",
    "The meeting begins at half past nine.",
    "They painted the door a dark green.",
    "I bought some bread and a bottle of milk.",
    "The children are playing with the ball.",
    "Please put the papers on my desk.",
    "Her office is on the second floor.",
    "The boat moved slowly over the water.",
    "We have visited this museum before.",
    "It is a long way from here to the farm.",
    "Both of the windows are open.",
    "The teacher wrote a word on the board.",
    "You can find the map beside the door.",
    "A small brown dog sat under the tree.",
    "They usually have fish for dinner.",
    "I will call you in the morning.",
    "The bus stops in front of the bank.",
    "He has a picture of the old bridge.",
    "My mother works at the museum.",
    "The shop opens early on Monday.",
    "We need paper, pens and a large box.",
    "The weather may change this evening.",
    "She told me about the new office.",
    "He wears a white shirt and brown shoes.",
    "Our garden has a wooden fence.",
    "The movie begins in about ten minutes.",
    "I left the keys on the small table.",
    "Someone moved the chair to the window.",
    "The farmer has seven black horses.",
    "We watched the boats go by.",
    "They built a wooden house by the lake.",
    "The number of the room is forty two.",
    "She usually takes the first bus to work.",
    "He opened the book and read a page.",
    "The road goes over the hill and down to the lake.",
    "My father made a pot of vegetable soup.",
    "It should be warm by the weekend.",
    "Two people asked me about the map.",
    "The paper is thin and very smooth.",
    "We changed the colour of the wall.",
    "You should bring a coat and an umbrella.",
    "The clock above the door is slow.",
    "She boiled the water and made some tea.",
    "The boys measured the length of the garden.",
    "He usually has coffee with his breakfast.",
    "There is a phone call for you.",
    "The bag beside the chair is mine.",
    "We will be back before the evening.",
    "I heard the same song on the radio.",
    "The blue shirt costs twenty pounds.",
    "Her voice was on the radio today.",
    "They have moved to a house near the beach.",
    "The train stops at each station.",
    "He poured the milk into a glass.",
    "The river is wide at this point.",
    "We put the plates back on the shelf.",
    "My sister has a job at the bank.",
    "The letter came in a brown paper bag.",
    "I think the boy is eight years old.",
    "The book about birds is on the top shelf.",
    "She asked him for the time.",
    "Most people here go to work by train.",
    "The path goes through the woods to the beach.",
    "He fixed the wheel with a piece of rope.",
    "Could you show me the way to the station?",
    "The cook cut the bread with a thin knife.",
    "We usually meet on Thursday morning.",
    "Someone should water the plants today.",
    "The football game begins at three.",
    "A large bird flew over the field.",
    "They sell fruit and vegetables here.",
    "The house has four rooms and a garden.",
    "My watch shows ten minutes past six.",
    "You may put your bags in the other room.",
    "We could hear music from the street.",
    "The bridge was built in the spring.",
    "She gave the boy a pencil and some paper.",
    "The mayor spoke for about five minutes.",
    "I have never been to the south of France.",
    "Put a spoon of sugar in the coffee.",
    "He washed the cups and the plates.",
    "The farm is about five miles from here.",
    "They both wore gloves and a hat.",
    "The visitors came through the main door.",
    "We bought the paper at the corner shop.",
    "The first chapter is about a voyage.",
    "She drives to the office every day.",
    "How many people are in the room?",
    "The cat is asleep on the chair.",
    "We usually go for a walk on Sunday.",
    "He found the box behind the sofa.",
    "There were two pictures above the table.",
    "The baker makes bread every morning.",
    "I put your coat in the other room.",
    "The page is marked with a yellow pen.",
    "My friend works for a big company.",
    "You can see the lake from the bridge.",
    "They gave us a map of the city.",
    "The water in the pool is warm.",
    "She put five eggs into the bowl.",
    "The moon was above the trees.",
    "We should leave the house by eight.",
    "He wrote the number on a piece of paper.",
    "The old road is beside the river.",
    "What time does the museum open?",
    "The student read the whole page.",
    "A man in a grey coat came by.",
    "The table is made of smooth brown wood.",
    "I usually sit near the window.",
    "The doctor will see you in the afternoon.",
    "They have a shop on the main street.",
    "My uncle makes chairs and tables.",
    "The plane to Boston leaves at noon.",
    "We made a plan for the weekend.",
    "The boxes are by the garage door.",
    "He turned the page and read the next word.",
    "She has a brother and two sisters.",
    "The bottle on the shelf is full.",
    "Did you hear the news this morning?",
    "The group will meet in the big room.",
    "I read about the voyage in the paper.",
    "The fire was made of old wood.",
    "Most of the shops are open on Friday.",
    "We keep the maps in a blue box.",
    "The woman beside me has a yellow hat.",
    "He usually plays football on Wednesday.",
    "Their house is behind the church.",
  ),
  "test": (
    "The bus to the museum leaves at nine.",
    "My sister put the keys in her coat.",
    "We walked to the station this morning.",
    "He has five brown boxes in the garage.",
    "The shop beside the bank is open.",
    "She wrote the number on the board.",
    "They usually have tea in the garden.",
    "There is a small lake behind the farm.",
    "I bought a map and two bottles of water.",
    "The boy moved his chair to the table.",
    "Please bring me the book from the shelf.",
    "The old bridge goes over the river.",
    "My father works in the city.",
    "You can see the boats from my window.",
    "The meeting is on the second floor.",
    "A large black bird sat on the wall.",
    "We should be home before dinner.",
    "He read the letter and put it on the desk.",
    "The children painted a big yellow fish.",
    "Her office opens at eight on Monday.",
    "They found the picture under the sofa.",
    "Could you show me the other room?",
    "The path to the beach is very long.",
    "Someone left a white bag by the door.",
    "I think the train stops here.",
    "The cook made soup for ten people.",
    "What is the name of this street?",
    "My mother keeps the cups in a wooden box.",
    "We watched the game with my brother.",
    "The doctor usually comes on Thursday.",
    "She gave him a pen and some paper.",
    "The horse is under the big tree.",
  ),
}
