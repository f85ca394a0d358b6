"""The engine's exchange of records, in memory: the same interface, sorting and routing, without files or workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from factory.engine.gather import find_method
from factory.engine.step import Gather, Memo


def ordered(array: np.ndarray) -> np.ndarray:
    """Sorted by all fields, the first one first."""
    return array[np.lexsort([array[name] for name in reversed(array.dtype.names)])]


@dataclass
class Kept:
    """Records cut into partitions."""

    parts: list[np.ndarray]

    @property
    def rows(self) -> int:
        return sum(len(part) for part in self.parts)

    def all(self) -> np.ndarray:
        return ordered(np.concatenate(self.parts))

    def partition(self, number: None) -> tuple[np.ndarray, None]:
        return self.all(), number


@dataclass
class Slice:
    """What a method of the step is given."""

    number: int
    records: list[np.ndarray]
    sides: dict[str, list[np.ndarray]]
    given: np.ndarray | None = None

    def side(self, name: str, shard: int) -> np.ndarray:
        return self.sides[name][shard]


@dataclass
class InMemory:
    """Runs a Gather over shards, each a list of (batch, alive)."""

    step: Gather
    shards: list[list[tuple[pa.RecordBatch, np.ndarray | None]]]
    partitions: int = 5
    sides: dict[str, list[np.ndarray]] = field(default_factory=dict)
    sent: dict[str, list[np.ndarray]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, batches in enumerate(self.shards):
            row, made = 0, []
            for batch, alive in batches:
                memo = Memo(batch.num_rows)
                if alive is not None:
                    memo.alive &= alive
                docs = np.full(batch.num_rows, 2**64 - 1, np.uint64)  # Of dead rows nobody may use the number.
                docs[memo.alive] = np.arange(row, row + memo.alive.sum()) + (number << 32)
                row += int(memo.alive.sum())
                made.append(self.step.emit(batch, memo, docs))
            for name in made[0]:
                whole = np.concatenate([one[name] for one in made])
                (self.sent if whole.dtype.names else self.sides).setdefault(name, []).append(whole)

    def _routed(self, produced: Sequence[np.ndarray], route: str) -> Kept:
        whole = np.concatenate(produced)
        if route == "shard":
            where, partitions = (whole["key"] >> np.uint64(32)).astype(np.int64), len(self.shards)
        else:
            where, partitions = (whole["key"] * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)).astype(np.int64), 0
            partitions, where = self.partitions, where % self.partitions
        assert len(where) == 0 or where.max() < partitions
        return Kept([ordered(whole[where == number]) for number in range(partitions)])

    def emitted(self, name: str) -> Any:
        return self._routed(self.sent[name], "hash")

    def run(
        self, name: str, inputs: Sequence[Any], method: str, route: str = "hash", given: np.ndarray | None = None
    ) -> Any:
        assert name not in self.names, f"two exchanges are called {name}"
        self.names.append(name)
        assert len({len(one.parts) for one in inputs}) == 1
        produced = []
        for number in range(len(inputs[0].parts)):
            part = Slice(number, [one.parts[number] for one in inputs], self.sides, given)
            produced.append(find_method(self.step, method)(part))
        return self._routed(produced, route)

    def dropped(self) -> np.ndarray:
        """The records of the rows that go, sorted by row; of a Gather that arranges those of the new places."""
        decided = self.step.decide(self)  # type: ignore[arg-type]
        none = np.dtype([("key", "u8"), ("kept", "u8"), ("pair", "u8"), ("similarity", "f4")])
        return np.empty(0, none) if decided is None else decided.all()
