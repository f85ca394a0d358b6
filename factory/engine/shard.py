"""Shards: Parquet files whose bytes depend on their rows alone.

The same rows gave different files when they arrived in other batches or in another string type. So rows are buffered,
a row group is cut after the row that passes `ROW_GROUP_BYTES`, and each is written as one table of the frozen schema.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from factory.engine import files
from factory.engine.errors import FactoryError

ROW_GROUP_BYTES = 8 << 20
CODEC, LEVEL, FAST = "zstd", 3, 1
"""Rows are compressed at LEVEL; what was dropped, which few will read, at FAST."""
DICTIONARY = ("dump", "language", "source", "license", "kind", "package", "step", "reason", "content_type")
"""Columns of few values, dictionary-encoded; a fixed list, because a guess would depend on the data seen."""


def row_bytes(batch: pa.RecordBatch) -> np.ndarray:
    """Bytes of content in each row, int64[rows]: what memory is bounded by."""
    total = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        total += _bytes(column)
    return total


def _bytes(column: pa.Array) -> np.ndarray:
    """Bytes of each value: of strings their length, of lists and structs what is in them, of all others 8."""
    type_ = column.type
    if pa.types.is_large_string(type_) or pa.types.is_large_binary(type_):
        offsets = column.buffers()[1]
        if offsets is not None:
            return np.diff(np.frombuffer(offsets, np.int64)[column.offset :][: len(column) + 1])
    elif pa.types.is_string(type_) or pa.types.is_binary(type_):
        return np.asarray(pc.fill_null(pc.binary_length(column), 0).cast(pa.int64()))
    elif pa.types.is_list(type_) or pa.types.is_large_list(type_):
        ends = np.concatenate([[0], np.cumsum(_bytes(column.values))])
        return np.diff(ends[column.offsets.to_numpy(zero_copy_only=False)])
    elif pa.types.is_struct(type_):
        fields = [_bytes(field) for field in column.flatten()]
        return np.asarray(sum(fields, np.zeros(len(column), np.int64)))
    return np.full(len(column), 8, np.int64)


class ShardWriter:
    """Writes batches to a local file. The bytes do not depend on how the rows are cut into batches."""

    def __init__(self, path: str, schema: pa.Schema, level: int = LEVEL) -> None:
        self.schema = schema
        self.rows = 0
        self.content_bytes = 0
        self._held: list[pa.RecordBatch] = []
        self._held_bytes = 0
        dictionary = [name for name in schema.names if name in DICTIONARY]
        self._writer = pq.ParquetWriter(
            path, schema, compression=CODEC, compression_level=level, use_dictionary=dictionary, store_schema=False
        )

    def write(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows == 0:
            return
        batch = conform(batch, self.schema)
        sizes = np.cumsum(row_bytes(batch))
        self.rows += batch.num_rows
        self.content_bytes += int(sizes[-1])
        start = 0
        taken = 0
        while True:
            # The first row at which the row group passes its size ends it.
            at = int(np.searchsorted(sizes, taken + ROW_GROUP_BYTES - self._held_bytes))
            if at >= batch.num_rows:
                break
            self._held.append(batch.slice(start, at + 1 - start))
            self._flush()
            start, taken = at + 1, int(sizes[at])
        if start < batch.num_rows:
            self._held.append(batch.slice(start))
            self._held_bytes += int(sizes[-1]) - taken

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._held, self.schema).combine_chunks()
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._held, self._held_bytes = [], 0

    def close(self) -> None:
        if self._held:
            self._flush()
        self._writer.close()


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with the columns of a schema, in its order and types; absent columns are null."""
    if batch.schema == schema:
        return batch
    columns = []
    for field in schema:
        at = batch.schema.get_field_index(field.name)
        if at < 0:
            columns.append(pa.nulls(batch.num_rows, field.type))
        else:
            column = batch.column(at)
            columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def with_column(batch: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    """The batch with a column added, or replaced where there is one of that name."""
    at = batch.schema.get_field_index(name)
    return batch.append_column(name, column) if at < 0 else batch.set_column(at, name, column)


def read_batches(url: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """A shard's row groups as single-chunk batches of the schema. FactoryError names a file that is not Parquet."""
    fs, path = files.locate(url)
    try:
        with fs.open(path, "rb") as handle, pq.ParquetFile(handle) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, use_threads=False).select(schema.names).cast(schema).combine_chunks()
                yield from table.to_batches()
    except pa.ArrowInvalid as error:
        raise FactoryError(f"{url}: not a readable Parquet shard ({error}): remove it and run again") from error


def read_columns(url: str, columns: list[str]) -> pa.Table:
    """Some columns of a shard.

    Without Arrow's threads: one that lets go of a Python file while the interpreter ends aborts the process.
    """
    fs, path = files.locate(url)
    with fs.open(path, "rb") as handle, pq.ParquetFile(handle) as file:
        return file.read(columns, use_threads=False)


def read_column(url: str, column: str, type_: pa.DataType) -> pa.Array:
    """One column of a shard as a single array."""
    chunked = read_columns(url, [column]).column(0).cast(type_).combine_chunks()
    return chunked.chunk(0) if isinstance(chunked, pa.ChunkedArray) else chunked


def has_schema(url: str, schema: pa.Schema) -> bool:
    """Whether a file has the columns that a shard of the schema has."""
    fs, path = files.locate(url)
    empty = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), empty, store_schema=False)
    with fs.open(path, "rb") as handle:
        return bool(pq.read_schema(handle).equals(pq.read_schema(pa.BufferReader(empty.getvalue()))))


def rewrite(source: str, target: str, schema: pa.Schema) -> None:
    """A file of dropped rows, the same with the columns of another schema; absent columns are null."""
    fs, path = files.locate(source)
    with fs.open(path, "rb") as handle, pq.ParquetFile(handle) as file, files.aside(target) as scratch:
        writer = ShardWriter(scratch, schema, FAST)
        for batch in file.iter_batches(use_threads=False):
            writer.write(batch)
        writer.close()


def schema_to_json(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}


def pack_schema(schema: pa.Schema) -> str:
    """A schema as text for stage.json; `unpack_schema` is the reverse."""
    return bytes(schema.serialize()).hex()


def unpack_schema(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text)))


def rebatch(batches: Iterator[pa.RecordBatch], limit: int) -> Iterator[pa.RecordBatch]:
    """The same rows with batches of more than `limit` bytes cut; one row may exceed it."""
    for batch in batches:
        sizes = np.cumsum(row_bytes(batch))
        if batch.num_rows == 0 or sizes[-1] <= limit:
            yield batch
            continue
        cuts = [0]
        while cuts[-1] < batch.num_rows:
            begun = sizes[cuts[-1] - 1] if cuts[-1] else 0
            cuts.append(max(cuts[-1] + 1, int(np.searchsorted(sizes, begun + limit, side="right"))))
        for start, end in itertools.pairwise(cuts):
            yield batch.slice(start, end - start)


def counts(values: Any) -> dict[str, int]:
    """How often each non-null value of a string or dictionary array occurs, by name."""
    found = pc.value_counts(values.drop_null().cast(pa.string()))
    return {row["values"].as_py(): row["counts"].as_py() for row in sorted(found, key=lambda r: str(r["values"]))}
