"""What a Gather decided, and how the shards of the next stage apply it: rows to drop, each with its reason, or the new
places of all rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from factory.engine import shard
from factory.engine.gather import Exchange, Part, Records, WithPayload, with_payload
from factory.engine.step import Gather

ASKED = np.dtype([("key", np.uint64), ("doc", np.uint64), ("role", np.uint8)])
ANSWER = np.dtype([("key", np.uint64), ("role", np.uint8)])
LEAVING = np.dtype([("key", np.uint64), ("to", np.uint64)])
MESSAGE = np.dtype([("key", np.uint64)])
ROLES = ("kept", "pair")
ROW = np.uint64(0xFFFFFFFF)


def ask_ids(_: Gather, part: Part) -> np.ndarray:
    """Of each decision, ask the shards of the kept row and of the paired row for their ids."""
    decisions = part.records[0]
    asked = []
    for role, name in enumerate(ROLES):
        other = decisions[decisions[name] != decisions["key"]]
        asked.append(np.zeros(len(other), ASKED))
        asked[-1]["key"], asked[-1]["doc"], asked[-1]["role"] = other[name], other["key"], role
    return np.concatenate(asked)


def answer_ids(_: Gather, part: Part) -> WithPayload:
    """Look up the ids that were asked of some shards, each read once; they go to the shards of the dropped rows."""
    asked = part.records[0]  # sorted by key, so by shard
    answers = np.zeros(len(asked), ANSWER)
    answers["key"], answers["role"] = asked["doc"], asked["role"]
    shards = (asked["key"] >> np.uint64(32)).astype(np.int64)
    rows = (asked["key"] & ROW).astype(np.int64)
    starts = np.flatnonzero(np.diff(shards, prepend=-1))
    ids = [
        part.ids(int(shards[start])).take(pa.array(rows[start:end]))
        for start, end in itertools.pairwise([*starts, len(asked)])
    ]
    return with_payload(answers, pa.concat_arrays(ids) if ids else pa.array([], pa.large_string()))


@dataclass(frozen=True)
class Decided:
    """Where a Gather's decisions lie, and the ids to show with them, or the rows that were sent to their new shards:
    what the shards of the next stage apply."""

    decisions: str
    answers: str
    producers: int
    answerers: int
    shards: int


def leave(_: Gather, part: Part) -> np.ndarray:
    """Of each new place, tell the old shard of the row where it goes."""
    leaving = np.empty(len(part.records[0]), LEAVING)
    leaving["key"], leaving["to"] = part.records[0]["kept"], part.records[0]["key"] >> np.uint64(32)
    return leaving


def move(step: Gather, part: Part) -> WithPayload:
    """The rows of an old shard, read once: to each new shard a message with those that go there, in their old order."""
    assert part.given is not None
    schema = pa.ipc.read_schema(pa.py_buffer(part.given.tobytes()))
    leaving = part.records[0]  # sorted by key, so by row
    table = pa.Table.from_batches(shard.read_batches(part.shards[part.number], schema), schema).combine_chunks()
    if not np.array_equal(leaving["key"] & ROW, np.arange(table.num_rows, dtype=np.uint64)):
        raise ValueError(f"{type(step).__name__}.decide gave a row of shard {part.number} no place, or two")
    order = np.argsort(leaving["to"], kind="stable")
    to, starts = np.unique(leaving["to"][order], return_index=True)
    messages = []
    for start, end in itertools.pairwise([*starts, len(order)]):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
            stream.write_table(table.take(pa.array(order[start:end])))
        messages.append(sink.getvalue())
    records = np.zeros(len(to), MESSAGE)
    records["key"] = to << np.uint64(32) | np.uint64(part.number)
    ends = np.cumsum([0, *(message.size for message in messages)])
    texts = pa.LargeStringArray.from_buffers(len(to), pa.py_buffer(ends), pa.py_buffer(b"".join(messages)))
    return WithPayload(records, texts)


def run_gather(step: Gather, exchange: Exchange, schema: pa.Schema) -> Decided | None:
    """Decide on rows of a schema, and look up the ids of those that stay for another, or send all to their new shards.
    None where all rows stay as they are."""
    decisions = step.decide(exchange)
    if decisions is None:
        return None
    if decisions.partitions != len(exchange.shards):
        raise ValueError(f"{type(step).__name__}.decide must return records routed by shard")
    if step.arranges:
        leaving = exchange.run("leaving", [decisions], f"{__name__}:leave", route="shard")
        given = np.frombuffer(schema.serialize(), np.uint8)
        answers = exchange.run("moved", [leaving], f"{__name__}:move", route="shard", given=given)
        return Decided(decisions.folder, answers.folder, decisions.producers, answers.producers, len(exchange.shards))
    asked = exchange.run("ids-asked", [decisions], f"{__name__}:ask_ids", route="home")
    answers = exchange.run("ids", [asked], f"{__name__}:answer_ids", route="shard")
    return Decided(decisions.folder, answers.folder, decisions.producers, answers.producers, len(exchange.shards))


@dataclass(frozen=True)
class Applied:
    """What a Gather decided for one shard: the rows to drop, in their order, and what dropped/ shows of each."""

    rows: np.ndarray
    columns: dict[str, pa.Array]


def read_decisions(decided: Decided, number: int, step: Gather) -> Applied:
    """The decisions for one shard, in the order of its rows."""
    decisions, _ = Records(decided.decisions, decided.producers, decided.shards).partition(number)
    answers, texts = Records(decided.answers, decided.answerers, decided.shards).partition(number)
    assert texts is not None
    codes = decisions["reason"] if "reason" in (decisions.dtype.names or ()) else np.zeros(len(decisions), np.uint8)
    if len(np.unique(decisions["key"])) != len(decisions):
        raise ValueError(f"{type(step).__name__}.decide dropped a row of shard {number} twice")
    if len(codes) and codes.max() >= len(step.reasons):
        raise ValueError(f"{type(step).__name__}: reason {codes.max()}, and its reasons are {step.reasons}")
    columns = {"reason": pa.array(step.reasons, pa.string()).take(pa.array(codes))}
    for role, name in enumerate(ROLES):
        asked = decisions[name] != decisions["key"]
        at = pa.array(np.cumsum(asked) - 1, mask=~asked)
        columns[f"{name}_id"] = texts.filter(pa.array(answers["role"] == role)).take(at)
    alone = decisions["kept"] == decisions["key"]
    columns["similarity"] = pa.array(decisions["similarity"], mask=alone)
    return Applied((decisions["key"] & ROW).astype(np.int64), columns)


def read_arranged(decided: Decided, number: int, schema: pa.Schema, limit: int) -> Iterator[pa.RecordBatch]:
    """The rows of a new shard, all of which are held, in their order and in batches of about `limit` bytes."""
    places, _ = Records(decided.decisions, decided.producers, decided.shards).partition(number)
    if not np.array_equal(places["key"] & ROW, np.arange(len(places), dtype=np.uint64)):
        raise ValueError(f"shard {number}: its new places are not those from 0 to {len(places) - 1}")
    _, messages = Records(decided.answers, decided.answerers, decided.shards).partition(number)
    assert messages is not None
    held = [batch for one in messages.cast(pa.large_binary()) for batch in pa.ipc.open_stream(one.as_buffer())]
    if not held:
        return
    came = np.empty(len(places), np.int64)
    came[np.argsort(places["kept"])] = np.arange(len(places))  # they are held in their old order
    sizes = np.concatenate([shard.row_bytes(batch) for batch in held])
    table = pa.Table.from_batches(held, schema).combine_chunks()
    piece = np.cumsum(sizes[came]) // limit
    for part in np.split(came, np.flatnonzero(np.diff(piece)) + 1):
        yield from table.take(pa.array(part)).combine_chunks().to_batches()
