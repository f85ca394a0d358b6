"""Bytes to numbers, for the other kernels: eight bytes at once, code points, and a 64-bit hash.

The hash of text is a function of its bytes alone. It is made for tables, not against an adversary.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import pointer_add
from numba.extending import intrinsic

from factory.kernels import jit

SEED = np.uint64(0x9E3779B97F4A7C15)
PRIME = np.uint64(0xD6E8FEB86659FD93)
_8, _32, _29 = np.uint64(8), np.uint64(32), np.uint64(29)


@intrinsic
def load8(typing, array, index):
    """`load8(data, i)`: the eight bytes of a uint8 array from i as one number, the first lowest. Not checked."""

    def build(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        place = pointer_add(builder, data, args[1], ir.IntType(64).as_pointer())
        loaded = builder.load(place)
        loaded.align = 1
        return loaded

    return types.uint64(array, index), build


@intrinsic
def lowest(typing, mask):
    """`lowest(mask)`: the number of the lowest byte of a uint64 that is not zero; 8 where all are."""

    def build(context, builder, signature, args):
        return builder.lshr(builder.cttz(args[0], ir.Constant(ir.IntType(1), 0)), ir.Constant(ir.IntType(64), 3))

    return types.int64(mask), build


@intrinsic
def ones(typing, mask):
    """`ones(mask)`: how many bits of a uint64 are set."""

    def build(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.int64(mask), build


HIGH = np.uint64(0x8080808080808080)
_ALL = np.uint64(0x0101010101010101)


@jit
def between8(bytes8, first, last):
    """The high bit of each byte (all below 0x80) that lies from first to last."""
    return (bytes8 + _ALL * np.uint64(0x80 - first)) & ~(bytes8 + _ALL * np.uint64(0x7F - last)) & HIGH


@jit
def classes8(bytes8):
    """(letters, letters, digits and underscores) among eight bytes: the high bit of each such ASCII byte."""
    ascii8 = bytes8 & ~HIGH
    letters = between8(ascii8 | (_ALL * np.uint64(0x20)), 0x61, 0x7A) & ~bytes8
    digits = between8(ascii8, 0x30, 0x39)
    return letters, letters | (digits | between8(ascii8, 0x5F, 0x5F)) & ~bytes8


@jit
def load(data, i, count):
    """The `count` bytes (0 to 7) from i as one number."""
    if count == 0:
        return np.uint64(0)
    if i + 8 <= len(data):
        return load8(data, i) & ((np.uint64(1) << np.uint64(8 * count)) - np.uint64(1))
    rest = np.uint64(0)
    for k in range(i + count - 1, i - 1, -1):
        rest = (rest << _8) | np.uint64(data[k])
    return rest


@jit
def absorb(state, bytes8):
    """The hash state after eight more bytes."""
    state = (state ^ bytes8) * PRIME
    return state ^ (state >> _32)


@jit
def finish(state, rest, count):
    """The hash of `count` bytes, of which the last `count % 8` are in `rest`; never 0."""
    state = absorb(state, rest) ^ np.uint64(count)
    state = (state ^ (state >> _29)) * SEED
    return (state ^ (state >> _32)) | np.uint64(1)


@jit
def hash_bytes(data, start, end):
    """The hash of `data[start:end]`."""
    state = SEED
    i = start
    while i + 8 <= end:
        state = absorb(state, load8(data, i))
        i += 8
    return finish(state, load(data, i, end - i), end - start)


@jit
def small8(bytes8):
    """Eight ASCII bytes in lower case: 0x20 is added to each that lies between A and Z."""
    return bytes8 | (between8(bytes8, 0x41, 0x5A) >> np.uint64(2))


@jit
def hash_both(data, start, end):
    """(hash of `data[start:end]`, hash of it in lower case), for ASCII bytes."""
    state = small = SEED
    i = start
    while i + 8 <= end:
        bytes8 = load8(data, i)
        state = absorb(state, bytes8)
        small = absorb(small, small8(bytes8))
        i += 8
    rest = load(data, i, end - i)
    return finish(state, rest, end - start), finish(small, small8(rest), end - start)


@jit
def decode(data, i, end):
    """(code point, bytes) of the UTF-8 character at i; a broken one counts as one byte of value U+FFFD."""
    byte = np.int64(data[i])
    if byte < 0x80:
        return byte, 1
    if byte < 0xE0:
        if byte >= 0xC2 and i + 1 < end:
            return (byte & 0x1F) << 6 | (np.int64(data[i + 1]) & 0x3F), 2
    elif byte < 0xF0:
        if i + 2 < end:
            return (byte & 0xF) << 12 | (np.int64(data[i + 1]) & 0x3F) << 6 | (np.int64(data[i + 2]) & 0x3F), 3
    elif byte < 0xF5 and i + 3 < end:
        high = (byte & 7) << 18 | (np.int64(data[i + 1]) & 0x3F) << 12
        return min(high | (np.int64(data[i + 2]) & 0x3F) << 6 | (np.int64(data[i + 3]) & 0x3F), 0x10FFFF), 4
    return np.int64(0xFFFD), 1


@jit
def _absorb_byte(state, rest, count, byte):
    rest |= np.uint64(byte) << np.uint64(8 * (count & 7))
    count += 1
    if count & 7 == 0:
        state, rest = absorb(state, rest), np.uint64(0)
    return state, rest, count


@jit
def _absorb_point(state, rest, count, code):
    if code < 0x80:
        return _absorb_byte(state, rest, count, code)
    size = 2 if code < 0x800 else 3 if code < 0x10000 else 4
    lead = (0xF00 >> size) & 0xFF
    state, rest, count = _absorb_byte(state, rest, count, lead | code >> (6 * (size - 1)))
    for k in range(size - 2, -1, -1):
        state, rest, count = _absorb_byte(state, rest, count, 0x80 | (code >> (6 * k)) & 0x3F)
    return state, rest, count


@jit
def hash_lower(data, start, end, lower):
    """The hash of `data[start:end]` in lower case by `unicode.lower()`."""
    state, rest, count = SEED, np.uint64(0), 0
    i = start
    while i < end:
        code, size = decode(data, i, end)
        i += size
        small = np.int64(lower[code]) if code < 0x20000 else code
        state, rest, count = _absorb_point(state, rest, count, small)
        if code == 0x130:
            state, rest, count = _absorb_point(state, rest, count, 0x307)
    return finish(state, rest, count)
