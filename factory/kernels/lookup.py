"""A hash table of the words that are not cut by rule, and of units, for kernels to ask by hash."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from factory.kernels import jit
from factory.kernels.english import UNITS, exceptions
from factory.kernels.hashing import hash_bytes

EXCEPTION, UNIT, JOINED = 1 << 16, 1 << 17, 1 << 18
"""Flags of an entry; below them the lengths of the first two pieces of an exception, 8 bits each (0: it is whole)."""

_SLOTS = 1 << 12


def put(keys: np.ndarray, values: np.ndarray, word: str, value: int) -> None:
    """Add the bits of `value` to the entry of the word."""
    data = np.frombuffer(word.encode(), np.uint8)
    key = np.uint64(hash_bytes(data, 0, len(data)))
    slot = int(key >> np.uint64(20)) & (_SLOTS - 1)
    while keys[slot] not in (0, key):
        slot = (slot + 1) & (_SLOTS - 1)
    keys[slot] = key
    values[slot] |= np.uint32(value)
    bit = int(key >> np.uint64(40)) & 0xFFFF
    values[_SLOTS + (bit >> 5)] |= np.uint32(1 << (bit & 31))


@lru_cache(maxsize=1)
def table() -> tuple[np.ndarray, np.ndarray]:
    """(keys, values): the hash of each slot, and its entry; behind the entries of `values` a bit for each value of 16
    bits of the hash, set where a word has it: nearly all words are told by it to have no entry."""
    keys, values = np.zeros(_SLOTS, np.uint64), np.zeros(_SLOTS + 2048, np.uint32)
    for word, pieces in exceptions().items():
        sizes = [len(piece.encode()) for piece in pieces[:-1]]
        put(keys, values, word, EXCEPTION | sum(size << (8 * k) for k, size in enumerate(sizes)))
    for unit in UNITS:
        put(keys, values, unit, UNIT)
    return keys, values


@jit
def entry_of(key, keys, values):
    """The entry of a hash; 0 where it has none."""
    bit = np.int64(key >> np.uint64(40)) & 0xFFFF
    if values[len(keys) + (bit >> 5)] >> (bit & 31) & 1 == 0:
        return np.int64(0)
    slot = np.int64(key >> np.uint64(20)) & (len(keys) - 1)
    while keys[slot]:
        if keys[slot] == key:
            return np.int64(values[slot])
        slot = (slot + 1) & (len(keys) - 1)
    return np.int64(0)


@jit
def known(data, start, end, keys, values):
    """The entry of `data[start:end]`; 0 where it has none."""
    if end - start > 24 or end <= start:
        return np.int64(0)
    return entry_of(hash_bytes(data, start, end), keys, values)
