"""Remove texts that are equal, or nearly equal, to one that comes before them.

`Exact` and `MinHash` look at the whole dataset: the order is that of its shards and of the rows in them, and the
first text of each kind stays. Memory is bounded by a partition's records, however many documents there are.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Le

from factory.engine.step import Gather, Memo
from factory.kernels import jit
from factory.kernels.minhash import NONE, agreement, band_keys, signatures
from factory.kernels.xxh3 import xxh3

if TYPE_CHECKING:
    from factory.engine.gather import Exchange, Part, Records

SHARD, ROW = np.uint64(32), np.uint64(0xFFFFFFFF)
REPRESENTATIVES = 8
"""A bucket of n rows gives edges to its first 8 rows only, not n² pairs,"""
CROWD = 65536
"""and rows beyond so many to the first row only: copies of one text by the million are the reason."""
BLOCK = 65536
"""Signatures read at a time."""
LEADERS = 64
"""A row is compared with at most so many kept rows of its cluster."""

DROP = np.dtype([("key", np.uint64), ("kept", np.uint64), ("pair", np.uint64), ("similarity", np.float32)])
SAME = np.dtype([("key", np.uint64), ("high", np.uint64), ("doc", np.uint64)])
BAND = np.dtype([("key", np.uint64), ("doc", np.uint64)])
PAIR = np.dtype([("key", np.uint64), ("other", np.uint64)])
EDGE = np.dtype([("key", np.uint64), ("other", np.uint64), ("similarity", np.float32)])
LINK = np.dtype([("key", np.uint64), ("other", np.uint64), ("moved", np.uint8)])
MEMBER = np.dtype([("key", np.uint64), ("doc", np.uint64), ("pair", np.uint64), ("similarity", np.float32)])


def records(dtype: np.dtype, *columns: np.ndarray | int | float) -> np.ndarray:
    """A structured array from its columns; a scalar is repeated."""
    size = max(len(column) for column in columns if isinstance(column, np.ndarray))
    out = np.empty(size, dtype)
    for name, column in zip(dtype.names or (), columns, strict=True):
        out[name] = column
    return out


def groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For sorted keys: where each group starts (int64[groups]), and the group of each element (int64[n])."""
    new = np.ones(len(keys), np.bool_)
    new[1:] = keys[1:] != keys[:-1]
    return np.flatnonzero(new), np.cumsum(new) - 1


def ordered(array: np.ndarray) -> np.ndarray:
    """Records sorted by all their fields, the first one first."""
    return array[np.lexsort([array[name] for name in reversed(array.dtype.names or ())])]


def unique(array: np.ndarray, *fields: str) -> np.ndarray:
    """The first of each run of records that agree in `fields`; the records are sorted by them."""
    new = np.zeros(len(array), np.bool_)
    new[:1] = True
    for name in fields:
        new[1:] |= array[name][1:] != array[name][:-1]
    return array[new]


def bucket_pairs(band: np.ndarray) -> np.ndarray:
    """Candidates (PAIR, `key` the later row) from BAND records sorted by key and doc: each row of a bucket with the
    first rows of it."""
    band = unique(band, "key", "doc")
    starts, group = groups(band["key"])
    first = starts[group]
    place = np.arange(len(band)) - first
    found = []
    for k in range(REPRESENTATIVES):
        later = np.flatnonzero((place > k) & (place <= CROWD)) if k else np.flatnonzero(place)
        found.append(records(PAIR, band["doc"][later], band["doc"][first[later] + k]))
    return unique(ordered(np.concatenate(found)), "key", "other")


def small_star(links: np.ndarray) -> np.ndarray:
    """Tie each row, and all before it that it is linked to, to the first of those (Kiveris et al. 2014, "Connected
    components in MapReduce and beyond"). Takes LINK records sorted by all fields, uses those whose `key` is the later
    row, and gives each link in both directions, for `large_star`. What moved here or just before is marked."""
    links = links[links["key"] > links["other"]]
    starts, group = groups(links["key"])
    ends = np.append(starts, len(links))[1:] - 1
    first = links["other"][starts]
    moved = np.maximum.reduceat(links["moved"], starts) if len(starts) else np.zeros(0, np.uint8)
    moved = np.maximum(moved, links["other"][ends] != first)
    more = links["other"] != first[group]
    later = np.concatenate([links["key"][starts], links["other"][more]])
    least = np.concatenate([first, first[group][more]])
    moved = np.concatenate([moved, np.ones(int(more.sum()), np.uint8)])
    return np.concatenate([records(LINK, later, least, moved), records(LINK, least, later, moved)])


def large_star(links: np.ndarray) -> np.ndarray:
    """Tie the rows that come after a row to the first of its neighbours or itself. Takes LINK records of both
    directions sorted by `key` and `other`; gives each link once, `key` the later row, for `small_star`. What moved
    here is marked, earlier marks are gone."""
    links = unique(links, "key", "other")
    starts, group = groups(links["key"])
    least = np.minimum(links["other"][starts], links["key"][starts])[group]
    later = links["other"] > links["key"]
    return records(LINK, links["other"][later], least[later], (least < links["key"])[later])


def members(links: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """MEMBER records, `key` the first row of the cluster, from finished LINKs and verified EDGEs of the same rows:
    each row with the earlier row that is most like it, or with itself at 0 where it is tied by later rows only."""
    links = unique(links[links["key"] > links["other"]], "key")
    edges = unique(edges[np.lexsort([edges["other"], -edges["similarity"], edges["key"]])], "key")
    out = records(MEMBER, links["other"], links["key"], links["key"], 0.0)
    _, at, found = np.intersect1d(links["key"], edges["key"], assume_unique=True, return_indices=True)
    out["pair"][at], out["similarity"][at] = edges["other"][found], edges["similarity"][found]
    return out


@jit
def _find(values: np.ndarray, low: int, high: int, value: np.uint64) -> int:
    """The first place from `low` to `high` with at least `value`, where they are sorted; `high` if there is none."""
    while low < high:
        middle = (low + high) >> 1
        if values[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def _settle(cluster, doc, pair, similarity, signature, begin, verify, leaders, named, count, kept) -> int:  # type: ignore[no-untyped-def]
    """Decide the rows from `begin`, whose signatures are given. `leaders`, `named` and `count` carry over calls."""
    for k in range(len(signature)):
        i = begin + k
        if doc[i] == cluster[i]:
            count = 0
        else:
            # The pair stands before this row in the same cluster, or is this row (no pair).
            j = _find(doc, _find(cluster, 0, i, cluster[i]), i, pair[i])
            if j < i and kept[j] == doc[j]:
                kept[i] = doc[j]
                continue
            best, most = -1, -1
            for n in range(count):
                same = 0
                for p in range(signature.shape[1]):
                    same += signature[k, p] == leaders[n, p]
                if same > most:
                    best, most = n, same
            agreed = np.float32(most) / np.float32(signature.shape[1])
            if best >= 0 and agreed >= verify:
                kept[i] = named[best]
                if agreed > similarity[i]:
                    pair[i], similarity[i] = named[best], agreed
                continue
        kept[i] = doc[i]
        if count < len(leaders):
            leaders[count], named[count] = signature[k], doc[i]
            count += 1
    return count


def fetch(part: Part, docs: np.ndarray) -> np.ndarray:
    """uint32[n, k]: the signatures of rows anywhere in the dataset, read shard by shard."""
    order = np.argsort(docs)
    starts, _ = groups(docs[order] >> SHARD)
    out = None
    for run in np.split(order, starts[1:]):
        found = part.side("signatures", int(docs[run[0]] >> SHARD))[(docs[run] & ROW).astype(np.int64)]
        if out is None:
            out = np.empty((len(docs), found.shape[1]), np.uint32)
        out[run] = found
    assert out is not None
    return out


def salts(batch: pa.RecordBatch, memo: Memo, by: str) -> np.ndarray:
    """uint64 a row, equal where the values of the column `by` are (null as the empty string); zeros without it."""
    if not by:
        return np.zeros(batch.num_rows, np.uint64)
    return memo(xxh3, batch.column(by).cast(pa.large_string()).fill_null(""))[:, 0]


@dataclass(frozen=True, kw_only=True)
class Exact(Gather):
    """Drop a text that is byte for byte the same as an earlier one (reason `exact_duplicate`).

    Texts are compared by their 128-bit XXH3 hashes: no two different texts are expected to meet below 10^18 rows.
    """

    reasons: ClassVar[tuple[str, ...]] = ("exact_duplicate",)

    by: str = ""
    """A column, such as `dump`: only rows with the same value in it are compared. Empty: all rows."""
    column: str = "text"
    """The column that is compared."""

    def needs(self) -> tuple[str, ...]:
        return (self.column, self.by) if self.by else (self.column,)

    def emit(self, batch: pa.RecordBatch, memo: Memo, docs: np.ndarray) -> dict[str, np.ndarray]:
        texts = batch.column(self.column)
        hashes, salt = memo(xxh3, texts), salts(batch, memo, self.by)
        # A row without a value is like no other.
        alive = memo.alive & texts.is_valid().to_numpy(zero_copy_only=False)
        return {"hashes": records(SAME, (hashes[:, 0] ^ salt)[alive], hashes[alive, 1], docs[alive])}

    def decide(self, exchange: Exchange) -> Records | None:
        return exchange.run("same", [exchange.emitted("hashes")], "same", route="shard")

    def same(self, part: Part) -> np.ndarray:
        """All but the first of each run of equal hashes."""
        rows = part.records[0]
        new = np.ones(len(rows), np.bool_)
        new[1:] = (rows["key"][1:] != rows["key"][:-1]) | (rows["high"][1:] != rows["high"][:-1])
        first = rows["doc"][np.flatnonzero(new)][np.cumsum(new) - 1][~new]
        return records(DROP, rows["doc"][~new], first, first, 1.0)


@dataclass(frozen=True, kw_only=True)
class MinHash(Gather):
    """Drop a text that is nearly the same as an earlier one (reason `near_duplicate`), by MinHash and LSH.

    Texts are sets of overlapping word n-grams, and likeness is Jaccard's. Two texts meet where all `rows` values of
    one of `bands` agree: with 14 bands of 8 rows (FineWeb) 56, 77, 92, 98.8% of the pairs with likeness 0.70, 0.75,
    0.80, 0.85 do. Pairs that met are verified: their whole signatures must agree in a share of at least `verify`.

    Verified pairs make clusters, whose first row is kept. Pairs chain: a is like b, b like c, but c may be unlike a.
    So rows are decided in dataset order: one goes if the earlier row most like it was kept, or if it agrees with a
    kept row of its cluster (the first 64 are tried) by `verify`; else it is kept as well. Each dropped row names the
    kept row, the row that was most like it, and their likeness as estimated. A text with fewer words than `ngram` is
    one n-gram; a text without words is never like another.
    """

    reasons: ClassVar[tuple[str, ...]] = ("near_duplicate",)

    ngram: Annotated[int, Ge(1)] = 5
    """Words in a shingle."""
    bands: Annotated[int, Ge(1)] = 14
    """Bands of a signature: more find more pairs."""
    rows: Annotated[int, Ge(1)] = 8
    """Values in a band: more find fewer unlike pairs."""
    by: str = ""
    """A column, such as `dump`: only rows with the same value in it are compared. Empty: all rows."""
    verify: Annotated[float, Ge(0.0), Le(1.0)] = 0.525
    """The share of the signature's bands x rows values in which a pair must agree; 0: all pairs that met count."""
    words: Literal["unicode", "spacy"] = "unicode"
    """What a word is: a run of letters and digits, scripts without spaces cut up; or a token of spaCy's rules."""
    seed: Annotated[int, Ge(0)] = 1
    """Chooses the permutations."""
    column: str = "text"
    """The column that is compared."""

    def libraries(self) -> tuple[str, ...]:
        return ("unicodedata",)

    def needs(self) -> tuple[str, ...]:
        return (self.column, self.by) if self.by else (self.column,)

    def emit(self, batch: pa.RecordBatch, memo: Memo, docs: np.ndarray) -> dict[str, np.ndarray]:
        options = (self.words, self.ngram, self.bands * self.rows, self.seed)
        made = memo(signatures, batch.column(self.column), *options)[memo.alive]
        some = made.min(axis=1) != NONE
        keys = band_keys(made[some], self.bands, salts(batch, memo, self.by)[memo.alive][some])
        return {
            "bands": records(BAND, keys.ravel(), np.repeat(docs[memo.alive][some], self.bands)),
            "signatures": made,
        }

    def decide(self, exchange: Exchange) -> Records | None:
        pairs = exchange.run("pairs", [exchange.emitted("bands")], "meet", route="shard")
        edges = exchange.run("edges", [pairs], "check")
        if not edges.rows:
            return None
        clusters = exchange.run("members", [self.clusters(exchange, edges), edges], "join")
        return exchange.run("drops", [clusters], "settle", route="shard")

    def clusters(self, exchange: Exchange, edges: Records) -> Records:
        """LINKs of each row of a cluster with the first of it, and back."""
        links = exchange.run("star-0", [edges], "begin")
        for turn in itertools.count(1):
            links = exchange.run(f"star-{2 * turn - 1}", [links], "large")
            links = exchange.run(f"star-{2 * turn}", [links], "small")
            if not exchange.run(f"moved-{turn}", [links], "moved").rows:
                break
        return links

    def meet(self, part: Part) -> np.ndarray:
        """Of each bucket the pairs to be verified."""
        return bucket_pairs(part.records[0])

    def check(self, part: Part) -> np.ndarray:
        """The pairs that agree, with the share in which they do."""
        pairs = unique(part.records[0], "key", "other")
        # By the shard of the other row, so that few signature files are open at a time.
        pairs = pairs[np.argsort(pairs["other"], kind="stable")]
        out = records(EDGE, pairs["key"], pairs["other"], 0.0)
        for at in range(0, len(out), BLOCK):
            block = out[at : at + BLOCK]
            block["similarity"] = agreement(fetch(part, block["key"]), fetch(part, block["other"]))
        return out[out["similarity"] >= np.float32(self.verify)]

    def begin(self, part: Part) -> np.ndarray:
        edges = part.records[0]
        return small_star(records(LINK, edges["key"], edges["other"], 0))

    def small(self, part: Part) -> np.ndarray:
        return small_star(part.records[0])

    def large(self, part: Part) -> np.ndarray:
        return large_star(part.records[0])

    def moved(self, part: Part) -> np.ndarray:
        """One link where any moved."""
        return part.records[0][part.records[0]["moved"] > 0][:1]

    def join(self, part: Part) -> np.ndarray:
        return members(part.records[0], part.records[1])

    def settle(self, part: Part) -> np.ndarray:
        """The rows of each cluster that go."""
        rows = part.records[0]
        starts, group = groups(rows["key"])
        roots = rows["key"][starts]
        # Where every row is tied to the first one there is nothing to compare.
        chained = np.zeros(len(starts), np.bool_)
        chained[group[rows["pair"] != rows["key"]]] = True
        easy = rows[~chained[group]]
        hard = ordered(np.concatenate([rows[chained[group]], records(MEMBER, *([roots[chained]] * 3), 1.0)]))
        kept = np.zeros(len(hard), np.uint64)
        cluster, doc = np.ascontiguousarray(hard["key"]), np.ascontiguousarray(hard["doc"])
        pair, similarity = np.ascontiguousarray(hard["pair"]), np.ascontiguousarray(hard["similarity"])
        leaders, named = np.zeros((LEADERS, self.bands * self.rows), np.uint32), np.zeros(LEADERS, np.uint64)
        count = 0
        for at in range(0, len(hard), BLOCK):
            found = fetch(part, doc[at : at + BLOCK])
            count = _settle(
                cluster, doc, pair, similarity, found, at, np.float32(self.verify), leaders, named, count, kept
            )
        gone = kept != doc
        return np.concatenate(
            [
                records(DROP, easy["doc"], easy["key"], easy["key"], easy["similarity"]),
                records(DROP, doc[gone], kept[gone], pair[gone], similarity[gone]),
            ]
        )
