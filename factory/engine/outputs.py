"""The files that a task writes: shards, and what was dropped or failed, each committed by a rename."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from factory.engine import files, shard
from factory.engine.stage import DECIDED, Stage

SAMPLE = 100
"""dropped = "sample" keeps one row in so many whole."""


def thin(batch: pa.RecordBatch, policy: str, schema: pa.Schema) -> pa.RecordBatch:
    """Dropped rows as the policy keeps them: whole, or only what names them, or that and a sample that is whole."""
    batch = shard.conform(batch, schema)
    if policy == "full":
        return batch
    always = {"id", "url", "step", "reason", *(name for name, _ in DECIDED)}
    whole = np.zeros(batch.num_rows, np.bool_)
    if policy == "sample":
        import xxhash

        whole = np.array([xxhash.xxh3_64_intdigest(i) % SAMPLE == 0 for i in batch.column("id").to_pylist()], np.bool_)
    blank = pa.array(np.where(whole, np.arange(batch.num_rows), -1), mask=~whole)
    columns = [c if n in always else c.take(blank) for n, c in zip(schema.names, batch.columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


class Rows:
    """A Parquet file that exists only if it has rows, committed when it is closed."""

    def __init__(self, folder: str, path: str, schema: pa.Schema, level: int, always: bool = False) -> None:
        self.url, self.path, self.schema, self.level = files.join(folder, path), path, schema, level
        self._aside: Any = None
        self._writer: shard.ShardWriter | None = None
        if always:
            self._open()

    def _open(self) -> shard.ShardWriter:
        self._aside = files.aside(self.url)
        self._writer = shard.ShardWriter(self._aside.__enter__(), self.schema, self.level)
        return self._writer

    @property
    def content_bytes(self) -> int:
        return self._writer.content_bytes if self._writer else 0

    def write(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            (self._writer or self._open()).write(batch)

    def close(self) -> dict[str, Any] | None:
        if self._writer is None:
            return None
        self._writer.close()
        self._aside.__exit__(None, None, None)
        rows, content = self._writer.rows, self._writer.content_bytes
        self._aside = self._writer = None
        return {"path": self.path, "rows": rows, "bytes": files.size(self.url), "content_bytes": content}

    def abandon(self) -> None:
        """Remove what was not closed: the block that wrote it failed."""
        if self._aside is not None:
            aside, self._aside, self._writer = self._aside, None, None
            try:
                aside.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
            except KeyboardInterrupt:
                pass


class Outputs:
    """The shards that a task writes: one, or where a stage cuts a streamed file, as many as its size gives."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.stage, self.number = stage, number
        self.schema = shard.unpack_schema(stage.after)
        self.rows = 0
        self.closed: list[dict[str, Any]] = []
        self.current = Rows(stage.folder, stage.output("rows", number), self.schema, shard.LEVEL, always=True)

    def write(self, batch: pa.RecordBatch) -> None:
        if not self.stage.cut:
            self.current.write(batch)
        else:
            for part in shard.rebatch(iter([batch]), self.stage.shard_bytes):
                self._cut(int(shard.row_bytes(part).sum()))
                self.current.write(part)
        self.rows += batch.num_rows

    def _cut(self, coming: int) -> None:
        """Begin another shard where what is coming would be too much for this one."""
        held = self.current.content_bytes
        if held and held + coming > self.stage.shard_bytes:
            self.closed.append(self.current.close() or {})
            path = self.stage.output("rows", self.number, len(self.closed))
            self.current = Rows(self.stage.folder, path, self.schema, shard.LEVEL, always=True)

    def close(self) -> list[dict[str, Any]]:
        self.closed.append(self.current.close() or {})
        return self.closed

    def abandon(self) -> None:
        self.current.abandon()
