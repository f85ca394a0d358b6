"""Lines taken out of documents by C4's rules."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from factory.engine.step import Memo
from factory.kernels import jit, unicode
from factory.kernels.arrow import string_array, view
from factory.kernels.english import BEFORE_DOT, LOWER, QUOTE, UPPER, flags
from factory.kernels.hashing import decode
from factory.kernels.lines import last_point, strip
from factory.kernels.lookup import EXCEPTION, known, table
from factory.kernels.unicode import DIGIT, LETTER, PUNCTUATION, SPACE, TERMINAL
from factory.kernels.words import words


class Rules(NamedTuple):
    """C4's rules for a line; 0 turns a limit off."""

    citations: bool
    words: int
    word_length: int
    lorem: bool
    javascript: bool
    bracket: bool
    policy: bool


# What a byte may be to the search for line ends and words.
_LINE = np.zeros(256, np.uint8)
_LINE[[10, 11, 12, 28, 29, 30]] = 1
_LINE[13] = 2
_LINE[[9, 31, 32]] = 3
_LINE[0x80:] = 4
# A phrase is looked for by a letter that is rare: (letter, phrase), those of one letter together.
_PHRASES = (
    ("j", "javascript"), ("k", "cookie policy"), ("k", "uses cookies"), ("k", "use of cookies"), ("k", "use cookies"),
    ("v", "privacy policy"), ("f", "terms of use"), ("p", "lorem ipsum"),
)  # fmt: skip
_CLUE = np.zeros(256, np.uint8)
_SPELLED = np.zeros((len(_PHRASES), 16), np.uint8)
_AT = np.array([phrase.index(letter) for letter, phrase in _PHRASES])
for _number, (_letter, _phrase) in reversed(list(enumerate(_PHRASES))):
    _CLUE[[ord(_letter), ord(_letter.upper())]] = _number + 1
    _SPELLED[_number, : len(_phrase)] = np.frombuffer(_phrase.encode(), np.uint8)
_CLUE[ord("{")] = 255
_LOREM, _JAVASCRIPT, _BRACKET, _POLICY = 1, 2, 4, 8


@jit
def _signs(text, start, end, clue, spelled, at):
    """Which of the phrases `text[start:end]` has: lorem ipsum 1, javascript 2, a curly bracket 4, a policy's 8."""
    found = 0
    for i in range(start, end):
        number = clue[text[i]]
        if number == 0:
            continue
        if number == 255:
            found |= _BRACKET
            continue
        letter = text[i] | 0x20
        phrase = np.int64(number) - 1
        while phrase < len(at) and spelled[phrase, at[phrase]] == letter:
            k = 0
            from_ = i - at[phrase]
            if from_ >= start:
                while spelled[phrase, k] and from_ + k < end:
                    byte = text[from_ + k]
                    if (byte | 0x20 if 65 <= byte <= 90 else byte) != spelled[phrase, k]:
                        break
                    k += 1
                if spelled[phrase, k] == 0:
                    found |= _JAVASCRIPT if phrase == 0 else _LOREM if phrase == 7 else _POLICY
            phrase += 1
    return found


@jit
def _citation(data, i, end, classes):
    """The length of a citation mark at i: [12], [], [edit], [citation needed]; 0 where there is none."""
    k = i + 1
    while k < end and data[k] != 93:
        code, size = decode(data, k, end)
        if classes[code] & DIGIT == 0 or not (48 <= code <= 57 or code >= 0x660):
            break
        k += size
    if k < end and data[k] == 93:
        return k + 1 - i
    for mark in (b"[edit]", b"[citation needed]"):
        if i + len(mark) <= end:
            k = 0
            while k < len(mark) and data[i + k] == mark[k]:
                k += 1
            if k == len(mark):
                return k
    return 0


@jit
def _copy(data, a, b, out, place, classes, citations):
    """Copy `data[a:b]` to `out` at `place` without citation marks; returns where it ends."""
    i = a
    while i < b:
        byte = data[i]
        if byte == 91 and citations:
            size = _citation(data, i, b, classes)
            if size:
                i += size
                continue
        out[place] = byte
        place += 1
        i += 1
    return place


@jit
def _ends_sentence(text, start, i, size, end, code, classes, flags, keys, cuts):
    """True where the stop at i would be a token of its own: not in `U.S.`, `3.5`, `e.g.`, `...`."""
    after = decode(text, i + size, end)[0] if i + size < end else np.int64(32)
    inside = classes[after] & (LETTER | DIGIT) != 0
    if code != 46:
        return not inside or code > 0x7F
    if i == start or after == 46:
        return False
    before, width = last_point(text, start, i)
    if inside:
        return flags[before] & (LOWER | QUOTE) != 0 and flags[after] & (UPPER | QUOTE) != 0
    if flags[before] & UPPER and flags[before] & BEFORE_DOT == 0:
        return i - width > start and flags[last_point(text, start, i - width)[0]] & UPPER != 0
    if before == 46 or flags[before] & BEFORE_DOT == 0:
        return False
    word = i
    while word > start and i - word < 24 and text[word - 1] > 32:
        word -= 1
    while word < i and text[word] < 0x80 and classes[text[word]] & PUNCTUATION:
        word += 1
    return known(text, word, i + 1, keys, cuts) & EXCEPTION == 0


@jit
def sentences(text, start, end, classes, flags, keys, cuts):
    """How many sentences a line has: each ends in a stop, and the next begins with what is no punctuation mark."""
    count = 1
    ended = False
    i = start
    while i < end:
        if not ended:
            while i < end and text[i] < 0x80 and classes[text[i]] & TERMINAL == 0:
                i += 1
            if i == end:
                break
        code, size = decode(text, i, end)
        flag = classes[code]
        if ended and flag & (SPACE | PUNCTUATION) == 0:
            count += 1
            ended = False
        if flag & TERMINAL and not ended:
            ended = _ends_sentence(text, start, i, size, end, code, classes, flags, keys, cuts)
        i += size
    return count


@jit
def _clean(offsets, data, alive, rules, stops, tables, lines, clue, spelled, at, out, edges, codes, counts):
    classes, flags, keys, cuts = tables
    citations, least, longest_word, lorem, javascript, bracket, policy = rules
    place = 0
    edges[0] = 0
    for row in range(len(alive)):
        codes[row] = -1
        i, end = offsets[row], offsets[row + 1]
        begin = place
        if not alive[row]:
            i = end
        total = kept = count = 0
        while i < end and codes[row] < 0:
            # Words, their longest, and where the line ends.
            first = i
            number = longest = run = 0
            skip = 0
            while i < end:
                role = lines[data[i]]
                if role == 0:
                    from_ = i
                    while i < end and lines[data[i]] == 0:
                        i += 1
                    number += run == 0
                    run += i - from_
                    continue
                size = 1
                if role == 4:
                    code, size = decode(data, i, end)
                    role = 0
                    if classes[code] & SPACE:
                        role = 1 if code == 0x85 or code == 0x2028 or code == 0x2029 else 3
                if role == 0:
                    number += run == 0
                    run += 1
                else:
                    longest = max(longest, run)
                    run = 0
                    if role <= 2:
                        skip = 2 if role == 2 and i + 1 < end and data[i + 1] == 10 else size
                        break
                i += size
            longest = max(longest, run)
            stop = i
            i += skip
            total += 1
            if (longest_word and longest > longest_word) or number < least:
                continue
            a, b = strip(data, first, stop, classes)
            if len(stops) and a < b and data[b - 1] != 93 and not _ends(data, a, b, stops):
                continue
            line = place + (1 if kept else 0)
            if kept:
                out[place] = 10
            stop = _copy(data, a, b, out, line, classes, citations)
            if len(stops) and not _ends(out, line, stop, stops):
                continue
            signs = _signs(out, line, stop, clue, spelled, at)
            if signs:
                if lorem and signs & _LOREM:
                    codes[row] = 0
                    continue
                if javascript and signs & _JAVASCRIPT:
                    continue
                if bracket and signs & _BRACKET:
                    codes[row] = 1
                    continue
                if policy and signs & _POLICY:
                    continue
            kept += 1
            if len(keys):
                count += sentences(out, line, stop, classes, flags, keys, cuts)
            place = stop
        a, b = strip(out, begin, place, classes)
        if codes[row] >= 0:  # the document as it came
            a, b = offsets[row], end
            for k in range(b - a):
                out[begin + k] = data[a + k]
        elif a > begin:
            for k in range(b - a):
                out[begin + k] = out[a + k]
        place = begin + b - a
        edges[row + 1] = place
        counts[row, 0] = total
        counts[row, 1] = kept
        counts[row, 2] = count
    return place


@jit
def _ends(text, start, end, stops):
    """True where the line ends in a stop, and not in three dots."""
    if end <= start:
        return False
    code = last_point(text, start, end)[0]
    for stop in stops:
        if code == stop:
            return not (code == 46 and end - start > 2 and text[end - 2] == 46 and text[end - 3] == 46)
    return False


@jit
def _count(text, alive, classes, doc, start, length, kinds, counts):
    """The sentences of each row by its tokens: one begins a line, and follows a stop and what is no mark after it."""
    for row in range(len(alive)):
        count = 0
        ended = False
        last = np.int64(-1)
        for w in range(doc[row], doc[row + 1]):
            i = start[w]
            end = i + length[w]
            fresh = last < 0
            blank = i > last + 1 or (i == last + 1 and text[last] != 32)  # white space that is a token too
            while not fresh and last < i:
                fresh = text[last] == 10
                last += 1
            if ended and blank and not fresh:
                count += 1
                ended = False
            last = end
            mark = stop = False
            if kinds[w] & (LETTER | DIGIT) == 0:
                code, size = decode(text, i, end)
                stop = size == length[w] and classes[code] & TERMINAL != 0
                mark = stop
                while not mark and i < end and classes[code] & PUNCTUATION:
                    i += size
                    mark = i == end
                    code, size = decode(text, i, end) if i < end else (code, size)
            if fresh or (ended and not mark):
                count += 1
                ended = False
            ended |= stop
        counts[row, 2] = count


def clean(memo: Memo, array: pa.Array, rules: Rules, stops: str, rule: str) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """(text, codes, counts) of the rows that are alive.

    `text` is large_string with the lines that the rules leave; a row with a code of 0 (lorem ipsum) or 1 (curly
    bracket) is whole, any other has -1. `counts` is int64[n, 3]: lines, lines kept, sentences in these.
    """
    offsets, data = view(array)
    size = int(offsets[-1] - offsets[0])
    out, edges = np.empty(size + 1, np.uint8), np.empty(len(array) + 1, np.int64)
    codes, counts = np.empty(len(array), np.int16), np.zeros((len(array), 3), np.int64)
    keys, cuts = table()
    of_words = (unicode.classes(), flags(), keys[: len(keys) * (rule == "unicode")], cuts)
    points = np.array([ord(stop) for stop in stops], np.int64)
    used = _clean(
        offsets, data, memo.alive, rules, points, of_words, _LINE, _CLUE, _SPELLED, _AT, out, edges, codes, counts
    )
    text = string_array(edges, out[:used])
    if rule == "spacy":
        found = memo(words, text, rule)
        _count(view(text)[1], memo.alive, unicode.classes(), found.doc, found.start, found.length, found.kind, counts)
    return text, codes, counts
