"""Lines and paragraphs of a batch, and which of them repeat within their document."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from factory.engine.step import Memo
from factory.kernels import jit, unicode
from factory.kernels.arrow import view
from factory.kernels.hashing import HIGH, SEED, absorb, decode, finish, hash_bytes, load, load8, lowest, ones
from factory.kernels.unicode import SPACE

BLANK, REPEATED = 1, 2
"""Flags of `Lines.kind`."""


class Lines(NamedTuple):
    """The lines that are not empty of n rows, l in all; lines end at `\\n`."""

    doc: np.ndarray
    """int64[n + 1]: the lines of row i are `doc[i]` to `doc[i + 1]`; none where the row was not alive."""
    start: np.ndarray
    """int64[l]: byte offset into the data buffer."""
    length: np.ndarray
    """int32[l]: length in bytes."""
    chars: np.ndarray
    """int32[l]: length in code points."""
    hash: np.ndarray
    """uint64[l]: hash of the bytes."""
    last: np.ndarray
    """int32[l]: the last code point."""
    kind: np.ndarray
    """uint8[l]: BLANK where all of it is white space, REPEATED where the same line stands earlier in the document."""
    points: np.ndarray
    """int64[n]: code points of the row."""
    breaks: np.ndarray
    """int64[n]: how many `\\n` it has."""


@jit
def last_point(data, start, end):
    """(code point, bytes) of the character that ends at `end`."""
    i = end - 1
    while i > start and data[i] & 0xC0 == 0x80:
        i -= 1
    return decode(data, i, end)


@jit
def strip(data, start, end, classes):
    """(start, end) without the white space at both ends."""
    while start < end:
        code, size = decode(data, start, end)
        if classes[code] & SPACE == 0:
            break
        start += size
    while start < end:
        code, size = last_point(data, start, end)
        if classes[code] & SPACE == 0:
            break
        end -= size
    return start, end


@jit
def room(table, items):
    """`table` cleared and of a power of two that holds `items` half full (a larger one where it must be)."""
    size = 16
    while size < 2 * items:
        size *= 2
    if size > len(table):
        return np.zeros(size, np.uint64), size - 1
    table[:size] = 0
    return table, size - 1


@jit
def put(table, mask, key):
    """True where `key` (not 0) was in the table; it is afterwards."""
    slot = np.int64(key >> np.uint64(20)) & mask
    while table[slot]:
        if table[slot] == key:
            return True
        slot = (slot + 1) & mask
    table[slot] = key
    return False


@jit
def _lines(offsets, data, alive, classes, doc, start, length, chars, hashes, last, kinds, points, breaks):
    table = np.zeros(1024, np.uint64)
    newlines = np.uint64(0x0A0A0A0A0A0A0A0A)
    n = 0
    for row in range(len(alive)):
        doc[row] = n
        points[row] = breaks[row] = 0
        if not alive[row]:
            continue
        i = offsets[row]
        end = offsets[row + 1]
        while i < end:
            first = i
            state = SEED
            extra = 0  # continuation bytes
            while True:
                left = end - i
                bytes8 = load8(data, i) if left >= 8 else load(data, i, left)
                other = bytes8 ^ newlines
                found = ~(((other & ~HIGH) + ~HIGH) | other) & HIGH
                size = min(lowest(found), left)
                if size < 8:
                    bytes8 &= (np.uint64(1) << np.uint64(8 * size)) - np.uint64(1)
                extra += ones(bytes8 & ~(bytes8 << np.uint64(1)) & HIGH)
                i += size
                if size < 8:
                    break
                state = absorb(state, bytes8)
            points[row] += i - first - extra
            if i > first:
                start[n] = first
                length[n] = i - first
                chars[n] = i - first - extra
                hashes[n] = finish(state, bytes8, i - first)
                last[n] = last_point(data, first, i)[0]
                code, size = decode(data, first, i)
                blank = classes[code] & SPACE != 0
                if blank:
                    a, b = strip(data, first, i, classes)
                    blank = a == b
                kinds[n] = blank
                n += 1
            if i < end:
                i += 1
                breaks[row] += 1
                points[row] += 1
        begin = doc[row]
        if n - begin > 1:
            table, mask = room(table, n - begin)
            for k in range(begin, n):
                if put(table, mask, hashes[k]):
                    kinds[k] |= np.uint8(REPEATED)
    doc[len(alive)] = n
    return n


def lines(memo: Memo, array: pa.Array) -> Lines:
    """The lines of the rows of `array` (large_string) that are alive. A kernel for `Memo`."""
    offsets, data = view(array)
    rows = len(array)
    most = int(offsets[-1] - offsets[0]) // 2 + rows + 1
    counts = np.empty(rows, np.int64), np.empty(rows, np.int64)
    doc = np.empty(rows + 1, np.int64)
    made = (
        np.empty(most, np.int64), np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.uint64),
        np.empty(most, np.int32), np.empty(most, np.uint8),
    )  # fmt: skip
    count = _lines(offsets, data, memo.alive, unicode.classes(), doc, *made, *counts)
    start, length, chars, hashes, last, kind = (column[:count] for column in made)
    return Lines(doc, start, length, chars, hashes, last, kind, *counts)


@jit
def _line_counts(doc, chars, last, kinds, alive, stops, short, found):
    for row in range(len(alive)):
        if not alive[row]:
            continue
        solid = stopped = brief = repeated = 0
        for k in range(doc[row], doc[row + 1]):
            if kinds[k] & BLANK:
                continue
            solid += 1
            stopped += stops[last[k]]
            brief += chars[k] <= short
            if kinds[k] & REPEATED:
                repeated += chars[k]
        found[row, 0] = solid
        found[row, 1] = stopped
        found[row, 2] = brief
        found[row, 3] = repeated


@lru_cache(maxsize=8)
def _stop_table(stops: str) -> np.ndarray:
    """uint8[0x110000]: 1 for each stop."""
    if not stops:
        return (unicode.classes() & unicode.TERMINAL) // unicode.TERMINAL
    table = np.zeros(0x110000, np.uint8)
    table[[ord(character) for character in stops]] = 1
    return table


def line_counts(memo: Memo, array: pa.Array, stops: str, short: int) -> np.ndarray:
    """int64[n, 4] a row: lines that are not blank, those that end in a character of `stops` (empty: any character
    that ends a sentence in some script), those of at most `short` code points, code points in repeated ones."""
    found = memo(lines, array)
    counts = np.zeros((len(array), 4), np.int64)
    _line_counts(found.doc, found.chars, found.last, found.kind, memo.alive, _stop_table(stops), short, counts)
    return counts


@jit
def _repeats(offsets, data, alive, classes, doc, start, length, chars, kinds, found):
    table = np.zeros(1024, np.uint64)
    for row in range(len(alive)):
        if not alive[row]:
            continue
        begin, end = doc[row], doc[row + 1]
        first, last = offsets[row], offsets[row + 1]
        lines = end - begin
        repeated = long = paragraphs = again = size = 0
        gaps = False
        for k in range(begin, end):
            if kinds[k] & REPEATED:
                repeated += 1
                long += chars[k]
            if k > begin and start[k] > start[k - 1] + length[k - 1] + 1:
                gaps = True
        if last > first:
            edges = np.int64(data[first] == 10) + np.int64(data[last - 1] == 10)
            if begin == end:
                edges = np.int64(2)
            lines += edges
            repeated += edges == 2
        if gaps:
            a, b = strip(data, first, last, classes)
            table, mask = room(table, end - begin)
            k = begin
            while k < end:
                from_ = max(start[k], a)
                while k + 1 < end and start[k + 1] == start[k] + length[k] + 1:
                    k += 1
                to = min(start[k] + length[k], b)
                k += 1
                if from_ >= to:
                    continue
                paragraphs += 1
                if put(table, mask, hash_bytes(data, from_, to)):
                    again += 1
                    for i in range(from_, to):
                        size += data[i] & 0xC0 != 0x80
        found[row, 0] = lines
        found[row, 1] = repeated
        found[row, 2] = long
        found[row, 3] = max(paragraphs, 1)
        found[row, 4] = again
        found[row, 5] = size


def repeats(memo: Memo, array: pa.Array) -> np.ndarray:
    """int64[n, 6] a row: lines, those that repeat an earlier one and their code points; the same of paragraphs.

    Lines are what stands between runs of `\\n`, paragraphs of the text without white space at its ends what stands
    between two or more `\\n`.
    """
    offsets, data = view(array)
    found = memo(lines, array)
    counts = np.zeros((len(array), 6), np.int64)
    _repeats(
        offsets, data, memo.alive, unicode.classes(),
        found.doc, found.start, found.length, found.chars, found.kind, counts,
    )  # fmt: skip
    return counts
