"""Letter-to-sound rules for words that are not in the dictionary.

The rules have the form of Elovitz et al. (1976), Letter-to-sound rules for automatic translation of English text
to phonetics.
"""

import re
from collections.abc import Iterable

from dicetalk_jax.world.phonemes import INDEX, PHONEMES

Pronunciation = tuple[tuple[str, int], ...]

# before<letters>after=phonemes; the first three are regular expressions, and the first rule that fits applies. A vowel
# before a single consonant and a silent e is long.
_RULES = r"""
^<rh>=R; [^aeiouy]<le>$=AH L; [aeiouy].*[pksfxh]<ed>$=T; [aeiouy].*[td]<ed>$=AH D; <a>tion=EY; <a>nge=EY; <ng>er=NG G;
<ng>[ei]=N JH; <tion>=SH AH N; <ssion>=SH AH N; [aeiou]<sion>=ZH AH N; <cious>=SH AH S; <tious>=SH AH S;
<ture>$=CH ER; <sure>$=ZH ER; [cstx]<ial>$=AH L; <cia>=SH AH; <eigh>=EY; <augh>=AO; <ough>t=AO; <ough>$=OW; <igh>=AY;
<ould>=UH D; ^<kn>=N; ^<gn>=N; ^<wr>=R; ^<ps>=S; ^<pn>=N; <tch>=CH; <dge>=JH; <sch>=S K; <chr>=K R; <ch>=CH; <sh>=SH;
<ph>=F; <th>er=DH; <th>=TH; ^<wh>o=HH; <wh>=W; <gh>[aeiou]=G; <gh>=; <ck>=K; <qu>=K W; <mb>$=M; <mn>$=M; <nge>$=N JH;
<ng>[aeiourl]=NG G; <ng>=NG; <nk>=NG K; <sc>[eiy]=S; <x>$=K S; ^<x>=Z; <x>=K S; <cc>[eiy]=K S; <c>[eiy]=S; <c>=K;
^<g>[ei]t=G; <gg>=G; <g>[eiy]=JH; <gu>[ei]=G; <g>=G; <ss>=S; [aeiou]<s>[aeiou]=Z; [aeioubdglmnrvw]<s>$=Z; <s>=S;
<bb?>=B; <dd?>=D; <ff?>=F; <h>$=; <h>=HH; <j>=JH; <kk?>=K; <ll?>=L; <mm?>=M; <nn?>=N; <pp?>=P; <q>=K; <rr?>=R;
<tt?>=T; <vv?>=V; <w>$=; <w>=W; ^<y>[aeiou]=Y; <zz?>=Z; <aire?>=EH R; <eare?>$=IH R; <eer>=IH R; <our>=AO R;
<oor>=AO R; <are>$=EH R; <ere>$=IH R; <ire>$=AY ER; <ore>$=AO R; <ure>$=Y UH R; [w]<ar>=AO R; <ar>[aeiou]=EH R;
<ar>=AA R; [w]<or>=ER; .[^aeiou].*<or>$=ER; <or>=AO R; <ear>[nlt]=ER; <er>[aeiou]=EH R; <[eiu]rr?>([^aeiouy]|$)=ER;
<a[iy]>=EY; <a[uw]>=AO; <eau>=OW; <ea>d$=EH; <ea>=IY; <e[iy]>$=IY; c<ei>=IY; <e[iy]>=EY; <eu>=Y UW; [rljc]<ew>=UW;
<ew>=Y UW; <ee>=IY; ^[^aeiou]+<ie>$=AY; <ie>=IY; <oa>=OW; <oi>=OY; <oy>=OY; <oo>[kdt]=UH; <oo>=UW; ^s<ou>[pv]=UW;
[^aeiou]{1}<ous>$=AH S; <ou>=AW; <ow>[nl]$=AW; .[^aeiou]<ow>$=OW; ^[nhcbw]<ow>=AW; <ow>=OW; <oe>$=OW; <ue>$=UW;
<ui>=UW; <all>$=AO L; <al>k=AO; <ol>[dt]=OW L; <i>nd$=AY; <i>ld$=AY; <a>[^aeiouywx]e(s|d)?$=EY;
<e>[^aeiouywx]e(s|d)?$=IY; <i>[^aeiouywxr]e(s|d)?$=AY; <o>[^aeiouywx]e(s|d)?$=OW; [rljsc]<u>[^aeiouywx]e(s|d)?$=UW;
<u>[^aeiouywx]e(s|d)?$=Y UW; <a>$=AH; <a>ge$=IH; <a>=AE; [^aeiouy][aeiouy].*<e>$=; [^aeiou].*[aeiouy].*<e>s$=;
^[^aeiouy]+<e>$=IY; .[aeiouy].*<e>d$=; <e>$=; <e>=EH; ^[^aeiou]*<i>$=AY; <i>$=IY; <io>=IY OW; <ia>=IY AH; <i>=IH;
<o>$=OW; <o>=AA; <u>$=UW; [pbfh]<u>ll|sh=UH; <u>[^aeiouy][aeiou]=UW; <u>=AH; ^[^aeiou]*<y>$=AY; <y>$=IY; <y>=IH
"""
_LETTERS = dict(
  **dict(a="EY1", b="B IY1", c="S IY1", d="D IY1", e="IY1", f="EH1 F", g="JH IY1", h="EY1 CH", i="AY1", j="JH EY1"),
  **dict(k="K EY1", l="EH1 L", m="EH1 M", n="EH1 N", o="OW1", p="P IY1", q="K Y UW1", r="AA1 R", s="EH1 S", t="T IY1"),
  **dict(u="Y UW1", v="V IY1", w="D AH1 B AH L Y UW", x="EH1 K S", y="W AY1", z="Z IY1"),
)

_STRESSED_BEFORE_LAST = re.compile("([cst]ion|ic|ical|ity)$")


def marked(sounds: Iterable[str]) -> Pronunciation:
  """Phonemes such as AA1, with 1 for stress -> (phoneme, stress) pairs."""
  return tuple((sound.rstrip("1"), int(sound.endswith("1"))) for sound in sounds)


def by_rule(word: str) -> Pronunciation:
  """A word of a to z and apostrophes -> (phoneme, stress) pairs; a word without vowels is spelled out."""
  word = word.replace("'", "")
  if len(word) == 1 or not re.search("[aeiouy]", word):
    return _letter_by_letter(word)
  sounds, at = [], 0
  while at < len(word):
    more, at = _next_sounds(word, at)
    sounds += more
  vowels = [i for i, name in enumerate(sounds) if PHONEMES[INDEX[name]].is_vowel]
  if not vowels:
    return _letter_by_letter(word)
  # Most English words are stressed on the first syllable.
  late = len(vowels) > 1 and _STRESSED_BEFORE_LAST.search(word)
  stressed = vowels[-2] if late else vowels[0]
  return tuple((name, int(i == stressed)) for i, name in enumerate(sounds))


def _letter_by_letter(word: str) -> Pronunciation:
  return tuple(pair for letter in word for pair in marked(_LETTERS[letter].split()))


def _next_sounds(word: str, at: int) -> tuple[list[str], int]:
  """The phonemes of the letters from `at` on, and the place of the next letters."""
  for before, letters, after, sounds in _PARSED:
    match = letters.match(word, at)
    if match and before.search(word[:at]) and after.match(word[match.end() :]):
      return sounds, match.end()
  return [], at + 1


def _parsed(rules: str):
  for rule in rules.replace("\n", " ").split(";"):
    left, sounds = rule.strip().split("=")
    before, letters, after = re.split("[<>]", left)
    yield re.compile(f"(?:{before})$"), re.compile(letters), re.compile(after), sounds.split()


_PARSED = tuple(_parsed(_RULES))
