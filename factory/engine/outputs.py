"""The files that a task writes: shards, and what was dropped or failed, each committed by a rename."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from factory.engine import files, shard
from factory.engine.receipt import StepCount
from factory.engine.stage import DECIDED, FAILED, Stage
from factory.engine.step import Failure

SAMPLE = 100
"""dropped = "sample" keeps one row in so many whole."""
FAILED_BYTES = 64 << 10
HELD_FAILURES = 500
HOPELESS = 100
"""A step at which the first so many rows of a task all fail is broken: the task ends, the rows are not to blame."""


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


class Losses:
    """What a task drops and what fails in it: a row of dropped/ or of failed/ each."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.policy = stage.dropped_policy
        schema = shard.unpack_schema(stage.dropped)
        self.dropped = Rows(stage.folder, stage.output("dropped", number), schema, shard.FAST)
        self.failed = Rows(stage.folder, stage.output("failed", number), FAILED, shard.FAST)
        self.failures: list[tuple[str, Failure]] = []

    def drop(self, count: StepCount, batch: pa.RecordBatch, mask: np.ndarray, more: dict[str, pa.Array]) -> None:
        """The rows of the mask go, with these further columns, among them `reason`."""
        rows = int(mask.sum())
        if not rows:
            return
        count.dropped += rows
        count.reasons.update(shard.counts(more["reason"]))
        out = batch.filter(pa.array(mask))
        for name, column in {"step": pa.array([count.use] * rows, pa.string()), **more}.items():
            out = shard.with_column(out, name, column)
        self.dropped.write(thin(out, self.policy, self.dropped.schema))

    def fail(
        self, count: StepCount, batch: pa.RecordBatch, failed: list[tuple[int, str]], use: str | None = None
    ) -> None:
        """The rows of these numbers failed, each with its error."""
        if not failed:
            return
        count.failed += len(failed)
        if count.failed == count.rows_in and count.failed >= HOPELESS:
            raise RuntimeError(hopeless(count, failed[-1][1]))
        ids = batch.column("id").take(pa.array([row for row, _ in failed])).to_pylist()
        texts: list[Any] = [b""] * len(failed)
        for name in ("text", "html"):
            if name in batch.schema.names:
                texts = batch.column(name).take(pa.array([row for row, _ in failed])).to_pylist()
                break
        data = [t.encode() if isinstance(t, str) else t or b"" for t in texts]
        for one, (_, why), content in zip(ids, failed, data, strict=True):
            self.hold(use or count.use, Failure(str(one), why, "", content))

    def hold(self, use: str, failure: Failure) -> None:
        """Failures come one by one; they are written many at a time."""
        self.failures.append((use, dataclasses.replace(failure, data=failure.data[:FAILED_BYTES])))
        if len(self.failures) >= HELD_FAILURES:
            self._flush()

    def _flush(self) -> None:
        columns = [
            [f.id for _, f in self.failures],
            [use for use, _ in self.failures],
            [f.error for _, f in self.failures],
            [f.place for _, f in self.failures],
            [f.data for _, f in self.failures],
        ]
        arrays = [pa.array(c, FAILED.field(i).type) for i, c in enumerate(columns)]
        self.failed.write(pa.RecordBatch.from_arrays(arrays, schema=FAILED))
        self.failures = []

    def close(self) -> dict[str, Any]:
        """Commit both; what the receipt says of them."""
        self._flush()
        return {"dropped": self.dropped.close(), "failed": self.failed.close()}

    def abandon(self) -> None:
        self.dropped.abandon()
        self.failed.abandon()


def hopeless(count: StepCount, error: str) -> str:
    return f"{count.use}: all of its first {count.failed} rows failed, the last with {error}"
