"""Arrange the rows of a dataset anew: sorted by a number, together by a value, or shuffled.

As many shards as before come out, of about as many bytes each. The order is found by keys alone, some 25 bytes a row;
the engine then takes the rows to their places, each old shard read once.

The keys are cut into shards by samples (Frazer and McKellar 1970, "Samplesort"): some rows, chosen by a hash of their
number, cut the new order into short runs; the bytes of each run are summed; shards begin at the runs that come nearest
to equal parts. Nothing of it depends on workers or partitions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Le

from factory.engine import shard
from factory.engine.errors import FactoryError
from factory.engine.step import Gather, Memo
from factory.kernels.xxh3 import xxh3

if TYPE_CHECKING:
    from factory.engine.gather import Exchange, Part, Records

RUNS = 64
"""Runs a shard, of which each is cut at most once: a shard's bytes are right to about a run's."""

ROW = np.dtype([("key", np.uint64), ("last", np.uint8), ("value", np.uint64), ("bytes", np.uint64)])
"""A row, `key` its number; rows are ordered by `last`, `value` and their number."""
VALUE = np.dtype([("key", np.uint64), ("high", np.uint64), ("doc", np.uint64), ("bytes", np.uint64)])
RUN = np.dtype([("key", np.uint64), ("last", np.uint8), ("value", np.uint64), ("shard", np.uint64)])
"""Where a run begins: with the row `key`, or with the first that has its value."""
WEIGHT = np.dtype([("key", np.uint64), ("bytes", np.uint64)])
COMING = np.dtype([("key", np.uint64), ("last", np.uint8), ("value", np.uint64), ("doc", np.uint64)])
PLACE = np.dtype([("key", np.uint64), ("kept", np.uint64)])


def mixed(values: np.ndarray) -> np.ndarray:
    """uint64 from uint64, each bit of which depends on all (the last step of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def ascending(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Of numbers, dates and booleans: uint64 in the same order, and which rows have none (null or not a number)."""
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(column.type):
        numbers = column.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False) + 0.0  # -0.0 is 0.0
        bits = numbers.view(np.uint64)
        flipped = np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))
        return flipped, missing | np.isnan(numbers)
    if pa.types.is_unsigned_integer(column.type) or pa.types.is_boolean(column.type):
        return column.cast(pa.uint64()).fill_null(0).to_numpy(zero_copy_only=False), missing
    narrow = pa.types.is_date32(column.type) or pa.types.is_time32(column.type)
    whole = (column.cast(pa.int32()) if narrow else column).cast(pa.int64()).fill_null(0)
    return whole.to_numpy(zero_copy_only=False).view(np.uint64) ^ np.uint64(1 << 63), missing


def rows_of(batch: pa.RecordBatch, docs: np.ndarray, alive: np.ndarray, last: np.ndarray, value: np.ndarray) -> dict:
    """The emission of a step that knows the order of its rows."""
    out = np.empty(int(alive.sum()), ROW)
    out["key"], out["last"], out["value"] = docs[alive], last[alive], value[alive]
    out["bytes"] = shard.row_bytes(batch)[alive]
    return {"rows": out}


def arranged(exchange: Exchange, rows: Records) -> Records:
    """The new place of every row, from ROWs of all."""
    shards = len(exchange.shards)
    share = min(1.0, RUNS * shards / max(rows.rows, 1))
    limit = np.array([min(int(share * 2.0**64), 2**64 - 1)], np.uint64)
    runs = exchange.run("runs", [rows], f"{__name__}:choose", given=limit).partition(None)[0]
    runs = runs[np.lexsort([runs["key"], runs["value"], runs["last"]])]
    runs = np.concatenate([np.zeros(1, RUN), runs])  # before the first of them are rows as well
    weights = exchange.run("weights", [rows], f"{__name__}:weigh", given=runs).partition(None)[0]
    size = np.zeros(len(runs), np.uint64)
    np.add.at(size, weights["key"].astype(np.int64), weights["bytes"])
    ends = np.concatenate([[0.0], np.cumsum(size, dtype=np.float64)])
    # A run belongs to the shard in whose equal part its middle lies.
    middle = (ends[:-1] + ends[1:]) / 2
    runs["shard"] = np.minimum(middle * shards // max(ends[-1], 1.0), shards - 1).astype(np.uint64)
    coming = exchange.run("coming", [rows], f"{__name__}:send", route="shard", given=runs)
    return exchange.run("places", [coming], f"{__name__}:number", route="shard")


def run_of(step: Gather, rows: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """The run in which each row lies."""
    apart = isinstance(step, Together)  # where the rows of a value are never cut
    ties = [np.zeros(len(a), np.uint64) if apart else a["key"] for a in (runs, rows)]
    columns = [np.concatenate(ties), *(np.concatenate([runs[n], rows[n]]) for n in ("value", "last"))]
    is_row = np.arange(len(runs) + len(rows)) >= len(runs)
    order = np.lexsort([is_row, *columns])
    found = np.empty(len(order), np.int64)
    found[order] = np.cumsum(~is_row[order]) - 1
    return found[len(runs) :]


def choose(_: Gather, part: Part) -> np.ndarray:
    """The rows with which runs begin."""
    assert part.given is not None
    rows = part.records[0]
    rows = rows[mixed(rows["key"]) <= part.given[0]]
    out = np.zeros(len(rows), RUN)
    for name in ("key", "last", "value"):
        out[name] = rows[name]
    return out


def weigh(step: Gather, part: Part) -> np.ndarray:
    """The bytes of each run that has rows here."""
    assert part.given is not None
    runs, where = np.unique(run_of(step, part.records[0], part.given), return_inverse=True)
    out = np.zeros(len(runs), WEIGHT)
    out["key"] = runs
    np.add.at(out["bytes"], where, part.records[0]["bytes"])
    return out


def send(step: Gather, part: Part) -> np.ndarray:
    """Each row to its new shard."""
    assert part.given is not None
    rows = part.records[0]
    out = np.empty(len(rows), COMING)
    out["key"] = part.given["shard"][run_of(step, rows, part.given)] << np.uint64(32)
    out["last"], out["value"], out["doc"] = rows["last"], rows["value"], rows["key"]
    return out


def number(_: Gather, part: Part) -> np.ndarray:
    """The places of a new shard's rows, which are in order."""
    rows = part.records[0]
    out = np.empty(len(rows), PLACE)
    out["key"] = rows["key"] | np.arange(len(rows), dtype=np.uint64)
    out["kept"] = rows["doc"]
    return out


@dataclass(frozen=True, kw_only=True)
class Sort(Gather):
    """Put the rows in the order of a column of numbers, dates or booleans, the least first.

    Rows with equal values stay in the order in which they were, so sorting by a second column first and by the first
    one after it sorts by both. Rows without a value, or with one that is not a number, come last.
    """

    arranges: ClassVar[bool] = True

    by: str
    """The column."""
    descending: bool = False
    """The greatest first; rows without a value still come last."""

    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def schema(self, schema: pa.Schema) -> pa.Schema:
        type_ = schema.field(self.by).type
        ordered = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_temporal)
        if not any(test(type_) for test in ordered) or pa.types.is_interval(type_):
            raise FactoryError(f"by = {self.by!r} holds {type_}: rows are sorted by numbers, dates or booleans")
        return schema

    def emit(self, batch: pa.RecordBatch, memo: Memo, docs: np.ndarray) -> dict[str, np.ndarray]:
        value, missing = ascending(batch.column(self.by))
        value = np.where(missing, np.uint64(0), ~value if self.descending else value)
        return rows_of(batch, docs, memo.alive, missing, value)

    def decide(self, exchange: Exchange) -> Records:
        return arranged(exchange, exchange.emitted("rows"))


@dataclass(frozen=True, kw_only=True)
class Shuffle(Gather):
    """Put the rows in an order by chance: that of a hash of their ids.

    The same rows are shuffled the same, however they stood and in however many shards.
    """

    arranges: ClassVar[bool] = True

    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0
    """Chooses the order."""

    def needs(self) -> tuple[str, ...]:
        return ("id",)

    def emit(self, batch: pa.RecordBatch, memo: Memo, docs: np.ndarray) -> dict[str, np.ndarray]:
        hashes = memo(xxh3, batch.column("id").cast(pa.large_string()))[:, 0]
        value = mixed(hashes ^ mixed(np.full(len(hashes), self.seed, np.uint64)))
        return rows_of(batch, docs, memo.alive, np.zeros(len(hashes), np.uint8), value)

    def decide(self, exchange: Exchange) -> Records:
        return arranged(exchange, exchange.emitted("rows"))


@dataclass(frozen=True, kw_only=True)
class Together(Gather):
    """Put the rows that have the same value in a column one after another, all in one shard.

    Values come in the order in which they first appear, and the rows of a value stay in the order in which they were.
    Values are compared by the 128-bit XXH3 hashes of their texts, of a list or struct as JSON. A row without a value
    stands alone. A shard can be as large as its largest value's rows.
    """

    arranges: ClassVar[bool] = True

    by: str
    """The column."""

    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def emit(self, batch: pa.RecordBatch, memo: Memo, docs: np.ndarray) -> dict[str, np.ndarray]:
        texts = as_texts(batch.column(self.by))
        missing = texts.is_null().to_numpy(zero_copy_only=False)[memo.alive]
        hashes = memo(xxh3, texts)[memo.alive]
        out = np.empty(len(hashes), VALUE)
        out["doc"] = docs[memo.alive]
        out["key"] = np.where(missing, mixed(out["doc"]), hashes[:, 0])
        out["high"] = np.where(missing, out["doc"], hashes[:, 1])
        out["bytes"] = shard.row_bytes(batch)[memo.alive]
        return {"values": out}

    def decide(self, exchange: Exchange) -> Records:
        return arranged(exchange, exchange.run("rows", [exchange.emitted("values")], "first"))

    def first(self, part: Part) -> np.ndarray:
        """Each row with the first one that has its value."""
        rows = part.records[0]
        new = np.ones(len(rows), np.bool_)
        new[1:] = (rows["key"][1:] != rows["key"][:-1]) | (rows["high"][1:] != rows["high"][:-1])
        out = np.zeros(len(rows), ROW)
        out["key"], out["bytes"] = rows["doc"], rows["bytes"]
        out["value"] = rows["doc"][np.flatnonzero(new)][np.cumsum(new) - 1]
        return out


def as_texts(column: pa.Array) -> pa.LargeStringArray:
    """The values as text; null where there is none."""
    if not pa.types.is_nested(column.type):
        return column.cast(pa.large_string())
    values = [None if value is None else json.dumps(value, sort_keys=True, default=str) for value in column.to_pylist()]
    return pa.array(values, pa.large_string())
