"""Rows in a new order: every row once, in shards of about the same bytes, the same at every run."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.corpus.order import ascending
from factory.engine import files, manifest, plan
from factory.engine.errors import FactoryError
from tests.conftest import REPOSITORY
from tests.engine.build import build, check_law, content, make

Rows = list[dict[str, Any]]
TYPES = {"id": pa.large_string(), "text": pa.large_string(), "score": pa.float64(), "prompt": pa.large_string()}
PROMPTS = ["two", "", "three", "zéro"]
SCORES = st.none() | st.sampled_from([0.0, -0.0, 1.5, -2.0, math.inf, -math.inf, math.nan]) | st.floats()


def write(folder: Path, shards: Sequence[Rows], **types: pa.DataType) -> dict[str, Any]:
    """A source of so many shards: a file each."""
    schema = pa.schema(list({**TYPES, **types}.items()))
    for number, rows in enumerate(shards):
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"{number:03d}.parquet")
    return {"use": "ingest.Parquet", "glob": str(folder / "*.parquet")}


def read(built: manifest.Manifest) -> list[Rows]:
    return [pq.read_table(url).to_pylist() for url in built.urls()]


def flat(shards: Sequence[Rows]) -> Rows:
    return [row for shard in shards for row in shard]


def ids(shards: Sequence[Rows]) -> list[str]:
    return [row["id"] for row in flat(shards)]


def some(rows: int, shards: int, seed: int = 0) -> list[Rows]:
    """Rows of very different sizes, more of them in the later shards."""
    chance = np.random.default_rng(seed)
    edges = (np.linspace(0, 1, shards + 1) ** 2 * rows).astype(int)
    made = [
        {
            "id": f"r{n}",
            "text": "x" * int(chance.lognormal(4, 1.5)),
            "score": None if n % 17 == 3 else float(chance.integers(0, 40)),
            "prompt": None if n % 19 == 5 else f"prompt {chance.integers(0, rows // 4)}",
        }
        for n in range(rows)
    ]
    return [made[a:b] for a, b in itertools.pairwise(edges)]


SHARDS = st.lists(
    st.lists(st.tuples(SCORES, st.none() | st.sampled_from(PROMPTS)), max_size=12), min_size=1, max_size=4
)


@given(made=SHARDS, use=st.sampled_from(["Sort", "Descending", "Together", "Shuffle"]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_a_stable_sort_of_all_rows(tmp_path_factory, made, use):
    folder = tmp_path_factory.mktemp("order")
    shards = [
        [{"id": f"{s}-{n}", "text": "t" * n, "score": score, "prompt": prompt} for n, (score, prompt) in enumerate(one)]
        for s, one in enumerate(made)
    ]
    source = write(folder, shards)
    rows = flat(shards)
    if not rows:
        return
    if use == "Together":
        step = {"use": "order.Together", "by": "prompt"}
        first = {row["prompt"]: n for n, row in reversed(list(enumerate(rows)))}
        expected = sorted(range(len(rows)), key=lambda n: n if rows[n]["prompt"] is None else first[rows[n]["prompt"]])
    elif use == "Shuffle":
        step = {"use": "order.Shuffle", "seed": 3}
        expected = []
    else:
        step = {"use": "order.Sort", "by": "score", "descending": use == "Descending"}
        sign = -1 if use == "Descending" else 1

        def key(n: int) -> tuple[bool, float]:
            score = rows[n]["score"]
            return (True, 0.0) if score is None or math.isnan(score) else (False, sign * score)

        expected = sorted(range(len(rows)), key=key)
    built = build(make(source, step), folder / "runs")
    check_law(built)
    found = read(built)
    if use == "Shuffle":
        assert sorted(ids(found)) == sorted(ids(shards))
    else:
        assert ids(found) == [rows[n]["id"] for n in expected]
    whole = {row["id"]: repr(row) for row in rows}
    assert all(repr(row) == whole[row["id"]] for row in flat(found))


STEPS: list[dict[str, Any]] = [
    {"use": "order.Sort", "by": "score"},
    {"use": "order.Together", "by": "prompt"},
    {"use": "order.Shuffle", "seed": 1},
]


def test_bytes_depend_on_neither_workers_nor_partitions(tmp_path, monkeypatch):
    sort, together, shuffle = STEPS
    steps = [write(tmp_path, some(900, 6)), sort, {"use": "DropOdd"}, together, {"use": "Once"}, shuffle]
    built = [build(make(*steps), tmp_path / str(workers), workers) for workers in (0, 2)]
    monkeypatch.setattr(plan, "PARTITION_BYTES", 5000)
    built.append(build(make(*steps), tmp_path / "partitions"))
    first = content(built[0], "rows", "dropped", "failed")
    assert len(first) >= 7
    assert [content(other, "rows", "dropped", "failed") for other in built[1:]] == [first, first]
    check_law(built[0])
    assert all(built[0].funnel[at]["rows_in"] == built[0].funnel[at]["kept"] > 0 for at in (1, 3, 5))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step["use"])
def test_new_shards_have_about_the_same_bytes(tmp_path, step):
    shards = some(6000, 8)
    built = build(make(write(tmp_path, shards), step), tmp_path / "runs")
    sizes = np.array([sum(len(row["text"]) for row in shard) for shard in read(built)])
    assert len(sizes) == 8
    assert (np.abs(sizes / sizes.mean() - 1) < 0.2).all(), sizes


def test_rows_of_a_value_are_in_one_shard(tmp_path):
    """Also where one value has more rows than a shard is to hold."""
    shards = some(2000, 5)
    for row in flat(shards)[::3]:
        row["prompt"] = "the same"
    found = read(build(make(write(tmp_path, shards), STEPS[1]), tmp_path / "runs"))
    seen: dict[str, int] = {}
    for number, shard in enumerate(found):
        for prompt in {row["prompt"] for row in shard} - {None}:
            assert seen.setdefault(prompt, number) == number
    assert len(seen) > 300


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step["use"])
def test_shards_without_rows(tmp_path, step):
    shards = [[{"id": f"{s}{n}", "text": "x" * (99 + (s == 1)), "score": 0.0} for n in range(3)] for s in range(3)]
    source = write(tmp_path, shards)
    built = build(make(source, {"use": "Shout"}, step), tmp_path / "runs")
    assert sorted(ids(read(built))) == ["10", "11", "12"] and len(built.rows) == 3
    nothing = build(make(source, {"use": "Shout"}, {"use": "DropOdd"}, step, name="nothing"), tmp_path / "runs")
    assert len(nothing.rows) == 3
    none = write(tmp_path, [shard[:0] if n == 1 else shard for n, shard in enumerate(shards)])
    assert not ids(read(build(make(none, {"use": "Shout"}, step, name="none"), tmp_path / "runs")))
    check_law(built)


def test_lists_of_messages_come_together(tmp_path):
    message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    asked = [[{"role": "user", "content": text}] for text in ("one", "two", "three")]
    shards = [[{"id": f"{s}{n}", "text": "", "prompt": asked[(s + n) % 3]} for n in range(3)] for s in range(3)]
    found = read(build(make(write(tmp_path, shards, prompt=message), STEPS[1]), tmp_path / "runs"))
    assert ids(found) == ["00", "12", "21", "01", "10", "22", "02", "11", "20"]


def test_sorting_twice_sorts_by_both(tmp_path):
    shards = some(300, 3)
    steps = [{"use": "order.Shuffle"}, {"use": "Shout"}, {"use": "order.Sort", "by": "length", "descending": True}]
    found = read(build(make(write(tmp_path, shards), *steps, STEPS[0]), tmp_path / "runs"))
    keys = [(row["score"] is None, row["score"] or 0.0, -row["length"]) for row in flat(found)]
    assert keys == sorted(keys) and len(keys) == len([row for row in flat(shards) if len(row["text"]) >= 100])


def test_a_shuffle_is_by_chance_and_by_its_seed(tmp_path):
    shards = some(2000, 4)
    few, many = tmp_path / "few", tmp_path / "many"
    few.mkdir(), many.mkdir()
    found = [
        ids(read(build(make(source, {"use": "order.Shuffle", "seed": seed}), tmp_path / name)))
        for name, seed, source in [
            ("a", 1, write(few, shards)),
            ("b", 1, write(many, [flat(shards)[::-1]])),
            ("c", 2, write(few, shards)),
        ]
    ]
    assert found[0] == found[1] != found[2]
    places = np.empty((2, 2000))
    for n, order in enumerate((found[0], found[2])):
        places[n, [int(id_[1:]) for id_ in order]] = np.arange(2000)
    before = np.arange(2000)
    correlations = [np.corrcoef(before, places[0]), np.corrcoef(before, places[1]), np.corrcoef(places[0], places[1])]
    assert all(abs(c[0, 1]) < 4 / math.sqrt(2000) for c in correlations)


def test_a_column_that_has_no_order_is_an_error_of_the_plan(tmp_path):
    source = write(tmp_path, some(10, 1))
    with pytest.raises(
        FactoryError, match=r"step 2 \(order.Sort\): by = 'text' holds large_string: rows are sorted by"
    ):
        build(make(source, {"use": "order.Sort", "by": "text"}), tmp_path / "runs")
    with pytest.raises(
        FactoryError, match=r"needs the column 'scores' and nothing before it adds one \(did you mean 'score'"
    ):
        build(make(source, {"use": "order.Sort", "by": "scores"}), tmp_path / "runs")


@pytest.mark.parametrize(
    "values",
    [
        pa.array([3, -1, None, 2**63 - 1, -(2**63), 0], pa.int64()),
        pa.array([3, None, 2**64 - 1, 0], pa.uint64()),
        pa.array([-3, None, 127, -128], pa.int8()),
        pa.array([True, None, False]),
        pa.array([-0.0, 0.0, 1e-310, -1e-310, math.inf, -math.inf, math.nan, None], pa.float64()),
        pa.array([1.5, -2.5, None, 65504.0], pa.float32()),
        pa.array([5, -5, None], pa.date32()),
        pa.array([5, None, 0], pa.time32("s")),
        pa.array([5, -5, None], pa.timestamp("us")),
        pa.array([5, -5, None], pa.duration("ms")),
    ],
    ids=lambda values: str(values.type),
)
def test_numbers_keep_their_order_as_unsigned(values):
    value, missing = ascending(values)
    told = values.to_pylist()
    assert missing.tolist() == [v is None or v != v for v in told]
    for a in np.flatnonzero(~missing):
        for b in np.flatnonzero(~missing):
            assert (value[a] < value[b]) == (told[a] < told[b]) and (value[a] == value[b]) == (told[a] == told[b])


RECIPE = """
name = "killed"
version = "dev"
shard_bytes = 20000
[[step]]
use = "tests.engine.steps:Numbers"
rows = 2000
shards = 40
distinct = 700
[[step]]
use = "order.Together"
by = "text"
[[step]]
use = "tests.engine.steps:DropOdd"
delay = 0.02
[[step]]
use = "order.Shuffle"
"""
WATCHED = ("runs", "weights", "coming", "places")


@pytest.mark.slow
def test_killed_while_it_arranges_it_ends_in_the_same_bytes(tmp_path):
    recipe = tmp_path / "killed.toml"
    recipe.write_text(RECIPE)
    command = [sys.executable, "-m", "factory", "run", str(recipe), "--workers", "2", "--out"]
    subprocess.run([*command, str(tmp_path / "calm")], check=True, cwd=REPOSITORY, capture_output=True)
    calm = manifest.load(str(tmp_path / "calm"), "killed@dev")
    root, kills = tmp_path / "rough", 0
    moments = [f".stages/*/gather-*/exchanges/{name}/*/*" for name in WATCHED] + [".stages/*/receipts/*/*"]
    for moment in moments:
        before = len(list(root.glob(moment)))
        process = subprocess.Popen(
            [*command, str(root)],
            cwd=REPOSITORY,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None:
            if len([p for p in root.glob(moment) if not p.name.endswith(files.TEMPORARY)]) > before:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.002)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 3
    subprocess.run([*command, str(root)], check=True, cwd=REPOSITORY, capture_output=True)
    rough = manifest.load(str(root), "killed@dev")
    assert content(rough, "rows", "dropped", "failed") == content(calm, "rows", "dropped", "failed")
    assert len(rough.rows) == 40 and not list(root.rglob("*" + files.TEMPORARY))
    check_law(rough)
