"""Repeated word n-grams, counted exactly.

An n-gram can occur twice only where both of its (n - 1)-grams do. So each length looks only at the places that the
length before left, and names an n-gram by the places where its two halves were first seen: the names are exact, only
pairs of words are compared by a hash of 64 bits.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from factory.engine.step import Memo
from factory.kernels import jit
from factory.kernels.hashing import SEED, absorb
from factory.kernels.words import words

TOP = (2, 3, 4)
ALL = (5, 6, 7, 8, 9, 10)


@jit
def _name(keys, places, count, table, owner, mask, names, times):
    """For `count` keys at `places`: `names[k]` is the first place with the same key; `times[place]` how often."""
    for k in range(count):
        key = keys[k]
        slot = np.int64((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & mask
        while table[slot] != 0 and table[slot] != key:
            slot = (slot + 1) & mask
        if table[slot] == 0:
            table[slot] = key
            owner[slot] = places[k]
            times[places[k]] = 0
        names[k] = owner[slot]
        times[owner[slot]] += 1


@jit
def _ngrams(doc, hashes, chars, kinds, alive, spaced, found):
    longest = 0
    for row in range(len(alive)):
        longest = max(longest, doc[row + 1] - doc[row])
    size = 16
    while 3 * size < 4 * longest:
        size *= 2
    table = np.empty(size, np.uint64)
    owner = np.empty(size, np.int32)
    keys = np.empty(longest, np.uint64)
    places = np.empty(longest, np.int32)
    names = np.empty(longest, np.int32)
    times = np.empty(longest, np.int32)
    used = np.empty(longest, np.int32)
    ends = np.empty(longest + 1, np.int64)  # code points before each word
    for row in range(len(alive)):
        begin = doc[row]
        total = doc[row + 1] - begin
        if not alive[row] or total == 0:
            continue
        ends[0] = 0
        for k in range(total):
            ends[k + 1] = ends[k] + chars[begin + k]
        count = total - 1
        for k in range(count):
            keys[k] = absorb(hashes[begin + k] * SEED, hashes[begin + k + 1]) | np.uint64(1)
            places[k] = k
        for n in range(2, 11):
            if n > 2:
                # Where two neighbours among the places are left, the n-gram of both may repeat.
                left = 0
                for k in range(count - 1):
                    if places[k + 1] == places[k] + 1:
                        place = places[k]
                        keys[left] = np.uint64(names[k] + 1) << np.uint64(32) | np.uint64(names[k + 1])
                        places[left] = place
                        left += 1
                count = left
            size = 16
            while 3 * size < 4 * count:
                size *= 2
            table[:size] = 0
            _name(keys, places, count, table, owner, size - 1, names, times)
            if n <= 4 and total >= n:
                best = 1
                where = 0
                for k in range(count):
                    if names[k] == places[k] and times[places[k]] > best:
                        best = times[places[k]]
                        where = places[k]
                script = kinds[begin + where] >> 4
                gaps = n - 1 if spaced or script == 0 or script == 4 else 0
                found[row, n - 2] = best * (ends[where + n] - ends[where] + gaps)
            left = 0
            for k in range(count):
                if times[names[k]] > 1:
                    names[left] = names[k]
                    places[left] = places[k]
                    left += 1
            count = left
            if n >= 5:
                repeated = 0
                free = 0
                for k in range(count):
                    used[names[k]] = 0
                for k in range(count):
                    if places[k] < free:
                        continue
                    if used[names[k]]:
                        repeated += ends[places[k] + n] - ends[places[k]]
                        free = places[k] + n
                    used[names[k]] = 1
                found[row, n - 2] = repeated
            if count < 2 and n >= 4:
                break


def ngrams(memo: Memo, array: pa.Array, rule: str) -> np.ndarray:
    """int64[n, 9] a row: code points of the most frequent 2-, 3- and 4-gram over all that it occurs (the first of those
    that are equally frequent; its words joined by spaces), then those of n-grams that repeat an earlier one, for n of
    5 to 10 (without spaces; those that overlap the one counted before are passed over). A kernel for `Memo`.
    """
    found = memo(words, array, rule)
    counts = np.zeros((len(array), len(TOP) + len(ALL)), np.int64)
    _ngrams(found.doc, found.hash, found.chars, found.kind, memo.alive, rule == "spacy", counts)
    return counts
