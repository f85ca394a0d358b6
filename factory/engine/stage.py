"""What a stage is: a run of steps fused into one pass over a shard, one read and one write.

The plan makes it, stage.json tells it to the workers, `factory.engine.task` takes one shard through it.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from factory.engine import files, gather, shard
from factory.engine.decisions import Decided
from factory.engine.receipt import receipt_path
from factory.engine.recipe import located, make_step
from factory.engine.step import Context, Filter, Gather, Map, Memo, Regroup, Split, Step

FAILED = pa.schema(
    [("id", pa.string()), ("step", pa.string()), ("error", pa.string()), ("place", pa.string()), ("data", pa.binary())]
)
DECIDED = [("kept_id", pa.string()), ("pair_id", pa.string()), ("similarity", pa.float32())]
DROPPED = [("step", pa.string()), ("reason", pa.string()), *DECIDED]
"""The columns that dropped/ has besides the row's own; the last three are for a Gather's decisions."""


@dataclass(frozen=True)
class Entry:
    """A step as stage.json tells it: its number in the recipe (from 1), its name, its options."""

    number: int
    use: str
    options: dict[str, Any]
    label: str = ""
    """Begins the columns in which an annotated run writes what the step says."""

    def build(self) -> Step:
        return make_step(self.use, self.options, f"step {self.number} ({self.use})")


@dataclass(frozen=True)
class Stage:
    """A stage as resolved by the plan: all that a worker needs, apart from the number of its shard."""

    key: str
    number: int
    folder: str
    root: str
    entries: list[Entry]
    applied: Entry | None
    """The Gather before this stage, whose decisions its shards apply."""
    emits: Entry | None
    """The Gather after this stage, to which its shards contribute."""
    emitted: str
    partitions: int
    inputs: list[str]
    """Shards of the stage before; empty where the stage begins with a Source."""
    splits: list[Split]
    before: str
    after: str
    dropped: str
    """The schemas of the rows that come in, go out, and are dropped, packed."""
    shard_bytes: int
    cut: bool
    annotate: bool
    dropped_policy: str
    decided: Decided | None = None
    """Where the decisions of the Gather before this stage lie; None where it keeps all rows."""
    artifacts: dict[str, str] = field(default_factory=dict)
    pyarrow: str = pa.__version__
    """Which writes the shards: another version may write other bytes."""

    @property
    def tasks(self) -> int:
        return len(self.splits) or len(self.inputs)

    def save(self) -> None:
        files.write_json(files.join(self.folder, "stage.json"), dataclasses.asdict(self))

    @staticmethod
    def load(folder: str) -> Stage:
        table = files.read_json(files.join(folder, "stage.json"))
        for name in ("applied", "emits"):
            table[name] = Entry(**table[name]) if table[name] else None
        table["entries"] = [Entry(**e) for e in table["entries"]]
        table["decided"] = Decided(**table["decided"]) if table["decided"] else None
        table["splits"] = [Split(**s) for s in table["splits"]]
        return Stage(**table)

    @property
    def gather(self) -> str:
        """The name of the folder of the Gather that follows; empty where none does."""
        return self.emitted.rsplit("/", 2)[-2] if self.emitted else ""

    def output(self, kind: str, number: int, part: int = 0) -> str:
        """Where a task writes its rows, dropped or failed, relative to the stage's folder."""
        return files.join(kind, f"{number // 1000:04d}", f"{number:07d}-{part:04d}.parquet")

    def context(self) -> Context:
        return Context(self.root, self.artifacts)


def has_rows(stage: Stage, number: int) -> bool:
    """Whether a task's shards are there, with a receipt, and are those that it would write now."""
    path = receipt_path(stage.folder, number)
    if not files.exists(path):
        return False
    receipt = files.read_json(path)
    whole = all(files.exists(files.join(stage.folder, output["path"])) for output in receipt["outputs"])
    return whole and receipt["emit_failed"] in (None, stage.gather)


def is_done(stage: Stage, number: int) -> bool:
    """Whether nothing of a task is left to do: its rows are there, and what they contribute to the Gather after."""
    return has_rows(stage, number) and (stage.emits is None or files.exists(gather.emitted_done(stage.emitted, number)))


def label(use: str) -> str:
    """`quality.GopherRepetition` → `gopher_repetition`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", re.split(r"[.:]", use)[-1]).lower()


def annotation(entry: Entry, what: str) -> str:
    """The column in which `run --annotate` writes what a step says, as `gopher_reason`."""
    return what if what.startswith(f"{entry.label}_") else f"{entry.label}_{what}"


def annotation_fields(entry: Entry, step: Step, schema: pa.Schema) -> list[pa.Field]:
    """The columns that a step adds in an annotated run. Their types are those of its measures of no rows."""
    if isinstance(step, Gather):
        return (
            []
            if step.arranges
            else [pa.field(annotation(entry, name), type_) for name, type_ in [("reason", pa.string()), *DECIDED]]
        )
    if not isinstance(step, Filter | Map):
        return []
    batch = pa.RecordBatch.from_pylist([], schema=schema)
    fields = [pa.field(annotation(entry, n), a.type) for n, a in step.measures(batch, Memo(0)).items()]
    return [*fields, pa.field(annotation(entry, "reason"), pa.string())]


def _gather(entry: Entry | None) -> Gather | None:
    step = entry.build() if entry else None
    assert step is None or isinstance(step, Gather)
    return step


class Opened:
    """The steps of a stage, built and opened once a worker; of the Gather before it only what it decided is used."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.steps = [entry.build() for entry in stage.entries]
        self.applied = _gather(stage.applied)
        self.emits = stage.emits.build() if stage.emits else None
        for entry, step in zip([*stage.entries, *([stage.emits] if stage.emits else [])], self.all(), strict=True):
            with located(f"step {entry.number} ({entry.use})"):
                step.open(stage.context())

    def all(self) -> list[Step]:
        return [*self.steps, *([self.emits] if self.emits else [])]

    def warm(self) -> None:
        """Compile every kernel of the stage, on no rows, so that the next workers find them in the cache."""
        batch = pa.RecordBatch.from_pylist([], schema=shard.unpack_schema(self.stage.before))
        memo = Memo(0)
        for step in self.steps:
            if isinstance(step, Filter):
                step(batch, memo)
            elif isinstance(step, Map | Regroup):
                result = step(batch, memo) if isinstance(step, Map) else step.prepare(batch, memo)
                batch = result if isinstance(result, pa.RecordBatch) else result.batch
                if isinstance(step, Regroup):
                    return
        if isinstance(self.emits, Gather):
            self.emits.emit(batch, memo, np.empty(0, np.uint64))

    def close(self) -> None:
        for step in self.all():
            step.close()
