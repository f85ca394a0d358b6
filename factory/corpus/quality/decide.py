"""From numbers to one reason a row."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from factory.engine.step import reasons


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """float64 part / whole; 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=np.asarray(whole) != 0)


def first_reason(rows: int, tests: Iterable[tuple[str, np.ndarray]]) -> pa.DictionaryArray:
    """The name of the first test that is true of a row, null where none is."""
    names: list[str] = []
    codes = np.full(rows, -1, np.int16)
    for name, bad in tests:
        codes[(codes < 0) & bad] = len(names)
        names.append(name)
    return reasons(codes, names)


def columns(**numbers: np.ndarray) -> dict[str, pa.Array]:
    """Arrow columns for `measures`."""
    return {name: pa.array(column) for name, column in numbers.items()}
