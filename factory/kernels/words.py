"""Words of a batch: where they are, their hashes, and what they are made of. One pass serves every filter.

A word is found by one of two rules:

- `unicode`: a run of letters, digits, marks and underscores (`\\w+`). Scripts that are written without spaces are cut
  by script: Han and Yi into characters, kana into runs, Thai, Lao, Khmer, Myanmar and their relatives into syllables.
- `spacy`: the tokens of spaCy's English rules, among them punctuation marks (`factory.kernels.spacy`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from factory.engine.errors import FactoryError
from factory.engine.step import Memo
from factory.kernels import jit, unicode
from factory.kernels.arrow import view
from factory.kernels.hashing import (
    HIGH,
    SEED,
    absorb,
    classes8,
    decode,
    finish,
    hash_both,
    hash_bytes,
    hash_lower,
    load8,
    lowest,
    small8,
)
from factory.kernels.unicode import (
    DIGIT,
    FOLLOWING,
    HAN,
    INITIAL,
    JOINER,
    KILLER,
    LEADING,
    LETTER,
    MARK,
    PROLONGED,
    STACKER,
    SYLLABLE,
    TIBETAN,
    UNDERSCORE,
)

HAS_LETTER, HAS_DIGIT, NOT_SYMBOL = 1, 2, 4
"""Flags of `Words.kind`; the script stands above them: `kind >> 4` is 1 for Han, 2 kana, 3 syllables, 4 Hangul."""

HALF_LETTERS = np.array([2, 9, 4, 3, 4], np.int64)
"""Half letters of English a code point is worth, by `kind >> 4`: mean word length then compares between scripts."""


_WORD, _ON = LETTER | DIGIT | UNDERSCORE, LETTER | DIGIT | UNDERSCORE | MARK  # what begins a word, what goes on with it
_WIDE = 128  # beside these flags: some of it is not ASCII


class Words(NamedTuple):
    """The words of n rows, w in all."""

    doc: np.ndarray
    """int64[n + 1]: the words of row i are `doc[i]` to `doc[i + 1]`; none where the row was not alive."""
    start: np.ndarray
    """int64[w]: byte offset into the data buffer of the Arrow array."""
    length: np.ndarray
    """int32[w]: length in bytes."""
    hash: np.ndarray
    """uint64[w]: hash of the bytes."""
    lower: np.ndarray
    """uint64[w]: hash of the word in lower case, code point by code point; 0 for a word without letter or digit."""
    chars: np.ndarray
    """int32[w]: length in code points."""
    kind: np.ndarray
    """uint8[w]: HAS_LETTER, HAS_DIGIT, NOT_SYMBOL, and the script in the upper half."""


@jit
def _unspaced(data, i, end, classes, scripts):
    """(end, code points, script) of the word that begins at i in a script without spaces."""
    code, size = decode(data, i, end)
    role = scripts[code]
    group = 1 if role == HAN else 2 if role <= PROLONGED else 3
    i += size
    chars = 1
    while i < end and data[i] >= 0x80:
        code, size = decode(data, i, end)
        new = scripts[code]
        if new == 0 or new >= TIBETAN:
            if classes[code] & MARK == 0:
                break
        elif group == 1 or new == HAN:
            break
        elif group == 2:
            if new != role and new != PROLONGED and role != PROLONGED:
                break
            role = new if new != PROLONGED else role
        elif new < INITIAL:
            break
        else:
            if new in (INITIAL, LEADING, SYLLABLE):
                after = i + size
                next_role = np.uint8(0)
                if after < end:
                    next_role = scripts[decode(data, after, end)[0]]
                tied = role in (JOINER, STACKER) or (role == LEADING and new == INITIAL)
                bare = new == INITIAL and next_role != FOLLOWING and next_role != JOINER
                closing = new == SYLLABLE and next_role in (STACKER, KILLER)
                if not (tied or bare or closing):
                    break
            role = new
        chars += 1
        i += size
    return i, chars, group


@jit
def _ascii_word(data, i, end):
    """(end, hash, hash in lower case, flags) of the ASCII word that begins at i; end 0 where it may not be ASCII."""
    state = small = SEED
    letters = np.uint64(0)
    digits = np.uint64(0)
    j = i
    while j + 8 <= len(data):
        bytes8 = load8(data, j)
        letter, word = classes8(bytes8)
        stop = ~word & HIGH
        size = lowest(stop)
        if size == 8 and j + 8 <= end:
            state = absorb(state, bytes8)
            small = absorb(small, small8(bytes8))
            letters |= letter
            digits |= (word ^ letter) & ~(bytes8 << np.uint64(1))  # an underscore has bit 6
            j += 8
            continue
        if j + size >= end:
            size = end - j
        elif data[j + size] >= 0x80:
            break
        mask = (np.uint64(1) << np.uint64(8 * size)) - np.uint64(1)
        rest = bytes8 & mask
        letters |= letter & mask
        digits |= (word ^ letter) & mask & ~(bytes8 << np.uint64(1))
        flags = (1 if letters else 0) | (2 if digits else 0)
        j += size
        return j, finish(state, rest, j - i), finish(small, small8(rest), j - i), flags
    return 0, SEED, SEED, 0


@jit
def _unicode_words(offsets, data, alive, classes, scripts, lower, doc, start, length, hashes, lowers, chars, kinds):
    n = 0
    for row in range(len(alive)):
        doc[row] = n
        if not alive[row]:
            continue
        i = offsets[row]
        end = offsets[row + 1]
        while i < end:
            byte = data[i]
            if byte < 0x80:
                if classes[byte] & _WORD == 0:
                    i += 1
                    continue
                stop, whole, small, flags = _ascii_word(data, i, end)
                if stop:
                    start[n] = i
                    length[n] = chars[n] = stop - i
                    hashes[n] = whole
                    lowers[n] = small if flags else np.uint64(0)
                    kinds[n] = flags | (NOT_SYMBOL if flags else 0)
                    n += 1
                    i = stop + 1 if stop < end else end  # what stopped it is ASCII and no part of a word
                    continue
            else:
                code, size = decode(data, i, end)
                if classes[code] & _WORD == 0:
                    i += size
                    continue
                if 0 < scripts[code] < TIBETAN:
                    stop, count, script = _unspaced(data, i, end, classes, scripts)
                    start[n] = i
                    length[n] = stop - i
                    hashes[n] = lowers[n] = hash_bytes(data, i, stop)
                    chars[n] = count
                    kinds[n] = HAS_LETTER | NOT_SYMBOL | script << 4
                    n += 1
                    i = stop
                    continue
            first = i
            flags = 0
            group = np.int64(0)
            extra = 0  # continuation bytes
            while i < end:
                byte = data[i]
                if byte < 0x80:
                    flag = np.int64(classes[byte]) & _WORD
                    if flag == 0:
                        break
                    i += 1
                else:
                    code, size = decode(data, i, end)
                    flag = np.int64(classes[code]) & _ON
                    role = np.int64(scripts[code])
                    if flag == 0 or 0 < role < TIBETAN:
                        break
                    if role:
                        group = role - TIBETAN + 3
                    flags |= _WIDE
                    extra += size - 1
                    i += size
                flags |= flag
            start[n] = first
            length[n] = i - first
            hashes[n], small = hash_both(data, first, i)
            if flags & _WIDE:
                small = hash_lower(data, first, i, lower)
            lowers[n] = small if flags & (LETTER | DIGIT) else np.uint64(0)
            chars[n] = i - first - extra
            flags &= LETTER | DIGIT
            kinds[n] = flags | (NOT_SYMBOL if flags else 0) | group << 4
            n += 1
    doc[len(alive)] = n
    return n


def empty(rows: int, most: int) -> Words:
    """Room for at most `most` words; memory that is not written to is not taken."""
    return Words(
        np.empty(rows + 1, np.int64), np.empty(most, np.int64), np.empty(most, np.int32), np.empty(most, np.uint64),
        np.empty(most, np.uint64), np.empty(most, np.int32), np.empty(most, np.uint8),
    )  # fmt: skip


def words(memo: Memo, array: pa.Array, rule: str) -> Words:
    """The words of the rows of `array` (large_string) that are alive. A kernel for `Memo`: `memo(words, array, rule)`.

    `rule` is `unicode` or `spacy`; raises `FactoryError` for any other.
    """
    offsets, data = view(array)
    text_bytes = int(offsets[-1] - offsets[0])
    if rule == "unicode":
        made = empty(len(array), text_bytes // 2 + len(array) + 1)
        count = _unicode_words(offsets, data, memo.alive, unicode.classes(), unicode.scripts(), unicode.lower(), *made)
    elif rule == "spacy":
        from factory.kernels import spacy

        made = empty(len(array), text_bytes + 1)
        count = spacy.tokens(array, memo.alive, made)
    else:
        raise FactoryError(f"unknown word rule {rule!r}: it is 'unicode' or 'spacy'")
    return Words(made.doc, *(column[:count] for column in made[1:]))
