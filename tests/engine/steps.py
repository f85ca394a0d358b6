"""Small steps for the tests of the engine, which knows nothing of text."""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import itertools
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Ge

from factory.engine import gather
from factory.engine.errors import FactoryError
from factory.engine.step import (
    Context,
    Failure,
    Filter,
    Gather,
    Map,
    Mapped,
    Memo,
    Regroup,
    Seam,
    Source,
    Split,
    Tally,
    reasons,
)

BAG = np.dtype([("key", np.uint64), ("doc", np.uint64)])
DROP = np.dtype([("key", np.uint64), ("kept", np.uint64), ("pair", np.uint64), ("similarity", np.float32)])
WHY = np.dtype([*DROP.descr, ("reason", np.uint8)])


@dataclass(frozen=True, kw_only=True)
class Numbers(Source):
    """Rows with a text of one number and filler, from a seed; every tenth record is bad when `bad`."""

    rows: Annotated[int, Ge(0)] = 1000
    shards: int = 10
    words: int = 20
    bad: bool = False
    distinct: int = 10**9
    batch: int = 64
    streamed: bool = False

    def splits(self, context: Context, target: int) -> list[Split]:
        if self.streamed:
            return [Split("numbers", 0, self.rows, self.rows * 8 * self.words)]
        edges = np.linspace(0, self.rows, self.shards + 1).astype(int)
        return [Split("numbers", int(a), int(b), int(b - a) * 8 * self.words) for a, b in itertools.pairwise(edges)]

    def whole(self, split: Split) -> bool:
        return self.streamed

    def identities(self, context: Context, splits: list[Split]) -> list[dict[str, object]]:
        return []

    def start(self, context: Context) -> pa.Schema:
        return pa.schema([("id", pa.large_string()), ("text", pa.large_string())])

    def read(self, split: Split) -> Iterator[pa.RecordBatch | Failure]:
        for start in range(split.start, split.end, self.batch):
            ids, texts = [], []
            for number in range(start, min(start + self.batch, split.end)):
                if self.bad and number % 10 == 3:
                    yield Failure(f"n{number}", "a bad record", f"numbers:{number}", b"\xff")
                    continue
                words = np.random.default_rng(number % self.distinct).integers(0, 10**6, self.words)
                ids.append(f"n{number}")
                texts.append(" ".join(map(str, words)))
            yield pa.record_batch({"id": pa.array(ids, pa.large_string()), "text": pa.array(texts, pa.large_string())})


@dataclass(frozen=True, kw_only=True)
class DropOdd(Filter):
    """Drops rows whose text's last character is an odd digit."""

    delay: float = 0.0

    def needs(self) -> tuple[str, ...]:
        return ("text",)

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> pa.DictionaryArray:
        time.sleep(self.delay)
        last = pc.utf8_slice_codeunits(batch.column("text"), -1, None).to_pylist()
        return reasons(np.array([0 if t and t in "13579" else -1 for t in last], np.int16), ["odd"])

    def measures(self, batch: pa.RecordBatch, memo: Memo) -> dict[str, pa.Array]:
        return {"length": pc.utf8_length(batch.column("text")).cast(pa.int64())}


@dataclass(frozen=True, kw_only=True)
class Shout(Map):
    """Adds the length and drops very short texts, fails the ones that begin with 99."""

    def needs(self) -> tuple[str, ...]:
        return ("text",)

    def adds(self) -> dict[str, pa.DataType]:
        return {"length": pa.int64()}

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> Mapped:
        text = batch.column("text")
        length = pc.binary_length(text).cast(pa.int64())
        short = np.where(length.to_numpy(zero_copy_only=False) < 100, 0, -1)
        odd = pc.starts_with(text, "99")
        errors = pc.if_else(odd, pa.scalar("begins with 99"), pa.scalar(None, pa.string()))
        return Mapped(batch.append_column("length", length), reasons(short, ["short"]), errors)


@dataclass(frozen=True, kw_only=True)
class Once(Gather):
    """Keeps the first of equal texts."""

    reasons: ClassVar[tuple[str, ...]] = ("same",)
    delay: float = 0.0

    def needs(self) -> tuple[str, ...]:
        return ("text",)

    def emit(self, batch: pa.RecordBatch, memo: Memo, docs: np.ndarray) -> dict[str, np.ndarray]:
        texts = batch.column("text").to_pylist()
        keys = [int.from_bytes(t.encode()[-8:].ljust(8), "little") for t in texts]
        records = np.zeros(int(memo.alive.sum()), BAG)
        records["key"] = np.array(keys, np.uint64)[memo.alive]
        records["doc"] = docs[memo.alive]
        return {"bag": records}

    def decide(self, exchange: gather.Exchange) -> gather.Records:
        return exchange.run("repeats", [exchange.emitted("bag")], "repeats", route="shard")

    def repeats(self, part: gather.Part) -> np.ndarray:
        time.sleep(self.delay)
        bag = part.records[0]
        _, first, back = np.unique(bag["key"], return_index=True, return_inverse=True)
        again = np.setdiff1d(np.arange(len(bag)), first)
        out = np.zeros(len(again), DROP)
        out["key"] = bag["doc"][again]
        out["kept"] = out["pair"] = bag["doc"][first[back[again]]]
        out["similarity"] = 1.0
        return out


@dataclass(frozen=True, kw_only=True)
class Judged(Once):
    """Drops repeats, and rows whose id ends in `refuses`, for their own sake."""

    reasons: ClassVar[tuple[str, ...]] = ("same", "refused")
    refuses: str = "7"

    def emit(self, batch: pa.RecordBatch, memo: Memo, docs: np.ndarray) -> dict[str, np.ndarray]:
        refused = np.array([id_.endswith(self.refuses) for id_ in batch.column("id").to_pylist()], np.bool_)
        return {
            "bag": super().emit(batch, memo, docs)["bag"],
            "refused": np.array([(doc, doc) for doc in docs[memo.alive & refused]], BAG),
        }

    def decide(self, exchange: gather.Exchange) -> gather.Records:
        again = exchange.run("repeats", [exchange.emitted("bag")], "repeats")
        return exchange.run("judged", [again, exchange.emitted("refused")], "judged", route="shard")

    def judged(self, part: gather.Part) -> np.ndarray:
        again, refused = part.records
        again = again[~np.isin(again["key"], refused["key"])]
        out = np.zeros(len(again) + len(refused), WHY)
        for name in again.dtype.names or ():
            out[name][: len(again)] = again[name]
        for name in ("key", "kept", "pair"):
            out[name][len(again) :] = refused["key"]
        out["reason"][len(again) :] = self.reasons.index("refused")
        return out


@dataclass(frozen=True, kw_only=True)
class Pairs(Regroup):
    """Joins rows two by two."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        held: list[tuple[str, str]] = []
        for batch in batches:
            held += zip(batch.column("id").to_pylist(), batch.column("text").to_pylist(), strict=True)
            while len(held) >= 2:
                yield self.joined(held[:2])
                held = held[2:]
        if held:
            yield self.joined(held)

    def schema(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema([("id", pa.large_string()), ("text", pa.large_string())])

    def joined(self, rows: list[tuple[str, str]]) -> pa.RecordBatch:
        return pa.record_batch(
            {
                "id": pa.array(["+".join(i for i, _ in rows)], pa.large_string()),
                "text": pa.array([" ".join(t for _, t in rows)], pa.large_string()),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Counted(Pairs):
    """Pairs that also tell how many were joined, and rows by the last digit of their id."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch | Tally]:
        seen: list[str] = []

        def watched() -> Iterator[pa.RecordBatch]:
            for batch in batches:
                seen.extend(batch.column("id").to_pylist())
                yield batch

        for made in super().__call__(watched()):
            yield made
            yield Tally({"joined": made.num_rows})
        yield Tally({f"ends in {digit}": sum(id_.endswith(str(digit)) for id_ in seen) for digit in range(3)})


@dataclass(frozen=True, kw_only=True)
class Sampled(Regroup):
    """`n` rows of each, of which those whose id ends in a name of `fails` cannot be made. It looks `ahead` rows in
    advance, as a step does that has requests in flight; at the row `stops` a service is gone while `flag` is there."""

    n: int = 3
    fails: tuple[str, ...] = ()
    ahead: int = 10
    stops: str = ""
    flag: str = ""
    rows_a_call: ClassVar[int | None] = 7

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch | Failure]:
        held: deque[dict[str, str]] = deque()
        for batch in batches:
            assert self.rows_a_call is not None and batch.num_rows <= self.rows_a_call
            held += batch.to_pylist()
            while len(held) > self.ahead:
                yield from self.made(held.popleft())
        for row in held:
            yield from self.made(row)

    def made(self, row: dict[str, str]) -> Iterator[pa.RecordBatch | Failure]:
        if row["id"] == self.stops and os.path.exists(self.flag):
            raise FactoryError("the service is gone: start it again")
        for sample in range(self.n):
            id_ = f"{row['id']}-{sample}"
            if id_.endswith(self.fails):
                yield Failure(id_, "cannot be made", "", row["text"].encode())
            else:
                yield pa.RecordBatch.from_pylist(
                    [{"id": id_, "text": row["text"]}],
                    pa.schema([("id", pa.large_string()), ("text", pa.large_string())]),
                )


@dataclass(frozen=True, kw_only=True)
class Trouble(Map):
    """Does something bad at the rows of the ids named: raises, crashes, hangs, or exhausts memory."""

    raises: tuple[str, ...] = ()
    crashes: tuple[str, ...] = ()
    hangs: tuple[str, ...] = ()
    fills: tuple[str, ...] = ()

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        ids = set(batch.column("id").to_pylist())
        if ids & set(self.crashes):
            ctypes.string_at(0)
        if ids & set(self.hangs):
            time.sleep(3600)
        if ids & set(self.fills):
            held = [np.ones(16 << 20, np.uint8)]
            while True:
                held.append(np.ones(16 << 20, np.uint8))
        if ids & set(self.raises):
            raise ValueError(f"cannot do {sorted(ids & set(self.raises))[0]} in {os.path.basename(__file__)}")
        return batch


@dataclass(frozen=True, kw_only=True)
class Fatal(Map):
    """Ends its worker when it is opened."""

    def open(self, context: Context) -> None:
        os._exit(3)

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        return batch


@dataclass(frozen=True, kw_only=True)
class Wants(Map):
    """Needs a column."""

    column: str = "text"

    def needs(self) -> tuple[str, ...]:
        return (self.column,)

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        return batch


@dataclass(frozen=True, kw_only=True)
class Searched(Numbers):
    """A source that has to search for its records' starts, and is wrong about the one of each later split."""

    def read(self, split: Split) -> Iterator[pa.RecordBatch | Failure | Seam]:
        first = split.start if split.exact or split.start == 0 else split.start - 2
        yield from super().read(dataclasses.replace(split, start=first))
        yield Seam(first, split.end)


@dataclass(frozen=True, kw_only=True)
class Unlucky(Map):
    """Kills its own worker at a document, but only the first time: `flag` is a file that remembers."""

    at: str = ""
    flag: str = ""

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        if self.at in batch.column("id").to_pylist() and batch.num_rows == 1 and not os.path.exists(self.flag):
            with open(self.flag, "w"):
                os.kill(os.getpid(), 9)
        return batch


@dataclass(frozen=True, kw_only=True)
class Tidy(Map):
    """Leaves a file, which is gone at the end of its process, in a folder."""

    folder: str = ""

    def open(self, context: Context) -> None:
        path = os.path.join(self.folder, f"{os.getpid()}")
        with open(path, "w"), open(f"{path}.was", "w"):
            atexit.register(os.remove, path)

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        return batch


@dataclass(frozen=True, kw_only=True)
class Heavy(Map):
    """Holds 300 MB at each call."""

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        held = np.ones(300 << 20, np.uint8)
        time.sleep(0.5 + 0 * held[0])
        return batch


@dataclass(frozen=True, kw_only=True)
class Picky(Once):
    """A Gather that cannot take some documents."""

    refuses: tuple[str, ...] = ()

    def emit(self, batch: pa.RecordBatch, memo: Memo, docs: np.ndarray) -> dict[str, np.ndarray]:
        ids = np.array(batch.column("id").to_pylist(), dtype=object)[memo.alive]
        if set(ids) & set(self.refuses):
            raise ValueError(f"cannot take {sorted(set(ids) & set(self.refuses))[0]}")
        return super().emit(batch, memo, docs)


@dataclass(frozen=True, kw_only=True)
class Reasoned(Map):
    """Adds a column that is named like one of dropped/'s."""

    def adds(self) -> dict[str, pa.DataType]:
        return {"reason": pa.large_string()}

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        return batch.append_column("reason", batch.column("id"))
