"""What a Gather decided, and how the shards of the next stage apply it: rows to drop, each with its reason, or the new
places of all rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from factory.engine import shard
from factory.engine.gather import Exchange, Part, Records, WithPayload, with_payload
from factory.engine.step import Gather

ASKED = np.dtype([("key", np.uint64), ("doc", np.uint64), ("role", np.uint8)])
ANSWER = np.dtype([("key", np.uint64), ("role", np.uint8)])
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
    """Where a Gather's decisions lie, and the ids to show with them: what the shards of the next stage apply. A Gather
    that arranges has no such ids."""

    decisions: str
    answers: str
    producers: int
    answerers: int
    shards: int


def run_gather(step: Gather, exchange: Exchange, rows: int) -> Decided | None:
    """Decide on so many rows, and look up the ids of those that stay for another. None where all rows stay as they
    are."""
    decisions = step.decide(exchange)
    if decisions is None:
        return None
    if decisions.partitions != len(exchange.shards):
        raise ValueError(f"{type(step).__name__}.decide must return records routed by shard")
    if step.arranges:
        if decisions.rows != rows:
            raise ValueError(f"{type(step).__name__}.decide gave {decisions.rows} places to {rows} rows")
        return Decided(decisions.folder, "", decisions.producers, 0, len(exchange.shards))
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


def read_arranged(
    decided: Decided, number: int, shards: Sequence[str], schema: pa.Schema, limit: int
) -> Iterator[pa.RecordBatch]:
    """The rows that have their place in a new shard, in its order and in batches of about `limit` bytes, read from the
    old shards. Held are the new shard's rows, and one row group of an old one."""
    places, _ = Records(decided.decisions, decided.producers, decided.shards).partition(number)
    docs = places["kept"]
    if not np.array_equal(places["key"] & ROW, np.arange(len(places), dtype=np.uint64)):
        raise ValueError(f"shard {number}: its new places are not those from 0 to {len(places) - 1}")
    order = np.argsort(docs)
    held: list[pa.RecordBatch] = []
    starts = np.flatnonzero(np.diff((docs[order] >> np.uint64(32)).astype(np.int64), prepend=-1))
    for start, end in itertools.pairwise([*starts, len(docs)]):
        mine = docs[order[start:end]]
        rows = (mine & ROW).astype(np.int64)
        held += shard.read_rows(shards[int(mine[0] >> np.uint64(32))], schema, rows)
    if not held:
        return
    came = np.empty(len(docs), np.int64)
    came[order] = np.arange(len(docs))
    sizes = np.concatenate([shard.row_bytes(batch) for batch in held])
    table = pa.Table.from_batches(held, schema).combine_chunks()
    piece = np.cumsum(sizes[came]) // limit
    for part in np.split(came, np.flatnonzero(np.diff(piece)) + 1):
        yield from table.take(pa.array(part)).combine_chunks().to_batches()
