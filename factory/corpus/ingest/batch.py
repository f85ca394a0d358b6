"""Record batches from what Sources read: widened to the engine's types, checked to be UTF-8, bounded in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from factory.corpus.ingest.files import SHOWN
from factory.engine.step import Failure

BATCH = 8 << 20
"""About so many bytes of text in a batch; one document may exceed it."""

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def wide(type_: pa.DataType) -> pa.DataType:
    """The type in which the engine carries a column: text-like ones with 64-bit offsets, null as text."""
    if pa.types.is_dictionary(type_):
        return wide(type_.value_type)
    if pa.types.is_string(type_) or pa.types.is_string_view(type_) or pa.types.is_null(type_):
        return pa.large_string()
    if pa.types.is_binary(type_) or pa.types.is_binary_view(type_) or pa.types.is_fixed_size_binary(type_):
        return pa.large_binary()
    return type_


def is_text(array: pa.Array) -> bool:
    """True where every value is valid UTF-8."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def cut(batch: pa.RecordBatch, limit: int = BATCH) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of about `limit` bytes; a row that is larger stands alone."""
    if batch.num_rows <= 1 or batch.nbytes <= limit:
        if batch.num_rows:
            yield batch
        return
    half = batch.num_rows // 2
    yield from cut(batch.slice(0, half), limit)
    yield from cut(batch.slice(half), limit)


def join(*parts: pa.Array | str) -> pa.Array:
    """Strings put together row by row; a plain string stands in every row."""
    large = pa.large_string()
    wide_parts = [pa.scalar(part, large) if isinstance(part, str) else part.cast(large) for part in parts]
    return pc.binary_join_element_wise(*wide_parts, pa.scalar("", large))


class Rows:
    """Rows gathered one by one into batches, for records that are parsed one by one anyway."""

    def __init__(self, schema: pa.Schema, limit: int = BATCH) -> None:
        self.schema, self.limit = schema, limit
        self._columns: list[list[Any]] = [[] for _ in schema]
        self._size = 0

    def add(self, row: Sequence[Any]) -> Iterator[pa.RecordBatch]:
        """Takes a row in the schema's order (text as str or UTF-8 bytes); gives a batch where one is full."""
        size = sum(len(value) for value in row if isinstance(value, (bytes, str)))
        if self._size and self._size + size > self.limit:
            yield from self.flush()
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)
        self._size += size

    def flush(self) -> Iterator[pa.RecordBatch]:
        """Gives what is left, if anything."""
        if self._columns and self._columns[0]:
            arrays = [pa.array(values, field.type) for values, field in zip(self._columns, self.schema, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        self._columns = [[] for _ in self.schema]
        self._size = 0


def valid_rows(batch: pa.RecordBatch, name: str, first: int) -> Iterator[pa.RecordBatch | Failure]:
    """The rows of a table file whose strings are UTF-8 and whose `text`, if there is one, is not null.

    `first` is the number of the batch's first row in the file `name`. Each other row becomes a Failure.
    """
    at = batch.schema.get_field_index("text")
    bad: dict[int, str] = {}
    if at >= 0 and batch.column(at).null_count:
        for row in pc.indices_nonzero(pc.is_null(batch.column(at))).to_pylist():
            bad[row] = "`text` is null"
    if not all(is_text(column) for column in batch.columns):
        for row in range(batch.num_rows):
            wrong = [f.name for f, c in zip(batch.schema, batch.columns, strict=True) if not is_text(_one(c, row))]
            if wrong:
                bad[row] = f"{wrong[0]!r} is not valid UTF-8"
    if not bad:
        yield batch
        return
    begin = 0
    for row in [*sorted(bad), batch.num_rows]:
        if row > begin:
            yield batch.slice(begin, row - begin)
        if row in bad:
            yield Failure(f"{name}#{first + row}", bad[row], f"{name}:{first + row}", _bytes(batch, row))
        begin = row + 1


def _one(column: pa.Array, row: int) -> pa.Array:
    # A slice keeps the whole buffer, and validate() may look at all of it: copy the one row.
    return column.take(pa.array([row]))


def _bytes(batch: pa.RecordBatch, row: int) -> bytes:
    """What can be shown of a bad row: its `text`, or else every text-like value."""
    shown = b""
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if pa.types.is_large_string(field.type) or pa.types.is_large_binary(field.type):
            value = column.slice(row, 1).cast(pa.large_binary())[0].as_py() or b""
            if field.name == "text" and value:
                return bytes(value[:SHOWN])
            shown += value[:SHOWN] + b"\n"
    return shown[:SHOWN]
