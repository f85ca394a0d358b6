"""Parquet files, by row groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from factory.corpus.ingest import files
from factory.corpus.ingest.batch import BATCH, cut, join, valid_rows, wide
from factory.engine.errors import FactoryError, nearest
from factory.engine.step import Context, Failure, Source, Split


@dataclass(frozen=True, kw_only=True)
class Parquet(Source):
    """Rows of Parquet files.

    Columns: all of the first file's, with their types (strings and binaries with 64-bit offsets), or only `text`,
    `id` and those that `columns` names. A file without one of them gives nulls; one whose column cannot be cast is an
    error. The row groups of a file are shared out over tasks; a row group is read in small batches, whatever its size.

    A row whose text is null or whose strings are not UTF-8 becomes a failed row with file and row number, and so does
    a damaged row group, as one.
    """

    glob: str
    """Path or URL of the files; `*` and `**` are allowed."""
    text: str = "text"
    """The column that holds the text; it is called `text` from here on."""
    id: str = "id"
    """The column that holds the id; a row without one is called by its file and its number in it."""
    columns: tuple[str, ...] = ()
    """The other columns to read; all where none is named."""

    def splits(self, context: Context, target: int) -> list[Split]:
        found = files.find(self.glob)
        with ThreadPoolExecutor(16) as pool:
            footers = list(pool.map(lambda file: metadata(file.path), found))
        splits = []
        for file, footer in zip(found, footers, strict=True):
            sizes = [self._bytes(footer.row_group(group)) for group in range(footer.num_row_groups)]
            listed = [files.File("", "", size) for size in sizes]
            for split in files.groups(listed, file.path, target):
                # Row groups stay whole; one that is too large for a shard is streamed.
                large = split.end - split.start == 1 and split.bytes > 2 * target
                splits.append(dataclasses.replace(split, end=files.STREAM) if large else split)
        return splits

    def whole(self, split: Split) -> bool:
        return split.end == files.STREAM

    def identities(self, context: Context, splits: list[Split]) -> list[dict[str, Any]]:
        return files.identities(self.glob)

    def start(self, context: Context) -> pa.Schema:
        _schemas[self] = schema = self._schema()
        return schema

    def read(self, split: Split) -> Iterator[pa.RecordBatch | Failure]:
        schema = _schemas.get(self) or self._schema()
        _schemas[self] = schema
        sources = {field.name: self._column(field.name) for field in schema}
        yield from read_groups(split, files.below(self.glob, split.path), schema, sources)

    def _schema(self) -> pa.Schema:
        first = files.find(self.glob)[0].path
        there = arrow_schema(first)
        names = [*self.columns] if self.columns else there.names
        for option, name in (("text", self.text), ("id", self.id), *(("columns", name) for name in self.columns)):
            if name not in there.names and (name != option or option == "columns"):
                raise FactoryError(
                    f"ingest.Parquet: {option}: no column {name!r} in {first}{nearest(name, there.names)};"
                    f" it has {', '.join(there.names)}"
                )
        taken = {"id": pa.large_string()}
        if self.text in there.names:
            taken["text"] = pa.large_string()
        for column, source in (("text", self.text), ("id", self.id)):
            if source != column and column in names:
                raise FactoryError(
                    f"ingest.Parquet: {first} has a column {column!r} besides {source!r}, which is to be called so;"
                    f" name the columns to read in `columns`, without {column!r}"
                )
        for name in names:
            if name not in (self.text, self.id):
                taken[name] = wide(there.field(name).type)
        return pa.schema(list(taken.items()))

    def _column(self, name: str) -> str:
        return {"text": self.text, "id": self.id}.get(name, name)

    def _bytes(self, group: pq.RowGroupMetaData) -> int:
        """Uncompressed bytes of the columns that are read."""
        if not self.columns:
            return int(group.total_byte_size)
        wanted = {self.text, self.id, *self.columns}
        chunks = (group.column(i) for i in range(group.num_columns))
        return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in wanted)


_schemas: dict[Parquet, pa.Schema] = {}


def opened(file: IO[bytes], path: str) -> pq.ParquetFile:
    """A Parquet file that is read page by page, not row group by row group; `FactoryError` where it is none."""
    try:
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    except (pa.ArrowInvalid, OSError) as error:
        raise FactoryError(f"not a Parquet file: {path} ({str(error).splitlines()[0]}); check `glob`") from error


def metadata(path: str) -> pq.FileMetaData:
    """The footer."""
    with files.open_file(path) as file:
        return opened(file, path).metadata


def arrow_schema(path: str) -> pa.Schema:
    """The file's columns as Arrow types."""
    with files.open_file(path) as file:
        return opened(file, path).schema_arrow.remove_metadata()


def read_groups(
    split: Split, name: str, schema: pa.Schema, sources: dict[str, str]
) -> Iterator[pa.RecordBatch | Failure]:
    """The rows of the row groups `split.start` to `split.end`; `sources` maps a column to its name in the file.

    A column that the file lacks is null, and a null `id` is replaced by `name#row`.
    """
    with files.open_file(split.path) as file:
        table = opened(file, split.path)
        there = table.schema_arrow
        wanted = [source for source in sources.values() if source in there.names]
        first = sum(table.metadata.row_group(group).num_rows for group in range(split.start))
        for group in range(split.start, split.start + 1 if split.end == files.STREAM else split.end):
            footer = table.metadata.row_group(group)
            a_row = max(1, footer.total_byte_size // max(1, footer.num_rows))
            rows = max(1, min(1 << 16, BATCH // a_row))
            at, end = first, first + footer.num_rows
            batches = table.iter_batches(rows, row_groups=[group], columns=wanted, use_threads=False)
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowInvalid, OSError) as error:
                    reason = f"rows {at} to {end - 1} cannot be read: {str(error).splitlines()[0]}"
                    yield Failure(f"{name}#{at}", reason, f"{name}:{at}")
                    break
                if batch is None:
                    break
                widened = fill_ids(_widen(batch, schema, sources, split.path), name, at)
                for part in valid_rows(widened, name, at):
                    if isinstance(part, Failure):
                        yield part
                    else:
                        yield from cut(part)
                at += batch.num_rows
            first = end


def _widen(batch: pa.RecordBatch, schema: pa.Schema, sources: dict[str, str], path: str) -> pa.RecordBatch:
    """The batch in the schema's columns and types; strings are not checked."""
    arrays: list[pa.Array] = []
    for field in schema:
        source = sources[field.name]
        if source not in batch.schema.names:
            arrays.append(pa.nulls(batch.num_rows, field.type))
            continue
        array = batch.column(batch.schema.get_field_index(source))
        try:
            arrays.append(_cast(array, field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise FactoryError(
                f"column {source!r} of {path} is {array.type}, not {field.type} as in the first file ({error});"
                " read these files in a recipe of their own"
            ) from error
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _cast(array: pa.Array, type_: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.type == type_:
        return array
    if pa.types.is_large_string(type_) and pa.types.is_nested(array.type):
        raise pa.ArrowInvalid("a nested value is no text")
    # Bytes are taken as text unchecked: the check that follows names the row.
    return pc.cast(array, options=pc.CastOptions(type_, allow_invalid_utf8=True))


def fill_ids(batch: pa.RecordBatch, name: str, first: int) -> pa.RecordBatch:
    """Null ids become `name#row`; `first` is the number of the batch's first row."""
    at = batch.schema.get_field_index("id")
    if at < 0 or not batch.column(at).null_count:
        return batch
    ids = pc.coalesce(batch.column(at), join(f"{name}#", pa.array(np.arange(first, first + batch.num_rows))))
    return batch.set_column(at, batch.schema.field(at), ids)
