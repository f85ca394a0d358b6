"""Counts a document that Gopher's rules are made of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from factory.engine.step import Memo
from factory.kernels import jit, unicode
from factory.kernels.arrow import view
from factory.kernels.hashing import HIGH, between8, decode, hash_bytes, load8, lowest
from factory.kernels.unicode import SPACE
from factory.kernels.words import HALF_LETTERS, HAS_LETTER, NOT_SYMBOL, words

# What a byte may be at the ends of a line.
_PLAIN, _BREAK, _RETURN, _BLANK, _DOT, _HASH, _DASH, _WIDE = range(8)


def _roles() -> np.ndarray:
    table = np.zeros(256, np.uint8)
    table[[10, 11, 12, 28, 29, 30]] = _BREAK
    table[13] = _RETURN
    table[[9, 31, 32]] = _BLANK
    table[[ord("."), ord("#"), ord("-")]] = _DOT, _HASH, _DASH
    table[0x80:] = _WIDE
    table.setflags(write=False)
    return table


_ROLES = _roles()


@jit
def _skip(data, i, end):
    """Where the next byte from i stands that matters within a line: a control character, `#`, `.`, or not ASCII."""
    while i + 8 <= len(data):
        bytes8 = load8(data, i)
        ascii8 = bytes8 & ~HIGH
        found = between8(ascii8, 0, 0x1F) | between8(ascii8, 0x23, 0x23) | between8(ascii8, 0x2E, 0x2E) | bytes8 & HIGH
        size = lowest(found)
        i += size
        if size < 8 or i >= end:
            return min(i, end)
    return i


@jit
def _symbols(offsets, data, alive, roles, classes, found):
    for row in range(len(alive)):
        if not alive[row]:
            continue
        hashes = ellipses = lines = bullets = trailing = 0
        fresh = True  # nothing but blanks on this line so far
        tail = False  # the last thing on it was an ellipsis
        dots = 0
        i = begin = offsets[row]  # of the line
        end = offsets[row + 1]
        while i < end:
            role = roles[data[i]]
            if role == _PLAIN:
                fresh = tail = False
                dots = 0
                i = _skip(data, i + 1, end)
                continue
            size = 1
            if role == _WIDE:
                code, size = decode(data, i, end)
                if code == 0x2022:
                    bullets += fresh
                    role = _PLAIN
                elif code == 0x2026:
                    ellipses += 1
                    fresh = False
                    tail = True
                    dots = 0
                    i += size
                    continue
                elif code == 0x85 or code == 0x2028 or code == 0x2029:
                    role = _BREAK
                else:
                    role = _BLANK if classes[code] & SPACE else _PLAIN
            if role == _DOT:
                dots += 1
                fresh = False
                ellipses += dots % 3 == 0
                tail = dots >= 3
            elif _BREAK <= role <= _RETURN:
                lines += 1
                trailing += tail
                fresh, tail, dots = True, False, 0
                if role == _RETURN and i + 1 < end and data[i + 1] == 10:
                    size = 2
                begin = i + size
            elif role == _BLANK:
                dots = 0
            else:
                if role == _DASH:
                    bullets += fresh
                elif role == _HASH:
                    hashes += 1
                fresh = tail = False
                dots = 0
            i += size
        if begin < end:
            lines += 1
            trailing += tail
        found[row, 0] = hashes
        found[row, 1] = ellipses
        found[row, 2] = lines
        found[row, 3] = bullets
        found[row, 4] = trailing


def symbols(memo: Memo, array: pa.Array) -> np.ndarray:
    """int64[n, 5] a row: hash signs, ellipses, lines, lines that begin with a bullet, lines that end in an ellipsis.

    Lines end where `str.splitlines` ends them. A bullet is `•` or `-`; an ellipsis is `…` or three dots.
    """
    offsets, data = view(array)
    found = np.zeros((len(array), 5), np.int64)
    _symbols(offsets, data, memo.alive, _ROLES, unicode.classes(), found)
    return found


@jit
def _count_words(doc, hashes, chars, kinds, alive, scale, wanted, found):
    low = np.zeros(256, np.uint8)
    for k in range(len(wanted)):
        low[wanted[k] >> np.uint64(56)] = 1
    for row in range(len(alive)):
        if not alive[row]:
            continue
        solid = length = lettered = 0
        seen = np.uint64(0)
        for w in range(doc[row], doc[row + 1]):
            kind = kinds[w]
            if kind & NOT_SYMBOL:
                solid += 1
                length += chars[w] * scale[kind >> 4]
            lettered += kind & HAS_LETTER
            if low[hashes[w] >> np.uint64(56)]:
                for k in range(len(wanted)):
                    if wanted[k] == hashes[w]:
                        seen |= np.uint64(1) << np.uint64(k)
        stops = 0
        while seen:
            seen &= seen - np.uint64(1)
            stops += 1
        found[row, 0] = doc[row + 1] - doc[row]
        found[row, 1] = solid
        found[row, 2] = length
        found[row, 3] = lettered
        found[row, 4] = stops


def word_hash(word: str) -> np.uint64:
    """The hash that `Words.hash` has for the word."""
    data = np.frombuffer(word.encode(), np.uint8)
    return np.uint64(hash_bytes(data, 0, len(data)))


def count_words(memo: Memo, array: pa.Array, rule: str, stop_words: tuple[str, ...]) -> np.ndarray:
    """int64[n, 5] a row: words, words that are not symbols, the half letters of these, words with a letter, and how
    many of the `stop_words` (64 at most, as they are written) occur."""
    found = memo(words, array, rule)
    wanted = np.array([word_hash(word) for word in stop_words], np.uint64)
    counts = np.zeros((len(array), 5), np.int64)
    _count_words(found.doc, found.hash, found.chars, found.kind, memo.alive, HALF_LETTERS, wanted, counts)
    return counts
