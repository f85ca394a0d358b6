"""MinHash signatures of word n-grams (Broder 1997), and the band keys that bring likely pairs together.

The words of a text, in lower case and without punctuation marks, give overlapping n-grams ("shingles"); a text with
fewer words is one shingle. Each shingle is hashed to 32 bits, x. Permutation k maps x to a_k x + b_k modulo 2^32 with
an odd a_k, and a signature keeps the smallest value of each. Two signatures agree at a position with a probability of
the Jaccard similarity of the two sets of shingles.
"""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa

from factory.engine.step import Memo
from factory.kernels import jit
from factory.kernels.words import words

NONE = np.uint32(0xFFFFFFFF)
"""Every value of the signature of a text without words."""


@functools.lru_cache(maxsize=16)
def _random(seed: int, count: int) -> np.ndarray:
    """uint64[count] by SplitMix64 (Steele, Lea, Flood 2014): the same numbers under every version of NumPy."""
    mask = 2**64 - 1
    out = []
    for k in range(1, count + 1):
        z = (seed + k * 0x9E3779B97F4A7C15) & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        out.append(z ^ z >> 31)
    return np.array(out, np.uint64)


@jit
def _shingles(lower: np.ndarray, factors: np.ndarray, room: np.ndarray, out: np.ndarray) -> int:
    """Hash the n-grams of one text into `out`; returns how many, made up to a multiple of 8 by repeating the last."""
    n = len(factors)
    words_ = 0
    for k in range(len(lower)):
        room[words_] = lower[k]
        words_ += lower[k] != 0
    if words_ == 0:
        return 0
    size = min(n, words_)
    count = words_ - size + 1
    for k in range(count):
        # A short text must not look like the beginning of a longer one.
        h = np.uint64(n - size)
        for j in range(size):
            h += room[k + j] * factors[j]
        h ^= h >> np.uint64(29)
        h *= np.uint64(0xBF58476D1CE4E5B9)
        out[k] = np.uint32(h >> np.uint64(32))
    for k in range(count, count + -count % 8):
        out[k] = out[count - 1]
    return count + -count % 8


@jit
def _signatures(
    doc: np.ndarray, lower: np.ndarray, factors: np.ndarray, a: np.ndarray, b: np.ndarray, out: np.ndarray
) -> None:
    longest = 0
    for row in range(len(doc) - 1):
        longest = max(longest, doc[row + 1] - doc[row])
    room, x = np.empty(longest + 1, np.uint64), np.empty(longest + 8, np.uint32)
    least = np.empty(len(a), np.uint32)
    for row in range(len(doc) - 1):
        least[:] = np.uint32(0xFFFFFFFF)
        count = _shingles(lower[doc[row] : doc[row + 1]], factors, room, x)
        for s in range(0, count, 8):
            x0, x1, x2, x3, x4, x5, x6, x7 = x[s], x[s + 1], x[s + 2], x[s + 3], x[s + 4], x[s + 5], x[s + 6], x[s + 7]
            for k in range(len(a)):
                # Eight shingles for one load of a, b and the least value so far.
                low = min(np.uint32(a[k] * x0 + b[k]), np.uint32(a[k] * x1 + b[k]))
                low = min(low, min(np.uint32(a[k] * x2 + b[k]), np.uint32(a[k] * x3 + b[k])))
                low = min(low, min(np.uint32(a[k] * x4 + b[k]), np.uint32(a[k] * x5 + b[k])))
                low = min(low, min(np.uint32(a[k] * x6 + b[k]), np.uint32(a[k] * x7 + b[k])))
                least[k] = min(least[k], low)
        out[row] = least


@jit
def _keys(signatures: np.ndarray, salt: np.ndarray, out: np.ndarray) -> None:
    rows = signatures.shape[1] // out.shape[1]
    for i in range(len(signatures)):
        for band in range(out.shape[1]):
            h = salt[i] + np.uint64(band + 1) * np.uint64(0x9E3779B97F4A7C15)
            for k in range(band * rows, band * rows + rows):
                h = (h ^ np.uint64(signatures[i, k])) * np.uint64(0xD6E8FEB86659FD93)
                h ^= h >> np.uint64(32)
            out[i, band] = h


@jit
def _agreement(signatures: np.ndarray, others: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(out)):
        same = 0
        for k in range(signatures.shape[1]):
            same += signatures[i, k] == others[i, k]
        out[i] = np.float32(same) / np.float32(signatures.shape[1])


def signatures(memo: Memo, array: pa.Array, rule: str, ngram: int, count: int, seed: int) -> np.ndarray:
    """uint32[n, count]: the signature of each row; all `NONE` where it has no words or is not alive.

    `rule` says what a word is (`factory.kernels.words`). Call it through the memo.
    """
    found = memo(words, array, rule)
    numbers = _random(seed, ngram + 2 * count)
    a = (numbers[ngram : ngram + count] >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    b = (numbers[ngram + count :] >> np.uint64(32)).astype(np.uint32)
    out = np.empty((len(array), count), np.uint32)
    _signatures(found.doc, found.lower, numbers[:ngram] | np.uint64(1), a, b, out)
    return out


def band_keys(signatures: np.ndarray, bands: int, salt: np.ndarray) -> np.ndarray:
    """uint64[n, bands]: equal where a band of two signatures, its number and `salt` (uint64[n]) are equal."""
    out = np.empty((len(signatures), bands), np.uint64)
    _keys(signatures, salt, out)
    return out


def agreement(signatures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float32[n]: at how many of the positions two signatures agree, an estimate of the Jaccard similarity.

    With k positions its standard error is sqrt(J (1 - J) / k): 0.04 for 112 at J = 0.8.
    """
    out = np.empty(len(signatures), np.float32)
    _agreement(signatures, others, out)
    return out
