"""spaCy's English tokens: punctuation marks are cut off words, contractions apart, addresses stay whole.

Text between white space is cut from both ends, a character or a known sign at a time, until a known exception or
nothing to cut is left; what remains is an address, or is cut inside. Last, neighbours that together spell an
exception (`:` and `)`) become one token. Each step looks at a bounded number of characters, so time is linear.

What differs from spaCy: text without white space is cut every 64 KiB; addresses and joined neighbours are told by
simpler rules. On web text 99.9% of documents have the same tokens.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa

from factory.kernels import jit, unicode
from factory.kernels.addresses import address, digit
from factory.kernels.arrow import view
from factory.kernels.english import (
    ALPHA,
    BEFORE_DOT,
    CURRENCY,
    INFIX,
    LOWER,
    PREFIX,
    QUOTE,
    SUFFIX,
    UPPER,
    exceptions,
    flags,
)
from factory.kernels.hashing import (
    HIGH,
    SEED,
    classes8,
    decode,
    finish,
    hash_both,
    hash_bytes,
    hash_lower,
    load8,
    lowest,
)
from factory.kernels.lookup import EXCEPTION, JOINED, UNIT, entry_of, known, put, table
from factory.kernels.unicode import DIGIT, LETTER, SPACE, SYMBOL
from factory.kernels.words import HAS_LETTER, NOT_SYMBOL, Words, empty

_LONGEST = 1 << 16
# What may end a word of letters: 1 a space, 2 a mark that is cut off if a space follows, 3 a full stop.
_ENDS = np.zeros(256, np.uint8)
_ENDS[[10, 32]] = 1
_ENDS[[ord(mark) for mark in ",;:!?)\"'"]] = 2
_ENDS[ord(".")] = 3
_ENDS.setflags(write=False)


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """The table of exceptions, with JOINED on those that the rules alone would cut."""
    keys, values = (column.copy() for column in table())
    words = pa.array(list(exceptions()), pa.large_string())
    room = empty(len(words), words.nbytes)
    _run(words, np.ones(len(words), np.bool_), (np.zeros_like(keys), np.zeros_like(values)), room)
    for word, count in zip(exceptions(), np.diff(room.doc), strict=True):
        if count > 1:
            put(keys, values, word, JOINED)
    return keys, values


@jit
def _exception(data, start, end, keys, cuts):
    return known(data, start, end, keys, cuts) & EXCEPTION != 0


@jit
def _prefix(text, lo, hi, table):
    """How many code points are cut off in front of `text[lo:hi]`."""
    code = text[lo]
    if table[code] & PREFIX:
        return 1
    following = text[lo + 1] if lo + 1 < hi else 0
    if code == 43:  # +
        return 0 if digit(following) else 1
    if code == 46 and following == 46:
        k = lo + 2
        while k < hi and text[k] == 46:
            k += 1
        return k - lo
    if following == 36 and (code == 67 or code == 65):  # C$ A$
        return 2
    if code == 85 and following == 83 and lo + 2 < hi and text[lo + 2] == 36:  # US$
        return 3
    return 0


@jit
def _suffix(text, where, data, lo, hi, table, keys, cuts):
    """How many code points are cut off behind `text[lo:hi]`."""
    code = text[hi - 1]
    flag = table[code]
    before = text[hi - 2] if hi - lo > 1 else 0
    if code == 46:
        if before == 46:
            k = hi - 2
            while k > lo and text[k - 1] == 46:
                k -= 1
            return hi - k
        if before and table[before] & BEFORE_DOT:
            return 1
        if hi - lo > 2 and table[before] & UPPER and table[text[hi - 3]] & UPPER:
            return 1
        return 0
    if flag & SUFFIX:
        return 2 if code == 0x2026 and before == 0x2026 else 1
    if (code == 115 or code == 83) and (before == 39 or before == 0x2019):
        return 2
    if code == 43:
        return 1 if digit(before) else 0
    if flag & CURRENCY:
        if digit(before):
            return 1
        if code == 36 and hi - lo > 2 and (before == 67 or before == 65) and digit(text[hi - 3]):
            return 2
        if code == 36 and hi - lo > 3 and before == 83 and text[hi - 3] == 85 and digit(text[hi - 4]):
            return 3
        return 0
    k = hi - 1
    while k > lo and hi - k < 8 and not digit(text[k]):
        k -= 1
    if digit(text[k]) and k + 1 < hi and known(data, where[k + 1], where[hi], keys, cuts) & UNIT:
        return hi - k - 1
    return 0


@jit
def _infix(text, k, lo, hi, table):
    """How many code points from k are a sign that cuts `text[lo:hi]`; 0 for none."""
    code = text[k]
    before = text[k - 1] if k > lo else 0
    after = text[k + 1] if k + 1 < hi else 0
    left = table[before] if k > lo else np.uint16(0)
    right = table[after] if k + 1 < hi else np.uint16(0)
    if table[code] & INFIX:
        return 1
    if code == 46:
        if after == 46:
            end = k + 2
            while end < hi and text[end] == 46:
                end += 1
            return end - k
        return 1 if left & (LOWER | QUOTE) and right & (UPPER | QUOTE) else 0
    if (code == 43 or code == 45 or code == 42 or code == 94) and digit(before) and (digit(after) or after == 45):
        return 1
    if code == 44:
        return 1 if left & ALPHA and right & ALPHA else 0
    if not (left & ALPHA or digit(before)):
        return 0
    if code == 45 or code == 0x2013 or code == 0x2014 or code == 126:
        if right & ALPHA:
            return 1
        longest = 3 if code == 45 else 2 if code == 0x2014 else 1
        end = k + 1
        while end < hi and end - k < longest and text[end] == code:
            end += 1
        return end - k if end - k > 1 and end < hi and table[text[end]] & ALPHA else 0
    if (code == 58 or code == 60 or code == 61 or code == 62 or code == 47) and right & ALPHA:
        return 1
    return 0


@jit
def _pieces(edges, n, entry, start, end):
    """Add the pieces of an exception that stands at start to end; returns the number of tokens."""
    for piece in range(2):
        size = (entry >> (8 * piece)) & 255
        if size:
            start += size
            n += 1
            edges[n] = start
    n += 1
    edges[n] = end
    return n


@jit
def _cut(data, text, where, size, edges, stack, table, classes, keys, cuts):
    """Put the tokens of a span of `size` code points into `edges` (n + 1 byte offsets); returns n."""
    lo, hi = 0, size
    n = depth = 0
    edges[0] = where[0]
    while lo < hi:
        if _exception(data, where[lo], where[hi], keys, cuts):
            break
        front = _prefix(text, lo, hi, table)
        if front and front < hi - lo and _exception(data, where[lo + front], where[hi], keys, cuts):
            lo += front
            n += 1
            edges[n] = where[lo]
            break
        back = _suffix(text, where, data, lo + front, hi, table, keys, cuts) if lo + front < hi else 0
        if back and back < hi - lo and _exception(data, where[lo], where[hi - back], keys, cuts):
            stack[depth] = hi
            depth += 1
            hi -= back
            break
        if front == 0 and back == 0:
            break
        if front:
            lo += front
            n += 1
            edges[n] = where[lo]
        if back:
            stack[depth] = hi
            depth += 1
            hi -= back
    if lo < hi:
        entry = known(data, where[lo], where[hi], keys, cuts)
        if entry & EXCEPTION:
            n = _pieces(edges, n, entry, where[lo], where[hi])
        elif not address(text, lo, hi, table, classes):
            start = k = lo
            while k < hi:
                length = _infix(text, k, lo, hi, table)
                if length and k > lo:
                    if k > start:
                        n += 1
                        edges[n] = where[k]
                    n += 1
                    edges[n] = where[k + length]
                    start = k + length
                k += max(length, 1)
            if start < hi:
                n += 1
                edges[n] = where[hi]
        else:
            n += 1
            edges[n] = where[hi]
    while depth:
        depth -= 1
        n += 1
        edges[n] = where[stack[depth]]
    return n


@jit
def _joined(data, edges, k, n, keys, cuts):
    """(end, entry) of the longest run of tokens from k that spells an exception; (k, 0) where none does."""
    for end in range(min(n, k + 6), k + 1, -1):
        entry = known(data, edges[k], edges[end], keys, cuts)
        if entry & JOINED:
            return end, entry
    return k, 0


@jit
def _mend(data, edges, n, keys, cuts, out):
    """Put the tokens into `out`, neighbours that spell an exception as its pieces; returns how many they are.

    As in spaCy, a run that overlaps an earlier one is not joined, and bars those that overlap it in turn.
    """
    k = m = barred = 0
    out[0] = edges[0]
    while k < n:
        end, entry = _joined(data, edges, k, n, keys, cuts)
        if k < barred or end == k:
            barred = max(barred, end)
            end, entry = k + 1, 0
        m = _pieces(out, m, entry, edges[k], edges[end])
        for inner in range(k + 1, end):
            barred = max(barred, _joined(data, edges, inner, n, keys, cuts)[0])
        k = end
    return m


@jit
def _kind(data, start, end, classes):
    """(code points, flags, whether all is ASCII) of a token."""
    flags = chars = 0
    ascii_ = True
    i = start
    while i < end:
        code, size = decode(data, i, end)
        flag = classes[code]
        flags |= (flag & (LETTER | DIGIT)) | (NOT_SYMBOL if flag & SYMBOL == 0 else 0)
        ascii_ &= code < 0x80
        i += size
        chars += 1
    return chars, flags, ascii_


@jit
def _span(data, i, end, classes):
    """Where the next white space from i stands, or the end; a longer run than `_LONGEST` is cut there."""
    stop = min(end, i + _LONGEST)
    while i < stop:
        byte = data[i]
        if byte < 0x80:
            if classes[byte] & SPACE:
                break
            i += 1
        else:
            code, size = decode(data, i, end)
            if classes[code] & SPACE:
                break
            i += size
    return i


@jit
def _points(data, i, end, text, where):
    """Put the code points of `data[i:end]` into `text`, their offsets into `where`; returns how many they are."""
    size = 0
    while i < end:
        code, step = decode(data, i, end)
        text[size] = code
        where[size] = i
        size += 1
        i += step
    where[size] = end
    return size


@jit
def _tokens(
    offsets, data, alive, classes, lower, ends, table, keys, cuts, doc, start, length, hashes, lowers, chars, kinds
):
    text = np.empty(_LONGEST + 4, np.int32)
    where = np.empty(_LONGEST + 5, np.int64)
    stack = np.empty(_LONGEST + 4, np.int32)
    edges = np.empty(_LONGEST + 5, np.int64)
    out = np.empty(2 * _LONGEST + 8, np.int64)
    # Words come again: the cuts of the last one of each slot, a byte for the size of a token.
    seen = np.zeros(1 << 13, np.uint64)
    kept = np.zeros(1 << 13, np.uint64)
    n = 0
    for row in range(len(alive)):
        doc[row] = n
        if not alive[row]:
            continue
        i = offsets[row]
        end = offsets[row + 1]
        while i < end:
            # Nearly all words are letters alone, up to a space or a mark before a space.
            first = i
            while i < end and i + 8 <= len(data):
                size = lowest(~classes8(load8(data, i))[0] & HIGH)
                i += size
                if size < 8:
                    break
            i = min(i, end)
            mark = ends[data[i]] if i < end else 1
            if (mark > 1 and i + 1 < end and ends[data[i + 1]] != 1) or (mark == 3 and data[i - 1] < 97):
                mark = 0
            if i > first and mark:
                whole, small = hash_both(data, first, i)
                entry = entry_of(whole, keys, cuts) & 0xFF
                if mark > 1:
                    entry |= known(data, first, i + 1, keys, cuts)
                if entry == 0:
                    hashes[n], lowers[n] = whole, small
                    start[n] = first
                    length[n] = chars[n] = i - first
                    kinds[n] = HAS_LETTER | NOT_SYMBOL
                    n += 1
                    if mark > 1:
                        hashes[n], lowers[n] = finish(SEED, np.uint64(data[i]), 1), np.uint64(0)
                        start[n] = i
                        length[n] = chars[n] = 1
                        kinds[n] = 0
                        n += 1
                        i += 1
                    i += 1
                    continue
            i = first
            if data[i] == 32:
                i += 1
                continue
            i = _span(data, first, end, classes)
            if i == first:
                i += decode(data, i, end)[1]  # white space
                continue
            key = hash_bytes(data, first, i)
            slot = np.int64(key >> np.uint64(20)) & (len(seen) - 1)
            if seen[slot] == key:
                count = 0
                sizes = kept[slot]
                out[0] = first
                while sizes:
                    out[count + 1] = out[count] + np.int64(sizes & np.uint64(255))
                    sizes >>= np.uint64(8)
                    count += 1
            else:
                size = _points(data, first, i, text, where)
                count = _cut(data, text, where, size, edges, stack, table, classes, keys, cuts)
                count = _mend(data, edges, count, keys, cuts, out)
                if count <= 8 and i - first < 256:
                    seen[slot] = key
                    kept[slot] = 0
                    for k in range(count - 1, -1, -1):
                        kept[slot] = (kept[slot] << np.uint64(8)) | np.uint64(out[k + 1] - out[k])
            for k in range(count):
                a, b = out[k], out[k + 1]
                points, flags, plain = _kind(data, a, b, classes)
                hashes[n], small = hash_both(data, a, b)
                if not plain:
                    small = hash_lower(data, a, b, lower)
                start[n] = a
                length[n] = b - a
                lowers[n] = small if flags & (LETTER | DIGIT) else np.uint64(0)
                chars[n] = points
                kinds[n] = flags
                n += 1
    doc[len(alive)] = n
    return n


def _run(array: pa.Array, alive: np.ndarray, tables: tuple[np.ndarray, np.ndarray], room: Words) -> int:
    return int(_tokens(*view(array), alive, unicode.classes(), unicode.lower(), _ENDS, flags(), *tables, *room))


def tokens(array: pa.Array, alive: np.ndarray, room: Words) -> int:
    """Write the tokens of the rows of `array` that are alive into `room`; returns how many they are."""
    return _run(array, alive, _tables(), room)
