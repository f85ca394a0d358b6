"""One shard through one stage: the worker's side. Batches flow through the steps, and every row is accounted for."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from factory.engine import decisions, files, gather, shard
from factory.engine.errors import FactoryError
from factory.engine.guard import Guard, Suspicion
from factory.engine.outputs import HOPELESS, Losses, Outputs, hopeless
from factory.engine.receipt import Meter, StepCount, receipt_path, steps_to_json, totals
from factory.engine.stage import Entry, Opened, annotation, has_rows, is_done
from factory.engine.step import Failure, Filter, Gather, Map, Mapped, Memo, Regroup, Seam, Source, Step, Tally

BATCH_BYTES = 16 << 20

Read = Callable[[int, int, int], None]
"""Called with rows and bytes read, and rows made by a Regroup, since the last call."""


class StageTask:
    """One shard through one stage."""

    def __init__(self, opened: Opened, number: int, guard: Guard, progress: Read) -> None:
        self.opened, self.stage, self.number = opened, opened.stage, number
        self.guard, self.progress = guard, progress
        self.counts: list[StepCount] = []
        self.bytes_in = 0
        self.seam: Seam | None = None
        self.batch_number = 0
        self.losses = Losses(opened.stage, number)
        self.emissions: list[dict[str, np.ndarray]] = []
        self.emit_failed = False
        self.emit_seconds = 0.0

    def run(self) -> None:
        """Do the work and commit it: shards first, then what is emitted, the receipt last."""
        stage = self.stage
        if is_done(stage, self.number):
            return
        if has_rows(stage, self.number):
            try:
                self._emit_again()
            except FactoryError:
                raise
            except Exception:
                self.emissions = []  # some row is at fault: do it all again, guarded
            else:
                return
        self._forget()
        meter = Meter()
        writers = Outputs(stage, self.number)
        try:
            for batch, memo in self._pipeline():
                self._write(writers, batch, memo)
            outputs = writers.close()
            lost = self.losses.close()
        finally:
            writers.abandon()
            self.losses.abandon()
        if stage.emits:
            gather.write_emitted(stage.emitted, self.number, self._emitted(), stage.partitions)
        receipt = {
            "stage": stage.key,
            "stage_number": stage.number,
            "shard": self.number,
            "input": self._input(),
            **totals(self.counts),
            "bytes_in": self.bytes_in,
            "bytes_out": sum(o["bytes"] for o in outputs),
            **meter.read(),
            "steps": steps_to_json(self.counts),
            "outputs": outputs,
            **lost,
            "emit": {"number": stage.emits.number, "cpu_seconds": self.emit_seconds} if stage.emits else None,
            "dropped_policy": stage.dropped_policy,
            "seam": [self.seam.first, self.seam.last] if self.seam else None,
            # Rows that this Gather could not take are not in the shard: under another Gather it is another shard.
            "emit_failed": stage.gather if self.emit_failed else None,
        }
        files.write_json(receipt_path(stage.folder, self.number), receipt, first_wins=True)

    def _input(self) -> str:
        """What the task reads, as its receipt tells it."""
        if self.stage.splits:
            source = self.stage.splits[self.number]
            return f"{source.path}:{source.start}-{source.end}"
        if self._arranged():
            return f"rows of {len(self.stage.inputs)} shards"
        return self.stage.inputs[self.number]

    def _arranged(self) -> bool:
        """Whether the Gather before this stage gave its rows new places."""
        step = self.opened.applied
        return self.stage.decided is not None and step is not None and step.arranges

    def _forget(self) -> None:
        """What an earlier run of this task left: its receipt, and the marks of what it contributed to any Gather."""
        files.remove(receipt_path(self.stage.folder, self.number))
        for folder in files.matching(files.join(self.stage.folder, "gather-*")):
            files.remove(gather.emitted_done(files.join(folder, "emitted"), self.number))

    # The pipeline: batches flow through Maps and Filters with their memo; a Regroup joins them into a stream.

    def _pipeline(self) -> Iterator[tuple[pa.RecordBatch, Memo]]:
        stream: Iterator[tuple[pa.RecordBatch, Memo]] = self._read()
        steps = self.opened.steps
        first = 1 if steps and isinstance(steps[0], Source) else 0
        for entry, step in list(zip(self.stage.entries, steps, strict=True))[first:]:
            count = StepCount(entry.number, entry.use)
            self.counts.append(count)
            if isinstance(step, Regroup):
                stream = self._regroup(stream, step, count)
            else:
                stream = self._through(stream, step, entry, count)
        return stream

    def _read(self) -> Iterator[tuple[pa.RecordBatch, Memo]]:
        stage = self.stage
        if stage.number == 0:
            count = StepCount(stage.entries[0].number, stage.entries[0].use)
            self.counts.append(count)
            return self._read_source(count)
        entry = stage.applied or Entry(0, "read", {})
        count = StepCount(entry.number, entry.use)
        self.counts.append(count)
        return self._read_shard(count)

    def _read_source(self, count: StepCount) -> Iterator[tuple[pa.RecordBatch, Memo]]:
        source = self.opened.steps[0]
        assert isinstance(source, Source)
        schema = shard.unpack_schema(self.stage.before)
        begun = time.process_time()
        for item in source.read(self.stage.splits[self.number]):
            if isinstance(item, Seam):
                self.seam = item
            elif isinstance(item, Failure):
                count.rows_in += 1
                count.failed += 1
                self.losses.hold(count.use, item)
            else:
                for batch in self._pieces(shard.rebatch(iter([shard.conform(item, schema)]), BATCH_BYTES)):
                    size = int(shard.row_bytes(batch).sum())
                    count.rows_in += batch.num_rows
                    count.kept += batch.num_rows
                    count.bytes_in += size
                    self.bytes_in += size
                    count.cpu_seconds += time.process_time() - begun
                    self.batch_number += 1
                    yield batch, Memo(batch.num_rows)
                    self.progress(batch.num_rows, size, 0)
                    begun = time.process_time()
        count.cpu_seconds += time.process_time() - begun

    def _read_shard(self, count: StepCount) -> Iterator[tuple[pa.RecordBatch, Memo]]:
        stage = self.stage
        schema = shard.unpack_schema(stage.before)
        applied = None
        if self._arranged():
            assert stage.decided is not None
            batches = decisions.read_arranged(stage.decided, self.number, schema, BATCH_BYTES)
        else:
            batches = shard.read_batches(stage.inputs[self.number], schema)
            if stage.decided and self.opened.applied:
                applied = decisions.read_decisions(stage.decided, self.number, self.opened.applied)
        row = 0
        for batch in self._pieces(batches):
            begun = time.process_time()
            size = int(shard.row_bytes(batch).sum())
            memo = Memo(batch.num_rows)
            count.rows_in += batch.num_rows
            count.bytes_in += size
            self.bytes_in += size
            if applied is not None:
                batch = self._apply(batch, memo, applied, row, count)
            row += batch.num_rows
            count.kept += int(memo.alive.sum())
            count.cpu_seconds += time.process_time() - begun
            self.batch_number += 1
            yield batch, memo
            self.progress(batch.num_rows, size, 0)

    def _pieces(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches in pieces of as many rows as a Regroup of this stage takes at once."""
        sizes = [step.rows_a_call for step in self.opened.steps if isinstance(step, Regroup) and step.rows_a_call]
        if not sizes:
            yield from batches
            return
        size = min(sizes)
        for batch in batches:
            yield from (batch.slice(at, size) for at in range(0, batch.num_rows, size))

    def _apply(
        self, batch: pa.RecordBatch, memo: Memo, applied: decisions.Applied, row: int, count: StepCount
    ) -> pa.RecordBatch:
        """Drop the rows that the Gather before this stage decided on."""
        assert self.stage.applied is not None
        mine = np.flatnonzero((applied.rows >= row) & (applied.rows < row + batch.num_rows))
        where = applied.rows[mine] - row
        mask = np.zeros(batch.num_rows, np.bool_)
        mask[where] = True
        order = pa.array(mine[np.argsort(where, kind="stable")])
        more = {name: column.take(order) for name, column in applied.columns.items()}
        if self.stage.annotate:
            at = np.full(batch.num_rows, -1)
            at[np.flatnonzero(mask)] = np.arange(len(mine))
            take = pa.array(at, mask=at < 0)
            for name, column in more.items():
                batch = shard.with_column(batch, annotation(self.stage.applied, name), column.take(take))
            return batch
        self.losses.drop(count, batch, mask, more)
        memo.alive &= ~mask
        return batch

    def _through(
        self, stream: Iterator[tuple[pa.RecordBatch, Memo]], step: Step, entry: Entry, count: StepCount
    ) -> Iterator[tuple[pa.RecordBatch, Memo]]:
        """A Map or a Filter, and the bookkeeping of what it drops and fails."""
        assert isinstance(step, Map | Filter)
        call = _measured(step, entry) if self.stage.annotate else step
        for batch, memo in stream:
            begun = time.process_time()
            alive = memo.alive.copy()
            count.rows_in += int(alive.sum())
            count.bytes_in += _text_bytes(batch, alive)
            outcome = self.guard(call, batch, memo, count.number, self.batch_number, step.rows_a_call)
            memo, result = outcome.memo, outcome.batch
            failed = [(row, why) for row, why in outcome.failed if alive[row]]
            self.losses.fail(count, batch, failed)
            if outcome.errors is not None:
                bad = np.flatnonzero(outcome.errors.is_valid().to_numpy(zero_copy_only=False) & memo.alive)
                why = outcome.errors.take(pa.array(bad)).to_pylist()
                self.losses.fail(count, outcome.given, list(zip(bad.tolist(), why, strict=True)))
                memo.alive[bad] = False
            if self.stage.annotate:
                said = pa.nulls(result.num_rows, pa.string()) if outcome.reasons is None else outcome.reasons
                result = shard.with_column(result, annotation(entry, "reason"), said.cast(pa.string()))
            elif outcome.reasons is not None:
                mask = pc.is_valid(outcome.reasons).to_numpy(zero_copy_only=False) & memo.alive
                shown = outcome.given
                for name in result.schema.names:
                    if name not in shown.schema.names:
                        shown = shown.append_column(name, result.column(name))
                said = outcome.reasons.filter(pa.array(mask)).cast(pa.string())
                self.losses.drop(count, shown, mask, {"reason": said})
                memo.alive &= ~mask
            count.kept += int(memo.alive.sum())
            count.cpu_seconds += time.process_time() - begun
            yield result, memo

    def _regroup(
        self, stream: Iterator[tuple[pa.RecordBatch, Memo]], step: Regroup, count: StepCount
    ) -> Iterator[tuple[pa.RecordBatch, Memo]]:
        def prepared() -> Iterator[pa.RecordBatch]:
            for batch, memo in stream:
                begun = time.process_time()
                alive = memo.alive.copy()
                count.rows_in += int(alive.sum())
                count.bytes_in += _text_bytes(batch, alive)
                outcome = self.guard(step.prepare, batch, memo, count.number, self.batch_number, step.rows_a_call)
                if outcome.reasons is not None or outcome.errors is not None:
                    raise TypeError(f"{count.use}.prepare gave reasons or errors: a Regroup cannot drop rows")
                self.losses.fail(count, batch, [(row, why) for row, why in outcome.failed if alive[row]])
                count.consumed += int(outcome.memo.alive.sum())
                count.cpu_seconds += time.process_time() - begun
                yield _living(outcome.batch, outcome.memo)

        hopes, last = HOPELESS, ""  # so many more rows of which nothing but failures is made end the task
        for made in step(prepared()):
            if isinstance(made, Tally):
                count.tally.update({name: int(seen) for name, seen in made.counts.items()})
                continue
            rows = 1 if isinstance(made, Failure) else made.num_rows
            count.made += rows
            self.progress(0, 0, rows)
            if isinstance(made, Failure):
                count.failed += 1
                self.losses.hold(count.use, made)
                hopes -= not made.of or made.of != last
                last = made.of
                if not count.kept and hopes <= 0:
                    raise RuntimeError(hopeless(count, made.error))
                continue
            count.kept += rows
            self.batch_number += 1  # what comes after it are other calls than those on what went in
            yield made, Memo(rows)

    # What leaves the pipeline.

    def _write(self, writers: Outputs, batch: pa.RecordBatch, memo: Memo) -> None:
        if self.stage.emits:
            batch, memo = self._emit(batch, memo, writers.rows)
        writers.write(_living(batch, memo))

    def _emit(self, batch: pa.RecordBatch, memo: Memo, row: int) -> tuple[pa.RecordBatch, Memo]:
        step, entry = self.opened.emits, self.stage.emits
        assert isinstance(step, Gather) and entry is not None

        def call(part: pa.RecordBatch, part_memo: Memo) -> pa.Array:
            found.append(step.emit(part, part_memo, _documents(self.number, row, part_memo)))
            return pa.nulls(part.num_rows, pa.string())

        begun = time.process_time()
        found: list[dict[str, np.ndarray]] = []
        outcome = self.guard(call, batch, memo, entry.number, self.batch_number, None)
        if outcome.failed or len(found) > 1:
            # Rows left, so the rest are numbered anew.
            self.emit_failed |= bool(outcome.failed)
            failed = [(bad, why) for bad, why in outcome.failed if memo.alive[bad]]
            count = self.counts[-1]
            count.kept -= len(failed)
            self.losses.fail(count, batch, failed, entry.use)
            batch, memo = outcome.given, outcome.memo
            found = [step.emit(batch, memo, _documents(self.number, row, memo))]
        self.emissions += found
        self.emit_seconds += time.process_time() - begun
        return batch, memo

    def _emitted(self) -> dict[str, Any]:
        """The emissions of all batches as one; a shard without rows emits what the step says of no rows."""
        found = self.emissions
        if not found:
            step = self.opened.emits
            assert isinstance(step, Gather)
            empty = pa.RecordBatch.from_pylist([], schema=shard.unpack_schema(self.stage.after))
            found = [step.emit(empty, Memo(0), np.empty(0, np.uint64))]
        return {name: _join([one[name] for one in found]) for name in found[0]}

    def _emit_again(self) -> None:
        """The shard is there but what it emits is not (another Gather now follows it): read it back."""
        row = 0
        path = files.join(self.stage.folder, self.stage.output("rows", self.number))
        for batch in shard.read_batches(path, shard.unpack_schema(self.stage.after)):
            step = self.opened.emits
            assert isinstance(step, Gather)
            memo = Memo(batch.num_rows)
            self.emissions.append(step.emit(batch, memo, _documents(self.number, row, memo)))
            row += batch.num_rows
        gather.write_emitted(self.stage.emitted, self.number, self._emitted(), self.stage.partitions)


def _measured(step: Map | Filter, entry: Entry) -> Callable[[pa.RecordBatch, Memo], Mapped]:
    """A step's call that also gives the numbers by which it decides, for an annotated run."""

    def call(batch: pa.RecordBatch, memo: Memo) -> Mapped:
        result = step(batch, memo)
        if isinstance(result, pa.RecordBatch):
            result = Mapped(result)
        elif not isinstance(result, Mapped):
            result = Mapped(batch, result)
        out = result.batch
        for name, column in step.measures(batch, memo).items():
            out = shard.with_column(out, annotation(entry, name), column)
        return dataclasses.replace(result, batch=out)

    return call


def _living(batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
    return batch if memo.alive.all() else batch.filter(pa.array(memo.alive))


def _documents(number: int, row: int, memo: Memo) -> np.ndarray:
    """shard << 32 | row in the written shard, for the living rows of a batch that begins at `row`."""
    rows = np.uint64(row) + np.cumsum(memo.alive).astype(np.uint64) - np.uint64(1)
    return rows | np.uint64(number << 32)


def _join(values: list[Any]) -> Any:
    if isinstance(values[0], gather.WithPayload):
        records = np.concatenate([v.records for v in values])
        return gather.WithPayload(records, pa.concat_arrays([v.payload for v in values]))
    return np.concatenate(values)


def _text_bytes(batch: pa.RecordBatch, alive: np.ndarray) -> int:
    """Bytes of text (else of all content) in the living rows."""
    at = batch.schema.get_field_index("text")
    sizes = shard.row_bytes(batch.select(["text"]) if at >= 0 else batch)
    return int(sizes[alive].sum())


def run_stage_task(opened: Opened, number: int, suspicion: Suspicion, report: Any, progress: Read) -> None:
    """Do one shard of a stage and commit it; does nothing where a receipt says that it is done."""
    StageTask(opened, number, Guard(suspicion, report), progress).run()
