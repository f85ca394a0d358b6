"""Arrow strings as numpy views, without a copy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from factory.engine.errors import FactoryError


def view(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, data) of a large_string or large_binary array: int64[n + 1] and uint8[...], read-only views.

    Row i is `data[offsets[i]:offsets[i + 1]]`; offsets of a slice do not begin at zero. FactoryError for other types.
    """
    if not (pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)):
        raise FactoryError(f"a column of {array.type} was given where text is needed: name another in `column`")
    _, offsets, data = array.buffers()
    starts = np.zeros(array.offset + len(array) + 1, np.int64) if offsets is None else np.frombuffer(offsets, np.int64)
    starts = starts[array.offset : array.offset + len(array) + 1]
    values = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    # Some Arrow buffers are mutable, others not: a kernel would be compiled for both.
    starts.setflags(write=False)
    values.setflags(write=False)
    return starts, values


def string_array(offsets: np.ndarray, data: np.ndarray) -> pa.LargeStringArray:
    """The reverse: large_string over int64 offsets (from zero) and UTF-8 bytes, not copied and not checked."""
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))
