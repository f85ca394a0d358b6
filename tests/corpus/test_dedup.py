"""Deduplication: the pieces against brute force, the whole on planted pairs in real text."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from factory.corpus import dedup
from factory.corpus.dedup import EDGE, LINK, MEMBER, Exact, MinHash, bucket_pairs, large_star, records, small_star
from factory.engine import recipe, run
from factory.engine.errors import FactoryError
from factory.engine.manifest import Manifest
from factory.engine.step import Gather
from tests.corpus.exchange import InMemory, Slice, ordered

Shards = list[list[tuple[pa.RecordBatch, np.ndarray | None]]]


def shards(texts: list[list[str]], rows: int = 3, by: list[list[str]] | None = None) -> Shards:
    """A shard for each list, in batches of at most `rows` rows."""
    out: Shards = []
    for number, shard in enumerate(texts):
        columns = {"text": pa.array(shard, pa.large_string())}
        if by is not None:
            columns["dump"] = pa.array(by[number], pa.string())
        batch = pa.RecordBatch.from_pydict(columns)
        cuts = range(0, max(len(shard), 1), rows)
        out.append([(batch.slice(at, rows), None) for at in cuts])
    return out


def doc(shard: int, row: int) -> int:
    return shard << 32 | row


def pairs(found: np.ndarray) -> list[tuple[int, int]]:
    return [(int(r["key"]), int(r["kept"])) for r in found]


# Exact duplicates.


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["", "a", "a ", "A", "\0", "é" * 200]), max_size=9), min_size=1, max_size=4))
def test_exact_is_brute_force(texts: list[list[str]]) -> None:
    first: dict[str, int] = {}
    expected = []
    for s, shard in enumerate(texts):
        for r, text in enumerate(shard):
            if first.setdefault(text, doc(s, r)) != doc(s, r):
                expected.append((doc(s, r), first[text]))
    found = InMemory(Exact(), shards(texts)).dropped()
    assert pairs(found) == expected
    assert (found["pair"] == found["kept"]).all() and (found["similarity"] == 1).all()


def test_exact_within_the_values_of_a_column() -> None:
    made = shards([["a", "a", "a"], ["a", "b", "b"]], by=[["x", "y", "x"], ["y", "x", "y"]])
    assert pairs(InMemory(Exact(by="dump"), made).dropped()) == [(doc(0, 2), doc(0, 0)), (doc(1, 0), doc(0, 1))]
    assert Exact(by="dump").needs() == ("text", "dump")


def test_dead_rows_neither_stay_nor_go() -> None:
    for step in (Exact(), MinHash()):
        made = shards([["one two three", "one two three", "x", "one two three"]], rows=2)
        made[0][0] = (made[0][0][0], np.array([False, True]))
        # The first row is gone, so rows are numbered without it.
        assert pairs(InMemory(step, made).dropped()) == [(doc(0, 2), doc(0, 0))]


# Clusters.


def components(edges: np.ndarray, turns: list[int] | None = None) -> dict[int, int]:
    """What MinHash's rounds make of EDGEs: row to the first row of its cluster."""

    class Edges(MinHash):
        def emit(self, batch, memo, docs):  # type: ignore[no-untyped-def]
            return {"edges": edges}

        def decide(self, exchange):  # type: ignore[no-untyped-def]
            inner = exchange.emitted("edges")
            links = self.clusters(exchange, inner)
            return exchange.run("done", [links], "finish")

        def finish(self, part: Slice) -> np.ndarray:
            links = part.records[0]
            return dedup.members(links, np.empty(0, EDGE))

    exchange = InMemory(Edges(), shards([[""]]), partitions=3)
    found = exchange.dropped()
    if turns is not None:
        turns.append(sum(name.startswith("moved") for name in exchange.names))
    assert len(np.unique(found["doc"])) == len(found), "a row is in one cluster"
    return {int(r["doc"]): int(r["key"]) for r in found}


def expected_components(nodes: int, left: np.ndarray, right: np.ndarray) -> dict[int, int]:
    graph = coo_array((np.ones(len(left)), (left, right)), shape=(nodes, nodes))
    _, labels = connected_components(graph, directed=False)
    first = {}
    for node, label in enumerate(labels):
        first.setdefault(label, node)
    return {node: first[label] for node, label in enumerate(labels) if first[label] != node}


def edges_of(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    keep = left != right
    return records(EDGE, np.maximum(left, right)[keep].astype("u8"), np.minimum(left, right)[keep].astype("u8"), 1.0)


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 60), st.integers(0, 2**32), st.floats(0.05, 3))
def test_clusters_are_connected_components(nodes: int, seed: int, density: float) -> None:
    random = np.random.default_rng(seed)
    left, right = random.integers(0, nodes, (2, max(1, int(nodes * density))))
    assert components(edges_of(left, right)) == expected_components(nodes, left, right)


@pytest.mark.parametrize("shape", ["path", "path reversed", "path shuffled", "star", "late star", "tree", "grid"])
def test_clusters_of_hard_shapes_take_few_rounds(shape: str) -> None:
    n = 2000
    k = np.arange(1, n)
    left, right = {
        "path": (k, k - 1),
        "path reversed": (n - 1 - k, n - k),
        "path shuffled": tuple(np.random.default_rng(0).permutation(n)[[k, k - 1]]),
        "star": (k, np.zeros(n - 1, np.int64)),
        "late star": (k - 1, np.full(n - 1, n - 1)),
        "tree": (k, k // 2),
        "grid": (np.concatenate([k, k[40:]]), np.concatenate([k - 1, k[40:] - 40])),
    }[shape]
    turns: list[int] = []
    assert components(edges_of(left, right), turns) == expected_components(n, left, right)
    assert turns[0] <= 14


def test_stars_stay_as_they_are() -> None:
    star = records(LINK, np.array([5, 7, 9], "u8"), np.array([2, 2, 3], "u8"), 0)
    both = ordered(small_star(star))
    assert not both["moved"].any()
    again = ordered(large_star(both))
    assert not again["moved"].any()
    assert again.tolist() == star.tolist()
    assert len(small_star(star[:0])) == len(large_star(star[:0])) == 0


# Candidates and decisions.


def test_big_buckets_give_few_pairs() -> None:
    band = np.array([(7, d) for d in range(1000)] + [(8, 3), (8, 3), (9, 995), (9, 999)], dedup.BAND)
    found = bucket_pairs(band)
    assert len(found) == 8 * 1000 - 36 + 1  # each with the first 8 before it, and the pair of bucket 9
    assert (found["key"] > found["other"]).all()
    assert len(np.unique(found)) == len(found)


def test_rows_beyond_a_crowd_are_tied_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup, "CROWD", 20)
    found = bucket_pairs(np.array([(7, d) for d in range(100)], dedup.BAND))
    assert len(found) == 8 * 21 - 36 + 79
    assert set(found["key"].tolist()) == set(range(1, 100))


def settle(signatures: dict[int, str], rows: list[tuple[int, int, int, float]], verify: float) -> list[tuple]:
    """MinHash.settle over letters as signatures: `rows` are (cluster, doc, pair, similarity)."""
    size = len(next(iter(signatures.values())))
    side = np.zeros((max(signatures) + 1, size), np.uint32)
    for row, letters in signatures.items():
        side[row] = [ord(letter) for letter in letters]
    step = MinHash(bands=1, rows=size, verify=verify)
    part = Slice(0, [ordered(np.array(rows, MEMBER))], {"signatures": [side]})
    return ordered(step.settle(part)).tolist()  # type: ignore[arg-type]


def test_what_is_tied_to_the_first_row_goes() -> None:
    rows = [(0, 1, 0, 0.75), (0, 4, 0, 1.0), (2, 3, 2, 0.5)]
    assert settle({0: "aaaa", 4: "...."}, rows, 0.5) == [(1, 0, 0, 0.75), (3, 2, 2, 0.5), (4, 0, 0, 1.0)]


def test_the_end_of_a_chain_stays() -> None:
    # 1 is like 0, 2 like 1, 3 like 2; 2 is not like 0 and stays, 3 goes for 2.
    chain = {0: "aaaa", 1: "aabb", 2: "bbbb", 3: "bbbc"}
    rows = [(0, 1, 0, 0.5), (0, 2, 1, 0.5), (0, 3, 2, 0.75)]
    assert settle(chain, rows, 0.5) == [(1, 0, 0, 0.5), (3, 2, 2, 0.75)]
    # 2 is like 0 after all, though it was tied by 1: the kept row and the likest are both named.
    near = {0: "aaaa", 1: "aaab", 2: "aabb"}
    assert settle(near, [(0, 1, 0, 0.75), (0, 2, 1, 0.75)], 0.5) == [(1, 0, 0, 0.75), (2, 0, 1, 0.75)]
    # A row with no earlier pair is still compared with what is kept.
    late = {0: "aaaa", 1: "aaab", 2: "aaab"}
    assert settle(late, [(0, 1, 1, 0.0), (0, 2, 0, 0.75)], 0.5) == [(1, 0, 0, 0.75), (2, 0, 0, 0.75)]


def test_settling_in_blocks_is_settling_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    signatures = {d: "".join(random.choice(list("ab"), 6)) for d in range(400)}
    rows = [(d - d % 50, d, int(random.integers(d - d % 50, d + 1)), 0.5) for d in range(400) if d % 50]
    whole = settle(signatures, rows, 0.8)
    monkeypatch.setattr(dedup, "BLOCK", 7)
    assert settle(signatures, rows, 0.8) == whole
    assert 50 < len(whole) < 392


# The whole.


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    found = re.findall(r"\w+", text.lower())
    return frozenset(zip(*[found[k:] for k in range(5)], strict=False)) if len(found) > 4 else frozenset([tuple(found)])


def jaccard(a: str, b: str) -> float:
    left, right = shingles(a), shingles(b)
    return len(left & right) / len(left | right)


LINES = [
    "the committee met on tuesday and talked about the new bridge over the river for an hour",
    "a recipe for bread needs flour water salt yeast and a good deal of time before it is baked",
    "one two three",
    "",
    "?!",
    "la gare est fermée le dimanche et les jours de fête sauf pendant les vacances de printemps",
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.sampled_from(LINES), st.booleans()), max_size=6), min_size=1, max_size=3))
def test_near_duplicates_are_brute_force_on_clear_cases(picked: list[list[tuple[str, bool]]]) -> None:
    # Texts are the same but for case and marks, or nothing alike, so LSH has no say.
    texts = [[line.upper() + "..." if loud else line for line, loud in shard] for shard in picked]
    first: dict[str, int] = {}
    expected = []
    for s, shard in enumerate(picked):
        for r, (line, _) in enumerate(shard):
            if any(map(str.isalpha, line)) and first.setdefault(line, doc(s, r)) != doc(s, r):
                expected.append((doc(s, r), first[line]))
    found = InMemory(MinHash(), shards(texts)).dropped()
    assert pairs(found) == expected
    assert (found["similarity"] == 1).all()


def test_near_duplicates_within_the_values_of_a_column() -> None:
    line = LINES[0]
    made = shards([[line, line.upper(), line + "!"]], by=[["x", "y", "x"]])
    assert pairs(InMemory(MinHash(by="dump"), made).dropped()) == [(doc(0, 2), doc(0, 0))]
    batch = pa.RecordBatch.from_pydict({"text": pa.array([line] * 3, pa.large_string()), "dump": [None, "", "x"]})
    assert pairs(InMemory(MinHash(by="dump"), [[(batch, None)]]).dropped()) == [(1, 0)]


@pytest.mark.parametrize("step", [Exact(), MinHash(), MinHash(by="dump"), Exact(by="dump")])
def test_no_rows_and_odd_rows(step: Gather) -> None:
    assert len(InMemory(step, shards([[], []], by=[[], []])).dropped()) == 0
    odd = ["\0", "a\0b", "", "a\0b", "\ufeff", "word"]
    assert (doc(0, 3), doc(0, 1)) in pairs(InMemory(step, shards([odd], by=[["d"] * 6])).dropped())


def test_fifty_megabytes_in_a_document() -> None:
    text = LINES[0] * (50_000_000 // len(LINES[0]))
    for step in (Exact(), MinHash()):
        assert pairs(InMemory(step, shards([[text, "short"], [text]])).dropped()) == [(doc(1, 0), doc(0, 0))]


@pytest.fixture(scope="module")
def web(data: Path) -> tuple[Shards, dict[int, tuple[str, str]], list[tuple[int, int, float]]]:
    """webtext in two shards; row number to (id, text); planted pairs as (earlier, later, exact Jaccard)."""
    made: Shards = []
    rows: dict[int, tuple[str, str]] = {}
    for number in range(2):
        table = pq.read_table(data / f"webtext/0000{number}.parquet", columns=["id", "text"])
        table = table.cast(pa.schema([("id", pa.string()), ("text", pa.large_string())])).combine_chunks()
        made.append([(batch, None) for batch in table.to_batches(max_chunksize=1700)])
        for row, pair in enumerate(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)):
            rows[doc(number, row)] = pair
    place = {id_: row for row, (id_, _) in rows.items()}
    truth = pq.read_table(data / "webtext/truth.parquet").to_pylist()
    originals = {r["cluster"]: place[r["id"]] for r in truth if r["is_orig"] and r["cluster"] >= 0}
    planted = []
    for r in truth:
        if not r["is_orig"]:
            a, b = sorted((originals[r["cluster"]], place[r["id"]]))
            planted.append((a, b, jaccard(rows[a][1], rows[b][1])))
    return made, rows, planted


def test_recall_and_precision_on_planted_pairs(web: tuple) -> None:
    made, rows, planted = web
    found = {int(r["key"]): r for r in InMemory(MinHash(), made).dropped()}
    alike = [b in found for _, b, likeness in planted if likeness >= 0.8]
    assert len(alike) > 500
    assert np.mean(alike) >= 0.99
    similar = cache(lambda a, b: jaccard(rows[a][1], rows[b][1]))
    exact = np.array([similar(key, int(r["kept"])) for key, r in found.items()])
    assert np.mean(exact >= 0.5) >= 0.97
    for key, r in found.items():
        assert int(r["kept"]) not in found and r["kept"] < key and r["pair"] < key
    error = np.array([r["similarity"] - similar(key, int(r["pair"])) for key, r in found.items()])
    assert abs(np.median(error)) < 0.02


def test_the_decisions_do_not_depend_on_batches_or_partitions(web: tuple) -> None:
    made, _, _ = web
    small = [[(shard[0][0], None)] for shard in made]
    cut = [[(shard[0][0].slice(at, 190), None) for at in range(0, 1700, 190)] for shard in made]
    whole = InMemory(MinHash(), small, partitions=1).dropped()
    assert len(whole) > 5
    assert InMemory(MinHash(), cut, partitions=7).dropped().tolist() == whole.tolist()


def test_rows_without_a_value_are_like_no_other(tmp_path: Path) -> None:
    """Only rows that have the column are compared by it; a column that is no text is one line."""
    lines = [{"text": f"t{n}", "url": url} for n, url in enumerate(["a", None, None, "a", None, "b"])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"use": "ingest.JsonLines", "glob": str(tmp_path / "a.jsonl"), "columns": ["url", "n:int64"]}

    def run_with(column: str, name: str) -> Manifest:
        table = {"name": name, "version": "1", "step": [source, {"use": "dedup.Exact", "column": column}]}
        return run.run(recipe.build(table), run.Options(root=str(tmp_path / "runs"), quiet=True))

    built = run_with("url", "urls")
    assert built.counts["rows_kept"] == 5 and built.counts["rows_dropped"] == 1
    with pytest.raises(FactoryError, match="a column of int64 was given where text is needed"):
        run_with("n", "numbers")
