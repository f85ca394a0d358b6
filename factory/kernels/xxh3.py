"""XXH3, the 128-bit variant with seed 0, of each row of an Arrow string array (Collet, xxHash specification).

Used to find texts that are equal: two different ones among 10^12 have equal hashes with odds of 10^-15.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from factory.engine.step import Memo
from factory.kernels import jit
from factory.kernels.arrow import view
from factory.kernels.hashing import load8


@intrinsic
def wide(typing: Any, a: Any, b: Any) -> Any:
    """The 128-bit product of two uint64 as (low, high)."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], whole), builder.zext(args[1], whole))
        high = builder.lshr(product, ir.Constant(whole, 64))
        parts = [builder.trunc(product, ir.IntType(64)), builder.trunc(high, ir.IntType(64))]
        return cgutils.pack_array(builder, parts)

    return types.UniTuple(types.uint64, 2)(types.uint64, types.uint64), code


# The specification's default secret and primes.
SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
        "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
        "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    np.uint8,
)
U = np.uint64
A1, A2, A3 = U(0x9E3779B1), U(0x85EBCA77), U(0xC2B2AE3D)  # 32-bit primes
P1, P2, P3 = U(0x9E3779B185EBCA87), U(0xC2B2AE3D27D4EB4F), U(0x165667B19E3779F9)
P4, P5 = U(0x85EBCA77C2B2AE63), U(0x27D4EB2F165667C5)
M1, M2 = U(0x165667919E3779F9), U(0x9FB21C651E98DF25)
LOW = U(0xFFFFFFFF)


@jit
def _finish(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> U(37))) * M1
    return h ^ (h >> U(32))


@jit
def _finish64(h: np.uint64) -> np.uint64:
    """The last mixing of the older XXH64."""
    h = (h ^ (h >> U(33))) * P2
    h = (h ^ (h >> U(29))) * P3
    return h ^ (h >> U(32))


@jit
def _swap(x: np.uint64) -> np.uint64:
    x = ((x & U(0x00FF00FF00FF00FF)) << U(8)) | ((x >> U(8)) & U(0x00FF00FF00FF00FF))
    x = ((x & U(0x0000FFFF0000FFFF)) << U(16)) | ((x >> U(16)) & U(0x0000FFFF0000FFFF))
    return (x << U(32)) | (x >> U(32))


@jit
def _fold(a: np.uint64, b: np.uint64) -> np.uint64:
    low, high = wide(a, b)
    return low ^ high


@jit
def _mix(data: np.ndarray, at: int, s: int) -> np.uint64:
    return _fold(load8(data, at) ^ load8(SECRET, s), load8(data, at + 8) ^ load8(SECRET, s + 8))


@jit
def _pair(low: np.uint64, high: np.uint64, data: np.ndarray, a: int, b: int, s: int) -> tuple[np.uint64, np.uint64]:
    low = (low + _mix(data, a, s)) ^ (load8(data, b) + load8(data, b + 8))
    high = (high + _mix(data, b, s + 16)) ^ (load8(data, a) + load8(data, a + 8))
    return low, high


@jit
def _short(data: np.ndarray, at: int, n: int) -> tuple[np.uint64, np.uint64]:
    """Up to 16 bytes."""
    size = U(n)
    if n > 8:
        first, last = load8(data, at), load8(data, at + n - 8)
        low, high = wide(first ^ last ^ load8(SECRET, 32) ^ load8(SECRET, 40), P1)
        low += (size - U(1)) << U(54)
        last ^= load8(SECRET, 48) ^ load8(SECRET, 56)
        high += last + (last & LOW) * (A2 - U(1))
        low ^= _swap(high)
        out, carry = wide(low, P2)
        return _finish(out), _finish(carry + high * P2)
    word, tail = U(0), U(0)
    if n > 3:
        for k in range(4):
            word |= U(data[at + k]) << U(8 * k)
            tail |= U(data[at + n - 4 + k]) << U(8 * k)
        word |= tail << U(32)
        low, high = wide(word ^ load8(SECRET, 16) ^ load8(SECRET, 24), P1 + (size << U(2)))
        high += low << U(1)
        low ^= high >> U(3)
        low = (low ^ (low >> U(35))) * M2
        return low ^ (low >> U(28)), _finish(high)
    if n > 0:
        word = U(data[at]) << U(16) | U(data[at + (n >> 1)]) << U(24) | U(data[at + n - 1]) | size << U(8)
        turned = _swap(word) >> U(32)
        turned = ((turned << U(13)) | (turned >> U(19))) & LOW
        a, b = load8(SECRET, 0), load8(SECRET, 8)
        return _finish64(word ^ ((a ^ (a >> U(32))) & LOW)), _finish64(turned ^ ((b ^ (b >> U(32))) & LOW))
    return _finish64(load8(SECRET, 64) ^ load8(SECRET, 72)), _finish64(load8(SECRET, 80) ^ load8(SECRET, 88))


@jit
def _middle(data: np.ndarray, at: int, n: int) -> tuple[np.uint64, np.uint64]:
    """17 to 240 bytes."""
    size, end = U(n), at + n
    low, high = size * P1, U(0)
    if n <= 128:
        for k in range((n - 1) // 32, -1, -1):
            low, high = _pair(low, high, data, at + 16 * k, end - 16 * (k + 1), 32 * k)
    else:
        for k in range(4):
            low, high = _pair(low, high, data, at + 32 * k, at + 32 * k + 16, 32 * k)
        low, high = _finish(low), _finish(high)
        for k in range(4, n // 32):
            low, high = _pair(low, high, data, at + 32 * k, at + 32 * k + 16, 3 + 32 * (k - 4))
        low, high = _pair(low, high, data, end - 16, end - 32, 103)
    return _finish(low + high), U(0) - _finish(low * P1 + high * P4 + size * P2)


@jit
def _stripes(acc: tuple[np.uint64, ...], data: np.ndarray, at: int, count: int, secret: int) -> tuple[np.uint64, ...]:
    """Add `count` stripes of 64 bytes to the eight sums; the secret moves by 8 bytes a stripe."""
    a0, a1, a2, a3, a4, a5, a6, a7 = acc
    for k in range(count):
        p, s = at + 64 * k, secret + 8 * k
        v0, v1, v2, v3 = load8(data, p), load8(data, p + 8), load8(data, p + 16), load8(data, p + 24)
        v4, v5, v6, v7 = load8(data, p + 32), load8(data, p + 40), load8(data, p + 48), load8(data, p + 56)
        k0, k1 = v0 ^ load8(SECRET, s), v1 ^ load8(SECRET, s + 8)
        k2, k3 = v2 ^ load8(SECRET, s + 16), v3 ^ load8(SECRET, s + 24)
        k4, k5 = v4 ^ load8(SECRET, s + 32), v5 ^ load8(SECRET, s + 40)
        k6, k7 = v6 ^ load8(SECRET, s + 48), v7 ^ load8(SECRET, s + 56)
        a0, a1 = a0 + v1 + (k0 & LOW) * (k0 >> U(32)), a1 + v0 + (k1 & LOW) * (k1 >> U(32))
        a2, a3 = a2 + v3 + (k2 & LOW) * (k2 >> U(32)), a3 + v2 + (k3 & LOW) * (k3 >> U(32))
        a4, a5 = a4 + v5 + (k4 & LOW) * (k4 >> U(32)), a5 + v4 + (k5 & LOW) * (k5 >> U(32))
        a6, a7 = a6 + v7 + (k6 & LOW) * (k6 >> U(32)), a7 + v6 + (k7 & LOW) * (k7 >> U(32))
    return a0, a1, a2, a3, a4, a5, a6, a7


@jit
def _scramble(a: np.uint64, s: int) -> np.uint64:
    return (a ^ (a >> U(47)) ^ load8(SECRET, s)) * A1


@jit
def _merge(acc: tuple[np.uint64, ...], s: int, start: np.uint64) -> np.uint64:
    h = start
    h += _fold(acc[0] ^ load8(SECRET, s), acc[1] ^ load8(SECRET, s + 8))
    h += _fold(acc[2] ^ load8(SECRET, s + 16), acc[3] ^ load8(SECRET, s + 24))
    h += _fold(acc[4] ^ load8(SECRET, s + 32), acc[5] ^ load8(SECRET, s + 40))
    h += _fold(acc[6] ^ load8(SECRET, s + 48), acc[7] ^ load8(SECRET, s + 56))
    return _finish(h)


@jit
def _long(data: np.ndarray, at: int, n: int) -> tuple[np.uint64, np.uint64]:
    """From 241 bytes: blocks of 16 stripes of 64 bytes."""
    acc: tuple[np.uint64, ...] = (A3, P1, P2, P3, P4, A2, P5, A1)
    blocks = (n - 1) // 1024
    for k in range(blocks):
        a = _stripes(acc, data, at + 1024 * k, 16, 0)
        acc = (
            _scramble(a[0], 128),
            _scramble(a[1], 136),
            _scramble(a[2], 144),
            _scramble(a[3], 152),
            _scramble(a[4], 160),
            _scramble(a[5], 168),
            _scramble(a[6], 176),
            _scramble(a[7], 184),
        )
    acc = _stripes(acc, data, at + 1024 * blocks, (n - 1 - 1024 * blocks) // 64, 0)
    acc = _stripes(acc, data, at + n - 64, 1, 121)
    return _merge(acc, 11, U(n) * P1), _merge(acc, 117, ~(U(n) * P2))


@jit
def _hash(offsets: np.ndarray, data: np.ndarray, alive: np.ndarray, out: np.ndarray) -> None:
    for row in range(len(alive)):
        if not alive[row]:
            out[row, 0] = out[row, 1] = U(0)
            continue
        at, n = offsets[row], offsets[row + 1] - offsets[row]
        if n > 240:
            out[row, 0], out[row, 1] = _long(data, at, n)
        elif n > 16:
            out[row, 0], out[row, 1] = _middle(data, at, n)
        else:
            out[row, 0], out[row, 1] = _short(data, at, n)


def xxh3(memo: Memo, array: pa.Array) -> np.ndarray:
    """uint64[n, 2]: the low and the high half of each row's hash; zeros where `memo.alive` is false.

    The canonical digest is the high half, then the low one, both big-endian. Call it through the memo.
    """
    offsets, data = view(array)
    # One kind of array, so that the kernel is compiled once.
    offsets.flags.writeable = data.flags.writeable = False
    out = np.empty((len(array), 2), np.uint64)
    _hash(offsets, data, memo.alive, out)
    return out
