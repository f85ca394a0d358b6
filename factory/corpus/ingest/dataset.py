"""Rows of a dataset that an earlier run made."""

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
    """The rows of an earlier dataset, with its columns and ids, a task a shard.

    The dataset's manifest key is part of the identity of everything made from it.
    """

    name: str
    """The dataset, `name@version`, as it lies below the output root."""

    def datasets(self) -> tuple[str, ...]:
        return (self.name,)

    def splits(self, context: Context, target: int) -> list[Split]:
        splits = []
        for shard in self._manifest(context)["rows"]:
            path = f"{self._folder(context)}/{shard['path']}"
            groups = metadata(path).num_row_groups
            splits.append(Split(path, 0, groups, int(shard["bytes"])))
        return splits

    def identities(self, context: Context, splits: list[Split]) -> list[dict[str, Any]]:
        """None of its own: the engine adds the dataset's key."""
        return []

    def start(self, context: Context) -> pa.Schema:
        shards = self._manifest(context)["rows"]
        if not shards:
            raise FactoryError(f"ingest.Dataset: {self.name!r} has no shards; run its recipe to the end first")
        return _wide(arrow_schema(f"{self._folder(context)}/{shards[0]['path']}"))

    def read(self, split: Split) -> Iterator[pa.RecordBatch | Failure]:
        schema = _wide(arrow_schema(split.path))
        name = split.path.rsplit("/", 1)[-1]
        yield from read_groups(split, name, schema, {column: column for column in schema.names})

    def _folder(self, context: Context) -> str:
        return f"{context.root.rstrip('/')}/{self.name}"

    def _manifest(self, context: Context) -> dict[str, Any]:
        fs, root = fsspec.core.url_to_fs(context.root)
        try:
            with files.open_file(f"{self._folder(context)}/manifest.json") as file:
                return dict(json.load(file))
        except FactoryError:
            pass  # told below, with the datasets that are there
        there = [path.rstrip("/").rsplit("/", 1)[-1] for path in fs.ls(root, detail=False)] if fs.exists(root) else []
        there = [other for other in there if "@" in other]
        raise FactoryError(
            f"ingest.Dataset: no finished dataset {self.name!r} in {context.root!r}{nearest(self.name, there)};"
            " run its recipe first, or set --out to where it lies"
        )


def _wide(schema: pa.Schema) -> pa.Schema:
    return pa.schema([(field.name, wide(field.type)) for field in schema])
