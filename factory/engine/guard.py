"""Calls a step so that one bad document costs one row: found by bisection, named, and the shard goes on.

An exception is bisected here, in the worker. A crash, a hang or an exhausted memory ends the worker: the supervisor
then knows at which call (`At`) it happened and gives the task to another worker with a `Suspicion`, which cuts that
call in pieces; a piece of one row that ends a worker twice is condemned, and never called again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from factory.engine import files
from factory.engine.errors import FactoryError
from factory.engine.step import Mapped, Memo

PIECES = 32

Call = Callable[[pa.RecordBatch, Memo], "pa.RecordBatch | Mapped | pa.Array"]


@dataclass(frozen=True)
class At:
    """A call that is being made: rows [start, end) of a batch, at a step. Numbers count from the start of the task."""

    step: int
    batch: int
    start: int
    end: int


@dataclass
class Suspicion:
    """What is known of the calls that ended workers: a piece to look at closely, and the rows that are condemned."""

    pieces: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    suspects: set[At] = field(default_factory=set)
    condemned: dict[tuple[int, int], dict[int, str]] = field(default_factory=dict)

    def learn(self, at: At, why: str) -> None:
        """A worker ended at this call."""
        where = (at.step, at.batch)
        if at in self.suspects:
            self.condemned.setdefault(where, {})[at.start] = why
            self.pieces.pop(where, None)
        else:
            self.pieces[where] = (at.start, at.end)
            if at.end - at.start == 1:
                self.suspects.add(at)  # once more: the worker may have been killed from outside


@dataclass
class Outcome:
    """What a call came to: the rows that are left of the batch, their reasons and errors, and the rows that failed."""

    given: pa.RecordBatch
    batch: pa.RecordBatch
    memo: Memo
    reasons: pa.Array | None
    errors: pa.Array | None
    failed: list[tuple[int, str]]


class Guard:
    """Makes the calls of one task."""

    def __init__(self, suspicion: Suspicion, report: Callable[[At | None], None]) -> None:
        self.suspicion = suspicion
        self.report = report

    def __call__(
        self, call: Call, batch: pa.RecordBatch, memo: Memo, step: int, number: int, rows_a_call: int | None
    ) -> Outcome:
        outcome = self._call(call, batch, memo, step, number, rows_a_call)
        self.report(None)
        return outcome

    def _call(
        self, call: Call, batch: pa.RecordBatch, memo: Memo, step: int, number: int, rows_a_call: int | None
    ) -> Outcome:
        where = (step, number)
        condemned = self.suspicion.condemned.get(where, {})
        ranges = _cut(batch.num_rows, rows_a_call, self.suspicion.pieces.get(where))
        failed = sorted(condemned.items())
        if len(ranges) == 1 and not condemned:
            self.report(At(step, number, 0, batch.num_rows))
            try:
                result = call(batch, memo)
            except Exception as error:
                if batch.num_rows == 0 or not _blames_a_row(error):
                    raise
            else:
                return _outcome(batch, memo, [result], failed)
        results: list[pa.RecordBatch | Mapped | pa.Array] = []
        taken: list[np.ndarray] = []
        for start, end in ranges:
            rows = np.array([row for row in range(start, end) if row not in condemned], np.int64)
            self.report(At(step, number, start, end))
            _bisect(call, batch, memo, rows, results, taken, failed)
        kept = np.concatenate(taken) if taken else np.empty(0, np.int64)
        left = batch.take(pa.array(kept))
        left_memo = Memo(len(kept))
        left_memo.alive = memo.alive[kept]
        if not results:
            results = [call(left, left_memo)]
        return _outcome(left, left_memo, results, sorted(failed))


def _blames_a_row(error: Exception) -> bool:
    """Not a mistake in what was given, nor a full disk: those are no document's fault."""
    return not isinstance(files.told(error, ""), FactoryError)


def _cut(rows: int, rows_a_call: int | None, suspect: tuple[int, int] | None) -> list[tuple[int, int]]:
    """The calls of a batch: whole, by `rows_a_call`, and a suspect range in `PIECES` pieces."""
    size = rows_a_call or max(rows, 1)
    edges = set(range(0, rows, size)) | {0, rows}
    if suspect:
        start, end = suspect
        piece = max(1, -(-(end - start) // PIECES))
        edges |= set(range(start, end, piece)) | {end}
    ordered = sorted(edges)
    return list(itertools.pairwise(ordered)) or [(0, rows)]


def _bisect(
    call: Call,
    batch: pa.RecordBatch,
    memo: Memo,
    rows: np.ndarray,
    results: list[pa.RecordBatch | Mapped | pa.Array],
    taken: list[np.ndarray],
    failed: list[tuple[int, str]],
) -> None:
    """Call on some rows; where that raises, on each half, down to the row that does."""
    if not len(rows):
        return
    whole = rows[-1] - rows[0] + 1 == len(rows)
    part = batch.slice(rows[0], len(rows)) if whole else batch.take(pa.array(rows))
    part_memo = Memo(len(rows))
    part_memo.alive = memo.alive[rows].copy()
    try:
        result = call(part, part_memo)
    except Exception as error:
        if not _blames_a_row(error):
            raise
        if len(rows) == 1:
            failed.append((int(rows[0]), f"{type(error).__name__}: {error}"))
            return
        half = len(rows) // 2
        _bisect(call, batch, memo, rows[:half], results, taken, failed)
        _bisect(call, batch, memo, rows[half:], results, taken, failed)
        return
    results.append(result)
    taken.append(rows)


def _outcome(
    given: pa.RecordBatch,
    memo: Memo,
    results: list[pa.RecordBatch | Mapped | pa.Array],
    failed: list[tuple[int, str]],
) -> Outcome:
    """The results of the pieces put together again."""
    if not isinstance(results[0], pa.RecordBatch | Mapped):
        return Outcome(given, given, memo, _concatenate(results), None, failed)
    mapped = [r if isinstance(r, Mapped) else Mapped(r) for r in results]
    batch = mapped[0].batch if len(mapped) == 1 else pa.concat_batches([m.batch for m in mapped])
    if batch.num_rows != given.num_rows:
        raise ValueError(f"a Map gave {batch.num_rows} rows for {given.num_rows}")
    reasons = _concatenate([_or_null(m.reasons, m.batch.num_rows) for m in mapped])
    errors = _concatenate([_or_null(m.errors, m.batch.num_rows) for m in mapped])
    return Outcome(given, batch, memo, reasons, errors, failed)


def _or_null(array: pa.Array | None, rows: int) -> pa.Array:
    return pa.nulls(rows, pa.string()) if array is None else array


def _concatenate(arrays: list[pa.Array]) -> pa.Array | None:
    """One array of them all; None where nothing is said of any row."""
    if all(array.null_count == len(array) for array in arrays):
        return None
    return arrays[0] if len(arrays) == 1 else pa.concat_arrays([a.cast(pa.string()) for a in arrays])
