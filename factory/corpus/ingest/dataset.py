"""Rows of datasets that earlier runs made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa

from factory.corpus.ingest import files
from factory.corpus.ingest.batch import wide
from factory.corpus.ingest.parquet import arrow_schema, metadata, read_groups
from factory.engine.errors import FactoryError, nearest
from factory.engine.step import Context, Failure, Source, Split


@dataclass(frozen=True, kw_only=True)
class Dataset(Source):
    """The rows of an earlier dataset, with its columns and ids, a task a shard, and of more such datasets after it.

    A dataset's manifest key is part of the identity of everything made from it, and what its rows are made for
    (tokenizer and chat template) holds for what is made of them.
    """

    name: str
    """The dataset, `name@version`, as it lies below the output root."""
    also: tuple[str, ...] = ()
    """Further datasets, whose rows follow; they have the same columns."""
    columns: tuple[str, ...] = ()
    """Only these, and `id`; all where none is named."""

    def __post_init__(self) -> None:
        for number, name in enumerate(self.also):
            if name in (self.name, *self.also[:number]):
                raise ValueError(f"also = {name!r}: this dataset is read already")

    def datasets(self) -> tuple[str, ...]:
        return (self.name, *self.also)

    def splits(self, context: Context, target: int) -> list[Split]:
        splits = []
        for path, size in (shard for name in self.datasets() for shard in self._shards(context, name)):
            splits.append(Split(path, 0, metadata(path).num_row_groups, size))
        return splits

    def identities(self, context: Context, splits: list[Split]) -> list[dict[str, Any]]:
        """None of its own: the engine adds the datasets' keys."""
        return []

    def start(self, context: Context) -> pa.Schema:
        first = self._schema(self._shards(context, self.name)[0][0], self.name)
        for name in self.also:
            other = self._schema(self._shards(context, name)[0][0], name)
            if differences := _differences(first, other):
                raise FactoryError(
                    f"ingest.Dataset: {name!r} has not the columns of {self.name!r} ({differences}); "
                    "name those to read in `columns`, or make the datasets alike"
                )
        return first

    def read(self, split: Split) -> Iterator[pa.RecordBatch | Failure]:
        schema = self._schema(split.path, split.path)
        name = split.path.rsplit("/", 1)[-1]
        yield from read_groups(split, name, schema, {column: column for column in schema.names})

    def _schema(self, path: str, name: str) -> pa.Schema:
        """The columns of a shard that are read."""
        schema = _wide(arrow_schema(path))
        for column in self.columns:
            if column not in schema.names:
                hint = nearest(column, schema.names) or f"; it has {', '.join(schema.names)}"
                raise FactoryError(f"ingest.Dataset: columns: {name!r} has no column {column!r}{hint}")
        kept = ("id", *self.columns) if self.columns else schema.names
        return pa.schema([field for field in schema if field.name in kept])

    def _shards(self, context: Context, name: str) -> list[tuple[str, int]]:
        """The shards of a dataset: where each lies, and its bytes."""
        shards = self._manifest(context, name)["rows"]
        if not shards:
            raise FactoryError(f"ingest.Dataset: {name!r} has no shards; run its recipe to the end first")
        folder = f"{context.root.rstrip('/')}/{name}"
        return [(f"{folder}/{shard['path']}", int(shard["bytes"])) for shard in shards]

    def _manifest(self, context: Context, name: str) -> dict[str, Any]:
        fs, root = fsspec.core.url_to_fs(context.root)
        try:
            with files.open_file(f"{context.root.rstrip('/')}/{name}/manifest.json") as file:
                return dict(json.load(file))
        except FactoryError:
            pass  # told below, with the datasets that are there
        there = [path.rstrip("/").rsplit("/", 1)[-1] for path in fs.ls(root, detail=False)] if fs.exists(root) else []
        there = [other for other in there if "@" in other]
        raise FactoryError(
            f"ingest.Dataset: no finished dataset {name!r} in {context.root!r}{nearest(name, there)};"
            " run its recipe first, or set --out to where it lies"
        )


def _wide(schema: pa.Schema) -> pa.Schema:
    return pa.schema([(field.name, wide(field.type)) for field in schema])


def _differences(first: pa.Schema, other: pa.Schema) -> str:
    """What tells two sets of columns apart, in words; empty where they are the same in any order."""
    told = [f"no {field.name!r}" for field in first if field.name not in other.names]
    told += [f"{field.name!r} besides" for field in other if field.name not in first.names]
    for field in other:
        if field.name in first.names and field.type != first.field(field.name).type:
            told.append(f"{field.name!r} of {field.type}, not {first.field(field.name).type}")
    return ", ".join(told)
