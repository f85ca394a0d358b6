"""Receipts: what a task did, counted. A receipt is the commit mark of its task.

The law of every receipt: rows in + made = kept + dropped + failed + consumed.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from factory.engine import files


@dataclass
class StepCount:
    """What one step did to the rows of one task."""

    number: int
    use: str
    rows_in: int = 0
    made: int = 0
    kept: int = 0
    dropped: int = 0
    failed: int = 0
    consumed: int = 0
    bytes_in: int = 0
    cpu_seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    tally: Counter[str] = field(default_factory=Counter)

    def check(self) -> None:
        if self.rows_in + self.made != self.kept + self.dropped + self.failed + self.consumed:
            raise AssertionError(f"step {self.number} ({self.use}) lost count of its rows: {self}")


SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("stage", pa.string()),
        ("stage_number", pa.int32()),
        ("shard", pa.int64()),
        ("input", pa.string()),
        *[(f"rows_{name}", pa.int64()) for name in ("in", "made", "kept", "dropped", "failed", "consumed")],
        ("bytes_in", pa.int64()),
        ("bytes_out", pa.int64()),
        ("wall_seconds", pa.float64()),
        ("cpu_seconds", pa.float64()),
        ("peak_memory_bytes", pa.int64()),
        (
            "steps",
            pa.list_(
                pa.struct(
                    [
                        ("number", pa.int32()),
                        ("use", pa.string()),
                        *[(n, pa.int64()) for n in ("rows_in", "made", "kept", "dropped", "failed", "consumed")],
                        ("bytes_in", pa.int64()),
                        ("cpu_seconds", pa.float64()),
                        ("reasons", pa.list_(pa.struct([("reason", pa.string()), ("rows", pa.int64())]))),
                        ("tally", pa.list_(pa.struct([("name", pa.string()), ("count", pa.int64())]))),
                    ]
                )
            ),
        ),
    ]
)
"""The view `receipts` has these columns."""


def totals(steps: list[StepCount]) -> dict[str, int]:
    """The counts of a task from those of its steps: what went into the first, what left the last, the sums between."""
    for step in steps:
        step.check()
    return {
        "rows_in": steps[0].rows_in,
        "rows_made": sum(s.made for s in steps),
        "rows_kept": steps[-1].kept,
        "rows_dropped": sum(s.dropped for s in steps),
        "rows_failed": sum(s.failed for s in steps),
        "rows_consumed": sum(s.consumed for s in steps),
    }


def steps_to_json(steps: list[StepCount]) -> list[dict[str, Any]]:
    return [
        {
            **dataclasses.asdict(s),
            "reasons": [{"reason": k, "rows": v} for k, v in sorted(s.reasons.items())],
            "tally": [{"name": k, "count": v} for k, v in sorted(s.tally.items())],
        }
        for s in steps
    ]


def receipt_path(stage: str, number: int) -> str:
    return files.join(stage, "receipts", f"{number // 1000:04d}", f"{number:07d}.json")


def to_table(receipts: list[dict[str, Any]], dataset: str) -> pa.Table:
    return pa.Table.from_pylist([{**r, "dataset": dataset} for r in receipts], SCHEMA)


class Meter:
    """Wall and CPU seconds of a task, and the peak of this process's memory while it ran."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.monotonic(), time.process_time()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # start the high-water mark anew
        except OSError:
            pass

    def read(self) -> dict[str, float | int]:
        return {
            "wall_seconds": round(time.monotonic() - self.wall, 6),
            "cpu_seconds": round(time.process_time() - self.cpu, 6),
            "peak_memory_bytes": peak_memory(),
        }


def peak_memory() -> int:
    """The most bytes that this process has held at once (since the meter started, on Linux)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
