"""Pronunciation of words: a dictionary of common words, their inflections, and numbers."""

import functools
import unicodedata

from dicetalk_jax.world.phonemes import INDEX, PHONEMES
from dicetalk_jax.world.spelling import Pronunciation, by_rule, marked

# "word phonemes", with 1 after the stressed vowel; words that are unstressed in a sentence have none.
_WORDS = """
a AH, about AH B AW1 T, above AH B AH1 V, after AE1 F T ER, afternoon AE F T ER N UW1 N, again AH G EH1 N, all AO1 L,
alone AH L OW1 N, along AH L AO1 NG, also AO1 L S OW, always AO1 L W EY Z, am AE M, an AE N, and AE N D,
angry AE1 NG G R IY, animal AE1 N IH M AH L, answer AE1 N S ER, any EH1 N IY, apple AE1 P AH L, are AA R, arm AA1 R M,
ask AE1 S K, asleep AH S L IY1 P, at AE T, aunt AE1 N T, away AH W EY1, back B AE1 K, bad B AE1 D, bag B AE1 G,
bake B EY1 K, baker B EY1 K ER, ball B AO1 L, bank B AE1 NG K, be B IY, beach B IY1 CH, beautiful B Y UW1 T IH F AH L,
because B IH K AH Z, bed B EH1 D, been B IH N, before B IH F AO1 R, begin B IH G IH1 N, behind B IH HH AY1 N D,
believe B IH L IY1 V, beside B IH S AY1 D, best B EH1 S T, better B EH1 T ER, big B IH1 G, bird B ER1 D,
black B L AE1 K, blue B L UW1, board B AO1 R D, boat B OW1 T, boil B OY1 L, book B UH1 K, boston B AO1 S T AH N,
both B OW1 TH, bottle B AA1 T AH L, bought B AO1 T, bowl B OW1 L, box B AA1 K S, boy B OY1, bread B R EH1 D,
breakfast B R EH1 K F AH S T, bridge B R IH1 JH, bring B R IH1 NG, brother B R AH1 DH ER, brown B R AW1 N,
build B IH1 L D, built B IH1 L T, bus B AH1 S, busy B IH1 Z IY, but B AH T, buy B AY1, by B AY, call K AO1 L,
came K EY1 M, can K AE N, car K AA1 R, cat K AE1 T, chair CH EH1 R, change CH EY1 N JH, chapter CH AE1 P T ER,
child CH AY1 L D, children CH IH1 L D R AH N, church CH ER1 CH, city S IH1 T IY, clean K L IY1 N, clock K L AA1 K,
close K L OW1 Z, coat K OW1 T, coffee K AO1 F IY, cold K OW1 L D, color K AH1 L ER, colour K AH1 L ER, come K AH1 M,
company K AH1 M P AH N IY, computer K AH M P Y UW1 T ER, cook K UH1 K, corner K AO1 R N ER, cost K AO1 S T,
could K UH D, country K AH1 N T R IY, course K AO1 R S, cup K AH1 P, cut K AH1 T, dark D AA1 R K, daughter D AO1 T ER,
day D EY1, desk D EH1 S K, did D IH D, dinner D IH1 N ER, do D UW, doctor D AA1 K T ER, does D AH Z, dog D AO1 G,
dollar D AA1 L ER, done D AH1 N, door D AO1 R, down D AW1 N, dr D AA1 K T ER, drink D R IH1 NG K, drive D R AY1 V,
each IY1 CH, ear IH1 R, early ER1 L IY, eat IY1 T, egg EH1 G, eight EY1 T, eighteen EY T IY1 N, eighty EY1 T IY,
eleven IH L EH1 V AH N, emotion IH M OW1 SH AH N, end EH1 N D, english IH1 NG G L IH SH, enough IH N AH1 F,
equals IY1 K W AH L Z, euro Y UH1 R OW, even IY1 V AH N, evening IY1 V N IH NG, ever EH1 V ER, every EH1 V R IY,
eye AY1, face F EY1 S, family F AE1 M L IY, far F AA1 R, farm F AA1 R M, father F AA1 DH ER, fear F IH1 R,
feel F IY1 L, felt F EH1 L T, fence F EH1 N S, few F Y UW1, field F IY1 L D, fifteen F IH F T IY1 N,
fifty F IH1 F T IY, find F AY1 N D, fire F AY1 ER, first F ER1 S T, fish F IH1 SH, five F AY1 V, fix F IH1 K S,
flew F L UW1, floor F L AO1 R, food F UW1 D, foot F UH1 T, football F UH1 T B AO L, for F AO R, forty F AO1 R T IY,
found F AW1 N D, four F AO1 R, fourteen F AO R T IY1 N, france F R AE1 N S, friday F R AY1 D EY, friend F R EH1 N D,
from F R AH M, front F R AH1 N T, fruit F R UW1 T, full F UH1 L, game G EY1 M, garage G ER AA1 ZH,
garden G AA1 R D AH N, gave G EY1 V, get G EH1 T, girl G ER1 L, give G IH1 V, glass G L AE1 S, glove G L AH1 V,
go G OW1, gone G AO1 N, good G UH1 D, got G AA1 T, gray G R EY1, great G R EY1 T, green G R IY1 N, grey G R EY1,
ground G R AW1 N D, group G R UW1 P, guess G EH1 S, had HH AE D, half HH AE1 F, hand HH AE1 N D, happen HH AE1 P AH N,
happy HH AE1 P IY, has HH AE Z, hat HH AE1 T, have HH AE V, he HH IY, head HH EH1 D, hear HH IH1 R, heard HH ER1 D,
heart HH AA1 R T, hello HH AH L OW1, help HH EH1 L P, her HH ER, here HH IH1 R, high HH AY1, hill HH IH1 L,
him HH IH M, his HH IH Z, hold HH OW1 L D, home HH OW1 M, horse HH AO1 R S, hot HH AA1 T, hour AW1 ER, house HH AW1 S,
how HH AW1, hundred HH AH1 N D R AH D, i AY, idea AY D IY1 AH, if IH F, in IH N, into IH N T UW, is IH Z,
island AY1 L AH N D, it IH T, its IH T S, job JH AA1 B, just JH AH1 S T, keep K IY1 P, kept K EH1 P T, key K IY1,
kind K AY1 N D, kitchen K IH1 CH AH N, knew N UW1, knife N AY1 F, know N OW1, lake L EY1 K,
language L AE1 NG G W IH JH, large L AA1 R JH, last L AE1 S T, late L EY1 T, laugh L AE1 F, learn L ER1 N,
leave L IY1 V, left L EH1 F T, length L EH1 NG K TH, letter L EH1 T ER, life L AY1 F, light L AY1 T, like L AY1 K,
listen L IH1 S AH N, little L IH1 T AH L, live L IH1 V, long L AO1 NG, look L UH1 K, love L AH1 V, lunch L AH1 N CH,
machine M AH SH IY1 N, made M EY1 D, main M EY1 N, make M EY1 K, man M AE1 N, many M EH1 N IY, map M AE1 P,
mark M AA1 R K, may M EY, mayor M EY1 ER, me M IY, mean M IY1 N, measure M EH1 ZH ER, meet M IY1 T, men M EH1 N,
mile M AY1 L, milk M IH1 L K, million M IH1 L Y AH N, mine M AY1 N, minus M AY1 N AH S, minute M IH1 N AH T,
monday M AH1 N D EY, money M AH1 N IY, month M AH1 N TH, moon M UW1 N, more M AO1 R, morning M AO1 R N IH NG,
most M OW1 S T, mother M AH1 DH ER, mouth M AW1 TH, move M UW1 V, movie M UW1 V IY, mr M IH1 S T ER, mrs M IH1 S IH Z,
much M AH1 CH, museum M Y UW Z IY1 AH M, music M Y UW1 Z IH K, must M AH S T, my M AY, name N EY1 M, near N IH1 R,
need N IY1 D, never N EH1 V ER, new N UW1, news N UW1 Z, next N EH1 K S T, night N AY1 T, nine N AY1 N,
nineteen N AY N T IY1 N, ninety N AY1 N T IY, no N OW1, noon N UW1 N, not N AA1 T, nothing N AH1 TH IH NG, now N AW1,
number N AH1 M B ER, of AH V, off AO1 F, office AO1 F IH S, oh OW1, old OW1 L D, on AA N, once W AH1 N S, one W AH1 N,
only OW1 N L IY, open OW1 P AH N, or AO R, other AH1 DH ER, our AW ER, out AW1 T, over OW1 V ER, own OW1 N,
page P EY1 JH, paint P EY1 N T, paper P EY1 P ER, park P AA1 R K, past P AE S T, path P AE1 TH, pen P EH1 N,
pencil P EH1 N S AH L, people P IY1 P AH L, percent P ER S EH1 N T, person P ER1 S AH N, phone F OW1 N,
picture P IH1 K CH ER, piece P IY1 S, place P L EY1 S, plan P L AE1 N, plane P L EY1 N, plant P L AE1 N T,
plate P L EY1 T, play P L EY1, please P L IY1 Z, plus P L AH1 S, point P OY1 N T, police P AH L IY1 S, pool P UW1 L,
pot P AA1 T, pound P AW1 N D, pour P AO1 R, pretty P R IH1 T IY, put P UH1 T, question K W EH1 S CH AH N,
quick K W IH1 K, quiet K W AY1 AH T, quite K W AY1 T, radio R EY1 D IY OW, read R EH1 D, ready R EH1 D IY,
really R IH1 L IY, red R EH1 D, remember R IH M EH1 M B ER, right R AY1 T, river R IH1 V ER, road R OW1 D,
room R UW1 M, rope R OW1 P, run R AH1 N, sad S AE1 D, said S EH1 D, same S EY1 M, sat S AE1 T,
saturday S AE1 T ER D EY, saw S AO1, say S EY1, says S EH1 Z, school S K UW1 L, second S EH1 K AH N D, see S IY1,
seen S IY1 N, sell S EH1 L, seven S EH1 V AH N, seventeen S EH V AH N T IY1 N, seventy S EH1 V AH N T IY,
shall SH AE L, she SH IY, shelf SH EH1 L F, shirt SH ER1 T, shoe SH UW1, shop SH AA1 P, should SH UH D, show SH OW1,
side S AY1 D, simple S IH1 M P AH L, since S IH1 N S, sister S IH1 S T ER, sit S IH1 T, six S IH1 K S,
sixteen S IH K S T IY1 N, sixty S IH1 K S T IY, sleep S L IY1 P, slow S L OW1, small S M AO1 L, smile S M AY1 L,
smooth S M UW1 DH, so S OW1, sofa S OW1 F AH, some S AH M, someone S AH1 M W AH N, something S AH1 M TH IH NG,
son S AH1 N, song S AO1 NG, soon S UW1 N, sorry S AA1 R IY, sound S AW1 N D, soup S UW1 P, south S AW1 TH,
speak S P IY1 K, speech S P IY1 CH, spoke S P OW1 K, spoon S P UW1 N, spring S P R IH1 NG, stand S T AE1 N D,
start S T AA1 R T, station S T EY1 SH AH N, stay S T EY1, still S T IH1 L, stop S T AA1 P, story S T AO1 R IY,
street S T R IY1 T, student S T UW1 D AH N T, such S AH1 CH, sugar SH UH1 G ER, summer S AH1 M ER, sun S AH1 N,
sunday S AH1 N D EY, sure SH UH1 R, surprise S ER P R AY1 Z, sweet S W IY1 T, table T EY1 B AH L, take T EY1 K,
talk T AO1 K, tea T IY1, teach T IY1 CH, tell T EH1 L, ten T EH1 N, than DH AE N, thank TH AE1 NG K, that DH AE T,
the DH AH, their DH EH R, them DH EH M, then DH EH1 N, there DH EH1 R, these DH IY1 Z, they DH EY, thin TH IH1 N,
thing TH IH1 NG, think TH IH1 NG K, third TH ER1 D, thirteen TH ER T IY1 N, thirty TH ER1 T IY, this DH IH S,
those DH OW1 Z, though DH OW1, thought TH AO1 T, thousand TH AW1 Z AH N D, three TH R IY1, through TH R UW,
thursday TH ER1 Z D EY, time T AY1 M, to T UW, today T AH D EY1, together T AH G EH1 DH ER, told T OW1 L D,
tomorrow T AH M AA1 R OW, tonight T AH N AY1 T, too T UW1, top T AA1 P, toward T AO1 R D, town T AW1 N,
train T R EY1 N, tree T R IY1, true T R UW1, try T R AY1, tuesday T UW1 Z D EY, turn T ER1 N, twelve T W EH1 L V,
twenty T W EH1 N T IY, two T UW1, umbrella AH M B R EH1 L AH, uncle AH1 NG K AH L, under AH1 N D ER,
until AH N T IH1 L, up AH1 P, us AH S, use Y UW1 Z, usual Y UW1 ZH UW AH L, usually Y UW1 ZH UW AH L IY,
vegetable V EH1 JH T AH B AH L, very V EH1 R IY, video V IH1 D IY OW, visit V IH1 Z IH T, visitor V IH1 Z IH T ER,
voice V OY1 S, voyage V OY1 IH JH, wait W EY1 T, walk W AO1 K, wall W AO1 L, want W AA1 N T, warm W AO1 R M,
was W AH Z, wash W AA1 SH, watch W AA1 CH, water W AO1 T ER, way W EY1, we W IY, wear W EH1 R, weather W EH1 DH ER,
wednesday W EH1 N Z D EY, week W IY1 K, weekend W IY1 K EH N D, well W EH1 L, went W EH1 N T, were W ER, what W AH1 T,
wheel W IY1 L, when W EH1 N, where W EH1 R, which W IH1 CH, while W AY1 L, white W AY1 T, who HH UW1, whole HH OW1 L,
whose HH UW1 Z, why W AY1, wide W AY1 D, wife W AY1 F, will W IH L, wind W IH1 N D, window W IH1 N D OW,
winter W IH1 N T ER, with W IH DH, woman W UH1 M AH N, women W IH1 M IH N, wonder W AH1 N D ER, wood W UH1 D,
wooden W UH1 D AH N, word W ER1 D, wore W AO1 R, work W ER1 K, world W ER1 L D, would W UH D, write R AY1 T,
wrote R OW1 T, year Y IH1 R, yellow Y EH1 L OW, yes Y EH1 S, yesterday Y EH1 S T ER D EY, yet Y EH1 T, you Y UW,
young Y AH1 NG, your Y AO R, zero Z IH1 R OW, can't K AE1 N T, couldn't K UH1 D AH N T, didn't D IH1 D AH N T,
doesn't D AH1 Z AH N T, don't D OW1 N T, hasn't HH AE1 Z AH N T, haven't HH AE1 V AH N T, he'll HH IY L, i'd AY D,
i'll AY L, i'm AY M, i've AY V, isn't IH1 Z AH N T, it'll IH T AH L, she'll SH IY L, shouldn't SH UH1 D AH N T,
they'll DH EY L, they're DH EH R, they've DH EY V, wasn't W AA1 Z AH N T, we'll W IY L, we're W IH R, we've W IY V,
weren't W ER1 N T, won't W OW1 N T, wouldn't W UH1 D AH N T, you'll Y UW L, you're Y UH R, you've Y UW V
"""


def _parse(entries: str) -> dict[str, Pronunciation]:
  words = {}
  for entry in entries.replace("\n", " ").split(","):
    word, *sounds = entry.split()
    words[word] = marked(sounds)
  return words


DICTIONARY = _parse(_WORDS)


@functools.cache
def word_phonemes(word: str) -> Pronunciation:
  """A word in lower case -> (phoneme, stress) pairs: from the dictionary, as an inflection, or by rule.

  Empty for a word without Latin letters.
  """
  word = _plain(word)
  if not word.strip("'"):
    return ()
  if word in DICTIONARY:
    return DICTIONARY[word]
  word = word.strip("'")
  return DICTIONARY.get(word) or _inflected(word) or by_rule(word)


def _plain(word: str) -> str:
  """Letters a to z and apostrophes, without accents."""
  plain = unicodedata.normalize("NFKD", word.lower().replace("ß", "ss").replace("æ", "ae").replace("ø", "o"))
  return "".join(c for c in plain if c == "'" or "a" <= c <= "z")


def _inflected(word: str) -> Pronunciation | None:
  """Plurals, past tenses, -ing, -er, -est, -ly and compounds of words in the dictionary."""
  for ending, stems, add in (
    ("'s", ("",), _with_s),
    ("s", ("",), _with_s),
    ("es", ("", "e"), _with_s),
    ("ies", ("y",), _with_s),
    ("ed", ("", "e"), _with_ed),
    ("ied", ("y",), _with_ed),
    ("ing", ("", "e"), lambda base: (*base, ("IH", 0), ("NG", 0))),
    ("er", ("", "e"), lambda base: (*base, ("ER", 0))),
    ("est", ("", "e"), lambda base: (*base, ("AH", 0), ("S", 0), ("T", 0))),
    ("ly", ("",), lambda base: (*base, ("L", 0), ("IY", 0))),
  ):
    if not word.endswith(ending) or len(word) < len(ending) + 2:
      continue
    stem = word[: -len(ending)]
    candidates = [stem + more for more in stems]
    if len(stem) > 2 and stem[-1] == stem[-2]:
      candidates.append(stem[:-1])
    for candidate in candidates:
      if candidate in DICTIONARY:
        return add(DICTIONARY[candidate])
  for cut in range(3, len(word) - 2):
    first, second = DICTIONARY.get(word[:cut]), DICTIONARY.get(word[cut:])
    if first and second:
      return (*first, *((name, 0) for name, _ in second))
  return None


def _with_s(base: Pronunciation) -> Pronunciation:
  last = base[-1][0]
  if last in ("S", "Z", "SH", "ZH", "CH", "JH"):
    return (*base, ("AH", 0), ("Z", 0))
  return (*base, ("Z" if PHONEMES[INDEX[last]].is_voiced else "S", 0))


def _with_ed(base: Pronunciation) -> Pronunciation:
  last = base[-1][0]
  if last in ("T", "D"):
    return (*base, ("AH", 0), ("D", 0))
  return (*base, ("D" if PHONEMES[INDEX[last]].is_voiced else "T", 0))


_ONES = (
  *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
  *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def number_words(digits: str) -> list[str]:
  """Digits -> English words; digit by digit beyond millions and with a leading zero."""
  if len(digits) > 9 or (len(digits) > 1 and digits[0] == "0"):
    return [_ONES[int(digit)] for digit in digits]
  value = int(digits)
  if value < 20:
    return [_ONES[value]]
  if value < 100:
    return [_TENS[value // 10], *([_ONES[value % 10]] if value % 10 else [])]
  for unit, name in ((1_000_000, "million"), (1000, "thousand"), (100, "hundred")):
    if value >= unit:
      rest = value % unit
      return [*number_words(str(value // unit)), name, *(number_words(str(rest)) if rest else [])]
  raise AssertionError(digits)
