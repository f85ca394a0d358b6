"""XXH3-128 against the xxhash library."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.engine.step import Memo
from factory.kernels.xxh3 import xxh3


def check(rows: list[bytes], array: pa.Array) -> None:
    got = Memo(len(array))(xxh3, array)
    assert got.dtype == np.uint64 and got.shape == (len(rows), 2)
    for row, (low, high) in zip(rows, got.tolist(), strict=True):
        assert high << 64 | low == xxhash.xxh3_128_intdigest(row), f"{len(row)} bytes"


@pytest.mark.parametrize("fill", ["random", "zeros", "ones"])
def test_every_length_to_2000(fill: str) -> None:
    random = np.random.default_rng(7)
    make = {"random": random.bytes, "zeros": bytes, "ones": lambda n: b"\xff" * n}[fill]
    rows = [make(n) for n in range(2001)]
    check(rows, pa.array(rows, pa.large_binary()))


def test_long_rows() -> None:
    random = np.random.default_rng(8)
    # Around the ends of stripes of 64 and blocks of 1024 bytes.
    sizes = [1024 * k + d for k in (2, 3, 64, 1000) for d in (-65, -64, -63, -1, 0, 1, 63, 64, 65)] + [50_000_000]
    rows = [random.bytes(n) for n in sizes]
    check(rows, pa.array(rows, pa.large_binary()))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=300), max_size=8), st.integers(0, 3), st.integers(0, 3))
def test_any_text_in_any_slice(texts: list[str], before: int, after: int) -> None:
    array = pa.array(["x" * 3] * before + texts + ["y"] * after, pa.large_string()).slice(before, len(texts))
    check([text.encode() for text in texts], array)


def test_dead_rows_are_skipped() -> None:
    memo = Memo(3)
    memo.alive[1] = False
    got = xxh3(memo, pa.array(["a", "b", "a"], pa.large_string()))
    assert got[1].tolist() == [0, 0]
    assert got[0].tolist() == got[2].tolist() != [0, 0]


def test_no_rows() -> None:
    assert xxh3(Memo(0), pa.array([], pa.large_string())).shape == (0, 2)
