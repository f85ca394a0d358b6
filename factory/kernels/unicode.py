"""Tables over code points that the kernels look things up in; each is built at first use and kept.

Where a code point has several properties its entry is a sum of the flags below.
"""

from __future__ import annotations

import sys
import unicodedata
from functools import lru_cache

import numpy as np

LETTER, DIGIT, MARK, UNDERSCORE, SPACE, SYMBOL, TERMINAL, PUNCTUATION = (1 << bit for bit in range(8))
"""What `classes` says. LETTER, DIGIT: `str.isalpha`, `str.isalnum` of the rest. MARK: combining marks and the
invisible joiners, which continue a word. SPACE: `str.isspace`. SYMBOL: a word of such characters alone is a symbol to
Gopher's rules. TERMINAL: ends a sentence in some script. PUNCTUATION: general category P."""

HAN, HIRAGANA, KATAKANA, PROLONGED, INITIAL, LEADING, FOLLOWING = range(1, 8)
SYLLABLE, JOINER, STACKER, KILLER, TIBETAN, HANGUL = range(8, 14)
"""What `scripts` says of scripts that are written without spaces, or with few letters a word; 0 is any other.

HAN: each character is a word. HIRAGANA, KATAKANA: a run is a word; PROLONGED continues either. The rest is for
syllables. INITIAL: a consonant of Thai, Lao or Khmer. LEADING: a vowel written before its consonant. FOLLOWING:
what belongs to the letter before it. SYLLABLE: a letter of another script that begins a syllable. JOINER ties the
next letter to this one (Khmer coeng), STACKER also ends the syllable before (Myanmar virama), KILLER silences the
letter before it, which then ends a syllable (Myanmar asat). TIBETAN and HANGUL mark off their syllables and words
themselves; a letter of theirs is worth more than one of English.
"""

_TERMINAL = (
    "21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E 1735-1736 17D4-17D6 "
    "17D9-17DA 1803 1809 1944-1945 1AA8-1AAB 1B5A-1B5B 1B5E-1B5F 1B7D-1B7E 1C3B-1C3C 1C7E-1C7F 203C-203D 2047-2049 "
    "2E2E 2E3C 2E53-2E54 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB "
    "FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 11047-11048 110BE-110C1 11141-11143 "
    "111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 "
    "1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 "
    "16B37-16B38 16B44 16E98 1BC9F 1DA88"
)
_SYMBOL = (
    "0-8 B-1F 21-2F 3A-40 5B-60 7B-9F AB B4 BB 2013-2014 2019 201C-201E 2026 2236 2501 25BA 3001-3002 3008-300D "
    "3010-3011 FF01 FF05 FF08-FF09 FF0C FF0E FF11 FF1A-FF1B FF1F FF5E"
)
# Blocks of scripts without spaces, and the role of their letters.
_SCRIPTS = (
    (HAN, "2E80-2FDF 3005-3007 3021-3029 3038-303B 3400-4DBF 4E00-9FFF A000-A48C F900-FAFF 20000-3FFFF"),
    (HIRAGANA, "3041-309F 1B001-1B11F 1B150-1B152"),
    (KATAKANA, "30A1-30FF 31F0-31FF FF66-FF9D 3105-312F 31A0-31BF 1B000 1B164-1B167"),
    (PROLONGED, "30FC FF70"),
    (INITIAL, "0E01-0E2F 0E81-0EAE 0EDC-0EDF 1780-17B3"),
    (LEADING, "0E40-0E44 0EC0-0EC4"),
    (TIBETAN, "0F40-0FBC"),
    (HANGUL, "AC00-D7A3"),
    (SYLLABLE, "1000-102A 103F 1050-109F 1950-19DF 1A20-1A54 1B05-1B33 A984-A9B2 A9E0-A9FE AA00-AA28 AA60-AA7F"),
)
_FOLLOWING = "0E30-0E3A 0E45-0E46 0EB0-0EBD 0EC6 17D7 AA70"
_JOINERS = ((JOINER, "17D2 1A60 1B44 A9C0"), (STACKER, "1039"), (KILLER, "103A"))


def code_points(ranges: str) -> np.ndarray:
    """The code points named by `ranges`: hexadecimal numbers or first-last pairs, separated by spaces."""
    parts = []
    for part in ranges.split():
        first, _, last = part.partition("-")
        parts.append(np.arange(int(first, 16), int(last or first, 16) + 1))
    return np.concatenate(parts)


def _frozen(table: np.ndarray) -> np.ndarray:
    table.setflags(write=False)
    return table


def _assigned() -> list[int]:
    """Code points that can have a property: the planes beyond hold ideographs alone, which `classes` fills at once."""
    return [*range(0x20000), *range(0xE0100, 0xE01F0)]


@lru_cache(maxsize=1)
def classes() -> np.ndarray:
    """uint8[0x110000]: the flags of each code point."""
    table = np.zeros(sys.maxunicode + 1, np.uint8)
    category = unicodedata.category
    first = {"L": LETTER, "N": DIGIT, "M": MARK, "P": PUNCTUATION}
    for code in _assigned():
        table[code] = first.get(category(chr(code))[0], 0)
    table[0x20000:0x32000] = [LETTER * chr(code).isalpha() for code in range(0x20000, 0x32000)]
    table[code_points("AD 200C-200D")] = MARK
    table[0x5F] |= UNDERSCORE
    table[[code for code in range(0x3001) if chr(code).isspace()]] |= SPACE
    table[code_points(_SYMBOL)] |= SYMBOL
    table[code_points(_TERMINAL)] |= SYMBOL | TERMINAL
    return _frozen(table)


@lru_cache(maxsize=1)
def scripts() -> np.ndarray:
    """uint8[0x110000]: the role of each code point in a script without spaces, 0 elsewhere."""
    table = np.zeros(sys.maxunicode + 1, np.uint8)
    for role, ranges in _SCRIPTS:
        points = code_points(ranges)
        table[points[(classes()[points] & LETTER) > 0]] = role
    table[code_points("3007 3021-3029 3038-303A")] = HAN  # numerals by category, ideographs by use
    blocks = code_points("0E00-0EFF 1000-109F 1780-17FF 1A20-1AAF 1B00-1B7F A980-A9FF AA00-AA7F")
    table[blocks[(classes()[blocks] & MARK) > 0]] = FOLLOWING
    table[code_points(_FOLLOWING)] = FOLLOWING
    for role, ranges in _JOINERS:
        table[code_points(ranges)] = role
    return _frozen(table)


@lru_cache(maxsize=1)
def lower() -> np.ndarray:
    """uint32[0x20000]: the lower case of each code point that has a single one, else the code point itself.

    U+0130 alone has two in lower case (i and a dot above): kernels feed both.
    """
    table = np.arange(0x20000, dtype=np.uint32)
    for code in range(0x20000):
        small = chr(code).lower()
        if len(small) == 1:
            table[code] = ord(small)
    table[0x130] = ord("i")
    return _frozen(table)
